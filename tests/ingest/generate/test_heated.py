"""Heated molecules: which bonds turn, what turning keeps, the records of a trajectory, and refusals by name."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write

from sciml.cli import main
from sciml.data.checks import check_record
from sciml.data.store import Store
from sciml.ingest.generate import common, heated

needs_tblite = pytest.mark.skipif(
    importlib.util.find_spec("tblite") is None, reason="tblite not installed (the generate extra)"
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("CH3CH2OH", {("C", "C"), ("C", "O")}), ("C6H6", set()), ("C2H4", set()), ("trans-butane", {("C", "C")})],
)
def test_single_bonds_outside_of_rings_turn(name: str, expected: set[tuple[str, str]]) -> None:
    atoms = molecule(name)
    bonds = heated.rotatable_bonds(atoms)
    assert {tuple(sorted((atoms.symbols[first], atoms.symbols[second]))) for first, second, _ in bonds} == expected
    assert len(bonds) == {"trans-butane": 3}.get(name, len(expected))
    for first, second, moved in bonds:
        assert second in moved
        assert first not in moved
        assert 1 < len(moved) <= len(atoms) / 2


def test_turning_keeps_bonds_and_angles_and_moves_the_rest() -> None:
    atoms = molecule("trans-butane")
    turned = atoms.copy()
    heated.turn_torsions(turned, np.random.default_rng(0))
    bonded = heated.bond_ratios(atoms) < heated.BONDED
    angle_apart = bonded | ((bonded.astype(int) @ bonded) > 0)
    before, after = (one.get_all_distances() for one in (atoms, turned))
    np.testing.assert_allclose(after[angle_apart], before[angle_apart], atol=1e-6)
    assert np.abs(after - before).max() > 0.5
    assert (heated.bond_ratios(turned)[~bonded] >= heated.BONDED).all()


def molecules(path: Path, *symbols: str) -> Path:
    """A file of molecules of ASE's G2 collection."""
    frames = [molecule(one) for one in symbols]
    for frame in frames:
        frame.info["energy"] = 0.0
    write(path, frames, format="extxyz")
    return path


@needs_tblite
def test_the_command_writes_a_store_that_repeats(tmp_path: Path) -> None:
    """Whatever the number of workers is."""
    source = molecules(tmp_path / "few.xyz", "CH3CH2OH", "CH3OH", "CH3CHO")
    stores = []
    for workers in (1, 2):
        output = tmp_path / f"hot{workers}"
        words = [f"source={source}", f"output={output}", "records=50", f"workers={workers}"]
        assert main(["heat", *words, "temperatures=[300,1200]"]) == 0
        stores.append(Store(output))
    one, two = stores
    assert (len(one), one.dataset) == (50, "gfn2-xtb")
    assert one.data_hash == two.data_hash
    assert set(one.texts("config_type")) == {"heated_300K", "heated_1200K"}
    assert len(set(one.texts("id"))) == 50
    assert len(set(one.groups)) == 3  # four trajectories, from three starts
    assert one.manifest["source"] == "GFN2-xTB dynamics from few.xyz"
    norms: dict[str, list[float]] = {}
    for record in one:
        check_record(record, "materials")
        norms.setdefault(record["config_type"], []).append(float(np.square(record["forces"]).mean()))
    assert np.mean(norms["heated_1200K"]) > 1.5 * np.mean(norms["heated_300K"])


@needs_tblite
def test_labels_are_those_of_the_method_with_charge_and_spin(tmp_path: Path) -> None:
    from tblite.ase import TBLite

    ammonium = Atoms("NH4", [(0, 0, 0), (0.6, 0.6, 0.6), (-0.6, -0.6, 0.6), (-0.6, 0.6, -0.6), (0.6, -0.6, -0.6)])
    start = {"id": "ammonium", "types": ammonium.numbers, "positions": ammonium.positions, "charge": 1.0, "spin": 1.0}
    records = heated.heat(heated.Task(start, 500.0, False, 3, 0))
    assert len(records) == 3
    for record in records:
        assert record["charge"] == 1
        atoms = Atoms(record["types"], record["positions"])
        atoms.calc = TBLite(method="GFN2-xTB", charge=1.0, verbosity=0)
        assert atoms.get_potential_energy() == pytest.approx(float(record["energy"]), abs=1e-3)
        np.testing.assert_allclose(atoms.get_forces(), record["forces"], atol=5e-3)


@pytest.mark.parametrize(
    ("atoms", "said"),
    [
        (Atoms("Si2", [(0, 0, 0), (1.36, 1.36, 1.36)], cell=np.eye(3) * 5.43, pbc=True), "is periodic"),
        (Atoms("HFr", [(0, 0, 0), (0, 0, 2.9)]), "has Fr, and GFN2-xTB ends at Rn"),
        (Atoms("H4", [(0, 0, 0), (0, 0, 0.74), (9, 0, 0), (9, 0, 0.74)]), "is not one molecule"),
        (Atoms("OH", [(0, 0, 0), (0, 0, 0.97)]), "has 9 electrons (charge +0), which cannot have the multiplicity 1"),
    ],
)
def test_what_is_no_molecule_is_refused_by_its_record(
    atoms: Atoms, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    atoms.info["energy"] = 0.0
    write(tmp_path / "wrong.xyz", [molecule("H2O"), atoms], format="extxyz")
    output = tmp_path / "hot"
    assert main(["heat", f"source={tmp_path / 'wrong.xyz'}", f"output={output}", "records=30"]) == 2
    message = capsys.readouterr().err
    assert "wrong.xyz: record 'wrong.xyz#1'" in message
    assert said in message
    assert "Traceback" not in message
    assert not output.exists()


def test_jets_and_a_missing_engine_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["heat", "source=samples:jets", f"output={tmp_path / 'hot'}"]) == 2
    assert "found hep records, expected molecules" in capsys.readouterr().err
    monkeypatch.setattr(common.importlib.util, "find_spec", lambda name: None)
    source = molecules(tmp_path / "one.xyz", "H2O")
    assert main(["heat", f"source={source}", f"output={tmp_path / 'hot'}"]) == 2
    assert "tblite is not installed" in capsys.readouterr().err
    assert not (tmp_path / "hot").exists()


@needs_tblite
def test_the_source_is_not_replaced_and_what_fell_apart_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = molecules(tmp_path / "one.xyz", "H2O")
    assert main(["ingest", f"source={source}", f"output={tmp_path / 'mine'}"]) == 0
    words = [f"source={tmp_path / 'mine'}", "records=15"]
    assert main(["heat", *words, f"output={tmp_path / 'mine'}", "overwrite=true"]) == 2
    assert "which is the source and would be lost" in capsys.readouterr().err
    assert Store(tmp_path / "mine").dataset == "one"
    assert main(["heat", *words, f"output={tmp_path / 'hot'}", "temperatures=[1000000]"]) == 2
    assert "no trajectory has a configuration to keep" in capsys.readouterr().err
    assert not (tmp_path / "hot").exists()
