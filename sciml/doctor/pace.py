"""How long a step and a validation take on this machine, timed on a copy of what would be trained."""

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch

from sciml.data.datamodule import DataModule
from sciml.data.graph_dataset import LoadedBatch
from sciml.data.sampler import Plan
from sciml.train.module import Module
from sciml.train.optimizer import build_optimizer

WARM_UP = 2  # steps that compile kernels and fill caches
MOST_STEPS = 20
MOST_VALIDATED = 10  # micro-batches of validation that are timed


@dataclass(frozen=True)
class Pace:
    """Seconds of a step whose graphs are made, and of a validation; ``drawn`` {kind: graphs of a step}."""

    step: float
    validation: float
    drawn: dict[str, float]


def time_steps(
    module: Module, data: DataModule, options: Any, precision: str, device: torch.device, limit: float
) -> Pace:
    """Take training steps for about ``limit`` seconds on one device; ``options`` are those of the optimizer."""
    trial = copy.deepcopy(module).to(device)
    optimizer = build_optimizer(trial.model, options, trial.widths)
    plan = Plan(data.streams, data.bins_per_step, data.seed, 1, 0, data.training.counts)
    steps, computing = 0, 0.0
    drawn = dict.fromkeys(data.kinds, 0)
    end = time.perf_counter() + limit
    while steps < WARM_UP + MOST_STEPS and (steps <= WARM_UP or time.perf_counter() < end):
        micro_batches = [data.training[planned] for planned in plan.step(steps)]
        for micro_batch in micro_batches:
            drawn[micro_batch.kind] += micro_batch.batch.num_graphs
        start = time.perf_counter()
        _step(trial, optimizer, micro_batches, precision, device)
        computing += (time.perf_counter() - start) * (steps >= WARM_UP)
        steps += 1
    mean = {kind: number / steps for kind, number in drawn.items()}
    return Pace(computing / (steps - WARM_UP), _validation(trial, data, device), mean)


def _step(
    trial: Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[LoadedBatch],
    precision: str,
    device: torch.device,
) -> None:
    """One optimizer step over micro-batches, and wait for it."""
    optimizer.zero_grad()
    for micro_batch in micro_batches:
        micro_batch = micro_batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            predictions = trial.model(micro_batch.batch, micro_batch.kind, create_graph=True)
            loss, _ = trial.objective(trial.model, predictions, micro_batch)
        loss.backward()
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _validation(trial: Module, data: DataModule, device: torch.device) -> float:
    """Seconds of a pass over the validation set, from those of its first micro-batches."""
    bins = data.validation.evaluation_bins(data.kinds, data.budgets)
    timed = bins[:: max(1, len(bins) // MOST_VALIDATED)][:MOST_VALIDATED]  # of every kind
    start = time.perf_counter()
    for planned in timed:
        micro_batch = data.validation[planned].to(device)
        with torch.no_grad():
            trial.model(micro_batch.batch, micro_batch.kind)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * len(bins) / max(len(timed), 1)
