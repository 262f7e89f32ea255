"""The moving average of the parameters, which is what is published."""

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback


class ExponentialAverage(Callback):
    """Exponential moving average of the parameters, used for validation and for what is published.

    The decay follows min(decay, (1 + n) / (10 + n)) after n updates, so that the average forgets the initial weights.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.averages: list[torch.Tensor] = []
        self._step = -1
        self._training: list[torch.Tensor] | None = None

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        parameters = [parameter.detach() for parameter in module.model.parameters()]
        if self.averages:
            self.averages = [a.to(p.device) for a, p in zip(self.averages, parameters, strict=True)]
        else:
            self.averages = [parameter.clone() for parameter in parameters]

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._step = trainer.global_step  # on_fit_start comes before Lightning restores the step

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if module.left_out:
            return
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = [parameter.detach() for parameter in module.model.parameters()]
        torch._foreach_lerp_(self.averages, parameters, 1.0 - decay)

    def on_validation_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.state.fn == "fit" and self.averages:
            self.swap(module.model)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if self._training is not None:
            self.restore(module.model)

    def swap(self, model: torch.nn.Module) -> None:
        """Put the averages into the model; :meth:`restore` takes them out again."""
        self._training = [parameter.detach().clone() for parameter in model.parameters()]
        _copy(self.averages, model)

    def restore(self, model: torch.nn.Module) -> None:
        """Put the trained parameters back."""
        if self._training is not None:
            _copy(self._training, model)
        self._training = None

    def rewind(self, state: dict[str, Any]) -> None:
        """Go back to the averages of a checkpoint in the course of training."""
        self.updates = state["updates"]
        for average, value in zip(self.averages, state["averages"], strict=True):
            average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.averages = state["updates"], state["averages"]


def _copy(values: list[torch.Tensor], model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)
