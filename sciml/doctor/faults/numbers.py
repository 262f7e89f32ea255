"""Losses and gradients that are no numbers, or far too large."""

from functools import partial
from pathlib import Path

import torch

from sciml.doctor.faults.processes import codes, ended, start_ranks
from sciml.doctor.faults.row import Row
from sciml.doctor.faults.signals import TWO_RANKS
from sciml.doctor.faults.small import (
    STEPS,
    change_steps,
    changed_steps,
    checkpoint,
    copied_up_to,
    differences,
    train_here,
    unequal,
    words,
)
from sciml.train.checkpoint import read_checkpoint
from sciml.train.events import read_events
from sciml.train.module import Module

TRAINED = ("state_dict", "optimizer_states")
SPIKES = 8, 9  # steps, counted from zero


def _nan_gradient(module: Module, loss: torch.Tensor, step: int) -> torch.Tensor:
    """A loss that is finite and whose gradient is not, at one step."""
    if module.trainer.global_step != step:
        return loss
    return loss + torch.sqrt(0.0 * next(module.model.parameters()).sum())


def _infinite_on_one_rank(module: Module, loss: torch.Tensor, step: int) -> torch.Tensor:
    """A loss that is infinite at one step, on the second rank alone."""
    return loss * torch.inf if module.trainer.global_step == step and module.trainer.global_rank == 1 else loss


def _spikes(module: Module, loss: torch.Tensor) -> torch.Tensor:
    """A loss, and its share in the loss of the step, a million times too large at some steps."""
    if module.trainer.global_step not in SPIKES:
        return loss
    module.step_losses = {target: 1e6 * share for target, share in module.step_losses.items()}
    return 1e6 * loss


def fault_10_nan_gradient(folder: Path) -> Row:
    """Make a gradient NaN at step 3 of 4, with a finite loss."""
    with changed_steps(partial(_nan_gradient, step=2)):
        code = train_here(folder)
    return Row(10, "a NaN gradient at step 3 of 4, with a finite loss", *_left_out(folder, code))


def fault_11_infinite_on_one_rank(folder: Path) -> Row:
    """Make the loss infinite at step 3 of 4, on one of two ranks."""
    prepare = partial(change_steps, partial(_infinite_on_one_rank, step=2))
    ranks = start_ranks(2, ["train", *words(folder, *TWO_RANKS)], folder / "output", prepare)
    with ended(ranks):
        left = codes(ranks)
    code = next((code for code in left if code != 0), 0)
    return Row(11, "an infinite loss at step 3 of 4, on one of 2 ranks", *_left_out(folder, code))


def _left_out(folder: Path, code: int | None) -> tuple[str, str, bool]:
    """Expectation, figure and whether step 3 was left out, in the checkpoints of every step and in the events."""
    before, after, last = (read_checkpoint(checkpoint(folder, step)) for step in (2, 3, STEPS))
    touched = [name for key in TRAINED for name in unequal(before[key], after[key], key) if ".lr" not in name]
    touched += unequal(before["callbacks"]["ExponentialAverage"], after["callbacks"]["ExponentialAverage"], "averages")
    moved = bool(unequal(after["state_dict"], last["state_dict"]))
    finite = all(bool(torch.isfinite(value).all()) for value in last["state_dict"].values())
    events = read_events(folder / "run")
    named = [(event["step"], event["event"], bool(event["records"])) for event in events] == [(3, "left out", True)]
    return (
        "no parameter, moment or average changes at that step on any rank, its records are named, training goes on",
        f"{len(touched)} values touched, {len(events)} event, exit code {code}",
        not touched and moved and finite and named and code == 0,
    )


def fault_12_spikes(folder: Path) -> Row:
    """Make the loss a million times too large at two steps in a row; lose the run in between and resume it."""
    guard = ["trainer.guard.window=6", "trainer.guard.threshold=50", "trainer.guard.patience=2"]
    guard += ["trainer.max_steps=11"]
    with changed_steps(_spikes):
        code = train_here(folder / "whole", *guard)
        again = copied_up_to(folder / "whole", folder / "again", SPIKES[1])
        train_here(again, *guard, "resume=true")
    events = read_events(folder / "whole" / "run")
    told = [(event["step"], event["event"]) for event in events]
    good, rewound = (read_checkpoint(checkpoint(folder / "whole", step)) for step in (SPIKES[0], SPIKES[1] + 1))
    touched = [name for key in TRAINED for name in unequal(good[key], rewound[key], key) if ".lr" not in name]
    differing = differences(folder / "whole", again, 11)
    same_events = events == read_events(again / "run")
    expected = [(SPIKES[0] + 1, "left out"), (SPIKES[1] + 1, "left out"), (SPIKES[1] + 1, "rewound")]
    return Row(
        12,
        "two spikes of the loss in a row; the run is lost between them and resumed",
        "both steps are left out, weights and moments go back to the last good checkpoint, resuming does the same",
        f"{len(events)} events, {len(touched)} values touched, {len(differing)} differ when resumed, exit code {code}",
        code == 0 and told == expected and not touched and not differing and same_events,
    )
