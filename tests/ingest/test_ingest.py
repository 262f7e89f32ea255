"""Ingestion of small files: every kind of bad input gives one sentence that names file, record and key."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sciml.data.store import Store
from sciml.errors import UserError
from sciml.ingest.formats import Options
from sciml.ingest.ingest import detect, expand, ingest, open_data, run

HEADER = 'Properties=species:S:1:pos:R:3:forces:R:3 energy=-10.0 pbc="F F F"'
ATOMS = ["O 0.0 0.0 0.0 0.1 0.0 0.0", "H 0.96 0.0 0.0 -0.1 0.0 0.0", "H -0.24 0.93 0.0 0.0 0.0 0.0"]


def frame(header=HEADER, atoms=ATOMS) -> str:
    return "\n".join([str(len(atoms)), header, *atoms]) + "\n"


def ingested(tmp_path, text, name="water.xyz", **keys):
    (tmp_path / name).write_text(text)
    return ingest(tmp_path / name, tmp_path / "out", **keys)


def refused(tmp_path, text, match, name="water.xyz", **keys):
    """The file must be refused with a sentence that names it, and leave nothing behind."""
    with pytest.raises(UserError, match=match) as caught:
        ingested(tmp_path, text, name, **keys)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_extxyz_units_keys_and_ids(tmp_path):
    store = ingested(tmp_path, frame() * 3)
    assert len(store) == 3
    record = store[2]
    assert record["id"] == "water.xyz#2"
    assert record["types"].tolist() == [8, 1, 1]
    assert record["energy"] == -10.0
    np.testing.assert_allclose(record["forces"][0], [0.1, 0, 0], atol=1e-7)
    assert "stress" not in record
    assert store.dataset == "water"


@pytest.mark.parametrize("prefix", ["REF_", "dft_"])
def test_usual_names_of_labels(tmp_path, prefix):
    header = HEADER.replace("forces", f"{prefix}forces").replace("energy", f"{prefix}energy")
    record = ingested(tmp_path, frame(header))[0]
    assert record["energy"] == -10.0
    assert record["forces"].shape == (3, 3)


def test_named_keys_win_over_the_usual_ones(tmp_path):
    header = HEADER + " mp2_energy=-77.0"
    assert ingested(tmp_path, frame(header), options=Options(energy_key="mp2_energy"))[0]["energy"] == -77.0


def test_units_are_converted(tmp_path):
    options = Options(energy_unit="hartree", length_unit="bohr")
    text = frame(atoms=["O 0.0 0.0 0.0 0.1 0.0 0.0", "H 1.81 0.0 0.0 -0.1 0.0 0.0", "H -0.45 1.76 0.0 0.0 0.0 0.0"])
    record = ingested(tmp_path, text, options=options)[0]
    assert record["energy"] == pytest.approx(-272.11386)
    assert record["positions"][1, 0] == pytest.approx(1.81 * 0.529177, rel=1e-5)
    assert record["forces"][0, 0] == pytest.approx(5.1422, rel=1e-4)


def test_forces_have_a_unit_of_their_own(tmp_path):
    """Positions in Å beside energies in hartree and forces in hartree/bohr, a common mixture."""
    text = frame(atoms=["O 0.0 0.0 0.0 0.1 0.0 0.0", "H 0.96 0.0 0.0 -0.1 0.0 0.0", "H -0.24 0.93 0.0 0.0 0.0 0.0"])
    record = ingested(tmp_path, text, options=Options(energy_unit="hartree", forces_unit="hartree/bohr"))[0]
    assert record["positions"][1, 0] == pytest.approx(0.96)
    assert record["energy"] == pytest.approx(-272.11386)
    assert record["forces"][0, 0] == pytest.approx(5.1422, rel=1e-4)
    assert Options(energy_unit="rydberg").forces == pytest.approx(13.6057, rel=1e-5)
    with pytest.raises(UserError, match="forces_unit: 'hartree' is not known; use one of eV/Å, hartree/bohr"):
        Options(forces_unit="hartree")


CELL = 'Lattice="4 0 0 0 4 0 0 0 4" pbc="T T T"'


def test_stress_and_virial_have_one_sign(tmp_path):
    atoms = ["Si 0 0 0 0 0 0", "Si 1.9 2.0 2.1 0 0 0"]
    header = "Properties=species:S:1:pos:R:3:forces:R:3 energy=-10.0 " + CELL
    stress = np.array([[0.01, 0.002, 0.003], [0.002, 0.02, 0.004], [0.003, 0.004, 0.03]])
    nine = " ".join(map(str, stress.ravel()))
    text = frame(f'{header} stress="{nine}"', atoms)
    text += frame(f'{header} virial="{" ".join(map(str, (-64 * stress).ravel()))}"', atoms)
    text += frame(f'{header} REF_stress="0.01 0.02 0.03 0.004 0.003 0.002"', atoms)
    for record in ingested(tmp_path, text):
        np.testing.assert_allclose(record["stress"], stress, atol=1e-8)


def test_one_bad_frame_is_quarantined_and_the_rest_stay(tmp_path, capsys):
    nan = frame(atoms=["O nan 0 0 0 0 0", *ATOMS[1:]])
    unknown = frame(atoms=["Xq 0 0 0 0 0 0", *ATOMS[1:]])
    dummy = frame(atoms=["X 0 0 0 0 0 0", *ATOMS[1:]])
    empty = frame(atoms=[])
    store = ingested(tmp_path, frame() + nan + unknown + dummy + empty + frame())
    assert [record["id"] for record in store] == ["water.xyz#0", "water.xyz#5"]
    reasons = [json.loads(line) for line in (store.path / "quarantine.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in reasons] == [f"water.xyz#{index}" for index in (1, 2, 3, 4)]
    expected = ("positions: NaN", "species: 'Xq' is not an element", "types: atom 0 has atomic number 0", "zero atoms")
    for entry, text in zip(reasons, expected):
        assert text in entry["reason"]
    printed = capsys.readouterr().out
    assert "4 records refused" in printed
    assert "water.xyz#1: positions: NaN" in printed


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (frame(atoms=["O nan 0 0 0 0 0", *ATOMS[1:]]), "water.xyz#0: positions: NaN"),
        (frame(atoms=["Xq 0 0 0 0 0 0"]), "water.xyz#0: species: 'Xq' is not an element"),
        (frame(atoms=[]), "water.xyz#0: types: the record has zero atoms"),
        (frame(HEADER.replace("energy=-10.0", "energy=abc")), "water.xyz#0: energy: 'abc' is not a number"),
        (frame("Properties=species:S:1:pos:R:3 energy=1 " + CELL.replace("4 0 0 ", "4e7 0 0 "), ["Si 0 0 0"]), "cell"),
        (frame() + frame()[:-60], "record water.xyz#1: the file is truncated, positions of 3 atoms"),
        (frame() + frame()[:-8], "record water.xyz#1: the file is truncated"),
        (frame() + "hello\n", "record water.xyz#1: 'hello' found where the number of atoms"),
        ("", "the file is empty"),
        ("\n\n", "holds no records"),
        (
            frame("Properties=species:S:1:pos:R:3 E_dft=-3.0", [" ".join(line.split()[:4]) for line in ATOMS]),
            "keys found are E_dft.*`sciml ingest source=.*water.xyz output=STORE energy_key=.* unlabelled=true",
        ),
        (
            frame(atoms=[f"O {i * 0.02} 0 0 0 0 0" for i in range(5)]),
            "median distance .* 0.02 Å.*not Å but nm, use `sciml ingest source=.*xyz output=STORE length_unit=nm`",
        ),
        (frame(atoms=[f"O {i * 20.0} 0 0 0 0 0" for i in range(2)]), "nothing"),
        (frame(atoms=[f"O {i * 9.0} 0 0 0 0 0" for i in range(3)]), "median distance .* 9 Å"),
        (
            frame(atoms=[f"O {i * 1.2} 0 0 5e4 0 0" for i in range(3)]),
            "forces: their RMS is .*water.xyz output=STORE energy_unit=UNIT`",
        ),
    ],
    ids=lambda value: "",
)
def test_bad_extxyz(tmp_path, text, match):
    if match == "nothing":  # isolated atoms have no neighbours: no verdict on the unit
        assert len(ingested(tmp_path, text)) == 1
        return
    refused(tmp_path, text, match)


def test_forces_that_are_unusually_large_are_warned_of(tmp_path, capsys):
    ingested(tmp_path, frame(atoms=[f"O {i * 1.2} 0 0 {40 * (-1) ** i} 0 0" for i in range(4)]))
    assert "their RMS is 23.1 eV/Å, above 15 is unusual; if the file is in kcal/mol" in capsys.readouterr().out


def test_bad_options(tmp_path):
    refused(
        tmp_path,
        frame(),
        "key 'mp2' named by energy_key.*keys found are energy, forces",
        options=Options(energy_key="mp2"),
    )
    with pytest.raises(UserError, match="length_unit: 'parsec' is not known; use one of"):
        Options(length_unit="parsec")
    with pytest.raises(UserError, match=r"readers: 'xyzzy' is not known; use one of .*ase"):
        ingested(tmp_path, frame(), reader="xyzzy")


def test_binary_rubbish(tmp_path):
    (tmp_path / "a.xyz").write_bytes(bytes(range(256)) * 8)
    with pytest.raises(UserError, match=r"a.xyz"):
        ingest(tmp_path / "a.xyz", tmp_path / "out")
    (tmp_path / "a.thing").write_bytes(bytes(range(256)) * 8)
    with pytest.raises(UserError, match=r"a.thing: no reader recognises this file; name one with format="):
        ingest(tmp_path / "a.thing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_is_refused_unless_overwritten(tmp_path):
    ingested(tmp_path, frame())
    with pytest.raises(UserError, match=r"overwrite=true"):
        ingested(tmp_path, frame())
    assert len(ingested(tmp_path, frame() * 2, overwrite=True)) == 2


def test_paths_as_typed_and_patterns(tmp_path):
    names = ["a=1 (x).xyz", "b[2].xyz"]
    for name in names:
        (tmp_path / name).write_text(frame())
    assert [path.name for path in expand([tmp_path / name for name in names])] == names
    assert [path.name for path in expand(str(tmp_path / "*.xyz"))] == names
    assert len(ingest(str(tmp_path / "*.xyz"), tmp_path / "out")) == 2
    for source, message in (
        (tmp_path / "none.xyz", "no such file"),
        (tmp_path, "a folder found, expected files"),
        (tmp_path / "out", "this is a store already"),
        ([], "no file was given"),
    ):
        with pytest.raises(UserError, match=message):
            expand(source)


def test_raw_files_open_where_a_store_is_expected(tmp_path, capsys):
    path = tmp_path / "water.xyz"
    path.write_text(frame() * 2)
    first = open_data(path, cache_dir=tmp_path / "cache")
    assert "ingesting it on the fly" in capsys.readouterr().out
    assert open_data(path, cache_dir=tmp_path / "cache").data_hash == first.data_hash
    assert capsys.readouterr().out == ""
    path.write_text(frame() * 3)
    assert len(open_data(path, cache_dir=tmp_path / "cache")) == 3
    assert len(open_data(first.path)) == 2
    temporary = open_data(path)
    folder = temporary.path
    assert folder.exists()
    del temporary
    assert not folder.exists()
    with pytest.raises(UserError, match="no such file"):
        open_data(tmp_path / "missing.xyz")


def test_of_several_ranks_one_speaks(tmp_path, capsys, monkeypatch):
    path = tmp_path / "water.xyz"
    path.write_text(frame() * 2)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        open_data(path, cache_dir=tmp_path / rank)
        assert bool(capsys.readouterr().out) == (rank == "0")


def test_several_raw_files_open_as_one_store(tmp_path, capsys):
    paths = [tmp_path / "a.xyz", tmp_path / "b.xyz"]
    for count, path in enumerate(paths, start=1):
        path.write_text(frame() * count)
    store = open_data(paths, cache_dir=tmp_path / "cache")
    assert "a.xyz and 1 more: no stores, ingesting them on the fly as one into" in capsys.readouterr().out
    assert [record["id"] for record in store] == ["a.xyz#0", "b.xyz#0", "b.xyz#1"]
    assert store.dataset == "a"
    assert open_data(paths, cache_dir=tmp_path / "cache").path == store.path
    assert len(open_data(paths[:1], cache_dir=tmp_path / "cache")) == 1


def test_a_false_count_of_atoms_ends_with_the_file(tmp_path):
    refused(tmp_path, f"{10**12}\n{HEADER}\n{ATOMS[0]}\n", f"positions of {10**12} atoms are announced and 1 lines")


def test_run_reads_the_config(tmp_path, capsys):
    (tmp_path / "water.xyz").write_text(frame())
    keys = dict.fromkeys(Options.__dataclass_fields__) | {"targets": {}}
    config = SimpleNamespace(
        source=[str(tmp_path / "water.xyz")],
        output=str(tmp_path / "out"),
        format="ase",
        dataset="pbe",
        licence="CC0",
        only=None,
        overwrite=False,
        **keys,
    )
    assert run(config) == 0
    store = Store(tmp_path / "out")
    assert (store.dataset, store.manifest["licence"]) == ("pbe", "CC0")
    assert "1 materials records" in capsys.readouterr().out


def test_trajectory_keys_become_groups(tmp_path):
    text = "".join(frame(f"{HEADER} traj_id={index % 2}") for index in range(4))
    assert ingested(tmp_path, text).groups == ["water.xyz:0", "water.xyz:1"] * 2


def mlearn_entry(**outputs):
    sites = [{"species": [{"element": "Si", "occu": 1}], "abc": [0.1 + 0.4 * i] * 3} for i in range(2)]
    structure = {"lattice": {"matrix": (np.eye(3) * 4).tolist()}, "sites": sites}
    default = {"energy": -10.0, "forces": [[0, 0, 0]] * 2, "virial_stress": [10, 20, 30, 1, 2, 3]}
    return {
        "structure": structure,
        "outputs": {**default, **outputs},
        "group": "AIMD",
        "description": "Snapshot 1 of 3 of NVT",
    }


def test_mlearn_stress_order_sign_and_unit(tmp_path):
    store = ingested(tmp_path, json.dumps([mlearn_entry()]), "training.json")
    expected = -np.array([[10, 1, 3], [1, 20, 2], [3, 2, 30]]) * 0.1 * 0.00624150907
    np.testing.assert_allclose(store[0]["stress"], expected, rtol=1e-6)
    assert store.groups == ["NVT"]
    assert store[0]["config_type"] == "AIMD"


def test_bad_mlearn(tmp_path):
    entries = [mlearn_entry(), {"structure": mlearn_entry()["structure"]}, mlearn_entry(virial_stress=[1, 2])]
    store = ingested(tmp_path, json.dumps(entries), "training.json")
    lines = (store.path / "quarantine.jsonl").read_text()
    assert "outputs: missing" in lines
    assert "virial_stress: shape (2,)" in lines


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (json.dumps([mlearn_entry()])[:-20], "training.json: not valid JSON, truncated perhaps"),
        (json.dumps([mlearn_entry(energy=None, forces=None)]), "training.json#0: outputs: no energy and no forces"),
        (json.dumps([mlearn_entry(forces=[[0, 0, None]] * 2)]), "training.json#0: forces: NaN"),
        (json.dumps({"structure": 1, "outputs": 2}), "a JSON dict found, expected a list"),
    ],
)
def test_unusable_mlearn(tmp_path, text, match):
    refused(tmp_path, text, match, "training.json")


def jets(**change):
    table = {
        "part_px": [[10.0, 5.0], [8.0]],
        "part_py": [[0.0, 1.0], [0.5]],
        "part_pz": [[1.0, 2.0], [3.0]],
        "part_energy": [[10.0, 6.0], [9.0]],
        "part_charge": [[1, 0], [-1]],
        "part_isChargedHadron": [[True, False], [False]],
        "part_isPhoton": [[False, True], [False]],
        "part_isMuon": [[False, False], [True]],
        "label_QCD": [1, 0],
        "label_Tbqq": [0, 1],
        **change,
    }
    return {name: column for name, column in table.items() if column is not None}


def write_jets(path, **change):
    pq.write_table(pa.table(jets(**change)), path)
    return path


def test_jets_with_one_hot_labels(tmp_path, capsys):
    store = ingest(write_jets(tmp_path / "jets.parquet"), tmp_path / "out")
    assert store.manifest["classes"] == ["QCD", "Tbqq"]
    assert [record["label"] for record in store] == [0, 1]
    assert store[0]["types"].tolist() == [1, 3]
    assert store[1]["types"].tolist() == [5]
    momenta = store[0]["momenta"].astype(np.float64)
    assert momenta[0, 0] > 10.0  # m^2 = -1 was regulated
    assert (momenta[:, 0] ** 2 >= (momenta[:, 1:] ** 2).sum(axis=1)).all()
    assert store.manifest["counts"]["regulated_constituents"] == 1
    assert "1 constituents of negative mass squared" in capsys.readouterr().out
    assert store.manifest["statistics"]["label_counts"] == [1, 1]


def test_jets_with_integer_labels_and_events(tmp_path):
    change = {"label_QCD": None, "label_Tbqq": None, "jet_label": [7, 2], "event_number": [5, 5]}
    store = ingest(write_jets(tmp_path / "jets.parquet", **change), tmp_path / "out")
    assert len(store.manifest["classes"]) == 8
    assert store.groups == ["jets.parquet:5"] * 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"part_pz": None}, "jets.parquet: the branch part_pz is missing; the branches found are part_px"),
        ({"part_px": [[10.0], [8.0]]}, "jets.parquet: the branches .* have lists of different lengths"),
        ({"part_px": [1.0, 2.0]}, "jets.parquet: the branch part_px is double, expected a list per jet"),
        ({"label_QCD": [0, 0], "label_Tbqq": [0, 0]}, "jets.parquet#0: label_QCD: no class"),
        ({"part_px": [[np.nan, 1.0], [np.nan]]}, "jets.parquet#0: momenta: NaN"),
    ],
)
def test_bad_jets(tmp_path, change, match):
    with pytest.raises(UserError, match=match):
        ingest(write_jets(tmp_path / "jets.parquet", **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["energy_key", "forces_key", "stress_key"])
def test_a_key_that_no_mlearn_entry_has_is_named(tmp_path, key):
    match = f"no entry has the key 'mp2' named by {key}; the keys found are energy, forces, virial_stress"
    refused(tmp_path, json.dumps([mlearn_entry()]), match, "training.json", options=Options(**{key: "mp2"}))


def test_options_without_a_meaning_for_the_format_are_refused(tmp_path):
    options = Options(energy_key="mp2")
    with pytest.raises(UserError, match=r"jets.parquet: energy_key=mp2 does not apply to files of this format"):
        ingest(write_jets(tmp_path / "jets.parquet"), tmp_path / "out", options=options)
    entry = {"name": "one", "seq": "A", "coords": [[[0, 0, 0], [1.5, 0, 0], [2, 1.4, 0], [3.2, 1.4, 0]]]}
    (tmp_path / "one.json").write_text(json.dumps([entry]))
    with pytest.raises(UserError, match=r"one.json: energy_key=mp2 does not apply .* which take length_unit"):
        ingest(tmp_path / "one.json", tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_truncated_parquet(tmp_path):
    path = write_jets(tmp_path / "jets.parquet")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"jets.parquet: not a readable parquet file, truncated"):
        ingest(path, tmp_path / "out")


def test_other_formats_of_ase(tmp_path):
    from ase.build import bulk
    from ase.calculators.emt import EMT
    from ase.io import write

    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    for name in ("a.traj", "a.db"):
        write(tmp_path / name, atoms)
        assert detect(tmp_path / name) == "ase"
        store = ingest(tmp_path / name, tmp_path / f"out-{name}")
        np.testing.assert_allclose(store[0]["stress"], atoms.get_stress(voigt=False), atol=1e-7)
        assert store[0]["energy"] == pytest.approx(atoms.get_potential_energy())
