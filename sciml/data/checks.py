"""The checks that each record must pass, of its schema and of physics, before it is stored."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sciml.data import subjets
from sciml.data.records import (
    ATOM_NAMES,
    MAX_ELEMENT,
    MAX_PARTICLE_KIND,
    UNKNOWN_RESIDUE,
    Field,
    Record,
    base_of,
    schema,
)
from sciml.errors import BadRecord

MAX_NODES = 1_000_000
MAX_EXTENT = 100_000.0  # Å: beyond this float32 coordinates are coarser than 0.01 Å
MAX_LATTICE_VECTOR = 1_000.0  # Å
MIN_VOLUME_PER_ATOM = 0.5  # Å^3: hydrogen at the centre of Jupiter has 1
MAX_FORCE = 1e6  # eV/Å
MAX_ENERGY_PER_ATOM = 2e6  # eV: an all-electron oganesson atom has 1.5e6
MAX_STRESS = 1e3  # eV/Å^3
MAX_MOMENTUM = 1e9  # GeV
MAX_JET_ENERGY = 1e5  # GeV: that of a whole collision at any planned collider; jets in MeV have more
_RECENTRE_BEYOND = 500.0  # Å: beyond this float32 rounding of the positions would be felt by the forces


def check_record(record: Mapping[str, Any], domain: str) -> None:
    """Raise BadRecord, with the key and the reason, when ``record`` breaks the schema of ``domain`` or physics."""
    prepare(record, domain)


def prepare(record: Mapping[str, Any], domain: str, extra: Sequence[Field] = ()) -> Record:
    """Return ``record`` checked, in the dtypes of the schema, with defaults filled in.

    ``extra`` are the fields of the store's own targets, in which NaN stands for a missing label of a node.

    Lattice rows of directions that are not periodic become zero and the stress, which needs a volume, is left out
    there; coordinates farther than 500 Å from the origin are
    wrapped (periodic directions) or centred (the others), which changes no interaction and keeps float32 exact;
    a constituent of negative mass squared gets the smallest energy that float32 can hold with m^2 >= 0; a jet
    without subjets is clustered, once and for all, so that rounding moves no particle between them.
    Raises BadRecord naming the key.
    """
    fields, base = {**schema(domain), **{field.name: field for field in extra}}, base_of(domain)
    own = {field.name for field in extra}
    unknown = [name for name in record if name not in fields]
    if unknown:
        raise BadRecord(f"{unknown[0]}: not a field of the {domain} schema; use {', '.join(fields)}")
    sizes = _sizes(record, fields)
    given = {name: value for name, value in record.items() if value is not None}
    result = {name: _array(name, value, fields[name], sizes, name in own) for name, value in given.items()}
    for field in fields.values():
        if field.name not in result and field.default is not None:
            result[field.name] = field.default
    if base == "hep":
        _check_jet(result)
    else:
        _check_atoms(result, base)
    if base == "biology":
        _check_residues(result)
    return {name: _store_dtype(fields[name], value) for name, value in result.items()}


def regulate_energies(momenta: np.ndarray) -> np.ndarray:
    """Return float32 energies (n,) of ``momenta`` (n, 4), order E, px, py, pz, raised until E^2 - p^2 >= 0.

    Exact in float64 for the float32 values that a store holds, so a boost in float64 never meets a spacelike vector.
    """
    momenta = np.asarray(momenta).astype(np.float32)
    squared = (momenta[:, 1:].astype(np.float64) ** 2).sum(axis=1)
    energies = np.maximum(momenta[:, 0], np.sqrt(squared).astype(np.float32))
    while True:
        spacelike = energies.astype(np.float64) ** 2 < squared
        if not spacelike.any():
            return energies
        energies[spacelike] = np.nextafter(energies[spacelike], np.float32(np.inf))


def spacelike(momenta: np.ndarray) -> np.ndarray:
    """Return which of ``momenta`` (n, 4) have a negative mass squared, beyond what a massless one gets by rounding."""
    momenta = np.asarray(momenta, dtype=np.float64)
    energy_squared = momenta[:, 0] ** 2
    return energy_squared - (momenta[:, 1:] ** 2).sum(axis=1) < -1e-12 * energy_squared


def _sizes(record: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, int]:
    """Number of nodes of each level, from the first required field of that level."""
    sizes: dict[str, int] = {}
    for field in fields.values():
        if not field.required:
            continue
        if record.get(field.name) is None:
            raise BadRecord(f"{field.name}: missing, and every record needs it")
        if field.level not in sizes:
            sizes[field.level] = len(record[field.name])
    if sizes["fine"] == 0:
        raise BadRecord("types: the record has zero atoms or particles")
    if sizes.get("coarse") == 0:
        raise BadRecord("residue_types: the record has zero residues")
    if sizes["fine"] > MAX_NODES:
        raise BadRecord(f"types: {sizes['fine']:,} nodes, more than {MAX_NODES:,}; split the system")
    return sizes


def _array(name: str, value: Any, field: Field, sizes: Mapping[str, int], may_lack: bool = False) -> Any:
    """Return ``value`` as an array of the field's shape, still in its own precision, or raise BadRecord."""
    if field.dtype == "str":
        return str(value)
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            array = array.astype(np.float64)
    except (TypeError, ValueError):
        raise BadRecord(f"{name}: not numeric") from None
    expected = field.shape if field.level == "graph" else (sizes[field.level], *field.shape)
    if array.shape != expected:
        raise BadRecord(f"{name}: shape {array.shape}, expected {expected}")
    if may_lack and np.isinf(array).any():
        raise BadRecord(f"{name}: infinite value")
    if array.dtype.kind == "f" and not may_lack and not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(np.atleast_1d(array)))[0].tolist()
        raise BadRecord(f"{name}: NaN or infinite value at index {where}")
    if field.dtype[0] in "iu":
        limits = np.iinfo(field.dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max or (array != np.rint(array)).any()):
            raise BadRecord(f"{name}: not whole numbers of {limits.min} to {limits.max}")
    return array


def _check_atoms(record: Record, domain: str) -> None:
    types = record["types"]
    if types.min() < 1 or types.max() > MAX_ELEMENT:
        bad = int(np.argmax((types < 1) | (types > MAX_ELEMENT)))
        raise BadRecord(f"types: atom {bad} has atomic number {int(types[bad])}, expected 1 to {MAX_ELEMENT}")
    if domain == "materials":
        _check_cell(record)
    record["positions"] = _near_origin(record["positions"], record.get("cell"), record.get("pbc"))
    extent = np.ptp(record["positions"].astype(np.float64), axis=0).max()
    if extent > MAX_EXTENT:
        raise BadRecord(f"positions: the atoms spread over {extent:.3g} Å, more than {MAX_EXTENT:,.0f} Å")
    if not record["spin"] >= 1:
        raise BadRecord(f"spin: multiplicity 2S + 1 is {float(record['spin'])}, expected 1 or more")
    _check_limit(record, "forces", MAX_FORCE, "eV/Å")
    _check_limit(record, "stress", MAX_STRESS, "eV/Å^3")
    if "energy" in record and abs(float(record["energy"])) > MAX_ENERGY_PER_ATOM * len(types):
        raise BadRecord(f"energy: {float(record['energy']):.3g} eV, more than {MAX_ENERGY_PER_ATOM:.0e} eV per atom")


def _check_limit(record: Record, name: str, limit: float, unit: str) -> None:
    if name in record and np.abs(record[name]).max() > limit:
        raise BadRecord(f"{name}: {np.abs(record[name]).max():.3g} {unit}, more than {limit:.0e}; is the unit right?")


def _check_cell(record: Record) -> None:
    """Check the lattice; zero its rows along open directions, where there is no volume and so no stress either."""
    pbc = record["pbc"].astype(bool)
    cell = np.where(pbc[:, None], record["cell"].astype(np.float64), 0.0)
    record["cell"], record["pbc"] = cell, pbc
    if not pbc.all():
        record.pop("stress", None)
    if not pbc.any():
        return
    lengths = np.linalg.norm(cell, axis=1)
    if lengths.max() > MAX_LATTICE_VECTOR:
        raise BadRecord(f"cell: a lattice vector of {lengths.max():.4g} Å, more than {MAX_LATTICE_VECTOR:,.0f} Å")
    if (lengths[pbc] == 0).any():
        raise BadRecord("cell: a periodic direction has no lattice vector")
    # Rows of open directions are completed by unit vectors orthogonal to the periodic ones.
    _, singular, _ = np.linalg.svd(cell[pbc])
    volume = float(np.prod(singular))
    if volume < 1e-6 * float(np.prod(lengths[pbc])):
        raise BadRecord("cell: the periodic lattice vectors are linearly dependent, the volume is zero")
    if pbc.all() and volume < MIN_VOLUME_PER_ATOM * len(record["types"]):
        atoms = len(record["types"])
        raise BadRecord(f"cell: {volume / atoms:.3g} Å^3 per atom, less than {MIN_VOLUME_PER_ATOM}; is the unit right?")


def _near_origin(positions: np.ndarray, cell: np.ndarray | None, pbc: np.ndarray | None) -> np.ndarray:
    """Move far coordinates near the origin by lattice vectors and, along open directions, by a translation."""
    if np.abs(positions).max() <= _RECENTRE_BEYOND:
        return positions
    positions = positions.astype(np.float64)
    if cell is None or pbc is None or not pbc.any():
        return positions - positions.mean(axis=0)
    basis = cell.copy()
    if not pbc.all():
        _, _, orthogonal = np.linalg.svd(cell[pbc])
        basis[~pbc] = orthogonal[int(pbc.sum()) :]
    fractional = positions @ np.linalg.inv(basis)
    fractional -= np.where(pbc, np.floor(fractional), fractional.mean(axis=0))
    return fractional @ basis


def _check_jet(record: Record) -> None:
    types, momenta = record["types"], record["momenta"]
    if types.min() < 1 or types.max() > MAX_PARTICLE_KIND:
        raise BadRecord(f"types: particle kinds {types.min()} to {types.max()}, expected 1 to {MAX_PARTICLE_KIND}")
    if (momenta[:, 0] <= 0).any():
        raise BadRecord(f"momenta: constituent {int(np.argmax(momenta[:, 0] <= 0))} has no positive energy")
    total = float(momenta[:, 0].sum())
    if total > MAX_JET_ENERGY:
        raise BadRecord(f"momenta: {total:.3g} GeV in all, expected at most {MAX_JET_ENERGY:.0e}; are they in MeV?")
    for name in ("momenta", "true_momenta", "total_momentum"):
        _check_limit(record, name, MAX_MOMENTUM, "GeV")
    for name in ("true_mass", "true_pt"):
        if name in record and record[name] <= 0:
            raise BadRecord(f"{name}: {float(record[name]):g} GeV, expected more than 0")
        _check_limit(record, name, MAX_MOMENTUM, "GeV")
    if "label" in record and record["label"] < 0:
        raise BadRecord(f"label: {int(record['label'])}, expected a class index of 0 or more")
    momenta = np.concatenate([regulate_energies(momenta)[:, None], momenta[:, 1:]], axis=1).astype(np.float32)
    record["momenta"] = momenta
    if "parent" not in record:
        record["parent"] = subjets.cluster(momenta)
    _check_subjets(record["parent"])
    if "true_momenta" in record:
        true = record["true_momenta"]
        record["true_momenta"] = np.concatenate([regulate_energies(true)[:, None], true[:, 1:]], axis=1)
    if "total_momentum" in record:
        _check_total(record["total_momentum"])
    if "jet_momentum" not in record:
        record["jet_momentum"] = record["momenta"].sum(axis=0, dtype=np.float64)


def _check_subjets(parent: np.ndarray) -> None:
    present = np.unique(parent)
    if present[0] != 0 or present[-1] != len(present) - 1:
        raise BadRecord(f"parent: subjets {present[0]} to {present[-1]}, expected 0, 1, ... with none left out")


def _check_total(total: np.ndarray) -> None:
    momentum = float(np.linalg.norm(total[1:].astype(np.float64)))
    if not total[0] > 0 or total[0] < momentum:
        raise BadRecord(f"total_momentum: energy {float(total[0]):.6g} GeV, less than its momentum {momentum:.6g} GeV")


def _check_residues(record: Record) -> None:
    parent, residue_types, names = record["parent"], record["residue_types"], record["atom_names"]
    residues = len(residue_types)
    if parent.min() < 0 or parent.max() >= residues:
        raise BadRecord(f"parent: indices {parent.min()} to {parent.max()}, expected 0 to {residues - 1}")
    if residue_types.min() < 0 or residue_types.max() > UNKNOWN_RESIDUE:
        raise BadRecord(f"residue_types: a value outside 0 to {UNKNOWN_RESIDUE}")
    if names.max() >= len(ATOM_NAMES):
        raise BadRecord(f"atom_names: code {names.max()}, expected 0 to {len(ATOM_NAMES) - 1}")


def _store_dtype(field: Field, value: Any) -> Any:
    if field.dtype == "str":
        return value
    return np.asarray(value).astype(field.dtype)
