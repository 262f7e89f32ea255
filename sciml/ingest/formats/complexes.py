"""Proteins with a ligand, and what was measured of them: a table (.csv, .tsv) beside files of structures.

The column ``structure`` names a PDB, mmCIF or BinaryCIF file, relative to the table; ``ligand``, which may be left out
or empty, the residue name of the ligand, else it is the largest molecule that is no part of a chain. Labels are columns
named by targets (see :mod:`sciml.data.targets`), such as an affinity. A record is the first model: the atoms of the
protein, then those of the ligand as a residue of unknown type in a chain of its own.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sciml.data.records import UNKNOWN_RESIDUE, Record
from sciml.errors import UserError
from sciml.ingest.formats import Options, Rejected, head, identifier, present, refuse_unused
from sciml.ingest.formats.labels import read_label
from sciml.ingest.formats.protein import atomic_numbers_of, models_of, protein_atoms, record_of

if TYPE_CHECKING:
    from biotite.structure import AtomArray

DOMAIN = "biology"
TAKES_TARGETS = True
EXTENSIONS = {".csv": ",", ".tsv": "\t"}
_STRUCTURE, _LIGAND = "structure", "ligand"
_WATER = ("HOH", "DOD", "WAT")
_LEAST_ATOMS = 6  # of a ligand that is not named: ions and bits of buffer are smaller


def sniff(path: Path) -> bool:
    """Return whether the file is a table with a column ``structure``."""
    separator = EXTENSIONS.get(path.suffix.lower())
    lines = head(path).splitlines()
    return separator is not None and bool(lines) and _STRUCTURE in lines[0].split(separator)


def read(path: Path, options: Options) -> Iterator[Record | Rejected]:
    """Yield one record per row.

    Raises UserError where the table cannot be read, lacks the column of a target, or a file is not there.
    """
    refuse_unused(path, options, ("length_unit", "targets", "unlabelled"))
    try:
        with open(path, encoding="utf-8", newline="") as table:
            rows = csv.DictReader(table, delimiter=EXTENSIONS[path.suffix.lower()])
            _check_columns(path, list(rows.fieldnames or ()), options)
            entries = list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}).") from None
    for number, row in enumerate(entries, start=2):  # the line in the table
        file = path.parent / str(row[_STRUCTURE])
        name = identifier(path, row[_STRUCTURE])
        if not file.is_file():
            raise UserError(
                f"{path}: line {number}: {_STRUCTURE}: {file} does not exist; names are relative to the table."
            )
        try:
            yield _record(name, file, row, options)
        except ValueError as error:
            yield Rejected(name, str(error))


def _check_columns(path: Path, columns: list[str], options: Options) -> None:
    """Raise UserError where a target has no column, or none is asked for though ``unlabelled`` does not say so."""
    for target in options.targets:
        if (target.column or target.name) not in columns:
            raise UserError(
                f"{path}: no column {target.column or target.name!r} of the target {target.name}, the columns found "
                f"are {', '.join(columns)}; name it with heads.{target.name}.column=COLUMN, or targets when ingesting."
            )
    if not options.targets and not options.unlabelled:
        raise UserError(
            f"{path}: no target is asked for, the columns found are {', '.join(columns)}; name one, such as "
            "'heads.affinity={name: target}' in training or 'targets.affinity={}' when ingesting, or say "
            "unlabelled=true."
        )


def _record(name: str, file: Path, row: dict[str, Any], options: Options) -> Record:
    """Protein, ligand and labels of one row; raises ValueError where one of them is missing or broken."""
    _, atoms = next(models_of(file))
    record = record_of(name, atoms, options)
    ligand = atoms[_ligand(atoms, str(row.get(_LIGAND) or "").strip())]
    residues = len(record["residue_types"])
    record["types"] = np.concatenate([record["types"], atomic_numbers_of(ligand)])
    record["positions"] = np.concatenate([record["positions"], ligand.coord.astype(np.float64) * options.length])
    record["atom_names"] = np.concatenate([record["atom_names"], np.zeros(len(ligand), int)])
    record["parent"] = np.concatenate([record["parent"], np.full(len(ligand), residues)])
    record["residue_types"] = np.append(record["residue_types"], UNKNOWN_RESIDUE)
    record["chain"] = np.append(record["chain"], record["chain"].max() + 1)
    labels = {target.name: _label(target, row[target.column or target.name]) for target in options.targets}
    return {**record, **present(labels)}


def _label(target: Any, text: str | None) -> np.ndarray | None:
    """The label that a cell holds, None where it is empty."""
    text = (text or "").strip()
    if not text:
        return None
    return read_label(target, text if target.classes else [float(part) for part in text.split()])


def _ligand(atoms: "AtomArray", wanted: str) -> np.ndarray:
    """Mask of the ligand's atoms: the first residue of that name, or the largest one that is no part of a chain."""
    import biotite.structure as structure

    starts = structure.get_residue_starts(atoms, add_exclusive_stop=True)
    other = atoms.hetero & ~protein_atoms(atoms) & ~np.isin(atoms.res_name, _WATER)
    found: list[tuple[int, int, int]] = []
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist()):
        if atoms.res_name[start] == wanted or (not wanted and other[start] and end - start >= _LEAST_ATOMS):
            found.append((start - end, start, end))
    if not found:
        names = sorted({str(name) for name in atoms.res_name[other]})
        what = f"no residue {wanted!r}" if wanted else f"no molecule of {_LEAST_ATOMS} atoms or more"
        raise ValueError(f"ligand: {what} beside the protein, found {', '.join(names) or 'none'}")
    _, start, end = min(found)
    mask = np.zeros(len(atoms), bool)
    mask[start:end] = True
    return mask
