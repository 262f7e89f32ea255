"""Strategies that have to give what one process gives, and a plan of batches that knows neither ranks nor workers."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file

from sciml.config import configure
from sciml.data.datamodule import DataModule
from sciml.data.packing import Budget
from sciml.data.source import Source
from sciml.data.store import Store
from sciml.doctor.faults.launch import errors_of, run_ranks
from sciml.doctor.faults.row import Row
from sciml.doctor.faults.small import small_store
from sciml.errors import UserError
from sciml.schema import SAMPLES
from sciml.train.checkpoint import checkpoints_in, remove, step_of

EXACT = 1e-6
STEPS = 5
CONSERVATIVE = ("ddp", "zero1", "zero2", "fsdp2")
SHORT_RUN = (
    "model=tiny",
    "model.channels=4",
    "model.radial.hidden=[8]",
    "heads.energy.hidden=8",
    "data.val_fraction=0.25",
    "data.bins_per_step=4",
    "data.batch.atoms.max_graphs=2",
    "optimizer.warmup_steps=0",
    "optimizer.learning_rate=0.003",
    "trainer.progress=false",
    "trainer.log_every=1",
    f"trainer.max_steps={STEPS}",
    "logger=disabled",
)
"""Words of the command line for a run of five optimizer steps of a tiny model."""


def fault_16_strategies(folder: Path) -> Row:
    """Train forces for five clipped steps on two ranks under every strategy, and in one process."""
    small_store(folder / "molecules")
    alone = [_command("single"), _command("single_direct", "heads=direct")]
    shared = [_command(name, f"strategy={name}", "trainer.devices=2") for name in CONSERVATIVE]
    shared.append(_command("zero3", "strategy=zero3", "trainer.devices=2", "heads=direct"))
    codes = run_ranks(1, alone, folder) + run_ranks(2, shared, folder, timeout=1800.0)
    if any(codes):
        return _row(f"exit codes {codes}: {errors_of(folder)[-500:]}", False)
    differences = {name: _difference(folder, name, "single") for name in CONSERVATIVE}
    differences["zero3, direct forces"] = _difference(folder, "zero3", "single_direct")
    refused = _refused(["train=x", "run_dir=y", "strategy=zero3", "trainer.devices=2", "trainer.max_steps=5"])
    figure = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    figure += ", zero3 with a conservative head " + ("refused" if refused else "not refused")
    return _row(figure, refused and all(value <= EXACT for value in differences.values()))


def fault_09_elastic(folder: Path, thorough: bool = False) -> Row:
    """Go on with another number of ranks and of loading processes: 2 ranks, then 1 with 3 workers, then 2 with 3.

    The records are those of the plan; the thorough version trains, too.
    """
    reference = [_records(step, 1, 0) for step in range(6)]
    found = [_records(step, *((2, 0), (1, 3), (2, 3))[step // 2]) for step in range(6)]
    same = [step for step in range(6) if found[step] == reference[step]]
    records = sum(map(len, reference))
    figure, passed = f"{len(same)} of 6 steps the same, {records} records", len(same) == 6
    if thorough:
        difference = _trained_in_turns(folder)
        figure += f"; weights of a run that was never lost to {difference:.1e}"
        passed = passed and difference <= EXACT
    return Row(
        9,
        "ranks 2 -> 1 -> 2 and loading processes 0 -> 3 in the course of a run",
        "the same records in every optimizer step, and so the same weights",
        figure,
        passed,
    )


def _trained_in_turns(folder: Path) -> float:
    """Train with 2 ranks, lose what follows step 2, with 1 rank what follows step 4, then with 2; the difference to one
    process.
    """
    small_store(folder / "molecules")
    kept = ("trainer.checkpoint_every=1", "trainer.checkpoint_keep=100")
    codes = run_ranks(1, [_command("alone", *kept)], folder)
    for ranks, workers, last in ((2, 0, 2), (1, 3, 4), (2, 3, STEPS)):
        words = [] if ranks == 1 else ["strategy=ddp", f"trainer.devices={ranks}"]
        words += ["resume=true"] if (folder / "turns").exists() else []
        codes += run_ranks(ranks, [_command("turns", *kept, f"data.workers={workers}", *words)], folder)
        for path in checkpoints_in(folder / "turns" / "checkpoints"):
            if step_of(path) > last:
                remove(path)
        if last < STEPS:
            shutil.rmtree(folder / "turns" / "package")
    if any(codes):
        raise RuntimeError(f"exit codes {codes}: {errors_of(folder)[-500:]}")
    return _difference(folder, "turns", "alone")


def _command(name: str, *words: str) -> list[str]:
    common = ("train=[molecules]", f"run_dir={name}", "optimizer.ema_decay=0.5", "optimizer.gradient_clip=0.1")
    return ["train", *common, *SHORT_RUN, *words]


def _row(figure: str, passed: bool) -> Row:
    return Row(
        16,
        "force training for 5 steps on 2 ranks under every strategy",
        f"the weights of one process to {EXACT:g}; ZeRO-3 with forces that are derivatives is refused",
        figure,
        passed,
    )


def _difference(folder: Path, name: str, other: str) -> float:
    """Root mean square of the difference between the weights of two runs, in units of that of the weights."""
    first, second = (load_file(folder / run / "package" / "weights.safetensors") for run in (name, other))
    flat = [torch.cat([weights[key].double().flatten() for key in sorted(weights)]) for weights in (first, second)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def _refused(words: list[str]) -> bool:
    try:
        configure("train", words)
    except UserError as error:
        return "zero3 with heads.energy" in str(error)
    return False


def _records(step: int, ranks: int, workers: int) -> list[tuple[str, Any]]:
    """(kind, record) of everything that ``ranks`` load for one optimizer step, sorted."""
    found: list[tuple[str, Any]] = []
    for rank in range(ranks):
        data = _data(workers)
        data.trainer = SimpleNamespace(global_step=step, world_size=ranks, global_rank=rank)  # type: ignore[assignment]
        batches = iter(data.train_dataloader())
        for _ in range(data.micro_batches_per_step // ranks):
            batch = next(batches)
            found += [(batch.kind, item) for item in batch.items]
    return sorted(found)


def _data(workers: int) -> DataModule:
    names = ("molecules", "jets", "peptides")
    sources = [Source(Store(SAMPLES / name), index, name) for index, name in enumerate(names)]
    kinds = ["atoms", "jets", "residues"]
    return DataModule(
        sources,
        sources,
        kinds,
        {"atoms": 4.0, "jets": 2.5, "residues": 6.0},
        dict.fromkeys(kinds, Budget(max_graphs=3, max_nodes=600)),
        dict.fromkeys(kinds, 2),
        temperature=1.0,
        seed=0,
        workers=workers,
    )
