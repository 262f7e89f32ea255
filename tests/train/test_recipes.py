"""The recipes of public sets: records in each set's layout, ingested as the recipe says, make a step of finite loss."""

import math

import pytest
import torch

from sciml import build
from sciml.config import configure
from sciml.data.sampler import Plan
from sciml.graph import KINDS
from sciml.ingest.ingest import ingest
from tests.ingest.test_public_sets import (
    ase_row,
    mptrj_frame,
    write_aselmdb,
    write_cath,
    write_jetclass_root,
    write_mptrj,
    write_spice,
    write_top_tagging,
)


def mptrj(folder):
    return write_mptrj(folder / "MPtrj.json", {f"mp-{i}": {f"mp-{i}-0-0": mptrj_frame(-9.0 - i)} for i in range(4)})


def omat24(folder):
    rows = [ase_row(energy=-14.0 - i, data={"sid": f"omat-{i}"}) for i in range(4)]
    return write_aselmdb(folder / "data.0000.aselmdb", rows)


def omol25(folder):
    isolated = {"cell": [[0.0] * 3] * 3, "pbc": [False] * 3, "stress": None}
    rows = [ase_row(**isolated, energy=-14.0 - i, data={"charge": i - 1, "spin": 1 + i % 2}) for i in range(4)]
    return write_aselmdb(folder / "data.0000.aselmdb", rows)


SETS = {
    "mptrj": mptrj,
    "omat24": omat24,
    "omol25": omol25,
    "spice": lambda folder: write_spice(folder / "SPICE-2.0.1.hdf5"),
    "jetclass": lambda folder: write_jetclass_root(folder / "HToBB_000.root"),
    "top_tagging": lambda folder: write_top_tagging(folder / "train.h5"),
    "cath": lambda folder: write_cath(folder / "chain_set.jsonl"),
}


@pytest.mark.parametrize("name", SETS)
def test_a_recipe_makes_a_step_of_its_set(tmp_path, name):
    store = ingest(SETS[name](tmp_path), tmp_path / "store", dataset=name)
    recipe = (f"experiment={name}", "model=tiny", "trainer=cpu", "trainer.max_steps=1")
    words = (f"train={store.path}", f"val={store.path}", "data.test_fraction=0.0", "data.workers=0")
    config = configure("train", [*recipe, *words])
    splits = build.open_splits(config, lambda path: build.open_data(path), [])
    description = build.describe(config, splits, [name])
    torch.manual_seed(0)
    model, description = build.initial_model(description, None)
    data = build.build_data(config, splits, description)
    assert data.kinds == [kind for kind in KINDS if getattr(config.data.bins_per_step, kind)]
    objective = build.build_objective(config.objective.terms)
    plan = Plan(data.streams, data.bins_per_step, config.seed, counts=data.training.counts)
    shares: dict[str, float] = {}
    for step in range(3):
        for planned in plan.step(step):
            loaded = data.training[planned]
            loss, parts = objective(model, model(loaded.batch, loaded.kind, create_graph=True), loaded)
            loss.backward()
            assert math.isfinite(float(loss.detach()))
            shares |= {target: float(share.detach()) for target, share in parts.items() if float(share.detach()) > 0}
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    expected = {"jetclass": "label", "top_tagging": "label", "cath": "residue_types"}.get(name, "forces")
    assert expected in shares
