"""The JSON files of mlearn (https://github.com/materialsvirtuallab/mlearn): pymatgen structures with VASP outputs.

Three traps: ``virial_stress`` is in kB with VASP's sign (compressive positive); its order is xx yy zz xy yz zx, while
ASE's Voigt order is xx yy zz yz xz xy; and the published file of silicon has the last two exchanged in all groups but
the strained cells: the shear stresses of Stillinger and Weber's potential, and of models that learned the forces,
correlate with those labels by 0.4 to 0.9 in this order, and hardly in the other.
"""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.records import Record
from sciml.errors import UserError
from sciml.ingest.formats import Options, Rejected, head, identifier, numeric, present, refuse_absent
from sciml.units import KILOBAR

DOMAIN = "materials"
EXTENSIONS = (".json", ".json.gz")
_ORDER = np.array([[0, 3, 5], [3, 1, 4], [5, 4, 2]])  # xx yy zz xy yz zx
_EXCHANGED = np.array([[0, 3, 4], [3, 1, 5], [4, 5, 2]])  # xx yy zz xy zx yz
_SNAPSHOT = re.compile(r"^Snapshot \d+ of \d+ of ")


def sniff(path: Path) -> bool:
    """Return whether the file is JSON with pymatgen structures."""
    if not path.name.lower().endswith(EXTENSIONS):
        return False
    start = head(path, 20_000)
    return '"structure"' in start and ('"outputs"' in start or '"lattice"' in start)


def read(path: Path, options: Options) -> Iterator[Record | Rejected]:
    """Yield one record per entry. Snapshots of one simulation share a group.

    Raises UserError on broken JSON, and for a key of the user that no entry has.
    """
    entries = load_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path}: a JSON {type(entries).__name__} found, expected a list of mlearn entries.")
    _check_keys(path, entries, options)
    for index, entry in enumerate(entries):
        name = identifier(path, index)
        try:
            record = _record(entry, options)
        except KeyError as error:
            yield Rejected(name, f"{error.args[0]}: missing")
        except (TypeError, ValueError) as error:
            yield Rejected(name, str(error))
        else:
            yield {"id": name, "group": _group(path, entry, name), **record}


def _check_keys(path: Path, entries: list[Any], options: Options) -> None:
    """Raise UserError for a key of the user that no entry has."""
    outputs = [entry["outputs"] for entry in entries if isinstance(entry, dict) and "outputs" in entry]
    found = {key for one in outputs if isinstance(one, dict) for key in one}
    refuse_absent(path, options, found, "entry")


def load_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises UserError when it is truncated or not JSON."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
            return json.load(file)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not valid JSON, truncated perhaps ({error}); get the whole file.") from None


def _record(entry: Any, options: Options) -> Record:
    structure, outputs = pymatgen_structure(entry["structure"], options.length), entry["outputs"]
    stress = outputs.get(options.stress_key or "virial_stress")
    energy = outputs.get(options.energy_key or "energy")
    forces = outputs.get(options.forces_key or "forces")
    if energy is None and forces is None and not options.unlabelled:
        raise ValueError(f"outputs: no energy and no forces, the keys found are {', '.join(outputs) or 'none'}")
    result = {
        **structure,
        "energy": None if energy is None else float(energy) * options.energy,
        "forces": None if forces is None else numeric(forces, "forces") * options.forces,
        "stress": None if stress is None else _stress(stress, _EXCHANGED if _exchanged(entry) else _ORDER, options),
        "config_type": str(entry["group"]) if "group" in entry else None,
    }
    return present(result)


def pymatgen_structure(structure: Any, length: float) -> Record:
    """Types, positions [Å], cell [Å] and pbc of a pymatgen structure as JSON, in units of ``length``.

    Raises KeyError or ValueError where something is missing or a site is no atom.
    """
    cell = numeric(structure["lattice"]["matrix"], "lattice")
    sites = structure["sites"]
    if not sites:
        raise ValueError("sites: the record has zero atoms")
    return {
        "types": np.array([_number(site) for site in sites]),
        "positions": numeric([site["abc"] for site in sites], "abc") @ cell * length,
        "cell": cell * length,
        "pbc": np.ones(3, bool),
    }


def _exchanged(entry: Any) -> bool:
    """Whether an entry is of the published file of silicon (``tag`` and ``element``) and no strained cell."""
    return "tag" in entry and entry.get("element") == "Si" and entry.get("group") != "Elastic"


def _stress(values: Any, order: np.ndarray, options: Options) -> np.ndarray:
    """VASP's six numbers as a (3, 3) stress in eV/Å^3, tensile positive."""
    array = numeric(values, "virial_stress")
    if array.shape != (6,):
        raise ValueError(f"virial_stress: shape {array.shape}, expected 6 numbers xx, yy, zz, xy, yz, zx")
    return -array[order] * (options.stress if options.stress_unit else KILOBAR)


def _number(site: Any) -> int:
    from ase.data import atomic_numbers

    species = site["species"]
    if len(species) != 1 or species[0].get("occu", 1) != 1:
        raise ValueError("species: a site of mixed or partial occupancy is not an atom")
    symbol = re.match(r"[A-Za-z]+", str(species[0]["element"]))
    number = atomic_numbers.get(symbol.group(0) if symbol else "", 0)
    if not number:
        raise ValueError(f"species: {species[0]['element']!r} is not an element")
    return number


def _group(path: Path, entry: Any, name: str) -> str:
    """Snapshots of one simulation belong together; training and test files of one element share simulations."""
    description = str(entry.get("description", ""))
    return _SNAPSHOT.sub("", description) or name if description else name
