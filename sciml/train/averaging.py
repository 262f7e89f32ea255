"""The moving average of the parameters, which is what is published."""

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from sciml.train.sharding import copy_parts, is_cut, part, part_of, whole


class ExponentialAverage(Callback):
    """Exponential moving average of the parameters, used for validation and for what is published.

    Where the parameters are cut among the ranks, each rank averages its own part, which is the same.
    The decay follows min(decay, (1 + n) / (10 + n)) after n updates, so that the average forgets the initial weights.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.averages: list[torch.Tensor] = []
        self._whole = False  # as a checkpoint holds them
        self._step = -1
        self._parameters: list[torch.Tensor] = []
        self._training: list[torch.Tensor] | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._step = trainer.global_step
        self._parameters = list(module.model.parameters())
        if not self.averages:
            self.averages = [part(parameter).clone() for parameter in self._parameters]
        self._cut(self._parameters)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if module.left_out:
            return
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.averages, [part(parameter) for parameter in self._parameters], 1.0 - decay)

    def on_validation_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.state.fn == "fit" and self.averages:
            self.swap(module.model)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if self._training is not None:
            self.restore(module.model)

    def swap(self, model: torch.nn.Module) -> None:
        """Put the averages into the model; :meth:`restore` takes them out again."""
        self._cut(list(model.parameters()))  # of a run that is resumed after its last step
        self._training = [part(parameter).clone() for parameter in model.parameters()]
        copy_parts(self.averages, model.parameters())

    def _cut(self, parameters: list[torch.Tensor]) -> None:
        """Keep this rank's part of averages that are whole."""
        if self._whole:
            self.averages = [part_of(p, a).clone() for p, a in zip(parameters, self.averages, strict=True)]
        self._whole = False

    def restore(self, model: torch.nn.Module) -> None:
        """Put the trained parameters back."""
        if self._training is not None:
            copy_parts(self._training, model.parameters())
        self._training = None

    def rewind(self, state: dict[str, Any]) -> None:
        """Go back to the averages of a checkpoint in the course of training."""
        self.updates = state["updates"]
        for parameter, average, value in zip(self._parameters, self.averages, state["averages"], strict=True):
            average.copy_(part_of(parameter, value))

    def state_dict(self) -> dict[str, Any]:
        """The averages are whole, on every rank, however the parameters are cut: every rank must call it."""
        averages = [whole(p, a) if is_cut(p) else a for p, a in zip(self._parameters, self.averages, strict=True)]
        return {"updates": self.updates, "averages": averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.averages, self._whole = state["updates"], state["averages"], True
