"""ASE databases on LMDB, as OMat24 and OMol25 are published (https://github.com/facebookresearch/fairchem).

A value is the JSON of a row (numbers, positions, cell, pbc, energy, forces, stress, data, ...), compressed by zlib,
under its id as text; ``nextid``, ``deleted_ids`` and ``metadata`` lie beside the rows. Units are ASE's: eV, Å, stress
tensile positive. OMol25 keeps the total ``charge`` and the multiplicity ``spin`` in ``data``.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.records import Record
from sciml.errors import UserError
from sciml.ingest.formats import Options, Rejected, identifier, present
from sciml.ingest.formats.ase import check_labels, stress_matrix

DOMAIN = "materials"
EXTENSIONS = (".aselmdb",)
_RESERVED = (b"nextid", b"deleted_ids", b"metadata")
# Names of what a frame belongs to, so that frames of one relaxation or molecule are not split apart.
_GROUP = ("group", "trajectory", "source", "sid", "material_id", "mol_id")


def sniff(path: Path) -> bool:
    """Return whether the file is named as an ASE database on LMDB."""
    return path.name.lower().endswith(EXTENSIONS)


def read(path: Path, options: Options) -> Iterator[Record | Rejected]:
    """Yield one record per row, in the order of the ids.

    Raises UserError when the file is no LMDB of rows, when a key that the user named occurs nowhere, or when no row has
    any label though ``options.unlabelled`` does not say so.
    """
    try:
        import lmdb
    except ImportError:
        raise UserError(f"{path}: reading aselmdb files needs lmdb; install sciml[sets].") from None
    try:
        with (
            lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False) as environment,
            environment.begin() as transaction,
        ):
            deleted = set(_decoded(transaction.get(b"deleted_ids")) or [])
            ids = [int(key) for key, _ in transaction.cursor() if key not in _RESERVED]
            labels: set[str] = set()
            keys: set[str] = set()
            for number in sorted(set(ids) - deleted):
                name = identifier(path, number)
                try:
                    values = _values(_decoded(transaction.get(str(number).encode())))
                    record = _record(values, path, name, options)
                except KeyError as error:
                    yield Rejected(name, f"{error.args[0]}: missing")
                    continue
                except (TypeError, ValueError, zlib.error) as error:
                    yield Rejected(name, str(error))
                    continue
                keys.update(values)
                labels.update(record)
                yield {"id": name, **record}
            if labels:
                check_labels(path, labels, keys, options)
    except (lmdb.Error, ValueError, zlib.error) as error:
        raise UserError(f"{path}: not a readable LMDB file of ASE rows ({error}); get the whole file.") from None


def _decoded(value: bytes | None) -> Any:
    """The JSON of a value; arrays as ASE writes them, {"__ndarray__": [shape, dtype, numbers]}, too."""
    return None if value is None else json.loads(zlib.decompress(value), object_hook=_array)


def _array(value: dict[str, Any]) -> Any:
    if "__ndarray__" not in value:
        return value
    shape, dtype, numbers = value["__ndarray__"]
    return np.array(numbers, dtype=dtype).reshape(shape)


def _values(row: dict[str, Any]) -> dict[str, Any]:
    """What a row holds by name, with its data and pairs of keys and values."""
    return {**(row.get("data") or {}), **(row.get("key_value_pairs") or {}), **row}


def _record(values: dict[str, Any], path: Path, name: str, options: Options) -> Record:
    pbc = np.broadcast_to(np.asarray(values.get("pbc", False), bool), 3)
    cell = np.asarray(values.get("cell", np.zeros((3, 3))), np.float64).reshape(3, 3) * options.length
    energy = values.get(options.energy_key or "energy")
    forces = values.get(options.forces_key or "forces")
    stress = values.get(options.stress_key or "stress")
    group = next((values[key] for key in _GROUP if isinstance(values.get(key), str | int)), None)
    return present(
        {
            "group": name if group is None else f"{path.name}:{group}",
            "types": np.asarray(values["numbers"]),
            "positions": np.asarray(values["positions"], np.float64) * options.length,
            "cell": cell,
            "pbc": pbc,
            "charge": _number(values.get("charge")),
            "spin": _number(values.get("spin")),
            "energy": None if energy is None else float(energy) * options.energy,
            "forces": None if forces is None else np.asarray(forces, np.float64) * options.forces,
            "stress": None if stress is None or not pbc.all() else stress_matrix(stress, "stress") * options.stress,
        }
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
