"""Targets that a configuration names: their level, irreps, unit or classes, from a file's column to a graph's label.

A head ``{name: target, level: graph, irreps: 0e+2e, unit: a.u.}`` under the key NAME asks for the target NAME. A store
keeps it as irreps: components in the order of the irreps, each degree in e3nn's real basis (degree 1 is x, y, z), so
that a label turns like features do. What a file writes as Cartesian tensors is converted when it is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sciml.data.records import Field, Record, own_kind
from sciml.irreps import parse_irreps


@dataclass(frozen=True)
class Target:
    """A target of a configuration: ``level`` graph, fine (atoms, particles) or coarse (residues), with ``irreps`` and a
    ``unit``, or with the names of ``classes``; ``extensive`` where it is a sum over fine nodes; ``kind`` of graph that
    it is predicted on, ``column`` in a raw file.
    """

    name: str
    level: str = "graph"
    irreps: str = "0e"
    unit: str = ""
    classes: tuple[str, ...] = ()
    extensive: bool = False
    kind: str = "atoms"
    column: str | None = None

    @property
    def source(self) -> str:
        """Name of the column, key or branch of a raw file."""
        return self.column or self.name

    @cached_property
    def terms(self) -> list[tuple[int, int]]:
        """[(copies, degree)] of the irreps."""
        return parse_irreps(self.irreps)

    @property
    def dimension(self) -> int:
        """Number of components."""
        return sum(copies * (2 * degree + 1) for copies, degree in self.terms)

    @property
    def scalar_columns(self) -> list[int]:
        """Which components are scalars."""
        columns, start = [], 0
        for copies, degree in self.terms:
            columns += list(range(start, start + copies)) if degree == 0 else []
            start += copies * (2 * degree + 1)
        return columns

    @property
    def field(self) -> Field:
        """How a record holds it; NaN, or -1 for classes, where a node has no label."""
        if self.classes:
            return Field(self.name, self.level, "int16", (), "", "target")
        return Field(self.name, self.level, "float32", (self.dimension,), self.unit, "target")

    @property
    def facts(self) -> dict[str, Any]:
        """What a store tells of it."""
        facts = asdict(self)
        return {key: facts[key] for key in ("level", "irreps", "unit", "classes")}


def described_targets(heads: Mapping[str, Mapping[str, Any]]) -> tuple[Target, ...]:
    """The targets of the heads of a configuration, or of a model's description, that have the name ``target``."""
    return tuple(target_of(key, options) for key, options in heads.items() if options.get("name") == "target")


def target_of(name: str, options: Mapping[str, Any]) -> Target:
    """The target of one head, from those of its options that are facts of the labels."""
    fields = {key: options[key] for key in Target.__dataclass_fields__ if key != "name" and key in options}
    return Target(**{"name": name, **fields, "classes": tuple(map(str, fields.get("classes") or ()))})


def stored_targets(manifest: Mapping[str, Any]) -> tuple[Target, ...]:
    """The targets that a store tells of; where an older one has no kind it is that of the domain."""
    kind = own_kind(manifest["domain"])
    return tuple(target_of(name, {"kind": kind, **facts}) for name, facts in manifest.get("targets", {}).items())


def label_rows(target: Target, record: Record, rows: np.ndarray | slice) -> np.ndarray | None:
    """The labels of one record, (rows, components) or (rows,) classes; None where it has none.

    ``rows`` are the nodes of the record that the graph has.
    """
    if target.name not in record:
        return None
    values = np.asarray(record[target.name])
    return values[None] if target.level == "graph" else values[rows]


def labelled(target: Target, values: np.ndarray) -> int:
    """Number of labels that are there: components that are numbers, or known classes."""
    return int((values >= 0).sum()) if target.classes else int(np.isfinite(values).sum())


def mismatch(target: Target, stores: Sequence[Target]) -> str | None:
    """How a store has a target of the same name otherwise, as "its unit is eV, expected meV"; None where it agrees."""
    for other in stores:
        if other.name == target.name:
            for key, found in other.facts.items():
                expected = target.facts[key]
                if found != expected:
                    return f"its {key} is {_shown(found)}, expected {_shown(expected)}"
    return None


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value) or "none"
