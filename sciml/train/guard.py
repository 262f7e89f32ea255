"""Keep steps that would harm the model out of it."""

import math
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sciml.errors import UserError
from sciml.train.averaging import ExponentialAverage
from sciml.train.checkpoint import checkpoints_in, damage, manifest_of, read_checkpoint, step_of
from sciml.train.events import EVENTS, add_event
from sciml.train.progress import say
from sciml.train.saving import Checkpoints

MAD_TO_DEVIATION = 1.4826  # of a normal distribution
LEAST_SPREAD = 0.01  # of the median: losses that hardly differ are no reason to call the next one a spike


class Guard(Callback):
    """Decides before every update, once for all ranks, whether it is made.

    A step whose loss or gradient is not finite on any rank is left out: neither parameters nor moments nor averages
    see it, and training goes on with the next records. So is a spike, a loss more than ``threshold`` deviations above
    the median of the last ``window`` steps that were made (deviation: 1.4826 times the median distance to the median).
    After ``patience`` such steps in a row the parameters, moments and averages go back to the last good checkpoint,
    at most ``rewinds`` times; the step counter, the schedule and the records go on, so none of those records comes
    again in that epoch. Every decision is a line of ``events.jsonl`` with the ids of its records.

    Raises UserError where there is nothing to go back to.
    """

    def __init__(self, options: Any, folder: Path, checkpoints: Checkpoints, average: ExponentialAverage) -> None:
        self.threshold, self.patience, self.rewinds = options.threshold, options.patience, options.rewinds
        self.folder, self.checkpoints, self.average = folder, checkpoints, average
        checkpoints.in_order = lambda: not self.streak
        self.losses: deque[float] = deque(maxlen=options.window)
        self.streak: list[int] = []  # steps left out since the last that was made
        self.made = self.left_out = self.rewound = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": list(self.losses),
            "streak": list(self.streak),
            "made": self.made,
            "left_out": self.left_out,
            "rewound": self.rewound,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = deque(state["losses"], maxlen=self.losses.maxlen)
        self.streak = list(state["streak"])
        self.made, self.left_out, self.rewound = state["made"], state["left_out"], state["rewound"]

    def admits(self, trainer: lightning.Trainer, module: Any) -> bool:
        """Whether the update of this step is to be made; called on all ranks, between its gradients and its update."""
        loss, finite = _over_ranks(trainer, module)
        reason = self._objection(loss, finite)
        if reason is None:
            self.losses.append(loss)
            self.streak = []
            self.made += 1
            return True
        self.left_out += 1
        self.streak.append(trainer.global_step)
        self._tell(trainer, "left out", reason=reason, loss=loss if math.isfinite(loss) else str(loss))
        if len(self.streak) >= self.patience:
            self._rewind(trainer, reason)
        return False

    def _objection(self, loss: float, finite: bool) -> str | None:
        """Why a step of this total loss is left out, None where it is not."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not finite:
            return "a gradient is not finite"
        if self.losses.maxlen and len(self.losses) == self.losses.maxlen:
            middle = median(self.losses)
            spread = MAD_TO_DEVIATION * median(abs(other - middle) for other in self.losses)
            limit = middle + self.threshold * max(spread, LEAST_SPREAD * abs(middle))
            if loss > limit:
                return f"the loss {loss:.4g} is a spike, above {limit:.4g}"
        return None

    def _tell(self, trainer: Any, event: str, **facts: Any) -> None:
        """A line of events, with the records of the step, and a line for people."""
        if not trainer.is_global_zero:
            return
        step = trainer.global_step + 1  # as it is counted in metrics.jsonl, where the first is 1
        records = trainer.datamodule.records_of_step(trainer.global_step)
        add_event(self.folder, step, event, **facts, records=records)
        say(f"step {step}: {event}, {facts['reason']}")

    def _rewind(self, trainer: lightning.Trainer, reason: str) -> None:
        """Put parameters, moments and averages back to the newest good checkpoint, on all ranks."""
        self.checkpoints.wait()
        target = next((path for path in checkpoints_in(self.checkpoints.folder) if _good(path)), None)
        if target is None or self.rewound == self.rewinds:
            why = "there is no good checkpoint to go back to" if target is None else f"after {self.rewound} rewinds"
            raise UserError(
                f"step {trainer.global_step + 1}: {reason}, in each of {self.patience} steps in a row, and {why}; "
                f"lower optimizer.learning_rate, and look at the records that {self.folder / EVENTS} names."
            )
        state = read_checkpoint(target)
        trainer.strategy.load_model_state_dict(state)
        trainer.strategy.load_optimizer_state_dict(state)
        self.average.rewind(state["callbacks"]["ExponentialAverage"])
        steps = [step + 1 for step in self.streak]
        self.rewound += 1
        self.streak = []
        self._tell(trainer, "rewound", reason=f"back to the weights of step {step_of(target)}", steps=steps)


def _good(path: Path) -> bool:
    """Whether a checkpoint is undamaged and was saved while no step had just been left out."""
    return damage(path) is None and manifest_of(path).get("in_order", True)


def _over_ranks(trainer: lightning.Trainer, module: Any) -> tuple[float, bool]:
    """The loss of the whole step, and whether loss and gradients are finite on every rank: one meeting of the ranks."""
    loss = torch.stack([torch.as_tensor(share, dtype=torch.float64) for share in module.step_losses.values()]).sum()
    norm = gradient_norm(trainer, module)
    lost = ~(torch.isfinite(loss) & torch.isfinite(norm).to(loss.device))
    table = torch.stack([loss, lost.to(loss)]).to(trainer.strategy.root_device)
    total, ranks_lost = trainer.strategy.reduce(table, reduce_op="sum").tolist()
    return total, ranks_lost == 0


def gradient_norm(trainer: lightning.Trainer, module: Any) -> Tensor:
    """The norm of all gradients of a step, over the pieces of all ranks where a strategy shards them.

    A strategy whose gradients are not those of the parameters has a method ``gradient_norm(module)`` of its own.
    """
    own = getattr(trainer.strategy, "gradient_norm", None)
    if own is not None:
        return own(module)
    gradients = [parameter.grad for parameter in module.model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
