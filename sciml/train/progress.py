"""What a run tells the person who waits for it."""

import sys
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from sciml.launch import first_process
from sciml.train.validation import validation_lines


class Progress(Callback):
    """A bar over the optimizer steps; where the output is no terminal, a line every ten seconds."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.is_global_zero:
            terminal = sys.stderr.isatty()
            self._bar = tqdm(
                total=module.total_steps,
                initial=trainer.global_step,
                unit="step",
                mininterval=0.2 if terminal else 10.0,
                ascii=None if terminal else " #",
                ncols=None if terminal else 100,
            )

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if self._bar is not None:
            self._bar.total = module.total_steps
            self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if self._bar is not None:
            values = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
            for where, parts in validation_lines(values):
                self._bar.write(f"step {trainer.global_step}: validation {where}{parts}", file=sys.stderr)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        self.on_train_end(trainer, module)


def say(text: str) -> None:
    """Print a line of progress at once, from the first process alone."""
    if first_process():
        print(text, file=sys.stderr, flush=True)
