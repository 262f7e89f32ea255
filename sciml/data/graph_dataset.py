"""From records to the graphs of a micro-batch, with their labels, corrupted where an objective asks for it."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Batch

from sciml.data.corruption import Corruptions
from sciml.data.far_field import FarField, add_far_field
from sciml.data.packing import Budget
from sciml.data.records import Record, targets
from sciml.data.sampler import MicroBatch, evaluation_bins
from sciml.data.source import Source
from sciml.data.targets import Target, label_rows, labelled
from sciml.errors import UserError
from sciml.graph import Graph, collate

# Kinds whose labels belong to the exact positions and types; a class of a jet or residue holds for a corrupted one too.
GEOMETRIC = ("atoms",)


class LoadedBatch(NamedTuple):
    """A micro-batch as the model takes it: graphs of one kind, and the labels per target in the whole optimizer step.

    ``items`` are (source index, record index) of its graphs.
    """

    batch: Batch
    kind: str
    denominators: dict[str, float]
    items: tuple[tuple[int, int], ...]

    def to(self, device: torch.device | str, **options: Any) -> "LoadedBatch":
        """Move the graphs to a device."""
        return self._replace(batch=self.batch.to(device, **options))


@dataclass
class Built:
    """How many graphs of a kind were made, how many of them are kept, in what time, of what size."""

    graphs: int = 0
    kept: int = 0
    seconds: float = 0.0
    bytes: int = 0


class GraphDataset(Dataset):
    """Turns a planned micro-batch into a batch of graphs.

    With ``coarse_cutoffs`` the graphs have a coarse level. Where types of coarse nodes are targets, the input hides
    them. Graphs of atoms get what the model needs of the ``far_field``. ``corruptions`` are drawn anew at each step and
    never kept. ``targets`` are those of a configuration, which the graphs then have, NaN or -1 where a record has none.
    ``built`` {kind: Built} tells what making clean graphs has cost this process so far.
    """

    def __init__(
        self,
        sources: list[Source],
        cutoffs: dict[str, float],
        cache_mib: float = 0.0,
        coarse_cutoffs: dict[str, float] | None = None,
        far_field: FarField = FarField(),  # noqa: B008 (frozen)
        corruptions: Corruptions | None = None,
        targets: Sequence[Target] = (),
    ) -> None:
        self.targets = tuple(targets)
        self.sources, self.cutoffs, self.coarse_cutoffs = sources, cutoffs, coarse_cutoffs or {}
        self.far_field, self.corruptions = far_field, corruptions
        self.built = {kind: Built() for kind in cutoffs}
        self._cache: dict[tuple[int, int, str], Graph] = {}
        self._room = cache_mib * 2**20
        self._nodes: dict[tuple[int, str], np.ndarray] = {}

    def graph(self, source: int, record: int, kind: str) -> Graph:
        """One clean record as a graph of ``kind``; graphs are kept in memory while ``cache_mib`` has room."""
        key = (source, record, kind)
        if key in self._cache:
            return self._cache[key]
        start = time.perf_counter()
        graph = self._make(source, self.sources[source].data[record], kind)
        size = sum(value.nbytes for _, value in graph if isinstance(value, torch.Tensor))
        built = self.built[kind]
        built.graphs, built.bytes = built.graphs + 1, built.bytes + size
        built.seconds += time.perf_counter() - start
        if size <= self._room:
            self._room -= size
            self._cache[key] = graph
            built.kept += 1
        return graph

    def seconds_to_build(self, kind: str, draws: float) -> float:
        """Expected time of making those of the next ``draws`` graphs of a kind that are not kept yet."""
        built = self.built[kind]
        if not built.graphs:
            return 0.0
        total = sum(int(source.data.serves(kind).sum()) for source in self.sources)
        missing = total - built.kept
        fits = missing * built.bytes / built.graphs <= self._room
        return built.seconds / built.graphs * (min(draws, missing) if fits else draws * missing / total)

    def _make(self, source: int, record: Record, kind: str) -> Graph:
        """A record as a graph that carries the source's dataset index."""
        origin = self.sources[source]
        options = {"coarse_cutoff": self.coarse_cutoffs[kind]} if kind in self.coarse_cutoffs else {}
        graph = origin.domain.graph(record, kind, self.cutoffs[kind], **options)
        graph.dataset = torch.tensor([origin.dataset])
        for target in self._targets_of(kind):
            graph[target.name] = _label(target, origin.domain, record, graph, kind)
        if self.corruptions is not None:
            self.corruptions.blank(graph, kind)
        return add_far_field(graph, self.far_field) if self.far_field and kind == "atoms" else graph

    def sample(self, source: int, record: int, kind: str, step: int) -> Graph:
        """One record as the model sees it in an optimizer step: clean, or corrupted and without geometric labels."""
        drawn = [] if self.corruptions is None else self.corruptions.drawn(kind, step, source, record)
        if not drawn:
            return self.graph(source, record, kind)
        data = self.sources[source].data
        graph = Corruptions.corrupted(
            data[record], drawn, partial(self.graph, source, record, kind), partial(self._make, source, kind=kind)
        )
        if kind in GEOMETRIC:
            for name in (*targets(data.domain), *(target.name for target in self.targets)):
                if name in graph:
                    graph[name] = torch.full_like(graph[name], torch.nan if graph[name].is_floating_point() else -1)
        return graph

    def __getitem__(self, planned: MicroBatch) -> LoadedBatch:
        batch = collate(self.sample(*item, planned.kind, planned.step) for item in planned.items)
        if "residue_types" in batch:
            batch.coarse_types = torch.zeros_like(batch.coarse_types)
        return LoadedBatch(batch, planned.kind, planned.denominators, planned.items)

    def counts(self, kind: str, source: int, records: np.ndarray, step: int = 0) -> dict[str, float]:
        """Labels per target in some records of one source, as :meth:`sample` makes them in an optimizer step."""
        origin = self.sources[source]
        made: dict[str, float] = {}
        if self.corruptions is not None:
            if (source, kind) not in self._nodes:
                self._nodes[source, kind] = origin.costs(kind, self.cutoffs[kind])[0]
            nodes = self._nodes[source, kind][records]
            made, clean = self.corruptions.counts(kind, step, source, records, nodes)
            records = records[clean] if kind in GEOMETRIC else records
        own = {target.name: _labels_of(target, origin, kind, records) for target in self._targets_of(kind)}
        return {**origin.domain.counts(origin.data, kind, records), **own, **made}

    def _targets_of(self, kind: str) -> list[Target]:
        return [target for target in self.targets if target.kind == kind]

    def evaluation_bins(
        self, kinds: list[str], budgets: dict[str, Budget], world_size: int = 1, rank: int = 0
    ) -> list[MicroBatch]:
        """Every record once per kind that it can serve, in storage order; this rank's share."""
        bins: list[MicroBatch] = []
        for kind in kinds:
            costs = [source.costs(kind, self.cutoffs[kind]) for source in self.sources]
            nodes, edges = [cost[0] for cost in costs], [cost[1] for cost in costs]
            bins += evaluation_bins(kind, nodes, edges, budgets[kind], world_size, rank, self.counts)
        if not bins and world_size > 1:
            raise UserError(
                f"val: found too few records to give each of {world_size} ranks one, expected as many of a kind; give "
                "more, or fewer trainer.devices."
            )
        return bins


def evaluation_loader(
    dataset: GraphDataset,
    kinds: list[str],
    budgets: dict[str, Budget],
    world_size: int = 1,
    rank: int = 0,
    workers: int = 0,
) -> DataLoader:
    """A loader over one pass of the dataset."""
    bins = dataset.evaluation_bins(kinds, budgets, world_size, rank)
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=bins,
        num_workers=workers,
        generator=torch.Generator(),
        worker_init_fn=ignore_signals,
    )


def ignore_signals(worker: int) -> None:
    """Leave signals that reach all processes of a job to the one that trains: it saves, and ends the others."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def rows_of_graph(level: str, domain: Any, record: Record, kind: str) -> Any:
    """Which nodes of a record, at a level, its graph of ``kind`` has: all unless the domain says so."""
    chosen = getattr(domain, "rows", None)
    return slice(None) if chosen is None or level == "graph" else chosen(record, kind, level)


def _label(target: Target, domain: Any, record: Record, graph: Graph, kind: str) -> torch.Tensor:
    """The labels of a target for a graph, (rows, components) or (rows,) classes, NaN or -1 where there is none."""
    if target.level == "coarse" and "coarse_types" not in graph:
        raise UserError(
            f"heads.{target.name}.level: found coarse, but graphs of {kind} have no coarse level here, expected graph "
            "or fine, or a model with model.coarse_layers above 0."
        )
    rows = {"graph": 1, "fine": len(graph.types)}.get(target.level)
    number = len(graph.coarse_types) if rows is None else rows
    found = label_rows(target, record, rows_of_graph(target.level, domain, record, kind))
    if target.classes:
        return torch.full((number,), -1) if found is None else torch.from_numpy(np.array(found, dtype=np.int64))
    if found is None:
        return torch.full((number, target.dimension), torch.nan, dtype=graph.positions.dtype)
    return torch.from_numpy(np.array(found)).to(graph.positions.dtype)


def _labels_of(target: Target, source: Source, kind: str, records: np.ndarray) -> float:
    """Number of labels of a target in some records, as :func:`_label` makes them."""
    if target.name not in (own.name for own in source.data.targets):
        return 0.0
    total = 0
    for index in np.asarray(records)[source.data.has(target.name)[records]].tolist():
        record = source.data[index]
        found = label_rows(target, record, rows_of_graph(target.level, source.domain, record, kind))
        total += 0 if found is None else labelled(target, found)
    return float(total)
