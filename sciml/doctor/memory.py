"""How much memory a training takes, by the bytes of its tensors, before any of it is spent.

A training step holds the parameters, the moments of the optimizer, the moving average, the micro-batches, and what the
backward passes need: with forces the graph of the first backward pass too. The last part is measured on a quarter and
half of the largest micro-batch, at two densities of edges, and is linear in nodes and edges; the rest of it, such as
the gradients, depends on the model alone. On a CPU the copy that a checkpoint is written from lies in the same memory.
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
GATHERED = ("zero3", "fsdp2")
"""Strategies that hold all parameters during a pass, and parameters and averages while they are saved."""
SPARSER = 0.8  # of the cutoff: half the edges, so that what nodes and edges take can be told apart
ENTRY = 280  # bytes in a file that a tensor takes beside its numbers, for its name, its shape and where it lies
HEAVIEST = 100
SMALL = (4, 2)  # parts of the largest micro-batch that are measured


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors on one device; ``largest`` {kind: (nodes, edges)} of the largest micro-batch of an epoch."""

    weights: int  # parameters, moments, moving average
    activations: int  # gradients and what the backward passes need
    batches: int
    copies: int  # of what a checkpoint is written from
    largest: dict[str, tuple[int, int]]
    checkpoint: int  # bytes of its file: parameters, moments, moving average

    @property
    def total(self) -> int:
        """The peak of a training step while a checkpoint is written."""
        return self.weights + self.activations + self.batches + self.copies


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
    precision, ranks = config.trainer.precision, config.trainer.ranks
    module.to(device=device)
    if precision == "64":
        module.double()
    parameters = list(module.model.parameters())
    size, trained = (sum(p.nbytes for p in parameters if p.requires_grad or every) for every in (True, False))
    averages = size if config.optimizer.ema_decay > 0 else 0
    name = config.strategy.name if ranks > 1 else "single"
    weights, gradients = held_bytes(size, trained, averages, name, ranks)
    adds = data.micro_batches_per_step > 1  # to the gradients of the micro-batch before
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if adds and parameter.requires_grad else None
    passes, batches, largest = 0.0, 0.0, {}
    for kind in data.kinds:
        sizes = _sizes(data, kind)
        needed, fetched = _predicted(module, data, kind, sizes, precision, device)
        passes, batches = max(passes, needed.max()), max(batches, fetched.max())
        largest[kind] = max(sizes.values(), key=lambda pair: pair[1])
    for parameter in parameters:
        parameter.grad = None
    gathered = size if name in GATHERED else 0
    validating = gradients + size  # the trained parameters are put aside for the averages
    saving = gradients + gathered + (averages if name in GATHERED else 0)
    activations = max(round(passes) + gathered + (gradients if adds else 0), validating, saving)
    copied = size + 2 * trained + averages
    copies = copied if device.type == "cpu" and saves_on_the_way(config.trainer) else 0
    numbers = [1 + bool(averages) + 3 * p.requires_grad for p in parameters]  # of tensors: moments and a count of steps
    held = batches_held(data.micro_batches_per_step, config.strategy.out_of_memory == "split", device)
    return Memory(weights, activations, held * round(batches), copies, largest, copied + ENTRY * sum(numbers))


def held_bytes(size: int, trained: int, averages: int, strategy: str, ranks: int) -> tuple[int, int]:
    """What one of several ``ranks`` holds of parameters of ``size`` bytes, ``trained`` of them, and their
    ``averages``: all of it but the gradients, with two moments of what is trained; and the gradients.
    """
    parts = {"parameters": size, "moments": 2 * trained, "averages": averages, "gradients": trained}
    cut = CUT.get(strategy, ()) if ranks > 1 else ()
    held = {name: round(part / ranks) if name in cut else part for name, part in parts.items()}
    gradients = held.pop("gradients")
    buckets = trained if strategy == "ddp" and ranks > 1 else 0  # in which gradients are summed over the ranks
    return sum(held.values()) + buckets, gradients


def batches_held(micro_batches: int, splits: bool, device: torch.device) -> int:
    """How many micro-batches a device holds: the next one is fetched while one is computed, on the CPU; a step that
    may have to be split keeps all of its own.
    """
    return (micro_batches if splits else 1) + (device.type == "cpu")


def saves_on_the_way(trainer: Any) -> bool:
    """Whether steps follow on the first checkpoint of a run."""
    first = trainer.checkpoint_every or trainer.val_every
    return first is None or trainer.max_steps is None or first < trainer.max_steps


def _sizes(data: DataModule, kind: str) -> dict[Items, tuple[int, int]]:
    """Nodes and edges of micro-batches of the first epoch, those of its :data:`HEAVIEST` steps as they are dealt."""
    costs = [source.costs(kind, data.training.cutoffs[kind]) for source in data.training.sources]

    def size(items: Items) -> tuple[int, int]:
        return sum(int(costs[s][0][r]) for s, r in items), sum(int(costs[s][1][r]) for s, r in items)

    stream, count = data.streams[kind], data.bins_per_step[kind]
    edges = [size(items)[1] for items in stream.epoch_bins(0)]
    steps = sorted(range(0, len(edges), count), key=lambda first: -sum(edges[first : first + count]))
    return {items: size(items) for first in steps[:HEAVIEST] for items in stream.step_bins(first, count)}


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

    Where there are three rows or more, some bytes need not depend on either. Nothing may count negative; what does is
    left out and the rest is fitted again.
    """
    matrix, target = (np.concatenate([np.array(x, float), np.ones((len(x), 1))], axis=1) for x in (rows, wanted))
    scales = matrix.max(axis=0)  # nodes, edges and one count alike where too few rows tell them apart
    columns = [0, 1, 2] if len(rows) > 2 else [0, 1]
    while True:
        solution = np.linalg.lstsq((matrix / scales)[:, columns], np.array(values, float), rcond=1e-6)[0]
        if (solution >= 0).all() or len(columns) == 1:
            return (target / scales)[:, columns] @ solution
        columns.remove(columns[int(np.argmin(solution))])
