"""What one raw sample holds: the fields of every domain and their units.

A record is a dictionary of numpy arrays and scalars, one sample, without edges. Levels: ``graph`` (one value), ``fine``
(atoms, particles) and ``coarse`` (residues; subjets have no fields of their own). Units on disk are always those of the
fields below; readers convert. A label that was not measured is absent: the key is not in the record.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sciml import registry
from sciml.errors import UserError

Record = dict[str, Any]

MAX_ELEMENT = 118
MAX_PARTICLE_KIND = 6
UNKNOWN_RESIDUE = 20
ATOM_NAMES = ("other", "N", "CA", "C", "O", "CB")


@dataclass(frozen=True)
class Field:
    """One named quantity of a record: its level, storage dtype, trailing shape, unit and role (input, target, info)."""

    name: str
    level: str
    dtype: str
    shape: tuple[int, ...] = ()
    unit: str = ""
    role: str = "input"
    required: bool = False
    default: Any = None

    @property
    def width(self) -> int:
        """Number of values per node (or per record)."""
        return int(np.prod(self.shape, dtype=int))


DOMAIN_KINDS: dict[str, tuple[str, ...]] = {"materials": ("atoms",), "hep": ("jets",), "biology": ("atoms", "residues")}

_COMMON = (
    Field("id", "graph", "str", role="info", default=""),
    Field("group", "graph", "str", role="info", default=""),
)
_ATOMS = (
    Field("types", "fine", "uint8", required=True),
    Field("positions", "fine", "float32", (3,), "Å", required=True),
    Field("forces", "fine", "float32", (3,), "eV/Å", "target"),
    Field("charge", "graph", "float32", (), "e", default=0.0),
    Field("spin", "graph", "float32", default=1.0),
    Field("energy", "graph", "float64", (), "eV", "target"),
)

SCHEMAS: dict[str, tuple[Field, ...]] = {
    "materials": (
        *_COMMON,
        *_ATOMS,
        Field("cell", "graph", "float64", (3, 3), "Å", default=np.zeros((3, 3))),
        Field("pbc", "graph", "bool", (3,), default=np.zeros(3, dtype=bool)),
        Field("stress", "graph", "float32", (3, 3), "eV/Å^3", "target"),
        Field("config_type", "graph", "str", role="info"),
    ),
    "hep": (
        *_COMMON,
        Field("types", "fine", "uint8", required=True),
        Field("momenta", "fine", "float32", (4,), "GeV", required=True),
        Field("particle_charge", "fine", "int8", (), "e", required=True),
        Field("parent", "fine", "uint8"),
        Field("true_momenta", "fine", "float32", (4,), "GeV", "target"),
        Field("label", "graph", "int16", role="target"),
        Field("true_mass", "graph", "float32", (), "GeV", "target"),
        Field("true_pt", "graph", "float32", (), "GeV", "target"),
        Field("total_momentum", "graph", "float64", (4,), "GeV"),
        Field("jet_momentum", "graph", "float32", (4,), "GeV", "info"),
    ),
    "biology": (
        *_COMMON,
        *_ATOMS,
        Field("atom_names", "fine", "uint8", required=True),
        Field("parent", "fine", "int32", required=True),
        Field("residue_types", "coarse", "int8", role="target", required=True),
        Field("chain", "coarse", "int16", role="info", required=True),
    ),
}


def base_of(domain: str) -> str:
    """Return the built-in domain whose checks, costs and statistics hold for ``domain``.

    That is ``domain`` itself, or ``BASE`` of an installed one (an entry point in the group ``sciml.domains``).
    Raises UserError when the domain is not known.
    """
    if domain in SCHEMAS:
        return domain
    if domain not in registry.names("domains"):
        raise UserError(f"domain {domain!r} is not known; use one of {', '.join(registry.names('domains'))}.")
    base = getattr(registry.resolve("domains", domain), "BASE", None)
    if base not in SCHEMAS:
        raise UserError(f"domain {domain!r}: its BASE is {base!r}, expected one of {', '.join(SCHEMAS)}.")
    return base


def kinds(domain: str) -> tuple[str, ...]:
    """Return the kinds of graph that records of ``domain`` can become."""
    return DOMAIN_KINDS[domain] if domain in DOMAIN_KINDS else registry.resolve("domains", domain).KINDS


def own_kind(domain: str) -> str:
    """Return the kind of graph that ``domain`` is there for, the last of its kinds: residues of proteins."""
    return kinds(domain)[-1]


def schema(domain: str) -> dict[str, Field]:
    """Return the fields of ``domain`` by name: those of its base and the ``FIELDS`` that an installed domain adds.

    Raises UserError when the domain is not known.
    """
    fields = SCHEMAS[base_of(domain)]
    if domain not in SCHEMAS:
        fields += tuple(getattr(registry.resolve("domains", domain), "FIELDS", ()))
    return {field.name: field for field in fields}


def targets(domain: str) -> tuple[str, ...]:
    """Return the names of the fields of ``domain`` that a model can be trained on."""
    return tuple(field.name for field in schema(domain).values() if field.role == "target")
