"""Conductivities of Matbench Discovery: of crystals by EMT, their errors by hand, and tables as they are published."""

import gzip
import importlib
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from sciml.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "leaderboards"
MATERIAL = {"kappa_tot_avg": [2.0], "mode_kappa_tot_avg": [[[1.0, 2.0], [3.0, 0.0]]], "mode_weights": [1, 2]}


@pytest.fixture
def discovery(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("matbench_discovery")


@pytest.fixture
def conductivity(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("conductivity")


def test_errors_of_conductivities(conductivity):
    errors = conductivity.symmetric_errors
    assert errors(MATERIAL, MATERIAL) == (0.0, 0.0)
    swapped = {**MATERIAL, "mode_kappa_tot_avg": [[[2.0, 1.0], [0.0, 3.0]]]}  # the same conductivity by other modes
    assert errors(swapped, MATERIAL) == (pytest.approx(2 * (8 / 3) / 4), 0.0)
    tripled = {**MATERIAL, "kappa_tot_avg": [6.0], "mode_kappa_tot_avg": [[[3.0, 6.0], [9.0, 0.0]]]}
    assert errors(tripled, MATERIAL) == pytest.approx((1.0, 1.0))
    lost = {**MATERIAL, "mode_kappa_tot_avg": [[[math.nan] * 2] * 2]}
    for bad in (None, {"failure": "a frequency is imaginary"}, lost, {**MATERIAL, "kappa_tot_avg": [math.nan]}):
        assert errors(bad, MATERIAL) == (2.0, 2.0)


@pytest.mark.parametrize(
    "other",
    [
        {"mode_kappa_tot_avg": [[[1.0, 2.0]]]},
        {"mode_weights": [2, 1]},
        {"q_points": [[0, 0, 0], [0.5, 0, 0]]},
    ],
)
def test_conductivities_of_other_modes_are_not_compared(conductivity, other):
    true = {**MATERIAL, "material_id": "mp-1", "q_points": [[0, 0, 0], [0, 0, 0.5]]}
    with pytest.raises(UserError, match="mp-1: its modes .* cannot be compared"):
        conductivity.symmetric_errors({**MATERIAL, **other}, true)


@pytest.mark.parametrize(
    ("side", "said"),
    [
        ({"kappa_tot_avg": [math.nan]}, "mp-1: the reference holds numbers that are not finite"),
        ({"mode_weights": None}, r"mp-1: found no conductivity at 300 K by modes"),
        ({"mode_kappa_tot_avg": None}, r"mp-1: found no conductivity at 300 K by modes \(KeyError"),
        ({"temperatures": [100]}, r"mp-1: found no conductivity at 300 K by modes \(ValueError"),
    ],
)
def test_a_reference_without_numbers_is_named(conductivity, side, said):
    with pytest.raises(UserError, match=said):
        conductivity.symmetric_errors(MATERIAL, {"material_id": "mp-1", **MATERIAL, **side})


def test_published_tensors_and_temperatures_are_read(conductivity):
    of_axes = np.multiply.outer(MATERIAL["mode_kappa_tot_avg"], [1.5, 0.5, 1.0, 7.0, 7.0, 7.0])
    tensors = np.zeros((*of_axes.shape[:-1], 3, 3))
    tensors[..., range(3), range(3)] = of_axes[..., :3]
    plain = {key: value for key, value in MATERIAL.items() if key != "mode_kappa_tot_avg"}
    for modes in (of_axes, tensors):
        assert conductivity.symmetric_errors(MATERIAL, {**plain, "mode_kappa_tot_rta": modes}) == (0.0, 0.0)
    two = {**MATERIAL, "temperatures": [100, 300], "kappa_tot_avg": [9.0, 2.0]}
    two["mode_kappa_tot_avg"] = [[[9.0, 9.0], [9.0, 9.0]], *MATERIAL["mode_kappa_tot_avg"]]
    assert conductivity.symmetric_errors(MATERIAL, two) == (0.0, 0.0)


def test_tables_of_conductivities_are_read(conductivity, tmp_path):
    rows = [{"material_id": "a", **MATERIAL}, {"material_id": "b", "failure": "lost"}]
    columns = {name: {str(i): row.get(name) for i, row in enumerate(rows)} for name in ("failure", *MATERIAL)}
    columns["mp_id"] = {"0": "a", "1": "b"}
    for name, content in (("rows.json.gz", rows), ("columns.json.gz", columns)):
        with gzip.open(tmp_path / name, "wt") as file:
            json.dump(content, file)
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"material_id": "c", "ka')
    for name in ("rows.json.gz", "columns.json.gz", "mine.jsonl"):
        table = conductivity.read_table(tmp_path / name)
        assert list(table) == ["a", "b"]
        assert conductivity.symmetric_errors(table["a"], MATERIAL) == (0.0, 0.0)
    (tmp_path / "joined.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert list(conductivity.read_table(tmp_path / "joined.jsonl")) == ["a", "b"]
    with pytest.raises(UserError, match="lost.json: found no table"):
        conductivity.read_table(tmp_path / "lost.json")
    for content in ("3", "[1]", "{}", "[{}]", "hello"):
        (tmp_path / "wrong.json").write_text(content)
        with pytest.raises(UserError, match=r"wrong.json: found no table of conductivities"):
            conductivity.read_table(tmp_path / "wrong.json")


def test_imaginary_frequencies(conductivity):
    real = np.array([[-0.005, 0.0, 0.0, 3.0], [1.0, 1.0, 2.0, 3.0]])
    assert not conductivity.imaginary(real)
    for place, value in (((0, 0), -0.02), ((0, 3), -0.001), ((1, 0), -0.001), ((1, 3), math.nan)):
        wrong = real.copy()
        wrong[place] = value
        assert conductivity.imaginary(wrong)


def test_pairs_of_modes_are_shared(conductivity):
    pairs = np.array([[[[1.0, 0.5], [0.5, 2.0]], [[0.0, 3.0], [3.0, 0.0]]]])
    capacities = np.array([[[1.0, 3.0], [0.0, 0.0]]])
    found = conductivity.by_mode(pairs, capacities)
    np.testing.assert_allclose(found[0, 0], [1.0 + 0.75, 2.0 + 0.25])
    np.testing.assert_allclose(found[0, 1], 0.0)


def cell_of(name: str) -> Atoms:
    """A small cell of phononDB's kind."""
    atoms = bulk(name, "fcc", a={"Cu": 3.6, "Au": 4.08}[name])
    supercell, mesh = (3 * np.eye(3, dtype=int), [5, 5, 5])
    atoms.info = {"material_id": name, "fc2_supercell": supercell, "fc3_supercell": supercell, "q_point_mesh": mesh}
    return atoms


def test_the_conductivity_of_a_crystal(conductivity):
    """Of copper by EMT: its modes sum to it, and it falls with mass and softness."""
    pytest.importorskip("phono3py", reason="phono3py not installed (the phonons extra)")
    copper, gold = (conductivity.conductivity(cell_of(name), EMT()) for name in ("Cu", "Au"))
    modes, weights = np.array(copper["mode_kappa_tot_avg"]), np.array(copper["mode_weights"])
    assert modes.shape == (1, len(weights), 3)
    assert weights.sum() == 125
    assert modes.sum() / weights.sum() == pytest.approx(copper["kappa_tot_avg"][0], rel=1e-6)
    assert 1.0 < copper["kappa_tot_avg"][0] < 100.0
    assert gold["kappa_tot_avg"][0] < copper["kappa_tot_avg"][0]
    assert 0.0 < conductivity.symmetric_errors(gold, copper)[0] < 2.0


class Unstable(EMT):
    """Forces that push a displaced atom further away."""

    def calculate(self, *arguments: Any, **named: Any) -> None:
        super().calculate(*arguments, **named)
        self.results["forces"] = -self.results["forces"]


def test_a_crystal_without_conductivity_has_a_reason(conductivity, monkeypatch):
    pytest.importorskip("phono3py", reason="phono3py not installed (the phonons extra)")
    assert conductivity.conductivity(cell_of("Cu"), Unstable()) == {"failure": "a frequency is imaginary"}

    def sheared(atoms: Atoms, calculator: Any) -> Atoms:
        moved = atoms.copy()
        moved.set_cell(atoms.cell @ np.array([[1, 0.1, 0], [0, 1, 0], [0, 0, 1]]), scale_atoms=True)
        return moved

    monkeypatch.setattr(conductivity, "relax", sheared)
    found = conductivity.conductivity(cell_of("Cu"), EMT())["failure"]
    assert re.fullmatch(r"the space group changed from 225 to \d+", found)
    coincident = cell_of("Cu")
    coincident += coincident.copy()
    assert conductivity.conductivity(coincident, EMT()) == {"failure": "has no space group"}


def test_relaxing_keeps_the_symmetry(conductivity):
    pytest.importorskip("spglib", reason="spglib not installed (the phonons extra)")
    start = bulk("Cu", "fcc", a=3.8)
    relaxed = conductivity.relax(start, EMT())
    assert conductivity.space_group(relaxed) == conductivity.space_group(start) == 225
    assert relaxed.get_volume() < 0.9 * start.get_volume()


@pytest.fixture
def kappa(discovery, monkeypatch, tmp_path):
    """Runs the command kappa on structures, with EMT for the model."""
    pytest.importorskip("phono3py", reason="phono3py not installed (the phonons extra)")
    monkeypatch.setattr(discovery, "calculator_of", lambda options: EMT())

    def run(structures: list[Atoms], *words: str) -> int:
        ase.io.write(tmp_path / "structures.extxyz", structures, format="extxyz")
        paths = ["--structures", str(tmp_path / "structures.extxyz"), "--output", str(tmp_path / "kappa.jsonl")]
        monkeypatch.setattr(sys, "argv", ["matbench_discovery.py", "kappa", "--package", "p", *paths, *words])
        return discovery.main()

    return run


def test_kappa_goes_on_where_it_was_stopped(kappa, discovery, monkeypatch, tmp_path, capsys):
    unknown, other_names = bulk("Si"), cell_of("Au")
    unknown.info = cell_of("Cu").info | {"material_id": "Si"}
    other_names.info = {
        {"material_id": "mp_id", "q_point_mesh": "q_mesh"}.get(k, k): v for k, v in other_names.info.items()
    }
    output = tmp_path / "kappa.jsonl"
    for part in ("1/2", "2/2"):
        assert kappa([cell_of("Cu"), unknown, other_names], "--part", part) == 0
    with open(output, "a") as file:
        file.write('{"material_id": "torn')
    lines = output.read_text().splitlines()[:3]

    def silent(*arguments: Any) -> dict[str, Any]:
        raise RuntimeError

    monkeypatch.setattr(discovery, "conductivity", silent)
    assert kappa([cell_of("Cu"), unknown, other_names]) == 0
    assert output.read_text().splitlines() == lines
    assert [json.loads(line)["material_id"] for line in lines] == ["Cu", "Au", "Si"]
    assert capsys.readouterr().err.count("Si: ") == 1
    assert kappa([cell_of("Cu"), unknown, other_names], "--retry") == 0
    assert output.read_text().splitlines()[:2] == lines[:2]
    assert discovery.read_table(output)["Si"]["failure"] == "RuntimeError"


def test_structures_without_a_mesh_are_refused_before_anything_is_computed(kappa, tmp_path, capsys):
    plain = bulk("Cu")
    plain.info = {"material_id": "plain"}
    assert kappa([cell_of("Cu"), plain]) == 2
    assert "plain has no fc2_supercell, fc3_supercell, q_point_mesh" in capsys.readouterr().err
    assert not (tmp_path / "kappa.jsonl").exists()


def test_files_that_are_not_there_or_of_another_kind_are_refused(kappa, discovery, monkeypatch, tmp_path, capsys):
    assert kappa([cell_of("Cu")], "--output", str(tmp_path / "kappa.json")) == 2
    assert "expected a file of JSON lines that ends in .jsonl" in capsys.readouterr().err
    words = ["matbench_discovery.py", "kappa", "--package", "p", "--structures", str(tmp_path / "lost.extxyz")]
    monkeypatch.setattr(sys, "argv", [*words, "--output", str(tmp_path / "kappa.jsonl")])
    assert discovery.main() == 2
    assert "lost.extxyz does not exist; give a file of structures" in capsys.readouterr().err


def test_kappa_without_phono3py_is_refused(discovery, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(discovery.importlib.util, "find_spec", lambda name: None)
    words = ["--package", "p", "--structures", "s.extxyz", "--output", str(tmp_path / "kappa.jsonl")]
    monkeypatch.setattr(sys, "argv", ["matbench_discovery.py", "kappa", *words])
    assert discovery.main() == 2
    assert "phono3py is not installed, see the extra phonons" in capsys.readouterr().err


def test_conductivities_of_a_reference(discovery):
    dft = {name: {"material_id": name, **MATERIAL} for name in ("a", "b", "c")}
    found = discovery.conductivities({"a": MATERIAL, "b": {"failure": "lost"}, "x": MATERIAL}, dft)
    assert found == {"kappa_SRME": 4 / 3, "kappa_SRE": 4 / 3, "kappa_materials": 3, "kappa_failed": 2}
    with pytest.raises(UserError, match="no material of the reference among 1, expected those of a, b, c"):
        discovery.conductivities({"x": MATERIAL}, dft)
