"""Protein structures: PDB, mmCIF and BinaryCIF by biotite, and JSON lists of backbones as GVP and PiFold publish them.

Every model of a file is a record; its group is a key of its sequences, so that models and copies of one protein never
fall on both sides of a split. Of alternate locations the one of highest occupancy is taken; water, ions, ligands and
sugars are left out; modified residues inside a chain are kept with the unknown type; missing atoms stay missing.

A target with ``column: b_factor`` is read from the B-factors (temperature factors), where many programs write what they
found: those of atoms at the level fine, their mean over the atoms of a residue at the level coarse.
"""

import gzip
import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sciml.data.records import ATOM_NAMES, UNKNOWN_RESIDUE, Record
from sciml.data.targets import Target
from sciml.errors import UserError
from sciml.graph import RESIDUE_NAMES, RESIDUES
from sciml.ingest.formats import Options, Rejected, head, identifier, refuse_unused
from sciml.ingest.formats.labels import read_label
from sciml.ingest.formats.mlearn import load_json

if TYPE_CHECKING:
    from biotite.structure import AtomArray

DOMAIN = "biology"
B_FACTOR = "b_factor"
TAKES_TARGETS = (B_FACTOR,)
EXTENSIONS = (".pdb", ".pdb.gz", ".ent", ".ent.gz", ".cif", ".cif.gz", ".mmcif", ".bcif", ".bcif.gz", ".json", ".jsonl")
_PDB = (".pdb", ".ent")
_JSON = (".json", ".jsonl")
_CODES = {name: code for code, name in enumerate(RESIDUE_NAMES)}
_BACKBONE = ("N", "CA", "C", "O")
_BACKBONE_NUMBERS = {"N": 7, "CA": 6, "C": 6, "O": 8}
_PEPTIDE_BOND = 2.0  # Å between C and N; 1.33 in a good structure


def sniff(path: Path) -> bool:
    """Return whether the file holds protein structures; a .cif of a crystal does not."""
    suffix = _suffix(path)
    if suffix in (*_PDB, ".bcif", ".mmcif"):
        return True
    if suffix == ".cif":
        return "_entry.id" in head(path, 200_000) or "_atom_site.group_PDB" in head(path, 2_000_000)
    start = head(path)
    return suffix in _JSON and '"seq"' in start and '"coords"' in start


def read(path: Path, options: Options) -> Iterator[Record | Rejected]:
    """Yield one record per model or per JSON entry.

    Raises UserError when the file cannot be parsed, a key or unit of labels was given, or it cannot have a target.
    """
    refuse_unused(path, options, ("length_unit", "targets"))
    check_b_factors(path, options.targets)
    if _suffix(path) in _JSON:
        yield from _read_json(path, options)
        return
    for name, model in models_of(path, bool(options.targets)):
        try:
            yield record_of(name, model, options, options.targets)
        except ValueError as error:
            yield Rejected(name, str(error))


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def check_b_factors(path: Path, targets: Sequence[Target]) -> None:
    """Raise UserError where one of ``targets``, which are read from B-factors, has one value a structure or the file
    has no B-factors.
    """
    for target in targets:
        if _suffix(path) in _JSON:
            raise UserError(
                f"{path}: JSON of backbones has no B-factors for the target {target.name}; give PDB or mmCIF files, or "
                f"a table (.csv) with the columns structure and {target.name} beside them."
            )
        if target.level == "graph":
            raise UserError(
                f"{path}: the target {target.name} has level graph, but B-factors have a value for every atom; set its "
                f"level to coarse (residues) or fine (atoms), or give a table (.csv) with the columns structure and "
                f"{target.name}."
            )


def models_of(path: Path, b_factors: bool = False) -> Iterator[tuple[str, "AtomArray"]]:
    """Yield (id, atoms) of every model of a structure file, with their B-factors (NaN where a mmCIF has none)."""
    try:
        from biotite.structure.io import pdb, pdbx
    except ImportError:
        raise UserError(f"{path}: reading protein structures needs biotite; install sciml[bio].") from None
    suffix = _suffix(path)
    binary = suffix == ".bcif"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # biotite warns at guessed elements and unknown residues
            with (
                gzip.open(path, "rb" if binary else "rt")
                if path.suffix == ".gz"
                else open(path, "rb" if binary else "r") as handle
            ):
                if suffix in _PDB:
                    file = pdb.PDBFile.read(handle)
                    count, get = file.get_model_count(), file.get_structure
                else:
                    file = (pdbx.BinaryCIFFile if binary else pdbx.CIFFile).read(handle)
                    count = pdbx.get_model_count(file)

                    def get(**keys: Any) -> Any:
                        return pdbx.get_structure(file, **keys)

            for model in range(1, count + 1):
                extra = [B_FACTOR] if b_factors else []
                yield identifier(path, model), get(model=model, altloc="occupancy", extra_fields=extra)
    except UserError:
        raise
    except Exception as error:  # biotite's parsers raise many kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{path}: record {identifier(path, 1)}: the atom records cannot be parsed ({reason}); "
            "is the file whole and a protein structure?"
        ) from None


def record_of(name: str, atoms: "AtomArray", options: Options, of_b_factors: Sequence[Target] = ()) -> Record:
    """Turn one model into a record, with the targets that are read from its B-factors.

    Raises ValueError when it has no protein, or a label is none.
    """
    import biotite.structure as structure

    atoms = atoms[protein_atoms(atoms)]
    if len(atoms) == 0:
        raise ValueError("residue_types: the model has no amino acids")
    starts = structure.get_residue_starts(atoms)
    parent = np.repeat(np.arange(len(starts)), np.diff([*starts, len(atoms)]))
    residue_types = np.array([_CODES.get(residue, UNKNOWN_RESIDUE) for residue in atoms.res_name[starts]])
    chains = {chain: index for index, chain in enumerate(dict.fromkeys(atoms.chain_id[starts].tolist()))}
    chain = np.array([chains[chain] for chain in atoms.chain_id[starts].tolist()])
    codes = {atom: code for code, atom in enumerate(ATOM_NAMES) if code}
    return {
        "id": name,
        "group": _sequence_key(residue_types, chain),
        "types": atomic_numbers_of(atoms),
        "positions": atoms.coord.astype(np.float64) * options.length,
        "atom_names": np.array([codes.get(atom, 0) for atom in atoms.atom_name]),
        "parent": parent,
        "residue_types": residue_types,
        "chain": chain,
        **{target.name: _b_factors(target, atoms.b_factor, parent) for target in of_b_factors},
    }


def _b_factors(target: Target, values: np.ndarray, parent: np.ndarray) -> np.ndarray | None:
    """The label of a target from the B-factors (atoms,), of residues their means."""
    values = values.astype(np.float64)
    if target.level == "coarse":
        values = np.bincount(parent, values) / np.bincount(parent)
    return read_label(target, values)


def protein_atoms(atoms: "AtomArray") -> np.ndarray:
    """Mask of atoms in amino acids of a chain; a modified residue counts when a peptide bond holds it."""
    import biotite.structure as structure

    amino = structure.filter_amino_acids(atoms)
    if not (atoms.hetero & amino).any():
        return amino
    keep = amino & ~atoms.hetero
    starts = structure.get_residue_starts(atoms)
    ends = np.append(starts[1:], len(atoms))
    carbon = atoms.coord[(atoms.atom_name == "C") & amino]
    nitrogen = atoms.coord[(atoms.atom_name == "N") & amino]
    for start, end in zip(starts, ends):
        if not (atoms.hetero[start] and amino[start]):
            continue
        residue = atoms[start:end]
        if _near(residue.coord[residue.atom_name == "N"], carbon) or _near(
            residue.coord[residue.atom_name == "C"], nitrogen
        ):
            keep[start:end] = True
    return keep


def _near(points: np.ndarray, others: np.ndarray) -> bool:
    """Return whether another residue's atom is within a peptide bond; the residue's own C and N are 2.4 Å apart."""
    if not len(points) or not len(others):
        return False
    return bool(np.linalg.norm(others - points[0], axis=1).min() < _PEPTIDE_BOND)


def atomic_numbers_of(atoms: "AtomArray") -> np.ndarray:
    from ase.data import atomic_numbers

    table = {**atomic_numbers, "D": 1}
    numbers = np.array([table.get(element.capitalize(), 0) for element in atoms.element])
    if not numbers.all():
        bad = int(np.argmin(numbers))
        found = f"atom {atoms.atom_name[bad]!r} of {atoms.res_name[bad]} {atoms.res_id[bad]}"
        raise ValueError(f"types: {found} has element {str(atoms.element[bad])!r}, which is unknown")
    return numbers


def _sequence_key(residue_types: np.ndarray, chain: np.ndarray) -> str:
    """Key of the set of chain sequences: copies, other models and other crystals of the same protein share it."""
    letters = np.array([*RESIDUES, "X"])
    sequences = sorted({"".join(letters[residue_types[chain == index]]) for index in np.unique(chain)})
    return "sequence:" + hashlib.sha256("/".join(sequences).encode()).hexdigest()[:16]


def _read_json(path: Path, options: Options) -> Iterator[Record | Rejected]:
    """Yield entries {name, seq, coords}; coords are (residues, 4, 3) or {"N": ..., "CA": ...}, or such JSON in text."""
    for index, entry in enumerate(_entries(path)):
        name = identifier(path, index)
        try:
            name = identifier(path, entry.get("name", index))
            yield _json_record(name, entry["seq"], _coordinates(entry["coords"]) * options.length)
        except KeyError as error:
            yield Rejected(name, f"{error.args[0]}: missing")
        except (TypeError, ValueError, AttributeError) as error:
            yield Rejected(name, str(error))


def _entries(path: Path) -> list[Any]:
    if path.suffix != ".jsonl":
        entries = load_json(path)
        return entries if isinstance(entries, list) else [entries]
    try:
        with open(path) as file:
            return [json.loads(line) for line in file if line.strip()]
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON lines, truncated perhaps ({error}); get the whole file.") from None


def _coordinates(coords: Any) -> np.ndarray:
    """Return (residues, 4, 3) float64 of N, CA, C, O, NaN where missing."""
    if isinstance(coords, str):
        coords = json.loads(coords)
    if isinstance(coords, dict):
        coords = [list(atoms) for atoms in zip(*(coords[name] for name in _BACKBONE))]
    missing = [np.nan] * 3
    array = np.array(
        [[missing if atom is None else atom for atom in (residue or [missing] * 4)] for residue in coords],
        dtype=np.float64,
    )
    if array.ndim != 3 or array.shape[1:] != (4, 3):
        raise ValueError(f"coords: shape {array.shape}, expected residues x 4 x 3")
    return array


def _json_record(name: str, sequence: str, coordinates: np.ndarray) -> Record:
    if len(sequence) != len(coordinates):
        raise ValueError(f"coords: {len(coordinates)} residues, but seq has {len(sequence)}")
    known = np.isfinite(coordinates).all(axis=2)
    if not known.any():
        raise ValueError("coords: no atom has coordinates")
    residue_types = np.array([RESIDUES.find(letter) for letter in sequence])
    residue_types[residue_types < 0] = UNKNOWN_RESIDUE
    parent, atom = np.nonzero(known)
    numbers = np.array([_BACKBONE_NUMBERS[backbone] for backbone in _BACKBONE])
    chain = np.zeros(len(sequence), int)
    return {
        "id": name,
        "group": _sequence_key(residue_types, chain),
        "types": numbers[atom],
        "positions": coordinates[known],
        "atom_names": atom + 1,
        "parent": parent,
        "residue_types": residue_types,
        "chain": chain,
    }
