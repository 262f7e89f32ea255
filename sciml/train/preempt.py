"""Signals: SIGTERM saves and stops, Ctrl-C stops."""

import signal
import threading
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from sciml.train.checkpoint import Checkpoints


class Preemption(Callback):
    """On SIGTERM finishes the optimizer step, saves a checkpoint and stops; the run can be resumed.

    Lightning's own handler would raise between the micro-batches of a step, and throw that step away.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.signalled = False
        self._step = -1
        self._before: Any = None

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._step = trainer.global_step
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._before = signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.signalled = True

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == self._step:
            return  # between the micro-batches of a step
        self._step = trainer.global_step
        self._stop_where_signalled(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if not trainer.sanity_checking:
            self._stop_where_signalled(trainer)

    def _stop_where_signalled(self, trainer: lightning.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self.signalled, all=False):
            self.signalled = True
            self.checkpoints.save(trainer)
            trainer.limit_val_batches = 0  # Lightning validates before it stops; the time until SIGKILL is short
            trainer.should_stop = True

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        self.on_train_end(trainer, module)


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
