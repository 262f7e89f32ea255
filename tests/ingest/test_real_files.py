"""Ingestion of published files, each with its own traps."""

import json

import numpy as np
import pytest
from ase import Atoms

from sciml.errors import UserError
from sciml.ingest.generate.classical import StillingerWeber
from sciml.ingest.ingest import detect, ingest
from sciml.ingest.split import split_records


def test_ethanol_has_a_lattice_but_is_not_periodic(shared_data, tmp_path):
    source = shared_data / "rmd17_ethanol" / "train.xyz"
    store = ingest(source, tmp_path / "s")
    record = store[0]
    assert len(store) == 1000
    assert not record["pbc"].any()
    assert not record["cell"].any()
    assert record["energy"] == -4209.4657843064815
    np.testing.assert_allclose(record["positions"][0], [0.40162460, 0.38569419, 0.07944170], rtol=1e-6)
    np.testing.assert_allclose(record["forces"][0], [-4.15950961, 0.10729389, 3.61777644], rtol=1e-6)
    assert store.pairs.tolist() == [72] * 1000
    _, sentence = split_records(store, [0.95, 0.05], 0)
    assert "at random" in sentence


def test_isolated_atoms_have_energies_only(shared_data, tmp_path):
    store = ingest(shared_data / "3bpa" / "iso_atoms.xyz", tmp_path / "s")
    assert store.sizes.tolist() == [1, 1, 1, 1]
    assert not store.has("forces").any()
    assert store.manifest["statistics"]["reference_energies"]["6"] == pytest.approx(-1029.4889999855063)


_SHEAR = ([1, 0, 0], [2, 2, 1])  # yz, xz, xy


@pytest.mark.parametrize(("element", "records"), [("Si", 214), ("Li", 241)])
def test_mlearn_stress_is_tensile_when_stretched(shared_data, tmp_path, element, records):
    source = shared_data / "mlearn" / element / "training.json"
    store = ingest(source, tmp_path / "s")
    assert len(store) == records
    assert store.has("stress").all()
    entries = json.loads(source.read_text())
    strained = next(number for number, entry in enumerate(entries) if entry["group"] == "Elastic")
    raw = entries[strained]["outputs"]["virial_stress"]
    stress = store[strained]["stress"]
    np.testing.assert_allclose(np.diag(stress), -np.array(raw[:3]) * 6.24150907e-4, rtol=1e-5)
    np.testing.assert_allclose(stress[[0, 1, 0], [1, 2, 2]], -np.array(raw[3:]) * 6.24150907e-4, rtol=1e-5)
    # Strained cells of one parent: dE/dV = tr(stress)/3 must hold between cells of different volume.
    chosen = [record for record in store if record["config_type"] == "Elastic"]
    volume = np.array([abs(np.linalg.det(record["cell"])) / len(record["types"]) for record in chosen])
    trace = np.array([np.trace(record["stress"]) for record in chosen])
    assert np.corrcoef(volume, trace)[0, 1] > 0.5
    assert store.manifest["statistics"]["stress_rms"] < 0.1


@pytest.mark.parametrize("group", ["AIMD-NVT", "Vacancy", "Elastic"])
def test_mlearn_shear_stresses_are_those_of_an_independent_potential(shared_data, tmp_path, group):
    store = ingest(shared_data / "mlearn" / "Si" / "training.json", tmp_path / "s")
    potential = StillingerWeber()
    pairs = []
    for record in (record for record in store if record["config_type"] == group):
        atoms = Atoms(record["types"], record["positions"], cell=record["cell"], pbc=True, calculator=potential)
        pairs.append((atoms.get_stress(voigt=False)[_SHEAR], record["stress"][_SHEAR]))
    found, labels = (np.array(part).T for part in zip(*pairs, strict=True))
    correlations = np.corrcoef(found, labels)[:3, 3:]
    assert (np.diag(correlations) > 0.3).all(), correlations
    assert (correlations.argmax(axis=1) == [0, 1, 2]).all(), correlations


def test_mlearn_simulations_stay_together(shared_data, tmp_path):
    store = ingest(shared_data / "mlearn" / "Si" / "training.json", tmp_path / "s")
    parts, sentence = split_records(store, [0.9, 0.1], 0)
    groups = np.array(store.groups)
    assert not set(groups[parts[0]]) & set(groups[parts[1]])
    assert "split by trajectory" in sentence


def test_jets_have_no_spacelike_constituents(shared_data, tmp_path):
    store = ingest(shared_data / "jets" / "JetClassII_example.parquet", tmp_path / "s")
    assert len(store) == 100
    assert len({int(record["label"]) for record in store}) == 60
    for record in store:
        momenta = record["momenta"].astype(np.float64)
        assert (momenta[:, 0] ** 2 >= (momenta[:, 1:] ** 2).sum(axis=1)).all()
        # The file's jets agree with the sum of their constituents across the beam, not always along it.
        np.testing.assert_allclose(momenta.sum(axis=0)[1:3], record["jet_momentum"][1:3], rtol=2e-3, atol=1.0)
    kinds = np.concatenate([record["types"] for record in store])
    assert set(kinds.tolist()) <= {1, 2, 3, 4, 5, 6}
    charges = np.concatenate([record["particle_charge"] for record in store])
    assert (charges[np.isin(kinds, [2, 3])] == 0).all()
    assert (np.abs(charges[np.isin(kinds, [1, 4, 5])]) == 1).all()
    assert 0.2 < store.manifest["counts"]["regulated_constituents"] / len(kinds) < 0.3


bio = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("biotite"), reason="biotite is not installed (sciml[bio])"
)


@bio
@pytest.mark.parametrize(
    ("name", "models", "residues", "chains"),
    [
        ("1l2y.bcif", 38, 20, 1),
        ("1l2y.cif", 38, 20, 1),
        ("1gya.bcif", 18, 105, 1),
        ("1aki.bcif", 1, 129, 1),
        ("1aki.pdb", 1, 129, 1),
        ("3o5r.bcif", 1, 128, 1),
        ("1igy.bcif", 1, None, 4),
    ],
)
def test_protein_structures(shared_data, tmp_path, name, models, residues, chains):
    store = ingest(shared_data / "proteins" / name, tmp_path / "s")
    assert len(store) == models
    assert len(set(store.groups)) == 1
    record = store[0]
    assert residues is None or len(record["residue_types"]) == residues
    assert len(np.unique(record["chain"])) == chains
    assert record["parent"].tolist() == sorted(record["parent"])
    assert set(np.unique(record["types"]).tolist()) <= {1, 6, 7, 8, 16}  # no water ions, sugars stay out by residue
    alpha = record["atom_names"] == 2
    assert np.bincount(record["parent"][alpha]).max() == 1  # one location of each alternate
    steps = np.linalg.norm(np.diff(record["positions"][alpha], axis=0), axis=1)
    assert 3.6 < np.median(steps) < 3.95


@bio
def test_one_protein_in_three_formats_is_one_record(shared_data, tmp_path):
    stores = [ingest(shared_data / "proteins" / name, tmp_path / name) for name in ("1aki.pdb", "1aki.bcif")]
    first, second = (store[0] for store in stores)
    assert stores[0].groups == stores[1].groups
    np.testing.assert_allclose(first["positions"], second["positions"], atol=1e-3)
    np.testing.assert_array_equal(first["residue_types"], second["residue_types"])


@bio
def test_truncated_structures(shared_data, tmp_path):
    for name, keep in (("1aki.bcif", 20_000), ("1l2y.cif", 300_000)):
        (tmp_path / name).write_bytes((shared_data / "proteins" / name).read_bytes()[:keep])
        with pytest.raises(UserError, match=rf"{name}: .*(cannot be parsed|truncated)"):
            ingest(tmp_path / name, tmp_path / "s")
        assert not (tmp_path / "s").exists()


def test_missing_biotite_is_said(shared_data, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "biotite.structure.io", None)
    with pytest.raises(UserError, match=r"1aki.pdb: .* install sciml\[bio\]"):
        ingest(shared_data / "proteins" / "1aki.pdb", tmp_path / "s")


def test_backbones_with_missing_coordinates(shared_data, tmp_path):
    source = shared_data / "proteins" / "ts50.json"
    assert detect(source) == "protein"
    store = ingest(source, tmp_path / "s")
    entries = json.loads(source.read_text())
    assert len(store) == 50
    for record, entry in zip(store, entries):
        assert len(record["residue_types"]) == len(entry["seq"])
        letters = "ACDEFGHIKLMNPQRSTVWYX"
        assert "".join(letters[code] for code in record["residue_types"]) == entry["seq"]
        assert np.isfinite(record["positions"]).all()
    assert store.serves("residues").all()
    assert len(set(store.groups)) == 50
