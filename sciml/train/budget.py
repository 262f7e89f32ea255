"""The clock of a run: how long steps take, how many fit, and when a segment is over."""

import time
from collections import deque
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from sciml.data.graph_dataset import GraphDataset


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
        if self._step >= module.total_steps:
            return  # the run ends by itself, with the validation that belongs to its last step
        over = time.perf_counter() - self.start > self.seconds
        if trainer.strategy.reduce_boolean_decision(over, all=False):
            trainer.limit_val_batches = 0  # Lightning validates before it stops, due or not
            trainer.should_stop = True


class TimeBudget(Callback):
    """Shortens the run while the machine is slower than it was when the steps were timed.

    Every ``every`` steps the end is projected from the pace over the last tenth of ``seconds``; past ``seconds`` since
    ``start``, the number of steps, and with it the schedule, shrinks to what still fits. It grows back, to what was
    planned at most, once a hiccup is over. As for the step clock, the time in which ``data`` makes its graphs is no
    part of the pace.
    """

    def __init__(self, data: GraphDataset, seconds: float, start: float, every: int = 50) -> None:
        self.data, self.end, self.window, self.every = data, start + seconds, 0.1 * seconds, every
        self._planned = 0
        self._marks: deque[tuple[int, float]] = deque()  # steps, and the clock when they were done

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._planned = module.total_steps
        self._marks = deque([(trainer.global_step, computing_time(self.data))])

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step - self._marks[-1][0] < self.every:
            return
        now = computing_time(self.data)
        while len(self._marks) > 1 and self._marks[1][1] <= now - self.window:
            self._marks.popleft()
        self._marks.append((trainer.global_step, now))
        (first, begin), last = self._marks[0], trainer.global_step
        fitting = last + max(1, int((self.end - time.perf_counter()) * (last - first) / (now - begin)))
        module.total_steps = trainer.fit_loop.epoch_loop.max_steps = min(self._planned, fitting)


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
