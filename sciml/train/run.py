"""One training run: time the steps, fit, publish."""

import bisect
import copy
import math
import re
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import Logger

from sciml.data.datamodule import DataModule
from sciml.errors import UserError
from sciml.train.averaging import ExponentialAverage
from sciml.train.budget import StepClock, TimeBudget, TimeLimit
from sciml.train.checkpoint import CheckpointReader, read_checkpoint
from sciml.train.guard import Guard
from sciml.train.metrics_file import MetricsFile
from sciml.train.module import Module
from sciml.train.preempt import Interruption, Preemption, Stopped
from sciml.train.profile import Profile
from sciml.train.progress import Progress, say
from sciml.train.resume import Resume
from sciml.train.saving import Checkpoints
from sciml.train.sharding import part
from sciml.train.strategy import build_strategy
from sciml.train.throughput import DataClock

PRECISIONS = {"32": "32-true", "64": "64-true", "bf16-mixed": "bf16-mixed"}
VALIDATIONS = 10  # most validations of a run, where trainer.val_every does not say otherwise
VALIDATION_SHARE = 0.04  # of the time budget, at most
SAFETY = 0.97  # of the time budget is planned; the rest covers a slower second half


def plan_steps(module: Module, data: DataModule, config: Any, start: float, checkpoint: Path | None) -> tuple[int, int]:
    """Optimizer steps and validations of the run: ``trainer.max_steps``, or what fits into ``trainer.max_time``.

    For a time budget a copy of the module takes some steps and one validation; both are timed once. The resulting
    numbers are stored in every checkpoint, so that a resumed run follows the same schedule.
    """
    options = config.trainer
    if checkpoint is not None:
        stored = read_checkpoint(checkpoint)
        total = int(stored["total_steps"])
        if options.max_steps not in (None, total):
            say(
                f"trainer.max_steps={options.max_steps}: the run keeps the {total} steps that its schedule was made for"
            )
        return total, int(stored["validations"])
    budget = options.max_seconds
    if budget is None:
        return int(options.max_steps), VALIDATIONS
    clock, validation_seconds = _time_steps(module, data, config, limit=min(20.0, 0.05 * budget))
    step_seconds = clock.seconds()
    validations = max(2, min(VALIDATIONS, int(VALIDATION_SHARE * budget / validation_seconds)))
    remaining = SAFETY * (budget - (time.perf_counter() - start)) - validations * validation_seconds
    steps = max(validations, _steps_in(remaining, clock, data))
    if options.max_steps is not None:
        steps = min(steps, int(options.max_steps))
    say(
        f"a step takes {1e3 * step_seconds:.0f} ms, a validation {validation_seconds:.1f} s: "
        f"{steps:,} steps in {options.max_time}"
    )
    return steps, validations


def _steps_in(seconds: float, clock: StepClock, data: DataModule) -> int:
    """The most steps that fit: each takes its computing time, and graphs that are not cached yet are made once."""
    step_seconds, drawn = clock.seconds(), clock.graphs_per_step()

    def needed(steps: int) -> float:
        building = sum(data.training.seconds_to_build(kind, steps * drawn[kind]) for kind in data.kinds)
        return steps * step_seconds + building

    return bisect.bisect_right(range(int(seconds / step_seconds) + 1), seconds, key=needed) - 1


def _time_steps(module: Module, data: DataModule, config: Any, limit: float) -> tuple[StepClock, float]:
    """A clock that has seen optimizer steps, and the seconds of a validation, on a copy of the module."""
    clock = StepClock(data.training, warmup=5, limit=limit)
    trial = copy.deepcopy(module)
    with _quiet(), torch.random.fork_rng(devices=[]):
        trainer = lightning.Trainer(
            **_hardware(config),
            **_loop(data, config.trainer),
            max_steps=1_000_000,
            limit_val_batches=0,
            callbacks=[clock, Interruption()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        _run_fit(trainer, trial, data)
        trial.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU
        return clock, _time_validation(trial, data)


def _time_validation(trial: Module, data: DataModule) -> float:
    """Seconds of one pass over the validation set, with those of its graphs that are not kept in memory."""
    _synchronize(trial.device)
    begin = time.perf_counter()
    for micro_batch in data.val_dataloader():
        with torch.no_grad():
            micro_batch = micro_batch.to(trial.device)
            trial.model(micro_batch.batch, micro_batch.kind)
    _synchronize(trial.device)
    computing = time.perf_counter() - begin - sum(built.seconds for built in data.validation.built.values())
    return computing + sum(data.validation.seconds_to_build(k, data.validation.built[k].graphs) for k in data.kinds)


def _synchronize(device: torch.device) -> None:
    """Wait for a GPU, so that a clock reads what was computed and not what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fit(
    module: Module,
    data: DataModule,
    config: Any,
    folder: Path,
    start: float,
    loggers: list[Logger],
    checkpoint: Path | None,
) -> bool:
    """Train to ``module.total_steps`` and leave the averaged parameters in the module.

    Returns False when ``trainer.segment_time`` or SIGTERM ended the run before its last step; it then can be resumed.
    Raises KeyboardInterrupt after Ctrl-C, and UserError where the weights are not finite or a checkpoint could not be
    written.
    """
    options = config.trainer
    average = ExponentialAverage(config.optimizer.ema_decay)
    checkpoints = Checkpoints(
        folder / "checkpoints", options.checkpoint_every, options.checkpoint_keep, options.checkpoint_best
    )
    module.guard = Guard(options.guard, folder, checkpoints, average)
    preemption = Preemption(checkpoints, average)
    callbacks = [average, MetricsFile(folder / "metrics.jsonl", options.log_every), module.guard, checkpoints]
    callbacks += [*_asked_for(data, options, folder, start, resumed=checkpoint is not None), preemption, Interruption()]
    callbacks += [Progress()] if options.progress else []
    callbacks.append(Resume(folder, config.seed))
    with _quiet(), preemption.listening():
        trainer = lightning.Trainer(
            **_hardware(config),
            **_loop(data, options),
            max_steps=module.total_steps,
            val_check_interval=_validation_interval(module, data, options),
            callbacks=callbacks,
            logger=loggers or False,
            profiler=DataClock(),
            plugins=[CheckpointReader()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        # Lightning's own answers to signals save elsewhere, and meet other ranks from inside a handler.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        try:
            _run_fit(trainer, module, data, checkpoint)
        except Stopped:
            return False
    signalled = trainer.strategy.reduce_boolean_decision(preemption.signalled, all=False)  # after the last meeting too
    average.swap(module.model)
    _check_finite(module)
    return trainer.global_step >= module.total_steps and not signalled


def _asked_for(
    data: DataModule, options: Any, folder: Path, start: float, resumed: bool
) -> Iterator[lightning.Callback]:
    """The callbacks of a profile and of limits of time, where the recipe has them."""
    if options.profile:
        yield Profile(folder / "profile")
    if options.segment_seconds is not None:
        yield TimeLimit(options.segment_seconds, start)
    if options.max_seconds is not None and not resumed:  # a resumed run keeps the steps that it was given
        yield TimeBudget(data.training, options.max_seconds, start)


def _check_finite(module: Module) -> None:
    """Raise UserError where a weight is no number: such a model is not published, whatever its losses were."""
    parts = {name: part(value) for name, value in module.model.named_parameters()}
    lost = [name for name, value in parts.items() if not bool(torch.isfinite(value).all())]
    if lost:
        raise UserError(
            f"the weights {lost[0]} are not finite after the last step, expected numbers; lower "
            "optimizer.learning_rate, and resume from a checkpoint or start anew."
        )


def _run_fit(trainer: lightning.Trainer, module: Module, data: DataModule, checkpoint: Path | None = None) -> None:
    """``trainer.fit``, which answers Ctrl-C by leaving the process with the code of a failed check."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"memory: a step does not fit ({reason}); set trainer.recompute=true, or give smaller limits in "
            "data.batch, which data.find_batch=true finds."
        ) from None
    except SystemExit as left:
        if trainer.interrupted and left.code == 1:
            raise KeyboardInterrupt from None
        raise
    except (RuntimeError, OSError, EOFError) as error:
        if _is_of_lost_worker(error):
            raise UserError(_lost_worker(error)) from None
        raise
    if trainer.interrupted:
        raise KeyboardInterrupt


def _is_of_lost_worker(error: Exception) -> bool:
    """Whether the loader misses one of its processes, or the tensors of a batch that one had announced.

    What a living process raises comes through another function of the loader.
    """
    functions = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    return "DataLoader worker" in str(error) or "_try_get_data" in functions


def _lost_worker(error: Exception) -> str:
    """A sentence about a process that loads data and died."""
    number = re.search(r"pid\S* (\d+)", str(error))
    return (
        f"a process that loads data{f' ({number[1]})' if number else ''} was killed, probably because memory ran out; "
        "lower data.workers or data.cache_mib, and continue from the last checkpoint with resume=true."
    )


def _hardware(config: Any) -> dict[str, Any]:
    options = config.trainer
    clip = config.optimizer.gradient_clip
    strategy = build_strategy(config.strategy.name, options.ranks, options.accelerator, clip, options.precision)
    own = getattr(strategy, "own_precision", False)
    return {
        "accelerator": options.accelerator,
        "devices": options.devices,
        "num_nodes": options.nodes,
        "strategy": strategy,
        "precision": None if own else PRECISIONS[options.precision],
    }


def _loop(data: DataModule, options: Any) -> dict[str, Any]:
    """An optimizer step accumulates this rank's share of the micro-batches.

    The data are endless: an epoch ends only where a segment does, and its successor begins the next one.
    """
    return {
        "max_epochs": -1,
        "accumulate_grad_batches": data.micro_batches_per_step // options.ranks,
        "use_distributed_sampler": False,
        "check_val_every_n_epoch": None,
    }


def _validation_interval(module: Module, data: DataModule, options: Any) -> int:
    """Micro-batches between validations."""
    every = options.val_every or math.ceil(module.total_steps / module.validations)
    return int(every) * (data.micro_batches_per_step // options.ranks)


class _quiet(warnings.catch_warnings):
    """Silence the advice of libraries about choices that are made here on purpose."""

    def __enter__(self) -> Any:
        import logging

        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        entered = super().__enter__()
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*num_workers.*")
        return entered
