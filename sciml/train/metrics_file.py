"""``metrics.jsonl``: what a run measured, one line a time, complete across resumes."""

import json
import math
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from sciml.errors import UserError
from sciml.files import write_text
from sciml.train.process import sum_over_ranks
from sciml.train.throughput import Throughput


class MetricsFile(Callback):
    """One JSON line every ``every`` optimizer steps and at every validation, in ``metrics.jsonl``; the truth about a
    run.

    On resume, lines past the checkpoint's step are cut, so that no step stands twice. The trainer's loggers (wandb)
    mirror the lines.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self._step = -1
        self._throughput = Throughput()
        self._validation_due = False

    def on_load_checkpoint(self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        self._validation_due = checkpoint["validation_due"]

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._step = trainer.global_step
        self._throughput.start(trainer, self._step)
        if trainer.is_global_zero and self.path.exists():
            self._cut(self._step)

    def _cut(self, step: int) -> None:
        """Drop lines past ``step``, the validation there that will be made up for, and the last line where the process
        was killed while it wrote it.
        """
        *whole, _ = self.path.read_text(encoding="utf-8").split("\n")
        lines = [line for line in whole if json.loads(line)["step"] <= step]
        if self._validation_due:
            lines = [line for line in lines if json.loads(line)["step"] < step or '"val/' not in line]
        write_text(self.path, "".join(line + "\n" for line in lines))

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, *_: Any) -> None:
        self._throughput.before(module, batch)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self._throughput.after(module, batch)
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._step % self.every == 0 or self._step == module.total_steps or self._step == 1:
            self._write_training(trainer, module)
        module.step_losses = {}

    def _write_training(self, trainer: lightning.Trainer, module: Any) -> None:
        summed = sum_over_ranks(module.step_losses, module.objective.terms, trainer.strategy)
        losses = {f"train/{target}": value for target, value in summed.items()}
        if module.left_out:
            losses = {name: value for name, value in losses.items() if math.isfinite(value)} | {"left_out": 1.0}
        line = losses | {
            **({} if module.left_out else {"train/loss": sum(losses.values())}),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            **self._throughput.values(trainer, self._step),
        }
        self.write(trainer, line)
        self._throughput.restart(trainer, self._step)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.sanity_checking:
            return
        line = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
        self.write(trainer, line)
        self._throughput.restart(trainer, trainer.global_step)

    def write(self, trainer: lightning.Trainer, values: dict[str, float]) -> None:
        """Append one line. Raises UserError when a value is no number: the run is lost from there on."""
        lost = [name for name, value in values.items() if not math.isfinite(value)]
        if lost:
            raise UserError(
                f"step {trainer.global_step}: {lost[0]} is {values[lost[0]]}, expected a number; lower "
                "optimizer.learning_rate, and look at the data with sciml inspect."
            )
        if not trainer.is_global_zero:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": trainer.global_step, **values}) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics(values, trainer.global_step)
