"""What the domains share: the conversion of record arrays, the ``atoms`` kind, and counts of labels.

A domain is a module with three names, which :mod:`sciml.registry` finds under ``domains``:

``KINDS``  the kinds of graph it can make of its records;
``graph(record, kind, cutoff, dtype, coarse_cutoff)``  a raw record -> Graph with edges, None when the record cannot
serve that kind; with ``coarse_cutoff``, which may be left out, it has a coarse level with edges of its own;
``counts(data, kind, indices)``  number of labels per target in some records, the denominators of the losses.

``rows(record, kind, level)`` is optional: which nodes of a record its graph has, where these are not all.

A domain of one's own, an entry point in the group ``sciml.domains``, builds on a built-in one: ``BASE`` names that, and
its records have the fields of it and those in ``FIELDS`` (:class:`sciml.data.records.Field`), new targets included.
"""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sciml.data.neighbors import neighbors
from sciml.data.records import ATOM_NAMES, Record
from sciml.graph import DOMAINS, Graph

_FRAME = ("N", "CA", "C")
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


class Rows(Protocol):
    """What counts need of a Store or a Subset of one."""

    sizes: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def has(self, target: str) -> np.ndarray: ...


def floats(array: Any, dtype: torch.dtype) -> Tensor:
    """Copy an array into a tensor; stores hand out read-only views, which torch must not share."""
    return torch.from_numpy(np.array(array, dtype=_NUMPY[dtype]))


def integers(array: Any) -> Tensor:
    """Copy an array into an int64 tensor."""
    return torch.from_numpy(np.array(array, dtype=np.int64))


def make_graph(domain: str, charge: float, spin: float, dtype: torch.dtype, fields: dict[str, Tensor]) -> Graph:
    """A Graph of ``fields`` with the graph-level conditions that every kind carries."""
    fields["charge"] = torch.tensor([charge], dtype=dtype)
    fields["spin"] = torch.tensor([spin], dtype=dtype)
    fields["domain"] = torch.tensor([DOMAINS.index(domain)])
    return Graph(**fields)


def coarse_fields(
    parent: np.ndarray,
    weights: np.ndarray,
    positions: np.ndarray,
    types: np.ndarray,
    cutoff: float | None,
    dtype: torch.dtype,
    roles: np.ndarray | None = None,
) -> dict[str, Tensor]:
    """The coarse level of a graph: who belongs to whom, and edges within ``cutoff`` unless that is None.

    ``parent`` (n,) names the coarse node of every fine node, 0..r - 1 with none left out, or is empty where there is no
    coarse level; ``weights`` (n,) give the places of the coarse nodes among ``positions`` (n, 3), ``roles`` (n, V)
    their vectors; ``types`` (r,).
    """
    children = np.argsort(parent, kind="stable")
    parents, weights = parent[children], weights[children]
    fields = {
        "children": integers(children),
        "parents": integers(parents),
        "child_weights": floats(weights, dtype),
        "coarse_types": integers(types),
    }
    if roles is not None:
        fields["child_roles"] = floats(roles[children], dtype)
    if cutoff is None:
        return fields
    moments = [np.bincount(parents, weights * x, minlength=len(types)) for x in positions[children].T]
    places = np.stack(moments, axis=1) / np.bincount(parents, weights, minlength=len(types))[:, None]
    senders, receivers, _ = neighbors(places, np.zeros((3, 3)), np.zeros(3, dtype=bool), cutoff)
    return {**fields, "coarse_senders": integers(senders), "coarse_receivers": integers(receivers)}


def frame_roles(atom_names: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """Roles (n, 3) of atoms in the frame of their residue: N, CA and C, a one each; of two of one name the first."""
    roles = np.zeros((len(atom_names), len(_FRAME)))
    for column, name in enumerate(_FRAME):
        atoms = np.flatnonzero(atom_names == ATOM_NAMES.index(name))
        _, first = np.unique(parent[atoms], return_index=True)
        roles[atoms[first], column] = 1.0
    return roles


def atoms_graph(
    record: Record, domain: str, cutoff: float, dtype: torch.dtype, coarse_cutoff: float | None = None
) -> Graph:
    """The ``atoms`` kind: all atoms, edges within ``cutoff`` [Å] through the periodic images, the labels there are.

    The energy stays float64 whatever ``dtype``: totals reach 1e5 eV and the reference energies are removed later. With
    ``coarse_cutoff`` [Å] residues are coarse nodes, of which a record that names none has none.
    """
    positions = np.asarray(record["positions"], dtype=np.float64)
    cell = record.get("cell")
    cell = np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=np.float64)
    pbc = np.asarray(record.get("pbc", (False, False, False)), dtype=bool)
    senders, receivers, shifts = neighbors(positions, cell, pbc, cutoff)
    forces, stress = record.get("forces"), record.get("stress")
    nan = float("nan")
    fields = {
        "types": integers(record["types"]),
        "positions": floats(positions, dtype),
        "senders": torch.from_numpy(senders),
        "receivers": torch.from_numpy(receivers),
        "shifts": floats(shifts, dtype),
        "cell": floats(cell, dtype)[None],
        "pbc": torch.tensor(pbc)[None],
        "energy": torch.tensor([float(record.get("energy", nan))], dtype=torch.float64),
        "forces": torch.full((len(positions), 3), nan, dtype=dtype) if forces is None else floats(forces, dtype),
        "stress": torch.full((1, 3, 3), nan, dtype=dtype) if stress is None else floats(stress, dtype)[None],
    }
    if coarse_cutoff is not None:
        fields |= _residues(record, positions, coarse_cutoff, dtype)
    fields |= noise_fields(record, "atoms", slice(None), dtype)
    return make_graph(domain, float(record.get("charge", 0.0)), float(record.get("spin", 1.0)), dtype, fields)


def _residues(record: Record, positions: np.ndarray, cutoff: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """The residues that have atoms, at the means of these; none without a field ``parent``."""
    if "parent" not in record:
        none = np.zeros(0, dtype=np.int64)
        return coarse_fields(none, none, positions, none, cutoff, dtype, np.zeros((0, len(_FRAME))))
    present, parent = np.unique(record["parent"], return_inverse=True)
    types = np.asarray(record["residue_types"], dtype=np.int64)[present] + 1
    roles = frame_roles(np.asarray(record["atom_names"]), parent)
    return coarse_fields(parent, np.ones(len(parent)), positions, types, cutoff, dtype, roles)


def noise_fields(record: Record, kind: str, chosen: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """What denoising adds to the graph of the ``chosen`` atoms of a record; see :mod:`sciml.objectives.denoise`.

    The noise has no mean over them either: a shift of the whole graph cannot be found again.
    """
    if "noise" not in record:
        return {}
    noise = np.asarray(record["noise"])
    forces = np.asarray(record.get("forces", np.zeros_like(noise)))
    found = noise[chosen] - noise[chosen].mean(axis=0)
    return {
        "noise_level": torch.tensor([float(record["noise_level"])], dtype=dtype),
        "clean_forces": floats(forces[chosen], dtype),
        f"noise_{kind}": floats(found, dtype),
    }


def atoms_counts(data: Rows, indices: np.ndarray) -> dict[str, float]:
    """Labels of the ``atoms`` kind: one energy and 3 n force components per labelled record."""
    indices = np.asarray(indices)
    return {
        "energy": float(data.has("energy")[indices].sum()),
        "forces": float((3 * data.sizes * data.has("forces"))[indices].sum()),
    }
