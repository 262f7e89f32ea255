"""How fast a run is: graphs, edges and operations a second, and the time that it waits for data."""

import time
from contextlib import ExitStack
from typing import Any

import lightning
import torch
from lightning.pytorch.profilers import Profiler

from sciml.data.graph_dataset import LoadedBatch
from sciml.evaluate.cost import Part, counted_parts, measure
from sciml.models.model import Model

CLOCKED = (
    "steps_per_second",
    "graphs_per_second",
    "edges_per_second",
    "data_wait",
    "model_flops_utilisation",
    "peak_flops_per_second",
)
"""Keys of ``metrics.jsonl`` that depend on the machine and not on what is learned."""
PASSES, PASSES_WITH_FORCES = 3, 6
"""Operations of a training step in forward passes. A backward pass has twice those of what it goes back through; that
for the forces goes back to the positions alone (once), and is gone back through with the forward pass."""
DTYPES = {"64-true": torch.float64, "bf16-mixed": torch.bfloat16}
REPEATS = 5


class DataClock(Profiler):
    """Adds up the seconds in which training waits for micro-batches: Lightning tells a profiler of each fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.waited, self._since = 0.0, 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.waited += time.perf_counter() - self._since


class Throughput:
    """Counts since the last :meth:`restart`, over all ranks in :meth:`values`.

    The operations of a model are those of its matrix and tensor products (:mod:`sciml.evaluate.cost`), counted in the
    first micro-batch of each kind and linear in nodes and edges. Utilisation compares them with the peak of a matrix
    product that was measured on this device in the precision of the run; operations that a model would not need, such
    as those of checkpointed activations, are no part of it.
    """

    def __init__(self) -> None:
        self.peak = 0.0
        self._of_kind: dict[str, tuple[float, float]] = {}
        self._counting = ExitStack()
        self._parts: dict[str, Part] = {}
        self.restart(None, 0)

    def start(self, trainer: lightning.Trainer, step: int) -> None:
        """Measure the peak, before the steps need the memory that this takes, and begin to count."""
        self.peak = peak_flops(trainer.strategy.root_device, DTYPES.get(str(trainer.precision), torch.float32))
        self.restart(trainer, step)

    def restart(self, trainer: lightning.Trainer | None, step: int) -> None:
        """Begin to count at ``step``, now."""
        self._clock, self._step, self._waited = time.perf_counter(), step, _waited(trainer)
        self._graphs = self._edges = self._operations = 0.0

    def before(self, module: Any, micro_batch: LoadedBatch) -> None:
        """Count the operations of the coming pass where it is the first of its kind."""
        if micro_batch.kind in self._of_kind:
            return
        # A compiler would take the hooks of the counting for a part of the model; split steps are computed later.
        if module.compiled or module.split:
            self._note(module.model, micro_batch, measure(module.model, micro_batch.batch, micro_batch.kind).parts)
        else:
            self._parts = self._counting.enter_context(counted_parts(module.model))

    def after(self, module: Any, micro_batch: LoadedBatch) -> None:
        """Take a micro-batch into account that was computed."""
        if micro_batch.kind not in self._of_kind:
            self._counting.close()
            self._note(module.model, micro_batch, list(self._parts.values()))
        nodes, edges = micro_batch.batch.num_nodes, len(micro_batch.batch.senders)
        of_node, of_edge = self._of_kind[micro_batch.kind]
        self._graphs += micro_batch.batch.num_graphs
        self._edges += edges
        self._operations += of_node * nodes + of_edge * edges

    def values(self, trainer: lightning.Trainer, step: int) -> dict[str, float]:
        """The lines of :data:`CLOCKED`; every rank must call it."""
        seconds = time.perf_counter() - self._clock
        counted = [self._graphs, self._edges, self._operations, _waited(trainer) - self._waited]
        table = torch.tensor(counted, dtype=torch.float64, device=trainer.strategy.root_device)
        graphs, edges, operations, waited = trainer.strategy.reduce(table, reduce_op="sum").tolist()
        return {
            "steps_per_second": (step - self._step) / seconds,
            "graphs_per_second": graphs / seconds,
            "edges_per_second": edges / seconds,
            "data_wait": waited / seconds / trainer.world_size,
            "model_flops_utilisation": operations / seconds / (self.peak * trainer.world_size),
            "peak_flops_per_second": self.peak,
        }

    def _note(self, model: Model, micro_batch: LoadedBatch, parts: list[Part]) -> None:
        """Operations of a training step for a node and an edge, from those of one forward pass."""
        differentiates = any(head.differentiates for head in model.heads_for(micro_batch.kind))
        passes = PASSES_WITH_FORCES if differentiates else PASSES
        nodes, edges = micro_batch.batch.num_nodes, len(micro_batch.batch.senders)
        of_edge = sum(part.per_edge for part in parts)
        rest = sum(part.total for part in parts) - of_edge * edges
        self._of_kind[micro_batch.kind] = passes * rest / nodes, passes * of_edge


def _waited(trainer: lightning.Trainer | None) -> float:
    clock = getattr(trainer, "profiler", None)
    return clock.waited if isinstance(clock, DataClock) else 0.0


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the fastest of some products of large matrices, with the threads of this process."""
    size = 8192 if device.type == "cuda" else 1024
    left = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        left @ left
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds)
