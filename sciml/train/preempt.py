"""Signals: SIGTERM and SIGUSR1 save and stop, Ctrl-C stops."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from sciml.train.averaging import ExponentialAverage
from sciml.train.saving import Checkpoints

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what SLURM sends before it takes the machine away, and what it can be told


class Stopped(Exception):
    """A validation was broken off, with a checkpoint saved."""


class Preemption(Callback):
    """After a signal to any of the ranks, all of them finish the optimizer step, save one checkpoint and stop.

    The run can be resumed. A validation is broken off, and made up for when the run is resumed. Between the
    micro-batches of a step nothing stops: its gradients would be lost.
    """

    def __init__(self, checkpoints: Checkpoints, average: ExponentialAverage) -> None:
        self.checkpoints, self.average = checkpoints, average
        self.signalled = False
        self._step = -1
        self._meetings = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note the signals from here on; the handlers before come back at the end."""
        if threading.current_thread() is not threading.main_thread():  # Python lets no other thread set handlers
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.signalled = True

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == self._step:
            return  # between the micro-batches of a step
        self._step = trainer.global_step
        if self._stops(trainer):
            self.checkpoints.save(trainer)
            trainer.limit_val_batches = 0  # Lightning validates before it stops; the time until SIGKILL is short
            trainer.should_stop = True

    def on_validation_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Ranks have different numbers of batches: they meet after as many as each of them has."""
        batches = torch.tensor(float(sum(trainer.num_val_batches)), device=trainer.strategy.root_device)
        self._meetings = int(trainer.strategy.reduce(batches, reduce_op="min"))

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx < self._meetings and not trainer.sanity_checking and self._stops(trainer):
            self.average.restore(module.model)  # what is validated are the averages; what is saved, the parameters
            self.checkpoints.save(trainer)
            self.checkpoints.wait()
            raise Stopped

    def _stops(self, trainer: lightning.Trainer) -> bool:
        """Whether any rank has a signal; raises what any rank could not save. One meeting of the ranks for both."""
        flags = torch.tensor([self.signalled, self.checkpoints.failed], dtype=torch.float32)
        flags = trainer.strategy.reduce(flags.to(trainer.strategy.root_device), reduce_op="sum")
        stops, failed = flags.bool().tolist()
        if failed:
            self.checkpoints.wait()
        if stops:  # else it stays as it is: a signal may have come while the ranks met, and counts at the next meeting
            self.signalled = True
        return stops


class Interruption(Callback):
    """Repeats Ctrl-C at the next batch where the first was lost: Python drops what is raised in a destructor."""

    def __init__(self) -> None:
        self.interrupted = False
        self._before: Any = None

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._before = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: Any) -> None:
        self.interrupted = True
        raise KeyboardInterrupt

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        self.on_train_end(trainer, module)
