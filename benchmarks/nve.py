"""Is energy conserved for 10 ps? python benchmarks/nve.py [--small]

Trains `experiment=rmd17_ethanol` and `experiment=mlearn_si` on their reference data for some minutes each, asks `sciml
verify` for NVE runs of ethanol and of 64 atoms of silicon at 300 K, and writes results/nve.json. A training and a
certificate that are there are not repeated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cells import QUIET, arguments
from parts import REFERENCE
from workers import machine, write_result

from sciml.config import configure
from sciml.verbs.train import train
from sciml.verbs.verify import verify

DATA = {
    "rmd17_ethanol": ("rmd17_ethanol/train.xyz", "rmd17_ethanol/test_MD.xyz"),
    "mlearn_si": ("mlearn/Si/training.json", "mlearn/Si/test.json"),
}
LENGTH = ("trainer.max_time=00:12:00", "nve.ps=10")
SMALL = ("trainer.max_steps=2", "nve.ps=0.004")


def drifts(recipe: str, runs: Path, threads: int, training: str, dynamics: str) -> list[dict[str, Any]]:
    """The rows of energy conservation in the certificate of a recipe's model, and what its forces are off by."""
    run, certificate = runs / recipe, runs / f"{recipe}-certificate"
    sources = [f"{name}={REFERENCE / path}" for name, path in zip(("train", "test"), DATA[recipe], strict=True)]
    if not (run / "package").is_dir():
        words = [f"experiment={recipe}", *sources, f"trainer.threads={threads}", training, f"run_dir={run}", *QUIET]
        train(configure("train", words))
    if not (certificate / "certificate.json").is_file():
        verify(configure("verify", [f"package={run}", dynamics, f"output={certificate}"]))
    forces = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))["targets"]["forces"]
    found = json.loads((certificate / "certificate.json").read_text(encoding="utf-8"))["rows"]
    rows = [row for row in found if row["law"] == "energy conservation"]
    return [{"recipe": recipe, "forces_rmse": forces["rmse"], **row} for row in rows]


def main(values: Sequence[str] | None = None) -> int:
    """Train, certify, write; 1 where a drift is above its tolerance."""
    options = arguments(__doc__ or "", "nve", values)
    training, dynamics = SMALL if options.small else LENGTH
    rows = [row for recipe in DATA for row in drifts(recipe, options.runs, options.threads, training, dynamics)]
    text = [["recipe", "run", "drift, meV/atom/ps", "tolerance", "forces RMSE, meV/Å", "what was run"]]
    text += [
        [row["recipe"], row["subject"], f"{row['value']:.2g}", f"{row['tolerance']:g}",
         f"{1e3 * row['forces_rmse']:.0f}", row["note"]]
        for row in rows
    ]  # fmt: skip
    write_result(options.output, {"machine": machine(), "training": training, "text": text, "rows": rows})
    return 0 if all(row["verdict"] == "pass" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
