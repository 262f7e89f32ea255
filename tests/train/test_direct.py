"""Recipes of the atoms: direct forces first and conservative ones after, and long range; on embedded samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sciml
from sciml import build
from sciml.config import configure
from sciml.verbs.train import train
from tests.helpers import random_crystal, random_molecule, relative_rms
from tests.small import graph_of, outputs

SHORT = (
    "train=samples:lithium",
    "model=tiny",
    "model.channels=4",
    "model.radial.hidden=[8]",
    "heads.energy.hidden=8",
    "data.batch.atoms.max_graphs=3",
    "data.val_fraction=0.02",
    "data.cutoff.atoms=4.0",
    "data.bins_per_step.jets=0",
    "optimizer.warmup_steps=2",
    "trainer.max_steps=3",
    "trainer.progress=false",
    "trainer.log_every=1",
    "logger=disabled",
)


def trained(folder: Path, *words: str) -> Any:
    """The package of a short run."""
    assert train(configure("train", [*SHORT, f"run_dir={folder}", *words])) == 0
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for target in ("energy", "forces", "stress"):
        assert any(np.isfinite(line.get(f"train/{target}", np.nan)) for line in losses), target
    return sciml.load(folder)


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("direct") / "run", "experiment=pretrain_direct")


def test_conservative_training_starts_from_the_weights_of_direct_pretraining(direct, tmp_path, capsys):
    assert direct.config["model"]["heads"]["energy"]["name"] == "direct_forces"
    found = trained(tmp_path / "run", "experiment=conservative", f"init={direct.path}")
    said = capsys.readouterr().err
    assert "starting from" in said
    assert "new parameters" not in said
    assert "name" not in found.config["model"]["heads"]["energy"]
    assert found.model.heads["energy"].differentiates
    shapes = [{n: p.shape for n, p in package.model.backbone.named_parameters()} for package in (direct, found)]
    assert shapes[0] == shapes[1]


def test_before_the_first_step_the_energies_are_those_of_the_direct_model(direct):
    config = configure("train", [*SHORT, "experiment=conservative", f"init={direct.path}"])
    from sciml.ingest.ingest import open_data
    from sciml.train.sources import open_splits

    datasets = list(direct.datasets)
    splits = open_splits(config, open_data, datasets)
    description = build.describe(config, splits, datasets, direct)
    model, _ = build.initial_model(description, direct)
    rng = np.random.default_rng(0)
    elements = tuple(direct.config["elements"])
    for record in (random_crystal(rng, elements=elements), random_molecule(rng, elements=elements)):
        graph = graph_of(record, "atoms", torch.float32, dataset=0, cutoff=4.0)
        first, second = outputs(direct.model, "atoms", graph), outputs(model.eval(), "atoms", graph)
        assert torch.equal(first["energy"], second["energy"])
        assert relative_rms(second["forces"], first["forces"]) > 1e-3


def test_a_model_with_long_range_is_trained_published_and_run_in_ase(tmp_path):
    from ase.build import bulk

    words = ("heads=long_range", "model.reciprocal.charges=2", "heads.energy.dispersion={radius: 6.0, scale: 0.75}")
    package = trained(tmp_path / "run", *words)
    assert package.config["model"]["backbone"]["reciprocal"] == {"charges": 2}
    assert package.model.far_field.ewald
    number = package.config["elements"][0]
    atoms = bulk("X", "fcc", a=4.2, cubic=True)
    atoms.numbers[:] = number
    atoms.rattle(0.1, seed=0)
    atoms.calc = sciml.calculator(package.path, dtype=torch.float64)
    forces = atoms.get_forces()
    assert np.isfinite(atoms.get_stress()).all()
    moved = [atoms.copy() for _ in range(2)]
    for copy, step in zip(moved, (-1e-3, 1e-3), strict=True):
        copy.positions[1, 0] += step
        copy.calc = atoms.calc
    difference = [copy.get_potential_energy() for copy in moved]
    assert forces[1, 0] == pytest.approx((difference[0] - difference[1]) / 2e-3, rel=1e-3, abs=1e-5)
