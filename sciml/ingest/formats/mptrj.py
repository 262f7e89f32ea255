"""MPtrj, relaxation trajectories of the Materials Project as one JSON file (Deng et al., 2023, CHGNet).

The layout is {material: {frame: {structure, uncorrected_total_energy, force, stress, ...}}} with pymatgen structures.
Energies are total in eV, forces in eV/Å; the stress is VASP's own, in kB and compressive positive. The uncorrected
energy is the one that belongs to the forces. The file is 11 GB: it is read as a stream, one material at a time, and all
frames of a material share a group.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.records import Record
from sciml.errors import UserError
from sciml.ingest.formats import Options, Rejected, head, numeric, open_text, present, refuse_absent
from sciml.ingest.formats.mlearn import pymatgen_structure
from sciml.units import KILOBAR

DOMAIN = "materials"
EXTENSIONS = (".json", ".json.gz")
_ENERGY, _FORCES, _STRESS = "uncorrected_total_energy", "force", "stress"
_CHUNK = 1 << 20


def sniff(path: Path) -> bool:
    """Return whether the file is JSON with the energies of MPtrj."""
    if not path.name.lower().endswith(EXTENSIONS):
        return False
    return f'"{_ENERGY}"' in head(path, 200_000)


def read(path: Path, options: Options) -> Iterator[Record | Rejected]:
    """Yield one record per frame. Raises UserError on broken JSON, and for a key of the user that no frame has."""
    keys: set[str] = set()
    for material, frames in _members(path):
        for frame, entry in frames.items() if isinstance(frames, dict) else ():
            name = f"{path.name}#{frame}"
            try:
                keys.update(entry)
                yield {"id": name, "group": f"{path.name}:{material}", **_record(entry, options)}
            except KeyError as error:
                yield Rejected(name, f"{error.args[0]}: missing")
            except (TypeError, ValueError) as error:
                yield Rejected(name, str(error))
    refuse_absent(path, options, keys, "frame")


def _record(entry: Any, options: Options) -> Record:
    energy = entry[options.energy_key or _ENERGY]
    forces = entry.get(options.forces_key or _FORCES)
    stress = entry.get(options.stress_key or _STRESS)
    return present(
        {
            **pymatgen_structure(entry["structure"], options.length),
            "energy": float(energy) * options.energy,
            "forces": None if forces is None else numeric(forces, "force") * options.forces,
            "stress": None if stress is None else _stress(stress, options),
        }
    )


def _stress(values: Any, options: Options) -> np.ndarray:
    """VASP's stress as (3, 3) in eV/Å^3, tensile positive."""
    array = numeric(values, "stress")
    if array.shape != (3, 3):
        raise ValueError(f"stress: shape {array.shape}, expected 3x3")
    return -array * (options.stress if options.stress_unit else KILOBAR)


def _members(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of the one object in a JSON file, holding one value at a time in memory."""
    decoder = json.JSONDecoder()
    try:
        with open_text(path) as file:
            text = file.read(_CHUNK).lstrip()
            if not text.startswith("{"):
                raise UserError(f"{path}: found no JSON object, expected the materials of MPtrj.")
            text = text[1:].lstrip()
            while not text.startswith("}"):
                try:
                    key, end = decoder.raw_decode(text)
                    value, end = decoder.raw_decode(text, _after(text, end, ":"))
                    last = text[end:].lstrip()
                    if not last:
                        raise ValueError("the object does not end")
                    following = last[1:].lstrip() if last[0] == "," else last
                except (ValueError, IndexError):
                    # The material goes on beyond what was read; reading as much again keeps the work linear.
                    more = file.read(max(_CHUNK, len(text)))
                    if not more:
                        raise
                    text = (text + more).lstrip()
                    continue
                yield key, value
                text = following or file.read(_CHUNK).lstrip()
    except (ValueError, OSError, EOFError, IndexError) as error:
        raise UserError(f"{path}: not valid JSON, truncated perhaps ({error}); get the whole file.") from None


def _after(text: str, position: int, character: str) -> int:
    """The position of the value behind ``character`` and white space."""
    while text[position] in " \t\r\n":
        position += 1
    if text[position] != character:
        raise ValueError(f"{character!r} expected")
    position += 1
    while text[position] in " \t\r\n":
        position += 1
    return position
