"""How much memory a training takes, by the bytes of its tensors, before any of it is spent.

A training step holds the parameters, their gradients, the moments of the optimizer, the moving average, the
micro-batch, and what the backward passes need: with forces the graph of the first backward pass too. The last part is
measured on small micro-batches, at two sizes and two densities of edges, and is linear in nodes and edges.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sciml.data.datamodule import DataModule
from sciml.data.graph_dataset import GraphDataset, LoadedBatch
from sciml.data.sampler import Items, MicroBatch, label_counts
from sciml.train.module import Module

_ALL = ("parameters", "gradients", "moments", "averages")
CUT = {"zero1": _ALL[2:3], "zero2": _ALL[1:3], "zero3": _ALL, "fsdp2": _ALL}
"""What each strategy cuts among the ranks; what DeepSpeed holds beside it, such as its buckets, is not counted."""
SPARSER = 0.8  # of the cutoff: half the edges, so that what nodes and edges take can be told apart
SMALL = (8, 4)  # parts of the largest micro-batch that are measured
FETCHED = 2  # micro-batches at once: the next one is fetched while one is computed


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors on one device; ``largest`` {kind: (nodes, edges)} of the largest micro-batch of an epoch."""

    weights: int  # parameters, gradients, moments, moving average
    activations: int
    batches: int
    largest: dict[str, tuple[int, int]]
    checkpoint: int  # bytes of a checkpoint: parameters, moments, moving average

    @property
    def total(self) -> int:
        """The peak of a training step."""
        return self.weights + self.activations + self.batches


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside the block: ``live`` now, and ``peak`` at most.

    Memory is counted once, however many tensors share it, and only until the last of them is gone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {id_of(tensor) for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(made):
            address = id_of(tensor)
            if address not in given and address not in self._sizes:
                storage = tensor.untyped_storage()
                self._sizes[address] = storage.nbytes()
                self.live += storage.nbytes()
                weakref.finalize(storage, self._freed, address)
        self.peak = max(self.peak, self.live)
        return made

    def _freed(self, address: int) -> None:
        self.live -= self._sizes.pop(address)


def id_of(tensor: Tensor) -> int:
    """Identity of the memory of a tensor while it lives; views of it share it."""
    return tensor.untyped_storage()._cdata


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def peak_bytes(device: torch.device) -> Iterator[Callable[[], int]]:
    """Inside the block the most bytes of new tensors at once: by the allocator of a GPU, else by :class:`LiveBytes`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
        return
    with LiveBytes() as counted:
        yield lambda: counted.peak


def estimate(module: Module, data: DataModule, config: Any, device: torch.device) -> Memory:
    """The memory of a training step of ``module`` on the largest micro-batch that an epoch of ``data`` has, on each
    device.

    ``config`` is that of the training. Leaves the module on ``device`` and without gradients. Raises
    torch.OutOfMemoryError where small micro-batches are too large already.
    """
    precision = config.trainer.precision
    module.to(device=device)
    if precision == "64":
        module.double()
    parameters = list(module.model.parameters())
    size, trained = (sum(p.nbytes for p in parameters if p.requires_grad or every) for every in (True, False))
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)  # as in every step after the first
    activations, batches, largest = 0.0, 0.0, {}
    for kind in data.kinds:
        sizes = _sizes(data, kind)
        needed, fetched = _predicted(module, data, kind, sizes, precision, device)
        activations, batches = max(activations, needed.max()), max(batches, fetched.max())
        largest[kind] = max(sizes.values(), key=lambda pair: pair[1])
    for parameter in parameters:
        parameter.grad = None
    averages = size if config.optimizer.ema_decay > 0 else 0
    weights = held_bytes(size, trained, averages, config.strategy.name, config.trainer.ranks)
    checkpoint = size + 2 * trained + averages
    return Memory(weights, round(activations), FETCHED * round(batches), largest, checkpoint)


def held_bytes(size: int, trained: int, averages: int, strategy: str, ranks: int) -> int:
    """What one of several ``ranks`` holds of parameters of ``size`` bytes, ``trained`` of them, and their
    ``averages``: gradients and two moments of what is trained.
    """
    parts = {"parameters": size, "gradients": trained, "moments": 2 * trained, "averages": averages}
    cut = CUT.get(strategy, ()) if ranks > 1 else ()
    held = sum(part / ranks if name in cut else part for name, part in parts.items())
    buckets = trained if strategy == "ddp" and ranks > 1 else 0  # in which gradients are summed over the ranks
    return round(held) + buckets


def _sizes(data: DataModule, kind: str) -> dict[Items, tuple[int, int]]:
    """Nodes and edges of every micro-batch of the first epoch."""
    costs = [source.costs(kind, data.training.cutoffs[kind]) for source in data.training.sources]
    return {
        items: (sum(int(costs[s][0][r]) for s, r in items), sum(int(costs[s][1][r]) for s, r in items))
        for items in data.streams[kind].epoch_bins(0)
    }


def _predicted(
    module: Module,
    data: DataModule,
    kind: str,
    sizes: dict[Items, tuple[int, int]],
    precision: str,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of what a step makes, and of the micro-batch itself, for every micro-batch of ``sizes``."""
    biggest = max(sizes, key=lambda items: sizes[items][1])
    parts = sorted({max(1, len(biggest) // part) for part in SMALL})
    training = data.training
    sparser = {**training.cutoffs, kind: SPARSER * training.cutoffs[kind]}
    sparse = GraphDataset(
        training.sources, sparser, 0.0, training.coarse_cutoffs, training.far_field, training.corruptions
    )
    rows, needed, fetched = [], [], []
    for number, dataset in [*((number, training) for number in parts), (parts[-1], sparse)]:
        micro_batch = _micro_batch(data, dataset, kind, biggest[:number]).to(device)
        graphs = micro_batch.batch
        rows.append((graphs.num_nodes, len(graphs.senders)))
        fetched.append(sum(value.nbytes for _, value in graphs if isinstance(value, Tensor)))
        needed.append(_step_bytes(module, micro_batch, precision, device))
    wanted = np.array(list(sizes.values()), float)
    return _linear(rows, needed, wanted), _linear(rows, fetched, wanted)


def _micro_batch(data: DataModule, dataset: GraphDataset, kind: str, items: Items) -> LoadedBatch:
    denominators = label_counts([(kind, items)], data.training.counts, 0)
    return dataset[MicroBatch(kind, items, denominators, 0, 0)]


def _step_bytes(module: Module, micro_batch: LoadedBatch, precision: str, device: torch.device) -> int:
    """The most bytes that a forward and backward pass of a micro-batch adds."""
    with peak_bytes(device) as peak:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            predictions = module.model(micro_batch.batch, micro_batch.kind, create_graph=True)
            loss, _ = module.objective(module.model, predictions, micro_batch)
        loss.backward()
        return peak()


def _linear(rows: list[tuple[int, int]], values: list[int], wanted: np.ndarray) -> np.ndarray:
    """``values`` measured at ``rows`` of (nodes, edges), as a linear function of both, at ``wanted`` (n, 2).

    Neither may count negative; what does is left out and the rest is fitted again.
    """
    matrix, target = np.array(rows, float), np.array(values, float)
    columns = [0, 1]
    while True:
        solution = np.linalg.lstsq(matrix[:, columns], target, rcond=1e-6)[0]
        if (solution >= 0).all() or len(columns) == 1:
            return wanted[:, columns] @ solution
        columns.remove(columns[int(np.argmin(solution))])
