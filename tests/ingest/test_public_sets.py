"""Readers of named public sets, on a few records written here in each set's published layout."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from sciml.errors import UserError
from sciml.ingest.formats import Options
from sciml.ingest.formats.spice import formal_charge
from sciml.ingest.ingest import detect, ingest
from sciml.units import BOHR, GPA, HARTREE

RNG = np.random.default_rng(0)


# MPtrj


def mptrj_frame(energy: float = -9.5, **changes) -> dict:
    sites = [
        {"species": [{"element": "Li", "occu": 1}], "abc": [0.0, 0.0, 0.0], "label": "Li"},
        {"species": [{"element": "O", "occu": 1}], "abc": [0.5, 0.5, 0.5], "label": "O"},
    ]
    structure = {"@class": "Structure", "lattice": {"matrix": [[4.2, 0, 0], [0, 4.2, 0], [0, 0, 4.2]]}, "sites": sites}
    frame = {
        "structure": structure,
        "uncorrected_total_energy": energy,
        "corrected_total_energy": energy - 1.4,
        "energy_per_atom": energy / 2,
        "force": [[0.1, 0.0, 0.0], [-0.1, 0.0, 0.0]],
        "stress": [[10.0, 1.0, 0.0], [1.0, 20.0, 0.0], [0.0, 0.0, 30.0]],
        "magmom": None,
        "bandgap": 0.1,
        "mp_id": "mp-1",
    }
    return {**frame, **changes}


def write_mptrj(path: Path, materials: dict) -> Path:
    path.write_text(json.dumps(materials))
    return path


def test_mptrj_frames_of_a_material_stay_together_and_stress_is_tensile(tmp_path):
    frames = {"mp-1-0-0": mptrj_frame(), "mp-1-0-1": mptrj_frame(-9.7)}
    source = write_mptrj(tmp_path / "MPtrj.json", {"mp-1": frames, "mp-2": {"mp-2-0-0": mptrj_frame(stress=None)}})
    assert detect(source) == "mptrj"
    store = ingest(source, tmp_path / "s")
    assert [record["id"].split("#")[1] for record in store] == ["mp-1-0-0", "mp-1-0-1", "mp-2-0-0"]
    assert store.groups == ["MPtrj.json:mp-1", "MPtrj.json:mp-1", "MPtrj.json:mp-2"]
    assert [record["energy"] for record in store] == [-9.5, -9.7, -9.5]
    np.testing.assert_allclose(np.diag(store[0]["stress"]), -0.1 * GPA * np.array([10, 20, 30]), rtol=1e-6)
    assert store.has("stress").tolist() == [True, True, False]
    np.testing.assert_allclose(store[0]["positions"][1], 2.1, rtol=1e-6)
    corrected = ingest(source, tmp_path / "c", options=Options(energy_key="corrected_total_energy"))
    assert corrected[0]["energy"] == pytest.approx(-10.9)


@pytest.mark.parametrize("chunk", [1, 7, 100, 5000])
def test_mptrj_is_read_as_a_stream(tmp_path, monkeypatch, chunk):
    from sciml.ingest.formats import mptrj

    monkeypatch.setattr(mptrj, "_CHUNK", chunk)
    materials = {f"mp-{i}": {f"mp-{i}-0-0": mptrj_frame(float(-i))} for i in range(9)}
    source = tmp_path / "MPtrj.json"
    source.write_text(json.dumps(materials, indent=1))
    assert dict(mptrj._members(source)) == materials


@pytest.mark.parametrize("end", [100, 400, -1])
def test_a_truncated_mptrj_is_refused(tmp_path, end):
    source = write_mptrj(tmp_path / "MPtrj.json", {"mp-1": {"mp-1-0-0": mptrj_frame()}})
    source.write_text(source.read_text()[:end])
    with pytest.raises(UserError, match="not valid JSON, truncated perhaps"):
        ingest(source, tmp_path / "s", reader="mptrj")


def test_a_bad_frame_of_mptrj_is_quarantined(tmp_path, capsys):
    frames = {"a": mptrj_frame(), "b": mptrj_frame(stress=[1, 2]), "c": {"structure": mptrj_frame()["structure"]}}
    store = ingest(write_mptrj(tmp_path / "MPtrj.json", {"mp-1": frames}), tmp_path / "s")
    assert len(store) == 1
    told = capsys.readouterr().out
    assert "MPtrj.json#b: stress: shape (2,), expected 3x3" in told
    assert "MPtrj.json#c: uncorrected_total_energy: missing" in told


# OMat24 and OMol25


def write_aselmdb(path: Path, rows: list[dict], deleted: tuple[int, ...] = ()) -> Path:
    lmdb = pytest.importorskip("lmdb")

    def packed(value) -> bytes:
        return zlib.compress(json.dumps(value).encode())

    with lmdb.open(str(path), subdir=False, map_size=1 << 24) as environment, environment.begin(write=True) as writer:
        for number, row in enumerate(rows, start=1):
            writer.put(str(number).encode(), packed(row))
        writer.put(b"nextid", packed(len(rows) + 1))
        writer.put(b"deleted_ids", packed(list(deleted)))
        writer.put(b"metadata", packed({"title": "test"}))
    return path


def ase_row(**changes) -> dict:
    row = {
        "numbers": [26, 8],
        "positions": [[0.0, 0.0, 0.0], [2.1, 2.1, 2.1]],
        "cell": [[4.2, 0, 0], [0, 4.2, 0], [0, 0, 4.2]],
        "pbc": [True, True, True],
        "unique_id": "0" * 32,
        "ctime": 24.0,
        "mtime": 24.0,
        "user": "",
        "calculator": "unknown",
        "energy": -14.5,
        "free_energy": -14.5,
        "forces": [[0.2, 0, 0], [-0.2, 0, 0]],
        "stress": [0.01, 0.02, 0.03, 0.004, 0.005, 0.006],
        "data": {"sid": "omat-1"},
    }
    return {**row, **changes}


def test_omat24_rows_in_the_order_of_their_ids_without_the_deleted(tmp_path):
    rows = [ase_row(energy=-float(i), data={"sid": f"omat-{i // 2}"}) for i in range(12)]
    source = write_aselmdb(tmp_path / "data.0000.aselmdb", rows, deleted=(3,))
    assert detect(source) == "aselmdb"
    store = ingest(source, tmp_path / "s")
    assert [record["energy"] for record in store] == [-float(i) for i in range(12) if i != 2]
    assert store.groups[:2] == ["data.0000.aselmdb:omat-0"] * 2
    stress = store[0]["stress"]
    np.testing.assert_allclose(stress, [[0.01, 0.006, 0.005], [0.006, 0.02, 0.004], [0.005, 0.004, 0.03]], rtol=1e-6)
    np.testing.assert_allclose(store[0]["forces"][0], [0.2, 0, 0], rtol=1e-6)


def test_omol25_rows_have_a_charge_and_a_multiplicity_and_no_stress(tmp_path):
    open_row = {"cell": [[0.0] * 3] * 3, "pbc": [False] * 3, "stress": None}
    rows = [
        ase_row(**open_row, data={"charge": -1, "spin": 2, "source": "omol/a"}),
        ase_row(**open_row, positions={"__ndarray__": [[2, 3], "float64", [0, 0, 0, 1.2, 0, 0]]}),
    ]
    store = ingest(write_aselmdb(tmp_path / "data.aselmdb", rows), tmp_path / "s")
    assert [(record["charge"], record["spin"]) for record in store] == [(-1.0, 2.0), (0.0, 1.0)]
    assert not store.has("stress").any()
    np.testing.assert_allclose(store[1]["positions"][1], [1.2, 0, 0], rtol=1e-6)


def test_an_aselmdb_without_the_labels_asked_for_is_refused(tmp_path):
    source = write_aselmdb(tmp_path / "data.aselmdb", [ase_row()])
    with pytest.raises(UserError, match="no frame has the key 'e0' named by energy_key"):
        ingest(source, tmp_path / "s", options=Options(energy_key="e0"))
    bare = write_aselmdb(tmp_path / "bare.aselmdb", [ase_row(energy=None, forces=None, stress=None)])
    with pytest.raises(UserError, match="unlabelled=true"):
        ingest(bare, tmp_path / "t")
    assert len(ingest(bare, tmp_path / "u", options=Options(unlabelled=True))) == 1


def test_a_damaged_aselmdb_is_refused_in_a_sentence(tmp_path):
    pytest.importorskip("lmdb")
    source = tmp_path / "data.aselmdb"
    source.write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match="not a readable LMDB file"):
        ingest(source, tmp_path / "s")


# SPICE


def write_spice(path: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        for name, smiles in (("acetate", "[C:1]([H])([H])[C](=O)[O-]"), ("water", "[H][O][H]")):
            atoms = 3
            group = file.create_group(name)
            group["atomic_numbers"] = np.array([8, 1, 1], np.int16)
            group.create_dataset("smiles", data=[smiles], dtype=text)
            group.create_dataset("subset", data=["SPICE Test Single Points Dataset v1.0"], dtype=text)
            group["conformations"] = (np.eye(3)[None] * np.array([2.0, 2.1])[:, None, None]).astype(np.float32)
            group["dft_total_energy"] = np.array([-76.4, np.nan if name == "water" else -76.3])
            group["formation_energy"] = np.array([-0.3, -0.2])
            group["dft_total_gradient"] = np.full((2, atoms, 3), 0.01, np.float32)
    return path


def test_spice_is_in_atomic_units_with_gradients(tmp_path):
    source = write_spice(tmp_path / "SPICE-2.0.1.hdf5")
    assert detect(source) == "spice"
    store = ingest(source, tmp_path / "s")
    assert [record["id"].split("#")[1] for record in store] == ["acetate/0", "acetate/1", "water/0"]
    assert store[0]["energy"] == pytest.approx(-76.4 * HARTREE)
    np.testing.assert_allclose(store[0]["forces"], -0.01 * HARTREE / BOHR, rtol=1e-6)
    np.testing.assert_allclose(store[0]["positions"][0], [2.0 * BOHR, 0, 0], rtol=1e-6)
    assert [record["charge"] for record in store] == [-1.0, -1.0, 0.0]
    assert store.groups[0] == store.groups[1] != store.groups[2]


def test_what_is_missing_in_spice_is_told(tmp_path):
    h5py = pytest.importorskip("h5py")
    source = write_spice(tmp_path / "SPICE-2.0.1.hdf5")
    with pytest.raises(UserError, match="has no 'gradient'.*forces_key="):
        ingest(source, tmp_path / "s", options=Options(forces_key="gradient"))
    with h5py.File(source, "a") as file:
        del file["water"]["smiles"]
    store = ingest(source, tmp_path / "t")
    assert [record["id"].split("#")[1] for record in store] == ["acetate/0", "acetate/1"]
    source.write_bytes(source.read_bytes()[:3000])
    with pytest.raises(UserError, match="not a readable HDF5 file"):
        ingest(source, tmp_path / "u")


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("[H][O][H]", 0),
        ("[C:1]([H:2])[O-:3]", -1),
        ("[NH3+]CC(=O)[O-]", 0),
        ("[Mg+2]", 2),
        ("[Ca++].[Cl-].[Cl-]", 0),
        ("[N+:12]([H])([H])C", 1),
        ("C-C[C@H](N)C", 0),
    ],
)
def test_formal_charges_of_smiles(smiles, charge):
    assert formal_charge(smiles) == charge


# JetClass


def write_jetclass_root(path: Path, tree: str = "tree") -> Path:
    ak, uproot = pytest.importorskip("awkward"), pytest.importorskip("uproot")
    counts = [3, 2, 4]
    px = ak.unflatten(RNG.normal(size=sum(counts)).astype(np.float32), counts)
    branches = {"part_px": px, "part_py": px * 0.5, "part_pz": px * 2.0, "part_energy": abs(px) * 3.0}
    flags = ak.unflatten((np.arange(sum(counts)) % 5).astype(np.int32), counts)
    names = ("ChargedHadron", "NeutralHadron", "Photon", "Electron", "Muon")
    branches |= {f"part_is{name}": ak.values_astype(flags == i, np.bool_) for i, name in enumerate(names)}
    branches["part_charge"] = ak.values_astype(flags == 0, np.float32)
    labels = np.eye(3, dtype=np.float32)
    branches |= {f"label_{name}": labels[:, i] for i, name in enumerate(("QCD", "Hbb", "Tbqq"))}
    jet = {"jet_pt": 500.0, "jet_eta": 0.1, "jet_phi": 0.2, "jet_energy": 510.0}
    branches |= {name: np.full(3, value, np.float32) for name, value in jet.items()}
    with uproot.recreate(path) as file:
        file[tree] = branches
    return path


def test_jetclass_as_published_in_root_files(tmp_path):
    source = write_jetclass_root(tmp_path / "HToBB_000.root")
    assert detect(source) == "jetclass_root"
    store = ingest(source, tmp_path / "s")
    assert store.sizes.tolist() == [3, 2, 4]
    assert [store.manifest["classes"][record["label"]] for record in store] == ["QCD", "Hbb", "Tbqq"]
    assert store[0]["types"].tolist() == [1, 2, 3]
    assert store[0]["particle_charge"].tolist() == [1, 0, 0]
    px, py, pz = store[0]["momenta"][:, 1:].T
    np.testing.assert_allclose(py, 0.5 * px, rtol=1e-6)
    np.testing.assert_allclose(pz, 2.0 * px, rtol=1e-6)


def test_another_root_file_is_refused_by_its_trees(tmp_path):
    with pytest.raises(UserError, match="the tree 'tree' of JetClass is missing; the file holds Jets"):
        ingest(write_jetclass_root(tmp_path / "other.root", tree="Jets"), tmp_path / "s", reader="jetclass_root")


# Top tagging


def write_top_tagging(path: Path) -> Path:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("tables")
    names = [f"{part}_{i}" for i in range(200) for part in ("E", "PX", "PY", "PZ")]
    table = np.zeros((4, 804), np.float32)
    table[:, :8] = [100.0, 60.0, 0.0, 79.0, 50.0, 30.0, 1.0, 39.0]
    table[1, 4:8] = 0.0
    frame = pandas.DataFrame(table, columns=[*names, "truthE", "truthPX", "truthPY", "truthPZ"])
    frame["ttv"], frame["is_signal_new"] = 0, [0, 1, 1, 0]
    frame.to_hdf(path, key="table", format="table")
    return path


def test_top_tagging_tables(tmp_path):
    source = write_top_tagging(tmp_path / "train.h5")
    assert detect(source) == "toptagging"
    store = ingest(source, tmp_path / "s")
    assert store.sizes.tolist() == [2, 1, 2, 2]
    assert store.manifest["classes"] == ["qcd", "top"]
    assert [record["label"] for record in store] == [0, 1, 1, 0]
    np.testing.assert_allclose(store[0]["momenta"][1], [50.0, 30.0, 1.0, 39.0], rtol=1e-6)
    assert set(store[0]["types"].tolist()) == {6}


# CATH


def write_cath(path: Path) -> Path:
    """One chain a line, coordinates as lists per atom with NaN where missing (chain_set.jsonl)."""
    lines = []
    for name, sequence in (("12as.A", "MKV"), ("132l.A", "GA")):
        residues = len(sequence)
        coords = {
            atom: (RNG.normal(size=(residues, 3)) + 3.8 * np.arange(residues)[:, None]).tolist()
            for atom in ("N", "CA", "C", "O")
        }
        coords["O"][0] = [float("nan")] * 3
        lines.append(json.dumps({"seq": sequence, "coords": coords, "num_chains": 1, "name": name, "CATH": ["3.30"]}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_cath_chain_sets(tmp_path):
    source = write_cath(tmp_path / "chain_set.jsonl")
    assert detect(source) == "protein"
    store = ingest(source, tmp_path / "s")
    assert [record["id"] for record in store] == ["chain_set.jsonl#12as.A", "chain_set.jsonl#132l.A"]
    assert [len(record["residue_types"]) for record in store] == [3, 2]
    assert store.sizes.tolist() == [11, 7]
    assert store.serves("residues").all()
    splits = tmp_path / "chain_set_splits.json"
    splits.write_text(json.dumps({"train": ["132l.A", "9xyz.B"], "validation": ["12as.A"], "test": []}))
    part = ingest(source, tmp_path / "part", only=f"{splits}:train")
    assert [record["id"] for record in part] == ["chain_set.jsonl#132l.A"]
    for only, what in (
        (f"{splits}:dev", "has no key 'dev'; it holds train, validation, test"),
        (str(splits), "is no list of names; name one of its keys, train, validation, test"),
        (f"{splits}:test", "none of the records named by only="),
        (str(tmp_path / "nowhere.json"), "does not exist"),
    ):
        with pytest.raises(UserError, match=what):
            ingest(source, tmp_path / "none", only=only)


def test_structures_without_labels_are_ingested_where_that_is_meant(tmp_path):
    source = tmp_path / "structures.xyz"
    source.write_text('2\npbc="F F F"\nO 0 0 0\nH 0 0 0.96\n' * 3)
    with pytest.raises(UserError, match="no frame has an energy.*or say unlabelled=true there if structures"):
        ingest(source, tmp_path / "s")
    store = ingest(source, tmp_path / "s", options=Options(unlabelled=True))
    assert len(store) == 3
    assert not store.has("energy").any()


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("spice.hdf5", "h5py", "sets"),
        ("train.h5", "tables", "sets"),
        ("a.aselmdb", "lmdb", "sets"),
        ("a.root", "uproot", "hep"),
    ],
)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch, name, missing, extra):
    import sys

    monkeypatch.setitem(sys.modules, missing, None)
    source = tmp_path / name
    source.write_bytes(b"\x89HDF\r\n\x1a\n" + b"pandas_type" * 10)
    reader = {"h5py": "spice", "tables": "toptagging", "lmdb": "aselmdb", "uproot": "jetclass_root"}[missing]
    with pytest.raises(UserError, match=rf"needs .*install sciml\[{extra}\]"):
        ingest(source, tmp_path / "s", reader=reader)
