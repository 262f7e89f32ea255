"""Leaderboards on a few records: metrics against computations by hand, files in the published formats."""

import argparse
import csv
import gzip
import importlib
import io
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from sciml.data.source import Source
from sciml.models.model import build_model
from sciml.package import save
from sciml.train.card import package_config
from tests.benchmarks.test_conductivity import MATERIAL
from tests.small import describe_model, jets_store

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def discovery(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER / "leaderboards"))
    return importlib.import_module("matbench_discovery")


@pytest.fixture
def tagging(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER / "leaderboards"))
    return importlib.import_module("top_tagging")


def test_stability_by_hand(discovery):
    true = np.array([-0.1, -0.05, 0.0, 0.02, 0.1, 0.3])
    predicted = np.array([-0.2, 0.01, -0.01, -0.01, 0.2, math.nan])
    found = discovery.stability(true, predicted)
    # stable: the first three; called stable: 0, 2, 3; right: 0 and 2
    assert found["precision"] == found["recall"] == found["F1"] == pytest.approx(2 / 3)
    assert found["prevalence"] == pytest.approx(1 / 2)
    assert found["DAF"] == pytest.approx(4 / 3)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["MAE"] == pytest.approx(np.mean([0.1, 0.06, 0.01, 0.03, 0.1]))
    assert found["missing"] == 1
    perfect = discovery.stability(true, true)
    assert (perfect["F1"], perfect["DAF"], perfect["R2"]) == (1.0, 2.0, 1.0)
    assert discovery.stability(true, np.ones(6))["F1"] == 0.0


def test_rmsd_of_sites(discovery):
    rng = np.random.default_rng(0)
    first = bulk("Cu", "fcc", a=3.6, cubic=True).repeat((2, 1, 1))
    scale = (first.get_volume() / len(first)) ** (1 / 3)
    moved = first.copy()
    moved.positions += [0.7, -0.3, 4.0]  # a shift is no difference
    moved.wrap()
    assert discovery.structure_rmsd(first, moved) == pytest.approx(0.0, abs=1e-9)
    noise = rng.normal(scale=0.05, size=(8, 3))
    noise -= noise.mean(axis=0)
    moved.positions += noise
    expected = np.sqrt(np.square(noise).sum(axis=1).mean()) / scale
    assert discovery.structure_rmsd(first, moved) == pytest.approx(expected, rel=1e-6)
    other = first.copy()
    other.symbols[0] = "Ni"
    assert discovery.structure_rmsd(first, other) == discovery.UNMATCHED


def metals() -> dict[str, Atoms]:
    rng = np.random.default_rng(0)
    made = {}
    for index, (name, a) in enumerate((("Cu", 3.6), ("Au", 4.1), ("Pt", 3.9), ("Al", 4.0))):
        atoms = bulk(name, "fcc", a=a * 1.02, cubic=True)
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.info = {"material_id": f"wbm-1-{index + 1}"}
        made[atoms.info["material_id"]] = atoms
    return made


def write_inputs(folder: Path, references: dict[str, float], hull: list[float]) -> None:
    """The initial structures in a zip and the summary, as they are published."""
    initial = metals()
    with zipfile.ZipFile(folder / "initial.extxyz.zip", "w") as archive:
        for name, atoms in initial.items():
            text = io.StringIO()
            ase.io.write(text, atoms, format="extxyz")
            archive.writestr(f"{name}.extxyz", text.getvalue())
    with gzip.open(folder / "summary.csv.gz", "wt", newline="") as file:
        columns = ["material_id", "n_sites", "uncorrected_energy", "e_above_hull_mp2020_corrected_ppd_mp"]
        writer = csv.DictWriter(file, [*columns, "unique_prototype"])
        writer.writeheader()
        for index, (name, energy) in enumerate(references.items()):
            writer.writerow(dict(zip(columns, (name, 4, energy, hull[index]))) | {"unique_prototype": index != 3})


def test_relaxed_structures_are_scored_from_published_files(discovery, tmp_path):
    """With EMT for the model and for DFT, distances to the hull come out as they were put in."""
    relaxed = {name: discovery.relax(atoms, EMT()) for name, atoms in metals().items()}
    assert all(atoms.info["converged"] for atoms in relaxed.values())
    energies = {name: atoms.get_potential_energy() for name, atoms in relaxed.items()}
    hull = [-0.1, 0.05, 0.2, -0.02]
    write_inputs(tmp_path, energies, hull)
    assert {a.info["material_id"] for a in discovery.structures(tmp_path / "initial.extxyz.zip")} == set(energies)
    summary = discovery.read_summary(tmp_path / "summary.csv.gz")
    found = discovery.score(summary, relaxed, dft=relaxed)
    assert found["all"]["F1"] == 1.0
    assert found["all"]["MAE"] == pytest.approx(0.0, abs=1e-9)
    assert found["unique_prototypes"]["materials"] == 3
    assert found["RMSD"] == pytest.approx(0.0, abs=1e-9)
    first = "wbm-1-1"
    shifted = relaxed[first].copy()
    shifted.info, shifted.calc = relaxed[first].info, SinglePointCalculator(shifted, energy=energies[first] + 4 * 0.15)
    worse = discovery.score(summary, {**relaxed, first: shifted})
    assert worse["all"]["recall"] == 0.5
    assert worse["all"]["MAE"] == pytest.approx(0.15 / 4)
    lost = discovery.score(summary, {name: atoms for name, atoms in relaxed.items() if name != first})
    assert lost["all"]["missing"] == 1
    assert lost["all"]["recall"] == 0.5
    far = relaxed[first].copy()
    far.calc = SinglePointCalculator(far, energy=energies[first] - 4 * 50.0)
    assert discovery.score(summary, {**relaxed, first: far})["all"]["missing"] == 1


def test_the_score_command(discovery, tmp_path):
    relaxed = {name: discovery.relax(atoms, EMT()) for name, atoms in metals().items()}
    write_inputs(tmp_path, {name: atoms.get_potential_energy() for name, atoms in relaxed.items()}, [-0.1, 0, 0.2, 0.3])
    for atoms in relaxed.values():
        ase.io.write(tmp_path / "relaxed.extxyz", atoms, format="extxyz", append=True)
    (tmp_path / "kappa.jsonl").write_text(json.dumps({"material_id": "mp-1", **MATERIAL}) + "\n")
    words = ["score", "--relaxed", "relaxed.extxyz", "--summary", "summary.csv.gz", "--output", "result.json"]
    words += ["--kappa", "kappa.jsonl", "--dft-kappa", "kappa.jsonl"]
    script = FOLDER / "leaderboards" / "matbench_discovery.py"
    done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "RMSD: give --dft-structures" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["all"]["F1"] == 1.0
    assert (result["kappa_SRME"], result["kappa_materials"], result["kappa_failed"]) == (0.0, 1, 0)
    done = subprocess.run(
        [sys.executable, script, *words[:-2]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "--kappa (ours) and --dft-kappa (the published ones) belong together" in done.stderr


def test_the_row_of_top_tagging(tagging):
    rng = np.random.default_rng(0)
    labels = np.arange(4000) % 2
    logits = rng.normal(size=(4000, 2))
    logits[np.arange(4000), labels] += 1.5
    noisy = [logits + rng.normal(scale=0.3, size=logits.shape) for _ in range(3)]
    runs = [tagging.measure(each, labels, ["qcd", "top"]) for each in noisy]
    score = logits[:, 1] - logits[:, 0]
    exact = tagging.measure(logits, labels, ["qcd", "top"])
    threshold = np.quantile(score[labels == 1], 0.7)
    assert exact["rejection_30%"] == pytest.approx(1 / (score[labels == 0] >= threshold).mean(), rel=0.2)
    assert exact["accuracy"] == pytest.approx(((score > 0) == (labels == 1)).mean())
    flipped = tagging.measure(logits[:, ::-1], 1 - labels, ["top", "qcd"])  # the order of classes does not matter
    assert flipped == pytest.approx(exact)
    row = tagging.over_seeds(runs)
    assert row["auc"]["mean"] == pytest.approx(np.mean([run["auc"] for run in runs]))
    assert row["auc"]["std"] == pytest.approx(np.std([run["auc"] for run in runs], ddof=1))
    assert "±" in tagging.table(row)


def test_copies_of_training_configurations_leave_the_test_set(monkeypatch, tmp_path, shared_data):
    monkeypatch.syspath_prepend(str(FOLDER / "peers"))
    structures, mace = importlib.import_module("structures"), importlib.import_module("mace")
    monkeypatch.setenv("SCIML_SHARED", str(shared_data.parent))
    files = mace.threebpa_files(tmp_path, seed=0)
    frames = {name: structures.read_frames(files[name]) for name in ("train", "val", "test")}
    assert {name: len(each) for name, each in frames.items()} == {"train": 450, "val": 50, "test": 469}

    def content(frame):
        return np.array([line.split()[1:4] for line in frame.splitlines()[2:]], dtype=float).round(4).tobytes()

    known = {content(frame) for name in ("train", "val") for frame in frames[name]}
    assert not known & {content(frame) for frame in frames["test"]}
    assert len(structures.read_frames(files["isolated"])) == 4


def test_relaxation_goes_on_where_it_was_stopped(discovery, monkeypatch, tmp_path, capsys):
    """Every structure once, in parts or not; one that the model cannot take is named and left out."""
    monkeypatch.setattr("sciml.export.ase.calculator", lambda *words: EMT())
    write_inputs(tmp_path, dict.fromkeys(metals(), 0.0), [0.0] * 4)
    iron = bulk("Fe", "bcc", a=2.9, cubic=True)  # EMT has no iron
    iron.info = {"material_id": "wbm-2-1"}
    text = io.StringIO()
    ase.io.write(text, iron, format="extxyz")
    with zipfile.ZipFile(tmp_path / "initial.extxyz.zip", "a") as archive:
        archive.writestr("wbm-2-1.extxyz", text.getvalue())
    options = argparse.Namespace(
        package=tmp_path, dataset=None, device="cpu", structures=tmp_path / "initial.extxyz.zip",
        output=tmp_path / "relaxed.extxyz", part="1/2",
    )  # fmt: skip
    discovery.run_relax(options)
    first = list(discovery.by_id([options.output]))
    assert first == ["wbm-1-1", "wbm-1-3"]
    options.part = "1/1"
    discovery.run_relax(options)
    discovery.run_relax(options)
    names = [atoms.info["material_id"] for atoms in discovery.structures(options.output)]
    assert sorted(names) == [f"wbm-1-{index}" for index in range(1, 5)]
    assert "wbm-2-1: " in capsys.readouterr().err


def test_top_tagging_reads_packages_and_stores(tagging, monkeypatch, tmp_path, capsys):
    torch.manual_seed(0)
    store = jets_store(tmp_path / "jets", records=60)
    description = describe_model(("jets",))
    description["context"]["datasets"] = ["toy"]
    baselines = {"residue_counts": [1.0] * 20, "mass_windows": {}}
    package = package_config(description, [Source(store, 0, "jets")], baselines)
    for name in ("a", "b"):
        save(tmp_path / name, build_model(description), package, "# card\n")
    words = ["--store", store.path, "--packages", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "row.json"]
    monkeypatch.setattr(sys, "argv", ["top_tagging.py", *map(str, [*words, "--scores", tmp_path / "scores"])])
    assert tagging.main() == 0
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["jets"] == 60
    scores = np.load(tmp_path / "scores" / "scores-0.npz")
    assert scores["top"].shape == scores["label"].shape == (60,)
    assert 0 <= row["runs"][0]["auc"] <= 1
    assert row["runs"][0]["accuracy"] != row["runs"][1]["accuracy"] or row["runs"][0]["auc"] != row["runs"][1]["auc"]
    assert "LorentzNet" in capsys.readouterr().out
