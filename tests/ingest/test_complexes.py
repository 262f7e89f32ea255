"""Complexes: protein and ligand in one record, labels from the table's columns, faults named with their line."""

import shutil

import numpy as np
import pytest

from sciml.data.targets import Target
from sciml.errors import UserError
from sciml.ingest.formats import Options
from sciml.ingest.groups import groups_of
from sciml.ingest.ingest import detect, ingest
from sciml.ingest.split import copy_records

pytest.importorskip("biotite", reason="biotite is not installed (sciml[bio])")

AFFINITY = Options(targets=(Target("affinity", unit="pK"),))


@pytest.fixture
def folder(shared_data, tmp_path):
    for name in ("3o5r.bcif", "1aki.pdb", "1gya.bcif"):
        shutil.copy(shared_data / "proteins" / name, tmp_path / name)
    return tmp_path


def write(folder, *rows, header="structure,ligand,affinity"):
    path = folder / "complexes.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_the_ligand_follows_the_protein(folder):
    """3O5R is FKBP51 with FK506, a macrolide of 57 heavy atoms with one nitrogen."""
    path = write(folder, "3o5r.bcif,FK5,6.8", "3o5r.bcif,,")
    assert detect(path) == "complexes"
    store = ingest(path, folder / "s", options=AFFINITY)
    alone = ingest(folder / "3o5r.bcif", folder / "alone")[0]
    named, found = store[0], store[1]
    for record in (named, found):
        ligand = np.asarray(record["parent"]) == len(record["residue_types"]) - 1
        assert ligand.sum() == 57
        assert (np.asarray(record["types"])[ligand] == 7).sum() == 1
        assert (np.asarray(record["types"])[ligand] == 6).sum() == 44
        assert record["residue_types"][-1] == 20
        assert record["chain"][-1] == alone["chain"].max() + 1
        np.testing.assert_array_equal(np.asarray(record["positions"])[~ligand], alone["positions"])
        # It sits in its pocket: every atom of it within 10 Å of the protein, none inside a bond's length.
        distances = np.linalg.norm(record["positions"][ligand][:, None] - record["positions"][~ligand], axis=2)
        assert distances.min(axis=1).max() < 10.0
        assert distances.min() > 2.0
    assert named["affinity"] == pytest.approx([6.8])
    assert store.has("affinity").tolist() == [True, False]
    assert groups_of(store).number == 1  # one protein
    copy = copy_records(store, folder / "copy", {})
    assert copy.has("affinity").tolist() == [True, False]


@pytest.mark.parametrize(("header", "row"), [("structure,affinity", "6.8"), ("structure,ligand,affinity", "none,6.8")])
def test_a_protein_may_be_alone(folder, capsys, header, row):
    """Without a column for ligands even one that is there is left out, which is said."""
    alone = ingest(folder / "3o5r.bcif", folder / "alone")[0]
    capsys.readouterr()
    store = ingest(write(folder, f"3o5r.bcif,{row}", header=header), folder / "s", options=AFFINITY)
    said = "complexes.csv: 1 of 1 structures have a molecule of 6 atoms or more beside the protein, which is left out;"
    assert (said in capsys.readouterr().out) == ("ligand" not in header)
    assert store[0]["affinity"] == pytest.approx([6.8])
    np.testing.assert_array_equal(store[0]["positions"], alone["positions"])
    assert store.serves("atoms").all()  # a complex is a graph of atoms by its label
    assert not ingest(folder / "3o5r.bcif", folder / "bare").serves("atoms").any()


def test_nodes_of_a_ligand_have_no_labels(folder):
    """B-factors of 3O5R, of its residues and atoms; the last residue and its 57 atoms are FK506."""
    targets = (Target("residue", level="coarse", column="b_factor"), Target("atom", level="fine", column="b_factor"))
    record = ingest(write(folder, "3o5r.bcif,FK5"), folder / "s", options=Options(targets=targets))[0]
    residue, atom, parent = record["residue"][:, 0], record["atom"][:, 0], np.asarray(record["parent"])
    assert np.isnan(residue[-1])
    assert np.isnan(atom[-57:]).all()
    expected = [atom[parent == index].mean() for index in range(len(residue) - 1)]
    np.testing.assert_allclose(residue[:-1], expected, rtol=1e-5)
    assert 5.0 < residue[:-1].min() < residue[:-1].max() < 100.0


def test_proteins_with_unknown_ligands_are_no_family(folder):
    """Ligands are chains of one unknown residue each, which makes nothing related."""
    path = write(folder, "3o5r.bcif,FK5,6.8", "1gya.bcif,,5.0")
    assert groups_of(ingest(path, folder / "s", options=AFFINITY)).number == 2


@pytest.mark.parametrize(
    ("rows", "header", "match"),
    [
        (["missing.pdb,,1.0"], "structure,ligand,affinity", r"line 2: structure: .*missing.pdb does not exist"),
        (["3o5r.bcif,1.0"], "structure,pKd", r"no column 'affinity' of the target affinity, .* structure, pKd"),
        (["3o5r.bcif,ATP,1.0"], "structure,ligand,affinity", r"no residue 'ATP' beside the protein, found .*FK5"),
        (["1aki.pdb,,1.0"], "structure,ligand,affinity", r"no molecule of 6 atoms or more beside the protein"),
        (["3o5r.bcif,FK5,strong"], "structure,ligand,affinity", r"strong"),
    ],
)
def test_what_is_wrong_is_named(folder, rows, header, match):
    with pytest.raises(UserError, match=match):
        ingest(write(folder, *rows, header=header), folder / "s", options=AFFINITY)
    assert not (folder / "s").exists()


def test_a_table_without_a_target_is_refused_unless_said_so(folder):
    path = write(folder, "3o5r.bcif,FK5,6.8")
    with pytest.raises(UserError, match="no target is asked for, the columns found are structure, ligand, affinity"):
        ingest(path, folder / "s")
    assert len(ingest(path, folder / "s", options=Options(unlabelled=True))) == 1
