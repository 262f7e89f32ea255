"""Residue types from the backbone alone, with next to no data: python benchmarks/ts50.py [--small]

Trains on the embedded peptides and 40 of the 50 proteins of TS50 (Li et al., 2014) and finds the sequences of the other
10 from their N, CA, C and O. Beside it stand the commonest type of the training data and their composition. Writes
results/ts50.json. Published models learn from CATH's 18,000 chains; these figures are none to hold against theirs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cells import arguments, mean_and_deviation, run_cell, text_of
from parts import REFERENCE, write_records
from workers import machine, say, write_result

from sciml.data.store import Store
from sciml.ingest.ingest import open_data
from sciml.schema import SAMPLES

PROTEINS = 40  # to train on; the others are the test
MEASURES = ("recovery", "perplexity", "cross_entropy", "baseline_recovery", "baseline_cross_entropy")
MODEL = (
    "model=tiny",
    "model.channels=32",
    "model.layers=2",
    "model.coarse_layers=1",
    "model.layers_after=1",
    "objective.denoise.weight.residues=0.2",  # few backbones: noise keeps them from being learned by heart
    "objective.denoise.levels=[0.05,0.3]",
    "optimizer.weight_decay=0.05",
    "data.bins_per_step={atoms: 0, jets: 0, residues: 1}",
    "data.val_fraction=0.1",
)


@dataclass(frozen=True)
class Settings:
    """The steps of a run, the seeds, and further words."""

    steps: int = 1500
    seeds: tuple[int, ...] = (0, 1, 2)
    further: tuple[str, ...] = ()


SMALL = Settings(steps=2, seeds=(0,), further=("model.channels=4",))


def write_proteins(folder: Path) -> None:
    """Write ``folder``/train and ``folder``/test, by a fixed permutation of the 50 proteins."""
    file = REFERENCE / "proteins" / "ts50.json"
    if not file.is_file():
        raise SystemExit("no proteins/ts50.json: set SCIML_SHARED to the folder that holds data/proteins")
    proteins = open_data(str(file), cache_dir=folder / "cache")
    order = np.random.default_rng(0).permutation(len(proteins))
    write_records(proteins, order[:PROTEINS], folder / "train")
    write_records(proteins, order[PROTEINS:], folder / "test")


def main(values: Sequence[str] | None = None) -> int:
    """Run the cells that are missing, write what is there."""
    options = arguments(__doc__ or "", "ts50", values)
    settings = SMALL if options.small else Settings()
    write_proteins(options.runs / "data")
    rows: list[dict[str, Any]] = []
    for seed in settings.seeds:
        words = [
            f"train=[{SAMPLES / 'peptides'},{options.runs / 'data' / 'train'}]",
            f"test={options.runs / 'data' / 'test'}",
            f"trainer.max_steps={settings.steps}",
            f"trainer.threads={options.threads}",
            f"seed={seed}",
            *MODEL,
            *settings.further,
        ]
        cell = run_cell(options.runs / f"seed-{seed}", words)
        found = cell["targets"]["residue_types"]
        measures = {name: found[name] for name in ("count", *MEASURES)}
        rows.append({"seed": seed, "seconds": cell["seconds"], **measures})
    summary = {name: mean_and_deviation([row[name] for row in rows]) for name in MEASURES}
    test = Store(options.runs / "data" / "test")
    result = {"machine": machine(), "threads": options.threads, "settings": asdict(settings), "model": MODEL}
    result |= {"test_proteins": test.groups, "summary": summary, "rows": rows}
    write_result(options.output, result)
    for name, (mean, deviation) in summary.items():
        say(f"{name:24} {text_of(mean, deviation, 3)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
