"""``sciml train -m key=a,b ...``: one run for every combination, each checked before the first one starts.

Values are written as in Hydra: ``key=a,b``, ``key=choice(a,b)``, ``key=range(1,4)``; with ``sweep.trials`` also
``key=interval(1e-4,1e-2)`` and ``key=tag(log,interval(1e-4,1e-2))``, which Optuna draws from. A list that is one value
is written in brackets, ``train=[a.xyz,b.xyz]``.
"""

import contextlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sciml.config import check_inputs, configure
from sciml.errors import UserError
from sciml.files import write_text
from sciml.launch import PREEMPTED

OBJECTIVE = "val/loss"


@dataclass
class Trial:
    """One run of a sweep: the words that set it apart, its folder, and what came of it."""

    words: list[str]
    folder: Path
    code: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class Space:
    """The words that all runs share, and the values of the others: listed, or between two ends."""

    shared: list[str]
    listed: dict[str, list[str]]
    between: dict[str, tuple[float, float, bool]]

    def combinations(self) -> list[list[str]]:
        """The words of every combination; of an interval its two ends stand for what may be drawn."""
        ends = {key: [repr(low), repr(high)] for key, (low, high, _) in self.between.items()}
        table = {**self.listed, **ends}
        return [[f"{k}={v}" for k, v in zip(table, values)] for values in itertools.product(*table.values())]


def run(verb: str, overrides: Sequence[str], config_dir: str | None = None) -> int:
    """Check every combination, run them, print a table and write it to ``summary.json`` in the sweep's folder.

    Returns 0, 1 where a run failed, 143 where one was preempted: the same command with the same ``sweep.folder`` goes
    on there. Raises UserError, before anything runs, that names the first combination that is refused.
    """
    own = [word for word in overrides if word.partition("=")[0] in ("run_dir", "resume")]
    if own:
        raise UserError(f"{own[0]}: found with -m, expected sweep.folder=FOLDER; each run has a folder in it.")
    space = parse(overrides)
    combinations = space.combinations()
    base = configure(verb, [*space.shared, *combinations[0]], config_dir)
    options: Any = base.sweep  # type: ignore[attr-defined]
    folder = Path(options.folder or f"sweeps/{base.name}/{datetime.now():%Y-%m-%d_%H-%M-%S}")  # type: ignore[attr-defined]
    if space.between and options.trials is None:
        raise UserError(f"{next(iter(space.between))}: found an interval, expected sweep.trials=N to draw from it.")
    for words in combinations:
        _check(verb, space.shared, words, folder, config_dir)
    folder.mkdir(parents=True, exist_ok=True)
    launch = _launcher(options, verb, space.shared, config_dir)
    if options.trials is None:
        trials = [Trial(words, folder / f"{index:03d}") for index, words in enumerate(combinations)]
        print(f"sweep of {len(trials)} runs in {folder}", flush=True)
        launch(trials)
    else:
        trials = _drawn(space, options.trials, folder, verb, config_dir, launch)
    print(table(trials))
    rows = [{"words": t.words, "folder": str(t.folder), "code": t.code, OBJECTIVE: t.value} for t in trials]
    write_text(folder / "summary.json", json.dumps(rows, indent=1) + "\n")
    print(f"summary  {folder / 'summary.json'}")
    codes = {trial.code for trial in trials}
    return PREEMPTED if PREEMPTED in codes else int(codes != {0})


def parse(overrides: Sequence[str]) -> Space:
    """Tell the words that hold several values, by Hydra's grammar, from those that all runs share.

    Raises UserError where no word holds several.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep
    from hydra.errors import HydraException

    space = Space([], {}, {})
    parser = OverridesParser.create()
    for word in overrides:
        try:
            parsed = parser.parse_override(word)
        except HydraException:  # a path that Hydra cannot read is one value
            space.shared.append(word)
            continue
        if not parsed.is_sweep_override():
            space.shared.append(word)
        elif isinstance(value := parsed.value(), IntervalSweep):
            low, high = float(value.start or 0.0), float(value.end or 0.0)
            space.between[parsed.key_or_group] = (low, high, "log" in value.tags)
        else:
            space.listed[parsed.key_or_group] = [str(one) for one in parsed.sweep_string_iterator()]
    if not space.listed and not space.between:
        raise UserError("-m: no key holds several values, expected one such as optimizer.learning_rate=1e-3,3e-3.")
    return space


def _check(verb: str, shared: list[str], words: list[str], folder: Path, config_dir: str | None) -> None:
    """Validate one combination as a single run would be; the refusal says which one it is."""
    try:
        check_inputs(configure(verb, _words(shared, words, folder / "run"), config_dir))
    except UserError as error:
        raise UserError(f"{' '.join(words)}: {error}") from None


def _words(shared: list[str], words: list[str], folder: Path) -> list[str]:
    return [*shared, *words, f"run_dir={folder}"]


def _launcher(options: Any, verb: str, shared: list[str], config_dir: str | None) -> Any:
    """A function that runs trials: one after the other here, or as jobs of submitit."""

    def command(trial: Trial) -> list[str]:
        started = (trial.folder / "config.yaml").exists()
        words = _words(shared, trial.words, trial.folder) + ["resume=true"] * started
        more = ["--config-dir", config_dir] if config_dir else []
        return [sys.executable, "-m", "sciml", verb, *words, *more]

    if options.launcher == "submitit":
        return lambda trials: _submit(trials, command, options)
    return lambda trials: _one_after_the_other(trials, command)


def _one_after_the_other(trials: list[Trial], command: Any) -> None:
    """Each run in a process of its own, its output in ``log.txt`` of its folder; preemption ends them all."""
    for number, trial in enumerate(trials, 1):
        if not (trial.folder / "package").exists():
            trial.folder.mkdir(parents=True, exist_ok=True)
            trial.code = _call(command(trial), trial.folder / "log.txt")
        _finish(trial)
        print(f"{number}/{len(trials)}  {' '.join(trial.words)}  {_outcome(trial)}", flush=True)
        if trial.code == PREEMPTED:
            return


def _call(command: list[str], output: Path) -> int:
    """Run a command and return its exit code; where this process is told to end, the command is told and waited for."""
    with open(output, "a", encoding="utf-8") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _submit(trials: list[Trial], command: Any, options: Any) -> None:
    """Each run as a job: of SLURM where there is one, else of this machine. ``sweep.slurm`` goes to submitit."""
    try:
        import submitit
    except ImportError:
        raise UserError(
            "sweep.launcher: submitit is not installed; pip install 'sciml[sweep]', or use serial."
        ) from None
    executor = submitit.AutoExecutor(folder=trials[0].folder.parent / "jobs")
    executor.update_parameters(**options.slurm)
    due = [trial for trial in trials if not (trial.folder / "package").exists()]
    jobs = [executor.submit(submitit.helpers.CommandFunction(command(trial))) for trial in due]
    for trial, job in zip(due, jobs):
        try:
            job.result()
        except submitit.core.utils.UncompletedJobError as error:  # it failed, or was lost without a word
            trial.code = PREEMPTED if f"exit status {PREEMPTED}" in str(error) else 1
    for trial in trials:
        _finish(trial)
        print(f"{' '.join(trial.words)}  {_outcome(trial)}", flush=True)


def _drawn(space: Space, number: int, folder: Path, verb: str, config_dir: str | None, launch: Any) -> list[Trial]:
    """Runs whose values Optuna chooses after what came of those before; the lowest validation loss is best."""
    try:
        import optuna
    except ImportError:
        raise UserError("sweep.trials: optuna is not installed; pip install 'sciml[sweep]', or list values.") from None
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=0))
    trials = []
    for index in range(number):
        asked = study.ask()
        words = [f"{key}={asked.suggest_categorical(key, values)}" for key, values in space.listed.items()]
        for key, (low, high, log) in space.between.items():
            words.append(f"{key}={asked.suggest_float(key, low, high, log=log)!r}")
        _check(verb, space.shared, words, folder, config_dir)
        trial = Trial(words, folder / f"{index:03d}")
        launch([trial])
        trials.append(trial)
        failed = optuna.trial.TrialState.FAIL
        done = trial.code == 0 and trial.value is not None
        study.tell(asked, trial.value) if done else study.tell(asked, state=failed)
        if trial.code == PREEMPTED:
            break
    return trials


def _finish(trial: Trial) -> None:
    """Note the exit code of a run that was finished before, and the last validation loss."""
    if (trial.folder / "package").exists():
        trial.code = trial.code or 0
    values = [line[OBJECTIVE] for line in _lines(trial.folder / "metrics.jsonl") if OBJECTIVE in line]
    trial.value = values[-1] if values else None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # a full disk may have left a part of the last one
            yield json.loads(line)


def _outcome(trial: Trial) -> str:
    if trial.code == 0 and trial.value is not None:
        return f"{OBJECTIVE} {trial.value:.4g}"
    return "not run" if trial.code is None else f"exit code {trial.code}, see {trial.folder / 'log.txt'}"


def table(trials: list[Trial]) -> str:
    """One line a run, the lowest validation loss first."""
    ranked = sorted(trials, key=lambda trial: (trial.code != 0, trial.value is None, trial.value))
    lines = [f"{trial.folder.name}  {' '.join(trial.words)}  {_outcome(trial)}" for trial in ranked]
    return "\n".join(["", *lines, ""])
