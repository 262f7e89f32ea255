"""Cells of a benchmark: training runs, each in a folder of its own, of which a finished one is not repeated.

A benchmark that was stopped goes on where it was: the cell that ran then starts again, the others are read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))  # holds the helpers of all benchmarks
from workers import say, write_result

from sciml.config import configure
from sciml.verbs.train import train

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
QUIET = ("logger=disabled", "trainer.progress=false")


def arguments(description: str, name: str, values: Sequence[str] | None) -> argparse.Namespace:
    """What every benchmark of cells is told: where its runs lie, where its result goes, how large it is."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=Path, help=f"folder of the cells; without it runs/{name}, or runs/{name}-small")
    parser.add_argument("--output", type=Path, help="the JSON file, a plot beside it; without it in results/")
    parser.add_argument("--small", action="store_true", help="seconds instead of hours: does everything work?")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every run")
    if name == "finetune":
        parser.add_argument("--base", help="the base model's package; without it one is trained here")
        parser.add_argument("--tables", help="which of its tables, such as silicon,jets; without it all")
    if name in ("transfer", "finetune"):
        parser.add_argument("--recipe", default="pretrain_base", help="experiment= of the pretraining")
    options = parser.parse_args(values)
    options.runs = options.runs or ROOT / "runs" / (f"{name}-small" if options.small else name)
    options.output = options.output or (options.runs if options.small else RESULTS) / f"{name}.json"
    return options


def run_cell(folder: Path, words: Iterable[str]) -> dict[str, Any]:
    """Train with ``words`` in ``folder``, or read what was found there before.

    Returns {words, seconds of the whole command, steps, validation_loss, targets: the metrics of the test sources}.
    Raises SystemExit where the folder holds a finished cell of other words, UserError where the run fails.
    """
    words = list(words)
    record = folder / "cell.json"
    if record.exists():
        found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if found["words"] != words:
            raise SystemExit(f"{folder}: holds a run with other settings; remove it, or give another --runs.")
        return found
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    say(f"{time.strftime('%H:%M:%S')}  {folder.parent.name}/{folder.name}")
    start = time.perf_counter()
    with contextlib.ExitStack() as streams:
        log = streams.enter_context(open(folder / "log.txt", "w", encoding="utf-8"))
        for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
            streams.enter_context(redirect(log))
        config = configure("train", [*words, *QUIET, f"run_dir={folder}"])
        train(config)
    seconds = round(time.perf_counter() - start, 2)
    found = {"words": words, "seconds": seconds, **measured(folder, best=config.trainer.publish == "best")}
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    write_result(record, found)
    return found


def measured(run: Path, best: bool) -> dict[str, Any]:
    """Steps, validation loss and test metrics of a finished run that published its ``best`` or its last weights."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    validations = [line["val/loss"] for line in lines if "val/loss" in line]
    loss = min(validations) if best else validations[-1]
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    return {"steps": lines[-1]["step"], "validation_loss": loss, "targets": metrics["targets"]}


def value_at(targets: dict[str, Any], path: str) -> float:
    """The number at a dotted path of the metrics, such as ``label.signals.top.auc``."""
    found: Any = targets
    for key in path.split("."):
        found = found[key]
    return float(found)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean over seeds and their standard deviation, None for a single seed."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def text_of(mean: float, deviation: float | None, digits: int) -> str:
    """``12.3 ± 0.4``, or the mean alone."""
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")
