"""How much a micro-batch may hold: grown until memory is short, or until more of it is no faster."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from sciml.data.datamodule import DataModule
from sciml.data.graph_dataset import LoadedBatch
from sciml.data.packing import Budget
from sciml.data.sampler import Items, MicroBatch, label_counts
from sciml.train.module import Module
from sciml.train.progress import say

FULL = 0.8  # of the memory that is free at first may be used
WORTH = 1.05  # least gain of throughput that twice the memory is worth
MOST = 12  # doublings of the budget to begin with


def find_budgets(module: Module, data: DataModule, device: str, autocast: bool) -> dict[str, Budget]:
    """The budget of every kind, doubled as long as a training pass over the fullest micro-batch gains from it.

    Parameters and their gradients are those of ``module``, whose gradients are gone afterwards.
    """
    module.model.to(device)
    budgets = {kind: _grown(module, data, kind, device, autocast) for kind in data.kinds}
    module.model.zero_grad(set_to_none=True)
    module.model.to("cpu")
    return budgets


def with_budgets(config: Any, budgets: dict[str, Any]) -> Any:
    """The configuration with the limits of ``budgets`` {kind: {max_graphs, max_nodes, max_edges}}."""
    values = config.model_dump()
    values["data"]["batch"] |= budgets
    return type(config).model_validate(values)


def with_stored_budgets(config: Any, folder: Path) -> Any:
    """The configuration with the limits that the run in ``folder`` has found; as it is where there are none."""
    try:
        stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return with_budgets(config, stored["data"]["batch"])
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return config


def _grown(module: Module, data: DataModule, kind: str, device: str, autocast: bool) -> Budget:
    """The budget of one kind."""
    best, speed, free = data.budgets[kind], 0.0, _free_memory(device)
    for doublings in range(MOST):
        budget = _doubled(data.budgets[kind], doublings)
        stream = data.streams[kind].with_budget(budget)
        bins = stream.epoch_bins(0)
        fullest = max(bins, key=stream.edges)
        batch = _loaded(data, kind, fullest).to(device)
        try:
            seconds, used = _measure(partial(_training_pass, module, batch, device, autocast), device)
        except torch.OutOfMemoryError:
            break
        reached = stream.edges(fullest) / seconds
        if used > FULL * free or reached < WORTH * speed:
            break
        best, speed = budget, reached
        if 2 * used > FULL * free or len(bins) == 1:  # twice as much would not fit, or the data have no more
            break
    say(f"data.batch.{kind}: max_edges={best.max_edges:,} found, {speed:,.0f} edges/s")
    return best


def _doubled(budget: Budget, times: int) -> Budget:
    return replace(budget, **{name: limit * 2**times for name, limit in vars(budget).items() if limit is not None})


def _loaded(data: DataModule, kind: str, items: Items) -> LoadedBatch:
    """A micro-batch of ``items`` as if it were a whole step."""
    return data.training[MicroBatch(kind, items, label_counts([(kind, items)], data.training.counts), 0, 0)]


def _training_pass(module: Module, batch: LoadedBatch, device: str, autocast: bool) -> None:
    """Forward and backward pass, as of an optimizer step."""
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=autocast):
        predictions = module.model(batch.batch, batch.kind, create_graph=True)
        loss, _ = module.objective(module.model, predictions, batch)
    loss.backward()


def _measure(training_pass: Callable[[], None], device: str) -> tuple[float, int]:
    """Seconds of a training pass, the faster of two after a first, and the bytes that it needs."""
    training_pass()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    saved = _SavedBytes()
    with saved:
        training_pass()
    used = torch.cuda.max_memory_allocated() - before if device == "cuda" else saved.bytes
    times = []
    for _ in range(2):
        start = time.perf_counter()
        training_pass()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times), used


def _free_memory(device: str) -> int:
    """Bytes of memory that are free."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class _SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of the tensors that autograd keeps, each memory once: what a training pass needs on a CPU."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()
        super().__init__(self._pack, lambda kept: kept)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor
