"""Runs that are lost and go on, and runs that are repeated: the same bits."""

import random
import time
from functools import partial
from pathlib import Path

from sciml.doctor.faults.processes import codes, ended, start
from sciml.doctor.faults.row import Row
from sciml.doctor.faults.small import (
    STEPS,
    change_steps,
    changed_steps,
    copied_up_to,
    differences,
    noise,
    train_here,
    words,
)


def fault_01_resume(folder: Path, thorough: bool = False) -> Row:
    """Lose a run after step k and resume it, with another number of workers; thorough: kill it again and again too."""
    with changed_steps(noise):
        train_here(folder / "whole")
        differing = []
        cases = [(k, workers) for k in range(1, STEPS + 1) for workers in (0, 2)] if thorough else [(1, 2), (2, 0)]
        for k, workers in cases:
            again = copied_up_to(folder / "whole", folder / f"after-{k}-{workers}", k)
            train_here(again, "resume=true", f"data.workers={workers}")
            differing += differences(folder / "whole", again)
    kills = _killed_again_and_again(folder / "killed") if thorough else 0
    if thorough:
        differing += differences(folder / "whole", folder / "killed")
    return Row(
        1,
        "a run is lost after step k of N and resumed",
        "parameters, moments, averages, generators, guard and metrics equal to the bit those of a run never lost",
        f"k = {', '.join(str(k) for k, _ in cases)} of {STEPS}, 0 and 2 workers, {kills} times kill -9: "
        f"{len(differing)} values differ" + (f", such as {differing[0]}" if differing else ""),
        not differing,
    )


def _killed_again_and_again(folder: Path, most: int = 12) -> int:
    """Kill a run with SIGKILL at random moments and resume it until it is done; returns how often."""
    moments = random.Random(0)
    command = ["train", *words(folder, "resume=true")]
    for kill in range(most + 1):
        process = start(command, folder / "output.txt", prepare=partial(change_steps, noise))
        with ended([process]):
            wait = moments.uniform(0.5, 5.0) if kill < most else 600.0
            begin = time.monotonic()
            if codes([process], wait)[0] == 0:
                return kill
            if time.monotonic() - begin < wait:
                raise RuntimeError((folder / "output.txt").read_text(errors="replace")[-2000:])
    raise RuntimeError(f"the run was not done after {most} kills")


def fault_15_same_seed(folder: Path) -> Row:
    """Train twice with one seed."""
    for name in ("first", "second"):
        with changed_steps(noise):
            train_here(folder / name)
    differing = differences(folder / "first", folder / "second")
    return Row(
        15,
        "the same run twice with one seed",
        "everything in the last checkpoint and all metrics equal to the bit",
        f"{len(differing)} values differ" + (f", such as {differing[0]}" if differing else ""),
        not differing,
    )
