"""Cells of a benchmark: training runs, each in a folder of its own, of which a finished one is not repeated.

A benchmark that was stopped goes on where it was: the cell that ran then starts again, or goes on from its checkpoint
where it is run in segments; the others are read.
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
from sciml.launch import PREEMPTED
from sciml.verbs.train import train

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
QUIET = ("logger=disabled", "trainer.progress=false")


def arguments(description: str, name: str, values: Sequence[str] | None) -> argparse.Namespace:
    """What every benchmark of cells is told: where its runs lie, where its result goes, how large it is."""
    parser = command_line(description, name)
    if name == "finetune":
        parser.add_argument("--base", help="the base model's package; without it one is trained here")
        parser.add_argument("--tables", help="which of its tables, such as silicon,jets; without it all")
    if name in ("transfer", "finetune"):
        parser.add_argument("--recipe", default="pretrain_base", help="experiment= of the pretraining")
    options = parser.parse_args(values)
    choose_places(options, name, published=not options.small)
    return options


def command_line(description: str, name: str) -> argparse.ArgumentParser:
    """The options that every benchmark of cells has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=Path, help=f"folder of the cells; without it runs/{name}, or runs/{name}-small")
    parser.add_argument("--output", type=Path, help="the JSON file, a plot beside it; without it in results/")
    parser.add_argument("--small", action="store_true", help="seconds instead of hours: does everything work?")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every run")
    return parser


def choose_places(options: argparse.Namespace, name: str, published: bool) -> None:
    """Fill in where the runs lie and the result goes: among the results where it is ``published``, else beside them."""
    options.runs = options.runs or ROOT / "runs" / (f"{name}-small" if options.small else name)
    options.output = options.output or (RESULTS if published else options.runs) / f"{name}.json"


def run_cell(folder: Path, words: Iterable[str]) -> dict[str, Any]:
    """Train with ``words`` in ``folder``, or read what was found there before.

    Returns {words, seconds of the whole command, segments: 1, steps, validation_loss, targets: the metrics of the test
    sources}.
    Raises SystemExit where the folder holds a finished cell of other words, or SIGTERM ended the run, UserError where
    the run fails.
    """
    words = list(words)
    found = finished(folder, words)
    if found is None:
        shutil.rmtree(folder, ignore_errors=True)
        found = run_segment(folder, words)
    if found is None:
        raise SystemExit(PREEMPTED)
    return found


def finished(folder: Path, words: Sequence[str]) -> dict[str, Any] | None:
    """What a finished cell found, None where there is none; raises SystemExit where it is one of other words."""
    record = folder / "cell.json"
    if not record.exists():
        return None
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    _check_words(folder, found, words)
    return found


def run_segment(folder: Path, words: Sequence[str], further: Iterable[str] = ()) -> dict[str, Any] | None:
    """Train with ``words`` in ``folder``, from its newest checkpoint where an earlier segment left one.

    ``further`` words are not remembered, since they may differ between the segments of a cell: where the data lie, and
    ``trainer.segment_time``. Returns None where that, SIGTERM or SIGUSR1 stopped the run, and at its end what
    :func:`run_cell` does, with ``segments``, their number; ``seconds`` are those of all of them, None where one was
    killed and nobody knows how long it took. Raises as :func:`run_cell` does.
    """
    words = list(words)
    before = _seconds_before(folder, words)
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "segments.json"
    write_result(record, {"words": words, "seconds": [*before, None]})
    say(f"{time.strftime('%H:%M:%S')}  {folder.parent.name}/{folder.name}")
    start = time.perf_counter()
    with contextlib.ExitStack() as streams:
        log = streams.enter_context(open(folder / "log.txt", "a", encoding="utf-8"))
        for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
            streams.enter_context(redirect(log))
        going_on = f"resume={'true' if before else 'false'}"
        config = configure("train", [*words, *further, *QUIET, f"run_dir={folder}", going_on])
        code = train(config)
    seconds = [*before, round(time.perf_counter() - start, 2)]
    write_result(record, {"words": words, "seconds": seconds})
    if code:
        return None
    known = [one for one in seconds if one is not None]
    whole = round(sum(known), 2) if len(known) == len(seconds) else None
    found = {"words": words, "seconds": whole, "segments": len(seconds)}
    found |= measured(folder, best=config.trainer.publish == "best")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    write_result(folder / "cell.json", found)
    return found


def _seconds_before(folder: Path, words: Sequence[str]) -> list[float | None]:
    """Seconds of the segments that a cell goes on from, None for one that was killed.

    Without a checkpoint there are none, and what lies in the folder is removed. Raises SystemExit where they have other
    words.
    """
    if not any(folder.glob("checkpoints/step=*")):
        shutil.rmtree(folder, ignore_errors=True)
        return []
    found = json.loads((folder / "segments.json").read_text(encoding="utf-8"))
    _check_words(folder, found, words)
    seconds: list[float | None] = found["seconds"]
    return seconds


def _check_words(folder: Path, found: dict[str, Any], words: Sequence[str]) -> None:
    if found["words"] != list(words):
        raise SystemExit(f"{folder}: holds a run with other settings; remove it, or give another --runs.")


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
