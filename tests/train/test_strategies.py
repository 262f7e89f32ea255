"""Pairs of strategies, precisions and whatever else a run has, on two ranks against one process.

Force training under every strategy, with clipping and averages, is row 16 of the faults (``tests/faults``).
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sciml.doctor.faults.launch import errors_of, run_ranks
from sciml.doctor.faults.small import small_store
from sciml.doctor.faults.strategies import SHORT_RUN
from sciml.train.checkpoint import checkpoints_in, remove, step_of
from sciml.train.strategy import build_strategy
from tests.small import stores

TWO = "trainer.devices=2"
KEPT = ("trainer.checkpoint_every=1", "trainer.checkpoint_keep=100", "optimizer.ema_decay=0.5")
# A gradient of the third step is not a number on the second rank alone.
NOT_A_NUMBER = """
import os, torch
from sciml.train.module import Module
plain = Module._loss
def loss(self, micro_batch):
    value = plain(self, micro_batch)
    broken = self.trainer.global_step == 2 and os.environ.get("LOCAL_RANK", "1") == "1"
    return value * float("nan") if broken else value
Module._loss = loss
"""


THREE_KINDS = (
    *("model=tiny", "model.channels=4", "model.radial.hidden=[8]", "heads=long_range", "trainer.max_steps=3"),
    *("data.bins_per_step={atoms: 2, jets: 2, residues: 2}", "data.val_fraction=0.25", "optimizer.warmup_steps=1"),
    *("objective.denoise.weight={atoms: 1.0, residues: 1.0}", "objective.masked.weight={atoms: 0.2, jets: 0.2}"),
    *("data.batch.atoms.max_graphs=3", "data.batch.jets.max_graphs=3", "data.batch.residues.max_graphs=3"),
    *("logger=disabled", "trainer.progress=false", "trainer.threads=1", "trainer.val_every=3"),
)


def command(name: str, *words: str) -> list[str]:
    return ["train", "train=[molecules]", f"run_dir={name}", *SHORT_RUN, *words]


def run(folder: Path, ranks: int, commands: list[list[str]], prelude: str = "") -> None:
    assert run_ranks(ranks, commands, folder, prelude, timeout=1800.0) == [0] * ranks, errors_of(folder)


def difference(folder: Path, name: str, other: str) -> float:
    """Norm of the difference of two runs' weights in units of the norm of the weights."""
    found = [load_file(folder / run / "package" / "weights.safetensors") for run in (name, other)]
    first, second = (torch.cat([w[key].double().flatten() for key in sorted(w)]) for w in found)
    return float((first - second).norm() / second.norm())


def test_one_process_needs_no_strategy_and_an_unknown_one_is_an_error():
    assert build_strategy("fsdp2", 1, "cpu", None) == "auto"
    with pytest.raises(ValueError, match="found 'other' with 2 ranks"):
        build_strategy("other", 2, "cpu", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "recompute", "tolerance"),
    [("64", "false", 1e-12), ("bf16-mixed", "false", 1e-5), ("bf16-mixed", "true", 1e-5)],
)
def test_precisions(tmp_path, precision, recompute, tolerance):
    small_store(tmp_path / "molecules")
    words = [f"trainer.precision={precision}", f"trainer.recompute={recompute}"]
    run(tmp_path, 1, [command("single", *words)])
    run(tmp_path, 2, [command(name, f"strategy={name}", TWO, *words) for name in ("ddp", "fsdp2")])
    for name in ("ddp", "fsdp2"):
        assert difference(tmp_path, name, "single") <= tolerance, name


@pytest.mark.slow
def test_recomputed_blocks(tmp_path):
    small_store(tmp_path / "molecules")
    run(tmp_path, 1, [command("plain"), command("single", "trainer.recompute=true")])
    names = ("ddp", "zero2", "fsdp2")
    run(tmp_path, 2, [command(name, f"strategy={name}", TWO, "trainer.recompute=true") for name in names])
    for name in ("single", *names):
        assert difference(tmp_path, name, "plain") <= 1e-6, name


@pytest.mark.slow
def test_a_run_goes_on_under_another_strategy(tmp_path):
    """Two steps under one strategy and the rest under another end where five steps in one process do."""
    small_store(tmp_path / "molecules")
    run(tmp_path, 1, [command("single", *KEPT)])
    begun = {"zero1": [], "zero2": [], "fsdp2": [], "zero3": ["heads=direct"]}
    run(tmp_path, 2, [command(name, f"strategy={name}", TWO, *KEPT, *words) for name, words in begun.items()])
    run(tmp_path, 1, [command("single_direct", *KEPT, "heads=direct")])
    ways = [("zero2", "single"), ("fsdp2", "single"), ("zero3", "single")]
    ways += [("single", "zero1"), ("single", "fsdp2"), ("zero1", "fsdp2"), ("fsdp2", "zero2")]
    ways += [("single_direct", "zero3")]
    for ranks in (1, 2):
        commands = []
        for first, then in ways:
            if (then == "single") != (ranks == 1):
                continue
            name = f"{first}_{then}"
            shutil.copytree(tmp_path / first, tmp_path / name)
            shutil.rmtree(tmp_path / name / "package")
            for path in checkpoints_in(tmp_path / name / "checkpoints"):
                if step_of(path) > 2:
                    remove(path)
            strategy = [] if ranks == 1 else [f"strategy={then}", TWO]
            words = ["heads=direct"] if "zero3" in (first, then) else []
            commands.append(command(name, *KEPT, *strategy, *words, "resume=true"))
        run(tmp_path, ranks, commands)
    for first, then in ways:
        alone = "single_direct" if "zero3" in (first, then) else "single"
        assert difference(tmp_path, f"{first}_{then}", alone) <= 1e-6, (first, then)


@pytest.mark.slow
def test_a_step_that_is_no_number_on_one_rank_is_left_out_under_every_strategy(tmp_path):
    small_store(tmp_path / "molecules")
    run(tmp_path, 1, [command("single")], NOT_A_NUMBER)
    run(tmp_path, 1, [command("single_direct", "heads=direct")], NOT_A_NUMBER)
    names = ("ddp", "zero1", "zero2", "fsdp2", "zero3")
    direct = {"zero3": ["heads=direct"]}
    run(
        tmp_path,
        2,
        [command(name, f"strategy={name}", TWO, *direct.get(name, [])) for name in names],
        NOT_A_NUMBER,
    )
    for name in ("single", *names):
        lines = [json.loads(line) for line in (tmp_path / name / "events.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["event"] == "left out"] == [3], name
        alone = "single_direct" if name in direct else "single"
        assert difference(tmp_path, name, alone) <= 1e-6, name


@pytest.mark.slow
def test_a_run_that_was_lost_after_its_last_step_is_published_when_resumed(tmp_path):
    """The averages of a checkpoint are whole, and nothing is trained that would cut them."""
    small_store(tmp_path / "molecules")
    begun = {"fsdp2": [], "zero3": ["heads=direct"]}
    run(tmp_path, 2, [command(name, f"strategy={name}", TWO, *words) for name, words in begun.items()])
    for name in begun:
        shutil.move(tmp_path / name / "package", tmp_path / f"{name}-before" / "package")
    again = [command(name, f"strategy={name}", TWO, *words, "resume=true") for name, words in begun.items()]
    run(tmp_path, 2, again)
    for name in begun:
        assert difference(tmp_path, name, f"{name}-before") <= 1e-6, name


@pytest.mark.slow
def test_every_head_under_every_strategy(tmp_path):
    """Energies with charges, jets, residues and the objectives of pretraining, together, as one process trains them."""
    stores(tmp_path)
    words = ["train=[molecules,jets,peptides]", *THREE_KINDS]
    run(tmp_path, 1, [["train", "run_dir=single", *words]])
    run(tmp_path, 1, [["train", "run_dir=single_direct", *words, "heads=direct"]])
    names = ("ddp", "zero1", "zero2", "fsdp2", "zero3")
    direct = {"zero3": ["heads=direct"]}
    commands = [["train", f"run_dir={n}", *words, f"strategy={n}", TWO, *direct.get(n, [])] for n in names]
    run(tmp_path, 2, commands)
    for name in names:
        assert difference(tmp_path, name, "single_direct" if name in direct else "single") <= 1e-5, name
