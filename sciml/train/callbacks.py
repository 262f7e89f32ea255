"""What runs beside the training steps: averaging, metrics, checkpoints, progress and the time limit."""

import json
import math
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from sciml.data.datamodule import GraphDataset
from sciml.errors import UserError
from sciml.files import write_text
from sciml.train.process import first_process, sum_over_ranks
from sciml.train.validation import validation_lines


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

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.averages = state["updates"], state["averages"]


def _copy(values: list[torch.Tensor], model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)


class MetricsFile(Callback):
    """One JSON line every ``every`` optimizer steps and at every validation, in ``metrics.jsonl``; the truth about a
    run.

    On resume, lines past the checkpoint's step are cut, so that no step stands twice. The trainer's loggers (wandb)
    mirror the lines.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self._step, self._clock, self._timed, self._graphs = -1, 0.0, 0, 0

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._step = trainer.global_step
        self._clock, self._timed, self._graphs = time.perf_counter(), trainer.global_step, 0
        if trainer.is_global_zero and self.path.exists():
            self._cut(self._step)

    def _cut(self, step: int) -> None:
        """Drop lines past ``step``, and the last one where the process was killed while it wrote it."""
        *whole, _ = self.path.read_text(encoding="utf-8").split("\n")
        lines = [line for line in whole if json.loads(line)["step"] <= step]
        write_text(self.path, "".join(line + "\n" for line in lines))

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self._graphs += batch.batch.num_graphs
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._step % self.every == 0 or self._step == module.total_steps or self._step == 1:
            self._write_training(trainer, module)
        module.step_losses = {}

    def _write_training(self, trainer: lightning.Trainer, module: Any) -> None:
        summed = sum_over_ranks(module.step_losses, module.objective.terms, trainer.strategy)
        losses = {f"train/{target}": value for target, value in summed.items()}
        seconds = time.perf_counter() - self._clock
        line = losses | {
            "train/loss": sum(losses.values()),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "steps_per_second": (self._step - self._timed) / seconds,
            "graphs_per_second": self._graphs / seconds,
        }
        self._clock, self._timed, self._graphs = time.perf_counter(), self._step, 0
        self.write(trainer, line)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.sanity_checking:
            return
        line = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
        self.write(trainer, line)
        self._clock, self._timed, self._graphs = time.perf_counter(), trainer.global_step, 0

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


class Checkpoints(Callback):
    """Saves ``step=N.ckpt`` every ``every`` optimizer steps (None: at every validation) and at the end; keeps the
    newest.
    """

    def __init__(self, folder: Path, every: int | None, keep: int = 2) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self._saved = -1

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._saved = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if self.every and trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if self.every is None and not trainer.sanity_checking:
            self.save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Save now, unless this step is saved already."""
        if trainer.global_step == self._saved:
            return
        self._saved = trainer.global_step
        trainer.save_checkpoint(self.folder / f"step={trainer.global_step:09d}.ckpt")
        if trainer.is_global_zero:
            for old in sorted(self.folder.glob("step=*.ckpt"))[: -self.keep]:
                old.unlink(missing_ok=True)


class TimeLimit(Callback):
    """Stops after an optimizer step once ``seconds`` have passed since ``start``; the run can be resumed."""

    def __init__(self, seconds: float, start: float) -> None:
        self.seconds, self.start = seconds, start
        self._step = -1

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == self._step:
            return  # between the micro-batches of a step: stopping here would throw their gradients away
        self._step = trainer.global_step
        over = time.perf_counter() - self.start > self.seconds
        if trainer.strategy.reduce_boolean_decision(over, all=False):
            trainer.should_stop = True


class TimeBudget(Callback):
    """Shortens the run where the machine turned slower than it was when the steps were timed.

    Every ``every`` steps the end is projected from their pace; past ``seconds`` since ``start``, the number of steps,
    and with it the schedule, shrinks to what still fits. Faster machines change nothing. As for the step clock, the
    time in which ``data`` makes its graphs is no part of the pace.
    """

    def __init__(self, data: GraphDataset, seconds: float, start: float, every: int = 50) -> None:
        self.data, self.end, self.every = data, start + seconds, every
        self._step, self._clock = 0, 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._step, self._clock = trainer.global_step, computing_time(self.data)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        steps = trainer.global_step - self._step
        if steps < self.every:
            return
        now = computing_time(self.data)
        pace = (now - self._clock) / steps
        self._step, self._clock = trainer.global_step, now
        fitting = self._step + max(1, int((self.end - time.perf_counter()) / pace))
        if fitting < module.total_steps:
            module.total_steps = trainer.fit_loop.epoch_loop.max_steps = fitting


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


class StepClock(Callback):
    """Times optimizer steps after ``warmup`` of them and stops after ``limit`` seconds or 100 steps.

    The time in which ``data`` makes its graphs is taken out: later steps find them in its cache.
    """

    def __init__(self, data: GraphDataset, warmup: int, limit: float) -> None:
        self.data, self.warmup = data, warmup
        self._step, self._end = 0, time.perf_counter() + limit
        self._last = computing_time(data)
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == self._step:
            return
        self._step, now = trainer.global_step, computing_time(self.data)
        if self._step > self.warmup:
            self.times.append(now - self._last)
        self._last = now
        if len(self.times) >= 100 or (len(self.times) >= 3 and time.perf_counter() > self._end):
            trainer.should_stop = True

    def seconds(self) -> float:
        """Mean time of a step without the slowest tenth, which is hiccups of the machine."""
        kept = sorted(self.times)[: max(1, len(self.times) - len(self.times) // 10)]
        return sum(kept) / len(kept)

    def graphs_per_step(self) -> dict[str, float]:
        """How many graphs of each kind a step draws; early on all of them are made."""
        return {kind: built.graphs / max(self._step, 1) for kind, built in self.data.built.items()}


def computing_time(data: GraphDataset) -> float:
    """The time in seconds on a clock that stands still while ``data`` makes graphs."""
    return time.perf_counter() - sum(built.seconds for built in data.built.values())


def say(text: str) -> None:
    """Print a line of progress at once, from the first process alone."""
    if first_process():
        print(text, file=sys.stderr, flush=True)
