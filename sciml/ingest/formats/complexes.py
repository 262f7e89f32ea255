"""Proteins, with a ligand or alone, and what was measured of them: a table (.csv, .tsv) beside files of structures.

The column ``structure`` names a PDB, mmCIF or BinaryCIF file, relative to the table. A table without the column
``ligand`` is of proteins alone, and it is said how many ligands that leaves out; in it a cell has the residue name of
the ligand, nothing for the largest molecule that is no part of a chain, or ``none``. Labels are columns named by
targets (see :mod:`sciml.data.targets`), such as an affinity; a target of the level coarse has a value for every
residue, separated by spaces, or ``column: b_factor`` (see :mod:`sciml.ingest.formats.protein`). A record is the first
model: the atoms of the protein, then those of the ligand as a residue of unknown type in a chain of its own, which has
no labels.
"""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sciml.data.records import UNKNOWN_RESIDUE, Record
from sciml.data.targets import Target
from sciml.errors import UserError
from sciml.ingest.formats import Options, Rejected, head, identifier, ingest_words, present, refuse_unused, say
from sciml.ingest.formats.labels import read_label
from sciml.ingest.formats.protein import (
    TAKES_TARGETS as OF_B_FACTORS,
)
from sciml.ingest.formats.protein import (
    atomic_numbers_of,
    check_b_factors,
    models_of,
    protein_atoms,
    record_of,
)

if TYPE_CHECKING:
    from biotite.structure import AtomArray

DOMAIN = "biology"
TAKES_TARGETS = True
EXTENSIONS = {".csv": ",", ".tsv": "\t"}
_STRUCTURE, _LIGAND, _NO_LIGAND = "structure", "ligand", "none"
_WATER = ("HOH", "DOD", "WAT")
_LEAST_ATOMS = 6  # of a ligand that is not named: ions and bits of buffer are smaller


def sniff(path: Path) -> bool:
    """Return whether the file is a table with a column ``structure``."""
    separator = EXTENSIONS.get(path.suffix.lower())
    lines = head(path).splitlines()
    return separator is not None and bool(lines) and _STRUCTURE in lines[0].split(separator)


def read(path: Path, options: Options) -> Iterator[Record | Rejected]:
    """Yield one record per row, and say how many ligands were left out.

    Raises UserError where the table cannot be read, lacks the column of a target, or a file is not there.
    """
    refuse_unused(path, options, ("length_unit", "targets", "unlabelled"))
    try:
        with open(path, encoding="utf-8", newline="") as table:
            rows = csv.DictReader(table, delimiter=EXTENSIONS[path.suffix.lower()])
            columns = list(rows.fieldnames or ())
            options = _with_columns(path, columns, options)
            entries = list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}).") from None
    of_b_factors = [target for target in options.targets if target.source not in columns]
    left_out = 0
    for number, row in enumerate(entries, start=2):  # the line in the table
        file = path.parent / str(row[_STRUCTURE])
        name = identifier(path, row[_STRUCTURE])
        if not file.is_file():
            raise UserError(
                f"{path}: line {number}: {_STRUCTURE}: {file} does not exist; names are relative to the table."
            )
        check_b_factors(file, of_b_factors)
        try:
            _, atoms = next(models_of(file, bool(of_b_factors)))
            left_out += _LIGAND not in columns and bool(_ligands(atoms))
            yield _record(name, atoms, row, options, of_b_factors)
        except ValueError as error:
            yield Rejected(name, str(error))
    if left_out:
        say(
            f"{path}: {left_out} of {len(entries)} structures have a molecule of {_LEAST_ATOMS} atoms or more beside "
            f"the protein, which is left out; add a column {_LIGAND}, with a residue name or nothing for the largest, "
            "to read it."
        )


def _with_columns(path: Path, columns: list[str], options: Options) -> Options:
    """The options without the targets that the table may lack and does. Raises UserError where another has no column,
    or none is asked for though ``unlabelled`` does not say so.
    """
    found = []
    for target in options.targets:
        if target.source not in (*columns, *OF_B_FACTORS):
            options.lacking(
                f"{path}: no column {target.source!r} of the target {target.name}, the columns found are "
                f"{', '.join(columns)}; name it with heads.{target.name}.column=COLUMN, or targets when ingesting."
            )
            continue
        found.append(target)
        if target.level == "fine" and target.source in columns:
            raise UserError(
                f"{path}: the target {target.name} has level fine, but a table has no values of atoms; write them as "
                f"B-factors of the structures, with heads.{target.name}.column=b_factor, or set its level to coarse."
            )
    if not options.targets and not options.unlabelled:
        raise UserError(
            f"{path}: no target is asked for, the columns found are {', '.join(columns)}; name one, such as "
            "'heads.affinity={name: target}' in training or 'targets.affinity={kind: atoms}' when ingesting, or use "
            f"{ingest_words(path, 'unlabelled=true')}."
        )
    return replace(options, targets=tuple(found))


def _record(name: str, atoms: "AtomArray", row: dict[str, Any], options: Options, of_b_factors: list[Target]) -> Record:
    """Protein, ligand and labels of one row; raises ValueError where one of them is missing or broken."""
    record = record_of(name, atoms, options, of_b_factors)
    for target in options.targets:
        if target not in of_b_factors:
            record[target.name] = _label(target, row[target.source], len(record["residue_types"]))
    wanted = str(row.get(_LIGAND) or "").strip()
    if _LIGAND in row and wanted != _NO_LIGAND:
        _add_ligand(record, atoms[_ligand(atoms, wanted)], options)
    return present(record)


def _add_ligand(record: Record, ligand: "AtomArray", options: Options) -> None:
    """Add a residue of unknown type in a chain of its own; its nodes have no labels."""
    residues = len(record["residue_types"])
    record["types"] = np.concatenate([record["types"], atomic_numbers_of(ligand)])
    record["positions"] = np.concatenate([record["positions"], ligand.coord.astype(np.float64) * options.length])
    record["atom_names"] = np.concatenate([record["atom_names"], np.zeros(len(ligand), int)])
    record["parent"] = np.concatenate([record["parent"], np.full(len(ligand), residues)])
    record["residue_types"] = np.append(record["residue_types"], UNKNOWN_RESIDUE)
    record["chain"] = np.append(record["chain"], record["chain"].max() + 1)
    for target in options.targets:
        label = record[target.name]
        if label is not None and target.level != "graph":
            missing = np.full((1 if target.level == "coarse" else len(ligand), *label.shape[1:]), np.nan)
            record[target.name] = np.concatenate([label, -np.ones_like(missing, int) if target.classes else missing])


def _label(target: Target, text: str | None, residues: int) -> np.ndarray | None:
    """The label that a cell holds, None where it is empty; of the level coarse it has a value for each residue."""
    text = (text or "").strip()
    if not text:
        return None
    words = text.split()
    if target.level == "graph":
        return read_label(target, _class(text) if target.classes else [float(word) for word in words])
    if len(words) != residues:
        raise ValueError(f"{target.source}: {len(words)} values, expected one for each of the {residues} residues")
    if target.classes:
        return read_label(target, np.array([_class(word) for word in words], dtype=object))
    return read_label(target, [float(word) for word in words])


def _class(text: str) -> str | int:
    """The name of a class, or its number."""
    return int(text) if text.lstrip("-").isdecimal() else text


def _ligand(atoms: "AtomArray", wanted: str) -> np.ndarray:
    """Mask of the ligand's atoms: the first residue of that name, or the largest one that is no part of a chain."""
    found = _ligands(atoms, wanted)
    if not found:
        names = sorted({str(name) for name in atoms.res_name[_beside(atoms)]})
        what = f"no residue {wanted!r}" if wanted else f"no molecule of {_LEAST_ATOMS} atoms or more"
        raise ValueError(f"ligand: {what} beside the protein, found {', '.join(names) or 'none'}")
    _, start, end = min(found)
    mask = np.zeros(len(atoms), bool)
    mask[start:end] = True
    return mask


def _ligands(atoms: "AtomArray", wanted: str = "") -> list[tuple[int, int, int]]:
    """(minus the number of its atoms, first atom, atom behind the last) of every residue that may be the ligand."""
    import biotite.structure as structure

    starts = structure.get_residue_starts(atoms, add_exclusive_stop=True)
    other = _beside(atoms)
    found: list[tuple[int, int, int]] = []
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist()):
        if atoms.res_name[start] == wanted or (not wanted and other[start] and end - start >= _LEAST_ATOMS):
            found.append((start - end, start, end))
    return found


def _beside(atoms: "AtomArray") -> np.ndarray:
    """Mask of atoms that are neither of a chain nor water."""
    return atoms.hetero & ~protein_atoms(atoms) & ~np.isin(atoms.res_name, _WATER)
