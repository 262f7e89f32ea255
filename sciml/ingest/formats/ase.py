"""Extended XYZ and every other file of atoms that ASE reads (https://wiki.fysik.dtu.dk/ase/ase/io/io.html).

Labels are looked up in three places, since ASE moves `energy`, `forces` and `stress` of a file into the results of a
calculator and leaves every other name in ``info`` and ``arrays``. Stress has ASE's sign (tensile positive); a virial is
turned into a stress by -virial / volume. Boundary conditions are those the file states, whatever lattice it writes.
"""

from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sciml.data.records import Record
from sciml.errors import UserError
from sciml.ingest.formats import Options, Rejected, head, identifier, ingest_words, present
from sciml.ingest.formats.labels import read_label

if TYPE_CHECKING:
    from ase import Atoms

DOMAIN = "materials"
TAKES_TARGETS = True
EXTENSIONS = (".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz")
_ENERGY = ("energy", "REF_energy", "ref_energy", "dft_energy", "DFT_energy", "total_energy", "Energy", "free_energy")
_FORCES = ("forces", "REF_forces", "ref_forces", "dft_forces", "DFT_forces", "force", "dft_force", "Forces")
_STRESS = ("stress", "REF_stress", "ref_stress", "dft_stress", "DFT_stress")
_VIRIAL = ("virial", "virials", "REF_virial", "REF_virials", "dft_virial", "DFT_virial")
_GROUP = ("group", "trajectory", "traj", "traj_id", "trajectory_id", "mol_id", "molecule", "system_id", "material_id")
# Formats whose frames follow each other in time: the file is one trajectory.
_TRAJECTORIES = ("vasp-out", "vasp-xml", "vasp-xdatcar", "espresso-out", "cp2k-dcd", "lammps-dump-text", "gaussian-out")
_DATABASES = ("db", "json", "aselmdb")
_VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # ASE's order: xx yy zz yz xz xy


def sniff(path: Path) -> bool:
    """Return whether ASE knows the format of the file."""
    return path.name.lower().endswith(EXTENSIONS) or _format(path) is not None


def read(path: Path, options: Options) -> Iterator[Record | Rejected]:
    """Yield one record per frame, with the labels it has.

    Raises UserError when the file is truncated or unreadable, when a key that the user named occurs nowhere, or when
    no frame has any label though ``options.unlabelled`` does not say so.
    """
    frames = _extxyz(path) if path.name.lower().endswith(EXTENSIONS) else _any(path)
    labels: set[str] = set()
    keys: set[str] = set()
    trajectory = path.name if _format(path) in _TRAJECTORIES else None
    empty = True
    for name, frame in frames:
        if isinstance(frame, Rejected):
            yield frame
            continue
        values = {**frame.arrays, **frame.info, **(frame.calc.results if frame.calc else {})}
        keys.update(values)
        try:
            record = _record(frame, values, options)
        except ValueError as error:
            yield Rejected(name, str(error))
            continue
        empty = False
        labels.update(record)
        yield {"id": name, "group": _group(values, trajectory, path, name), **record}
    if not empty:
        check_labels(path, labels, keys, options)


def _record(atoms: "Atoms", values: dict[str, Any], options: Options) -> Record:
    """Turn one frame into a record in eV and Å."""
    energy, forces = _find(values, options.energy_key, _ENERGY), _find(values, options.forces_key, _FORCES)
    stress, virial = _find(values, options.stress_key, _STRESS), _find(values, None, _VIRIAL)
    cell = atoms.cell.array * options.length
    periodic = bool(atoms.pbc.all())
    result: dict[str, Any] = {
        "types": atoms.numbers,
        "positions": atoms.positions * options.length,
        "cell": cell,
        "pbc": atoms.pbc,
        "charge": _scalar(values, "charge"),
        "spin": _scalar(values, "spin") or _scalar(values, "multiplicity"),
        "energy": None if energy is None else _number(energy, options.energy_key or "energy") * options.energy,
        "forces": None if forces is None else np.asarray(forces, np.float64) * options.forces,
        "config_type": values.get("config_type"),
    }
    # Along an open direction a stress has no defined volume: it is left out there.
    if stress is not None and periodic:
        result["stress"] = stress_matrix(stress, options.stress_key or "stress") * options.stress
    elif virial is not None and periodic and options.stress_key is None:
        result["stress"] = -stress_matrix(virial, "virial") * options.energy / abs(np.linalg.det(cell))
    for target in options.targets:
        value = values.get(target.source)
        result[target.name] = None if value is None else read_label(target, value)
    return present(result)


def _find(values: dict[str, Any], key: str | None, usual: tuple[str, ...]) -> Any:
    """Return the value of the user's key, or of the first usual name; NaN stands for a missing label in many files."""
    for name in (key,) if key else usual:
        value = values.get(name)
        if value is not None and not (np.isscalar(value) and isinstance(value, float) and np.isnan(value)):
            return value
    return None


def _number(value: Any, key: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key}: {value!r} is not a number") from None


def _scalar(values: dict[str, Any], key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, int | float | np.number) else None


def stress_matrix(value: Any, key: str) -> np.ndarray:
    """Return a (3, 3) matrix from 9 numbers or ASE's Voigt order of 6."""
    array = np.asarray(value, np.float64)
    if array.size == 9:
        return array.reshape(3, 3)
    if array.shape == (6,):
        return array[_VOIGT]
    raise ValueError(f"{key}: shape {array.shape}, expected 3x3, 9 or 6 numbers")


def _group(values: dict[str, Any], trajectory: str | None, path: Path, name: str) -> str:
    for key in _GROUP:
        if isinstance(values.get(key), str | int | np.integer):
            return f"{path.name}:{values[key]}"
    return trajectory or name


def check_labels(path: Path, labels: set[str], keys: set[str], options: Options) -> None:
    """Raise UserError where no frame had a key that the user named, or none any label though ``options.unlabelled``
    does not say so; ``labels`` and ``keys`` are what the frames had.
    """
    found = ", ".join(sorted(keys - {"numbers", "positions"})) or "none"
    for option, label in (("energy_key", "energy"), ("forces_key", "forces"), ("stress_key", "stress")):
        key = getattr(options, option)
        if key is not None and label not in labels and key not in keys:
            raise UserError(f"{path}: no frame has the key {key!r} named by {option}; the keys found are {found}.")
    for target in options.targets:
        if target.name not in labels:
            options.lacking(
                f"{path}: no frame has the key {target.source!r} of the target {target.name}; the keys "
                f"found are {found}; name it with heads.{target.name}.column=KEY, or targets when ingesting."
            )
    own = {target.name for target in options.targets}
    if not labels & ({"energy", "forces", "stress"} | own) and not options.unlabelled:
        raise UserError(
            f"{path}: no frame has an energy, forces or stress under a usual name; the keys found are {found}; name "
            f"them with {ingest_words(path, 'energy_key=KEY forces_key=KEY stress_key=KEY')}, or say unlabelled=true "
            "there if structures alone are meant."
        )


def _extxyz(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (id, Atoms or Rejected) per frame; frames are cut here, so that one bad frame does not end the file."""
    from ase.io.formats import open_with_compression

    try:
        with open_with_compression(str(path), "rt") as file:
            for index, text in enumerate(_cut(path, file)):
                name = identifier(path, index)
                yield name, _parse(text, name)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}); is it an extended XYZ file?") from None


def _cut(path: Path, file: Any) -> Iterator[str]:
    """Yield the text of each frame. Raises UserError at a truncated frame or a line that is no count of atoms."""
    index = 0
    for line in file:
        if not line.strip():
            continue
        try:
            count = int(line)
        except ValueError:
            raise UserError(
                f"{path}: record {path.name}#{index}: {line.strip()[:40]!r} found where the number of atoms is "
                "expected; the file is damaged or of another format."
            ) from None
        lines: list[str] = []
        while len(lines) <= count and (not lines or lines[-1]):  # a false count must not outgrow the file
            lines.append(file.readline())
        columns = [len(row.split()) for row in lines[1:]]
        # A file cut in the middle of a line ends without a newline and with fewer columns than the line before.
        if (lines and not lines[-1]) or (columns and not lines[-1].endswith("\n") and columns[-1] < columns[0]):
            complete = sum(bool(row) for row in lines[1:])
            raise UserError(
                f"{path}: record {path.name}#{index}: the file is truncated, positions of {count} atoms are announced "
                f"and {complete} lines follow; get the whole file."
            )
        yield line + "".join(lines)
        index += 1


def _parse(text: str, name: str) -> Any:
    from ase.io.extxyz import read_extxyz

    try:
        return next(iter(read_extxyz(StringIO(text), index=slice(None))))
    except KeyError as error:
        return Rejected(name, f"species: {error} is not an element")
    except Exception as error:  # ASE raises whatever its parsing meets
        return Rejected(name, f"frame: cannot be parsed ({type(error).__name__}: {error})")


def _any(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (id, Atoms) of any other format that ASE reads."""
    from ase.io import iread

    index = -1
    try:
        for index, atoms in enumerate(iread(str(path), index=":")):
            yield identifier(path, index), atoms
    except UserError:
        raise
    except Exception as error:  # ASE raises whatever its parsers meet
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{path}: record {path.name}#{index + 1}: ASE cannot read positions ({reason}); "
            "is the file whole and its format supported?"
        ) from None


def _format(path: Path) -> str | None:
    """Return ASE's name of the format, or None."""
    if path.name.lower().endswith(EXTENSIONS):
        return "extxyz"
    if not head(path, 1):
        return None
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    try:
        name = filetype(str(path))  # an unknown extension comes back as if it were a format
        return name if name in ioformats or name in _DATABASES else None
    except (UnknownFileTypeError, OSError, ValueError, UnicodeDecodeError):
        return None
