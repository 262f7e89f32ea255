"""The recipe: heads that learn nothing, time, and how much a kill would lose."""

import bisect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sciml import registry
from sciml.data.source import Source
from sciml.doctor.data import labels_of, term_of
from sciml.doctor.finding import Finding, duration, ok, problem, warning
from sciml.doctor.pace import Pace
from sciml.train.run import SAFETY, VALIDATIONS

LONG = 600.0  # seconds, above which a run without a save is worth a word
LOADING = 0.2  # share of the run, above which data hold it up


@dataclass(frozen=True)
class Course:
    """Seconds and steps of a run, and the seconds between its saves."""

    steps: int
    seconds: float
    between_saves: float


def head_labels(heads: dict[str, dict[str, Any]], weighted: dict[str, float], sources: list[Source]) -> list[Finding]:
    """One finding a head: which of its targets have a weight and a label somewhere in the training data.

    Targets that no data have, noise and masked types, are made from the samples and need no label.
    """
    found = []
    for key, options in heads.items():
        _, targets = registry.resolve("heads", options.get("name", key)).facts(key, options)
        wanted = [target for target in targets if weighted.get(target)]
        missing = [target for target in wanted if not _is_labelled(target, sources)]
        learned = ", ".join(target for target in wanted if target not in missing)
        if missing and not learned:
            text = f"{key} learns {', '.join(missing)}, of which no record of the training data has a label"
            found.append(problem("heads", text, f"leave it out with heads.{key}=null, or give data with labels"))
        elif missing:
            text = f"{key} learns {learned}; no record has {', '.join(missing)}"
            found.append(warning("heads", text, f"set {term_of(missing[0])}.weight=0, or give data with it"))
        else:
            found.append(ok("heads", f"{key} learns {learned or 'nothing, it has no weight'}"))
    return found


def _is_labelled(target: str, sources: list[Source]) -> bool:
    data = [source.data for source in sources if target in labels_of(source.data)]
    return not data or any(one.has(target).any() for one in data)


def course(trainer: Any, pace: Pace, building: Callable[[float], float]) -> Course:
    """What the run comes to at the measured pace, by the rules of :func:`sciml.train.run.plan_steps`.

    ``building(steps)`` are the seconds in which the graphs of so many steps are made.
    """

    def needed(steps: int) -> float:
        return steps * pace.step + building(steps) + VALIDATIONS * pace.validation

    steps = trainer.max_steps or sys.maxsize
    if trainer.max_seconds is not None:
        most = range(1 + int(trainer.max_seconds / pace.step))
        steps = min(steps, bisect.bisect_right(most, SAFETY * trainer.max_seconds, key=needed) - 1)
    steps = max(1, steps)
    every = trainer.val_every or math.ceil(steps / VALIDATIONS)
    seconds = steps * pace.step + building(steps) + steps / every * pace.validation
    return Course(steps, seconds, seconds * min(1.0, (trainer.checkpoint_every or every) / steps))


def run_time(trainer: Any, pace: Pace, building: Callable[[float], float]) -> list[Finding]:
    """How long the run takes, whether data hold it up, and how much of it a kill would lose."""
    planned = course(trainer, pace, building)
    share = building(planned.steps) / planned.seconds
    text = (
        f"a step takes {1e3 * pace.step:,.0f} ms, a validation {pace.validation:,.1f} s, making the graphs {share:.0%} "
        f"of the time: {planned.steps:,} steps in {duration(planned.seconds)}"
    )
    if planned.steps < VALIDATIONS:
        found = [warning("time", text, "give trainer.max_time or trainer.max_steps more")]
    elif share > LOADING:
        found = [warning("time", text, "set data.workers, or a larger data.cache_mib")]
    else:
        found = [ok("time", text)]
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
