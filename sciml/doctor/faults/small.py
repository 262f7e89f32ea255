"""A small run that faults are made in: twelve random molecules and a model of some hundred parameters."""

import json
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from sciml.config import configure
from sciml.data.store import StoreWriter
from sciml.evaluate.verify.random_records import random_molecule
from sciml.train.checkpoint import checkpoints_in, read_checkpoint, remove, step_of
from sciml.train.module import Module
from sciml.verbs.train import train

STEPS = 4
TIMELESS = re.compile("step|learning_rate|left_out|train/.*|val/.*")
"""The keys of metrics.jsonl that tell no time."""


def small_store(path: Path) -> Path:
    """Write a store of twelve molecules of six atoms with random energies and forces."""
    rng = np.random.default_rng(0)
    with StoreWriter(path, "materials", "random") as writer:
        for index in range(12):
            writer.add({**random_molecule(rng, atoms=6), "id": f"m#{index}", "group": f"g{index}"})
    writer.close()
    return path


def words(folder: Path, *overrides: str) -> list[str]:
    """The words after ``sciml train`` of a run in ``folder``/run on ``folder``/molecules, which is written if absent.

    It has four steps, a checkpoint after each of them and a validation after the second and the last.
    """
    if not (folder / "molecules").exists():
        folder.mkdir(parents=True, exist_ok=True)
        small_store(folder / "molecules")
    return [
        f"train={folder / 'molecules'}",
        f"run_dir={folder / 'run'}",
        "model=tiny",
        "model.channels=4",
        "model.layers=1",
        "model.coarse_layers=0",
        "model.layers_after=0",
        "model.radial.hidden=[8]",
        "model.backend=reference",
        "heads.energy.hidden=8",
        "data.val_fraction=0.25",
        "data.batch.atoms.max_graphs=2",
        "optimizer.warmup_steps=2",
        f"trainer.max_steps={STEPS}",
        "trainer.val_every=2",
        "trainer.checkpoint_every=1",
        "trainer.checkpoint_keep=100",
        "trainer.progress=false",
        "trainer.log_every=1",
        "trainer.threads=1",
        "logger=disabled",
        *overrides,
    ]


def train_here(folder: Path, *overrides: str) -> int:
    """Train in this process, without the package and the report at the end; returns the exit code."""
    with mock.patch("sciml.verbs.train.publish"):
        return train(configure("train", words(folder, *overrides)))


@contextmanager
def changed_steps(change: Any) -> Iterator[None]:
    """Let ``change(module, loss)`` give another loss at every micro-batch of training."""
    with mock.patch.object(Module, "training_step", _changed(Module.training_step, change)):
        yield


def change_steps(change: Any) -> None:
    """As :func:`changed_steps`, to the end of the process."""
    Module.training_step = _changed(Module.training_step, change)  # type: ignore[method-assign]


def _changed(original: Any, change: Any) -> Any:
    def training_step(self: Module, micro_batch: Any, index: int) -> Any:
        return change(self, original(self, micro_batch, index))

    return training_step


def noise(module: Module, loss: torch.Tensor) -> torch.Tensor:
    """A loss that depends on every generator, as that of a model with dropout depends on torch's."""
    drawn = random.random() + np.random.random() + float(torch.rand(()))  # noqa: NPY002 (the global one is meant)
    return loss * (1.0 + 0.1 * drawn)


def copied_up_to(source: Path, target: Path, step: int) -> Path:
    """Copy the run in ``source`` as a kill after ``step`` would have left it: no later checkpoints."""
    shutil.copytree(source, target)
    for path in checkpoints_in(target / "run" / "checkpoints"):
        if step_of(path) > step:
            remove(path)
    return target


def checkpoint(folder: Path, step: int) -> Path:
    """The checkpoint of a step of the run in ``folder``."""
    return folder / "run" / "checkpoints" / f"step={step:09d}"


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of the run in ``folder``, without what tells the time."""
    path = folder / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if TIMELESS.fullmatch(key)} for line in lines]


def differences(first: Path, second: Path, step: int = STEPS) -> list[str]:
    """What differs in a bit between the checkpoints of ``step`` of two runs, and between their metrics."""
    before, after = (read_checkpoint(checkpoint(folder, step)) for folder in (first, second))
    found = unequal(before, after)
    if metrics(first) != metrics(second):
        found.append("metrics.jsonl")
    return found


def unequal(first: Any, second: Any, name: str = "") -> list[str]:
    """The names of the values that differ in nested dicts and lists of tensors and plain values."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = {**first, **second}
        return [found for key in keys for found in unequal(first.get(key), second.get(key), f"{name}.{key}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        return [found for i, (a, b) in enumerate(zip(first, second)) for found in unequal(a, b, f"{name}.{i}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and torch.equal(first, second)
        return [] if same else [name]
    return [] if type(first) is type(second) and first == second else [name]
