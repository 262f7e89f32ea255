"""One training run: time the steps, fit, publish."""

import copy
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import Logger

from sciml.data.datamodule import DataModule
from sciml.errors import UserError
from sciml.train.callbacks import Checkpoints, ExponentialAverage, MetricsFile, Progress, StepClock, TimeLimit, say
from sciml.train.checkpoint import AtomicCheckpointIO, newest_checkpoint
from sciml.train.module import Module

PRECISIONS = {"32": "32-true", "64": "64-true", "bf16-mixed": "bf16-mixed"}
VALIDATIONS = 10  # most validations of a run, where trainer.val_every does not say otherwise
VALIDATION_SHARE = 0.08  # of the time budget, at most
SAFETY = 0.97  # of the time budget is planned; the rest covers a slower second half


def plan_steps(
    module: Module, data: DataModule, options: Any, start: float, checkpoint: Path | None
) -> tuple[int, int]:
    """Optimizer steps and validations of the run: ``trainer.max_steps``, or what fits into ``trainer.max_time``.

    For a time budget a copy of the module takes some steps and one validation; both are timed once. The resulting
    numbers are stored in every checkpoint, so that a resumed run follows the same schedule.
    """
    if checkpoint is not None:
        stored = AtomicCheckpointIO().load_checkpoint(checkpoint)
        return int(stored["total_steps"]), int(stored["validations"])
    budget = options.max_seconds
    if budget is None:
        return int(options.max_steps), VALIDATIONS
    step_seconds, validation_seconds = _time_steps(module, data, options, limit=min(20.0, 0.05 * budget))
    validations = max(2, min(VALIDATIONS, int(VALIDATION_SHARE * budget / validation_seconds)))
    remaining = SAFETY * (budget - (time.perf_counter() - start)) - validations * validation_seconds
    steps = max(validations, int(remaining / step_seconds))
    if options.max_steps is not None:
        steps = min(steps, int(options.max_steps))
    say(
        f"a step takes {1e3 * step_seconds:.0f} ms, a validation {validation_seconds:.1f} s: "
        f"{steps:,} steps in {options.max_time}"
    )
    return steps, validations


def _time_steps(module: Module, data: DataModule, options: Any, limit: float) -> tuple[float, float]:
    """Seconds of an optimizer step and of a validation, on a copy of the module."""
    clock = StepClock(warmup=5, limit=limit)
    trial = copy.deepcopy(module)
    with _quiet(), torch.random.fork_rng(devices=[]):
        trainer = lightning.Trainer(
            **_hardware(options),
            **_loop(data, options),
            max_steps=1_000_000,
            limit_val_batches=0,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(trial, datamodule=data)
        begin = time.perf_counter()
        for micro_batch in data.val_dataloader():
            with torch.no_grad():
                micro_batch = micro_batch.to(trial.device)
                trial.model(micro_batch.batch, micro_batch.kind)
    return clock.seconds(), time.perf_counter() - begin


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

    Returns False when ``trainer.segment_time`` ended the run before its last step; it then can be resumed.
    """
    options = config.trainer
    average = ExponentialAverage(config.optimizer.ema_decay)
    checkpoints = Checkpoints(folder / "checkpoints", options.checkpoint_every)
    callbacks: list[lightning.Callback] = [
        average,
        MetricsFile(folder / "metrics.jsonl", options.log_every),
        checkpoints,
    ]
    segment = options.segment_seconds
    limit = TimeLimit(segment, start) if segment is not None else None
    if limit is not None:
        callbacks.append(limit)
    if options.progress:
        callbacks.append(Progress())
    with _quiet():
        trainer = lightning.Trainer(
            **_hardware(options),
            **_loop(data, options),
            max_steps=module.total_steps,
            val_check_interval=_validation_interval(module, data, options),
            callbacks=callbacks,
            logger=loggers or False,
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint) if checkpoint else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    average.swap(module.model)
    return trainer.global_step >= module.total_steps


def resume_point(folder: Path, resume: bool) -> Path | None:
    """The checkpoint to continue from, None for a fresh start. Raises UserError when the folder is taken."""
    found = newest_checkpoint(folder / "checkpoints")
    if resume or not folder.exists() or not any(folder.iterdir()):
        return found
    raise UserError(f"run_dir={folder} holds a run already; give another folder, or resume=true to continue it.")


def _hardware(options: Any) -> dict[str, Any]:
    return {
        "accelerator": options.accelerator,
        "devices": options.devices,
        "strategy": "auto" if options.devices == 1 else "ddp",
        "precision": PRECISIONS[options.precision],
    }


def _loop(data: DataModule, options: Any) -> dict[str, Any]:
    """An optimizer step accumulates this rank's share of the micro-batches.

    The data are endless: an epoch ends only where a segment does, and its successor begins the next one.
    """
    return {
        "max_epochs": -1,
        "accumulate_grad_batches": data.micro_batches_per_step // options.devices,
        "use_distributed_sampler": False,
        "check_val_every_n_epoch": None,
    }


def _validation_interval(module: Module, data: DataModule, options: Any) -> int:
    """Micro-batches between validations."""
    every = options.val_every or max(1, module.total_steps // module.validations)
    return int(every) * (data.micro_batches_per_step // options.devices)


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
