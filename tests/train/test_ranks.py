"""Two processes train as one: the same records a step, the same sums, the same weights, one writer."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.small import stores

COMMON = (
    "train=[molecules,jets,peptides]",
    "model=tiny",
    "model.channels=4",
    "model.radial.hidden=[8]",
    "data.val_fraction=0.25",
    "data.bins_per_step=2",
    "data.batch.atoms.max_graphs=2",
    "data.batch.jets.max_graphs=2",
    "data.batch.residues.max_graphs=2",
    "optimizer.warmup_steps=2",
    "trainer.progress=false",
    "trainer.log_every=1",
    "logger=disabled",
)


def train(folder, name: str, ranks: int, *words: str) -> list[dict]:
    """Run the command line with one process per rank; returns the lines of metrics.jsonl."""
    strategy = ("strategy=ddp", f"trainer.devices={ranks}") if ranks > 1 else ()
    command = [sys.executable, "-m", "sciml.cli", "train", *COMMON, *strategy, *words, f"run_dir={name}"]
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "WORLD_SIZE")}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_ranks_give_the_weights_and_losses_of_one(tmp_path):
    """Only some micro-batches hold crystals, so the ranks differ in the targets that they have labels for."""
    stores(tmp_path)
    one = train(tmp_path, "one", 1, "trainer.max_steps=4")
    two = train(tmp_path, "two", 2, "trainer.max_steps=4")
    first, second = (load_file(tmp_path / name / "package" / "weights.safetensors") for name in ("one", "two"))
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5
    assert [line.keys() for line in one] == [line.keys() for line in two]
    for alone, together in zip(one, two, strict=True):
        for name, value in alone.items():
            if name.startswith(("train/", "val/")):
                assert together[name] == pytest.approx(value, rel=1e-4, abs=1e-7), (name, alone["step"])


@pytest.mark.slow
def test_two_ranks_fine_tune_with_updates_of_low_rank_as_one(tmp_path):
    stores(tmp_path)
    train(tmp_path, "base", 1, "trainer.max_steps=1")
    words = ("init=base", "adapt=lora", "adapt.rank=2", "adapt.layer_decay=0.8", "trainer.max_steps=3")
    train(tmp_path, "one", 1, *words)
    train(tmp_path, "two", 2, *words)
    first, second, base = (
        load_file(tmp_path / name / "package" / "weights.safetensors") for name in ("one", "two", "base")
    )
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5
    assert not (first["backbone.blocks.0.linear_in.weights"] == base["backbone.blocks.0.linear_in.weights"]).all()
