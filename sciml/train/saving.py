"""When a run saves a checkpoint, and what goes into it."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from sciml.errors import UserError
from sciml.train.checkpoint import STATE, note_validation, rank_file
from sciml.train.rng import generator_states
from sciml.train.writer import Writer


class Checkpoints(Callback):
    """Saves ``folder/step=N`` every ``every`` optimizer steps (None: at every validation) and at the end; ``keep`` and
    ``best`` say how many stay, see :class:`sciml.train.writer.Writer`.

    Where a validation is due at a step, the checkpoint follows it and knows its loss; one that has to be saved before
    says so in ``validation_due``. A save copies the state to CPU memory and returns; a thread writes it. What it could
    not write is raised by the next save, by :meth:`wait`, or at a step of the run by whoever asks for :attr:`failed`.

    The state is that of the strategy's ``lightning_module_state_dict`` and ``optimizer_state``, which are called on all
    ranks and must return whole tensors in the layout of one process; what they return on other ranks than the first is
    not looked at.
    """

    def __init__(self, folder: Path, every: int | None, keep: int = 2, best: int = 1) -> None:
        self.folder, self.every, self.keep, self.best = folder, every, keep, best
        self.in_order: Callable[[], bool] = lambda: True
        self._saved = self._validated = -1
        self._loss: float | None = None
        self._writer: Writer | None = None

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        # A group of its own, so that the meetings of the thread do not mix with those of the training step.
        group = torch.distributed.new_group(backend="gloo") if trainer.world_size > 1 else None
        self._writer = Writer(self.folder, self.keep, self.best, trainer.global_rank, group)

    def on_load_checkpoint(self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        self._saved = checkpoint["global_step"]
        self._validated = -1 if checkpoint["validation_due"] else checkpoint["global_step"]

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if self._saved < 0:
            self._saved = self._validated = trainer.global_step  # a run that has just begun has nothing to save

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if self.every and trainer.global_step % self.every == 0 and not self.validation_due(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.sanity_checking:
            return
        self._validated = trainer.global_step
        loss = trainer.callback_metrics.get("val/loss")
        self._loss = None if loss is None else float(loss)
        if self._validated == self._saved and self._loss is not None and trainer.is_global_zero:
            note_validation(self.folder, self._saved, self._loss)  # an earlier process saved, and broke it off
        if self.every is None or trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self.save(trainer)
        self.wait()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        if self._writer is not None:
            with contextlib.suppress(UserError):  # there is an error already
                self._writer.wait(10.0)  # what is being written is worth a moment, but ranks may be gone

    def validation_due(self, trainer: lightning.Trainer) -> bool:
        """Whether a validation belongs to this step and is not done yet."""
        interval = trainer.val_check_batch
        if not isinstance(interval, int) or self._validated == trainer.global_step:
            return False
        return trainer.global_step * trainer.accumulate_grad_batches % interval == 0

    def save(self, trainer: lightning.Trainer) -> None:
        """Save now, on all ranks, unless this step is saved already; returns while the thread writes."""
        step = trainer.global_step
        if step == self._saved or self._writer is None:
            return
        self.wait()
        state = training_state(trainer) | {"validation_due": self.validation_due(trainer)}
        parts = {rank_file(trainer.global_rank): {"generators": generator_states(trainer.strategy.root_device)}}
        if trainer.is_global_zero:
            parts[STATE] = state
        facts = {
            "step": step,
            "ranks": trainer.world_size,
            "validation_loss": self._loss if self._validated == step else None,
            "in_order": self.in_order(),
        }
        path = self._writer.prepare(step)
        trainer.strategy.barrier("checkpoint")
        self._writer.start(path, snapshot(parts), facts)
        self._saved = step

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written, which :meth:`wait` will raise."""
        return self._writer is not None and self._writer.failed

    def wait(self) -> None:
        """Wait until the last checkpoint is written. Raises UserError where it could not be."""
        if self._writer is not None:
            self._writer.wait()


def training_state(trainer: lightning.Trainer) -> dict[str, Any]:
    """What all ranks share of a run at the end of an optimizer step; called on all ranks."""
    state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    del state["loops"]  # counted from the step: see sciml.train.resume
    return state


def snapshot(value: Any) -> Any:
    """A copy in CPU memory of nested dicts, lists and tuples of tensors; other values are plain and stay."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([snapshot(inner) for inner in value])
    return value
