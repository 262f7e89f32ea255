"""PDB and mmCIF with the traps of real files, written here: none of it needs the reference data."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from sciml.data.store import Store
from sciml.errors import UserError
from sciml.ingest.ingest import detect, ingest

pytest.importorskip("biotite", reason="biotite is not installed (sciml[bio])")


class Atom(NamedTuple):
    """One line of a structure file."""

    group: str
    name: str
    element: str
    altloc: str
    residue: str
    number: int
    insertion: str
    position: np.ndarray
    occupancy: float


BACKBONE = {"N": (0.0, 0.0, 0.0), "CA": (1.46, 0.0, 0.0), "C": (2.5, 0.5, 0.0), "O": (2.5, 1.7, 0.0)}
RESIDUES = (("ALA", 7, ""), ("GLY", 7, "A"), ("MSE", 8, ""), ("SER", 9, ""))
"""Residue 7A is inserted, selenomethionine is no standard type; the alpha carbon of the serine has two places."""
TYPES = [0, 5, 20, 15]
STEP = np.array([3.8, 0.0, 0.0])
SECOND_PLACE = np.array([0.0, 0.3, 0.4])


def atoms() -> Iterator[Atom]:
    """A chain of four residues, 1.4 Å from each C to the next N, and a water."""
    for index, (residue, number, insertion) in enumerate(RESIDUES):
        group = "HETATM" if residue == "MSE" else "ATOM"
        for name, place in BACKBONE.items():
            here = np.array(place) + index * STEP
            both = residue == "SER" and name == "CA"
            yield Atom(group, name, name[0], "A" if both else "", residue, number, insertion, here, 0.4 if both else 1)
            if both:
                yield Atom(group, name, name[0], "B", residue, number, insertion, here + SECOND_PLACE, 0.6)
        if residue == "MSE":
            yield Atom(group, "SE", "SE", "", residue, number, insertion, np.array([9.0, -3.0, 0.0]), 1)
    yield Atom("HETATM", "O", "O", "", "HOH", 101, "", np.array([5.0, 5.0, 5.0]), 1)


def write_pdb(path: Path) -> None:
    lines = []
    for i, a in enumerate(atoms(), start=1):
        name = " " * (2 - len(a.element)) + a.name
        place = "".join(f"{x:8.3f}" for x in a.position)
        lines.append(
            f"{a.group:<6}{i:>5} {name:<4}{a.altloc:1}{a.residue:>3} A{a.number:>4}{a.insertion:1}   {place}"
            f"{a.occupancy:6.2f}{20:6.2f}{'':10}{a.element:>2}"
        )
    path.write_text("\n".join([*lines, "END", ""]))


COLUMNS = (
    *("group_PDB", "id", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id", "label_asym_id"),
    *("label_entity_id", "label_seq_id", "pdbx_PDB_ins_code", "Cartn_x", "Cartn_y", "Cartn_z", "occupancy"),
    *("B_iso_or_equiv", "auth_seq_id", "auth_comp_id", "auth_asym_id", "auth_atom_id", "pdbx_PDB_model_num"),
)


def write_cif(path: Path) -> None:
    rows = []
    for i, a in enumerate(atoms(), start=1):
        sequence = "." if a.residue == "HOH" else str(1 + RESIDUES.index((a.residue, a.number, a.insertion)))
        place = " ".join(f"{x:.3f}" for x in a.position)
        rows.append(
            f"{a.group} {i} {a.element} {a.name} {a.altloc or '.'} {a.residue} A 1 {sequence} {a.insertion or '?'} "
            f"{place} {a.occupancy:.2f} 20.00 {a.number} {a.residue} A {a.name} 1"
        )
    header = ["data_TINY", "_entry.id TINY", "loop_", *(f"_atom_site.{column}" for column in COLUMNS)]
    path.write_text("\n".join([*header, *rows, "#", ""]))


WRITERS = {"tiny.pdb": write_pdb, "tiny.cif": write_cif}


@pytest.fixture(scope="module", params=WRITERS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("protein")
    WRITERS[request.param](folder / request.param)
    assert detect(folder / request.param) == "protein"
    return ingest(folder / request.param, folder / "store")


def test_residues_are_told_apart_by_insertion_code_and_unknown_ones_stay(store: Store) -> None:
    (record,) = store
    assert record["residue_types"].tolist() == TYPES
    assert record["parent"].tolist() == [0] * 4 + [1] * 4 + [2] * 5 + [3] * 4
    assert record["chain"].tolist() == [0] * 4
    assert np.count_nonzero(record["types"] == 34) == 1


def test_water_is_left_out_and_the_likelier_place_is_taken(store: Store) -> None:
    (record,) = store
    assert len(record["types"]) == 17
    expected = np.array(BACKBONE["CA"]) + 3 * STEP + SECOND_PLACE
    (found,) = record["positions"][(record["parent"] == 3) & (record["atom_names"] == 2)]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_names_of_backbone_atoms_are_coded(store: Store) -> None:
    (record,) = store
    for residue in range(4):
        names = record["atom_names"][record["parent"] == residue].tolist()
        assert names[:4] == [1, 2, 3, 4]
    assert store.serves("residues").all()


def test_both_formats_are_one_protein(tmp_path: Path) -> None:
    groups = set()
    for name, write in WRITERS.items():
        write(tmp_path / name)
        groups |= set(ingest(tmp_path / name, tmp_path / f"store of {name}").groups)
    assert len(groups) == 1


def test_a_structure_that_ends_in_the_middle_of_an_atom_is_refused(tmp_path: Path) -> None:
    write_cif(tmp_path / "tiny.cif")
    (tmp_path / "tiny.cif").write_text((tmp_path / "tiny.cif").read_text()[:-60])
    with pytest.raises(UserError, match=r"tiny.cif: .*(cannot be parsed|truncated)"):
        ingest(tmp_path / "tiny.cif", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_without_biotite_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "biotite.structure.io", None)
    write_pdb(tmp_path / "tiny.pdb")
    with pytest.raises(UserError, match=r"tiny.pdb: .* install sciml\[bio\]"):
        ingest(tmp_path / "tiny.pdb", tmp_path / "store")
