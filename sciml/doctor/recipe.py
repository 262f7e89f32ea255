"""The recipe: heads that learn nothing, time, and how much a kill would lose."""

import math
from dataclasses import dataclass
from typing import Any

from sciml import registry
from sciml.data.datamodule import Source
from sciml.data.records import targets as targets_of
from sciml.doctor.finding import Finding, duration, ok, problem, warning
from sciml.doctor.pace import Pace
from sciml.train.run import SAFETY, VALIDATIONS

LONG = 600.0  # seconds, above which a run without a save is worth a word
LOADING = 0.2  # share of a step, above which data hold the training up


@dataclass(frozen=True)
class Course:
    """Seconds and steps of a run, and the seconds between its saves."""

    steps: int
    seconds: float
    between_saves: float


def head_labels(heads: dict[str, dict[str, Any]], weighted: dict[str, float], sources: list[Source]) -> list[Finding]:
    """One finding a head: which of its targets have a weight and a label somewhere in the training data.

    Targets that corruption makes (noise, masked types) need none.
    """
    found = []
    for key, options in heads.items():
        head = registry.resolve("heads", options.get("name", key))
        wanted = [target for target in head.targets if weighted.get(target)]
        labelled, missing = [], []
        for target in wanted:
            shares = [source for source in sources if target in targets_of(source.data.domain)]
            made = not any(target in targets_of(source.data.domain) for source in sources)
            has = made or any(source.data.has(target).any() for source in shares)
            (labelled if has else missing).append(target)
        if missing and not labelled:
            text = f"{key} learns {', '.join(missing)}, of which no record of the training data has a label"
            found.append(problem("heads", text, f"leave it out with heads.{key}=null, or give data with labels"))
        elif missing:
            text = f"{key} learns {', '.join(labelled)}; no record has {', '.join(missing)}"
            found.append(warning("heads", text, f"set objective.{missing[0]}.weight=0, or give data with it"))
        else:
            found.append(ok("heads", f"{key} learns {', '.join(labelled)}"))
    return found


def course(trainer: Any, pace: Pace) -> Course:
    """What the run comes to at the measured pace, by the rules of :func:`sciml.train.run.plan_steps`."""
    step = pace.step + (0.0 if trainer.max_seconds is None else pace.loading)
    step = pace.step + pace.loading
    limits = []
    if trainer.max_steps is not None:
        limits.append(trainer.max_steps)
    if trainer.max_seconds is not None:
        limits.append(int((SAFETY * trainer.max_seconds - VALIDATIONS * pace.validation) / step))
    steps = max(1, min(limits))
    every = trainer.val_every or math.ceil(steps / VALIDATIONS)
    validation = pace.validation / every
    saves = min(trainer.checkpoint_every or every, steps)
    return Course(steps, steps * (step + validation), saves * (step + validation))


def run_time(trainer: Any, pace: Pace) -> list[Finding]:
    """How long the run takes, whether data hold it up, and how much of it a kill would lose."""
    planned = course(trainer, pace)
    shown = f"a step takes {1e3 * (pace.step + pace.loading):,.0f} ms, a validation {pace.validation:,.1f} s"
    text = f"{shown}: {planned.steps:,} steps in {duration(planned.seconds)}"
    found = [ok("time", text)]
    if planned.steps < VALIDATIONS:
        found = [warning("time", text, "give trainer.max_time or trainer.max_steps more")]
    share = pace.loading / (pace.step + pace.loading)
    if share > LOADING:
        text = f"making the graphs of a step takes {share:.0%} of it until they are kept in memory"
        found.append(warning("data wait", text, "set data.workers, or a larger data.cache_mib"))
    return [*found, saves(trainer, planned)]


def saves(trainer: Any, planned: Course) -> Finding:
    """Whether checkpoints come more often than the run, or a segment of it, ends."""
    end, what = planned.seconds, "the run"
    if trainer.segment_seconds is not None and trainer.segment_seconds < end:
        end, what = trainer.segment_seconds, "a segment"
    text = f"a checkpoint every {duration(planned.between_saves)}, {what} takes {duration(end)}"
    every = trainer.checkpoint_every
    asked = every is not None and every > planned.steps
    if (asked or planned.between_saves >= end) and end > LONG:
        fit = max(1, int(planned.steps * end / planned.seconds / 10))
        return problem("saves", f"{text}: a kill loses all of it", f"set trainer.checkpoint_every={fit}")
    if asked or planned.between_saves >= end:
        return warning("saves", f"{text}: only its end is saved", "set trainer.checkpoint_every lower")
    return ok("saves", text)
