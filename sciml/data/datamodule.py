"""From stores to micro-batches: sources, their graphs, and the loaders of training and evaluation."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Batch

from sciml import registry
from sciml.data.corruption import Corruption, Corruptions
from sciml.data.far_field import FarField, add_far_field
from sciml.data.records import Record, targets
from sciml.data.sampler import Budget, MicroBatch, Plan, Stream, evaluation_bins, with_share
from sciml.data.store import Store, Subset
from sciml.data.targets import Target, label_rows, labelled
from sciml.errors import UserError
from sciml.graph import Graph, collate

Data = Store | Subset
JET_DIAMETER = 2.0  # no two particles of a jet are further apart in its rest frame
SAMPLE = 200  # graphs that an estimate is made of
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
class Source:
    """Records that belong together, a store or a part of one, and the index of their dataset in the model's table.

    ``replayed`` tells what a base model knew before from new data.
    """

    data: Data
    dataset: int
    name: str = ""
    replayed: bool = False
    _jet_edges: dict[float, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def domain(self) -> Any:
        """The domain's module, which makes the graphs."""
        return registry.resolve("domains", self.data.domain)

    def costs(self, kind: str, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
        """Nodes and estimated edges of every record as a graph of ``kind``, int64 (n,) each; zero where it is none.

        A store counts the pairs of atoms by distance, but all pairs of a jet: what part of those are edges is
        counted on a sample.
        """
        serves = self.data.serves(kind)
        if not serves.any():
            return np.zeros(len(serves), np.int64), np.zeros(len(serves), np.int64)
        nodes, edges = self.data.costs(kind, cutoff)
        if kind == "jets" and cutoff <= JET_DIAMETER:
            edges = np.ceil(edges * self._share_of_pairs(cutoff)).astype(np.int64)
        return nodes * serves, edges * serves

    def _share_of_pairs(self, cutoff: float) -> float:
        """Edges of jets at ``cutoff`` by their pairs of particles, over up to SAMPLE records spread over the source."""
        if cutoff not in self._jet_edges:
            records = np.flatnonzero(self.data.serves("jets"))
            chosen = records[np.unique(np.linspace(0, len(records) - 1, SAMPLE).astype(int))]
            graphs = [self.domain.graph(self.data[int(index)], "jets", cutoff) for index in chosen]
            edges, pairs = sum(len(graph.senders) for graph in graphs), int(self.data.pairs[chosen].sum())
            self._jet_edges[cutoff] = edges / max(pairs, 1)
        return self._jet_edges[cutoff]


def source_names(sources: Sequence[Source]) -> list[str]:
    """Names of sources, with a number behind those that occur more than once."""
    names = [source.name for source in sources]
    return [name if names.count(name) == 1 else f"{name}-{names[:i].count(name) + 1}" for i, name in enumerate(names)]


def mean_neighbors(sources: list[Source], kind: str, cutoff: float) -> float:
    """Mean number of neighbours of a node in graphs of ``kind``, at least one."""
    nodes, edges = zip(*(source.costs(kind, cutoff) for source in sources), strict=True)
    return max(1.0, float(np.concatenate(edges).sum() / max(np.concatenate(nodes).sum(), 1)))


def coarse_means(sources: list[Source], kind: str, cutoff: float, coarse_cutoff: float) -> tuple[float, float]:
    """Mean number of children of a coarse node and of neighbours among these, each at least one, over up to SAMPLE
    records of every source; ``cutoff`` of the fine edges and ``coarse_cutoff`` as of the graphs.
    """
    nodes = children = edges = 0
    for source in sources:
        records = np.flatnonzero(source.data.serves(kind))
        for index in np.unique(np.linspace(0, len(records) - 1, SAMPLE).astype(int)) if len(records) else ():
            graph = source.domain.graph(source.data[int(records[index])], kind, cutoff, coarse_cutoff=coarse_cutoff)
            nodes += len(graph.coarse_types)
            children += len(graph.children)
            edges += len(graph.coarse_senders)
    return max(1.0, children / max(nodes, 1)), max(1.0, edges / max(nodes, 1))


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


def _rows(target: Target, domain: Any, record: Record, kind: str) -> Any:
    """Which nodes of a record, at the level of a target, its graph of ``kind`` has: all unless the domain says so."""
    chosen = getattr(domain, "rows", None)
    return slice(None) if chosen is None or target.level == "graph" else chosen(record, kind, target.level)


def _label(target: Target, domain: Any, record: Record, graph: Graph, kind: str) -> torch.Tensor:
    """The labels of a target for a graph, (rows, components) or (rows,) classes, NaN or -1 where there is none."""
    if target.level == "coarse" and "coarse_types" not in graph:
        raise UserError(
            f"heads.{target.name}.level: found coarse, but graphs of {kind} have no coarse level here, expected graph "
            "or fine, or a model with model.coarse_layers above 0."
        )
    rows = {"graph": 1, "fine": len(graph.types)}.get(target.level)
    number = len(graph.coarse_types) if rows is None else rows
    found = label_rows(target, record, _rows(target, domain, record, kind))
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
        found = label_rows(target, record, _rows(target, source.domain, record, kind))
        total += 0 if found is None else labelled(target, found)
    return float(total)


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
    return DataLoader(dataset, batch_size=None, sampler=bins, num_workers=workers, generator=torch.Generator())


def _factors(names: list[str], weights: Mapping[str, float]) -> list[float]:
    """The weight of each source, 1 where none is given."""
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise UserError(f"data.weights.{unknown[0]}: there is no such store, expected one of {', '.join(names)}.")
    return [weights.get(name, 1.0) for name in names]


class DataModule(lightning.LightningDataModule):
    """Loaders of a run.

    ``cutoffs``, ``coarse_cutoffs`` (none without a coarse level) and ``budgets`` per kind; ``bins_per_step``
    {kind: micro-batches of an optimizer step over all ranks}; ``far_field`` what the model needs of atoms beyond their
    edges; ``corruptions`` those of the objectives of pretraining; ``weights`` {name of a source: factor} of how often
    its records are drawn; ``replay`` the share of the draws of each kind that replayed sources get; ``targets`` those
    of the configuration. Raises UserError where a weight names no source.
    """

    def __init__(
        self,
        train: list[Source],
        validation: list[Source],
        kinds: list[str],
        cutoffs: dict[str, float],
        budgets: dict[str, Budget],
        bins_per_step: dict[str, int],
        temperature: float,
        seed: int,
        workers: int,
        cache_mib: float = 0.0,
        coarse_cutoffs: dict[str, float] | None = None,
        far_field: FarField = FarField(),  # noqa: B008 (frozen)
        corruptions: Sequence[Corruption] = (),
        weights: Mapping[str, float] | None = None,
        replay: float = 0.0,
        targets: Sequence[Target] = (),
    ) -> None:
        super().__init__()
        self.kinds, self.budgets, self.seed, self.workers = kinds, budgets, seed, workers
        noise, fixed = (Corruptions(corruptions, seed, stream) if corruptions else None for stream in (0, 1))
        self.training = GraphDataset(train, cutoffs, cache_mib, coarse_cutoffs, far_field, noise, targets)
        self.validation = GraphDataset(validation, cutoffs, cache_mib, coarse_cutoffs, far_field, fixed, targets)
        self.bins_per_step = {kind: bins_per_step[kind] for kind in kinds}
        given = factors = _factors(source_names(train), weights or {})
        self.streams = {}
        for kind in kinds:
            costs = [source.costs(kind, cutoffs[kind]) for source in train]
            nodes, edges = [cost[0] for cost in costs], [cost[1] for cost in costs]
            if replay:
                sizes = [int(np.count_nonzero(costs)) for costs in nodes]
                factors = with_share(sizes, temperature, given, [source.replayed for source in train], replay)
            self.streams[kind] = Stream(kind, nodes, edges, budgets[kind], seed, temperature, factors)

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of an optimizer step over all ranks."""
        return sum(self.bins_per_step.values())

    def train_dataloader(self) -> DataLoader:
        """Micro-batches from the optimizer step at which the trainer stands."""
        trainer = self._trainer()
        start, size, rank = trainer.global_step, trainer.world_size, trainer.global_rank
        plan = Plan(self.streams, self.bins_per_step, self.seed, size, rank, self.training.counts, start_step=start)
        return DataLoader(
            self.training,
            batch_size=None,
            sampler=plan,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # else an iterator takes a number from the global one
        )

    def val_dataloader(self) -> DataLoader:
        """One pass over the validation sources."""
        trainer = self._trainer()
        return evaluation_loader(self.validation, self.kinds, self.budgets, trainer.world_size, trainer.global_rank)

    def records_of_step(self, step: int) -> dict[str, list[str]]:
        """The records of an optimizer step over all ranks: {name of a source: ids}; ``step`` counts from zero."""
        names = source_names(self.training.sources)
        found: dict[str, list[str]] = {}
        for _, items in Plan(self.streams, self.bins_per_step, self.seed).bins(step):
            for source, record in items:
                identity = self.training.sources[source].data[record].get("id", record)
                found.setdefault(names[source], []).append(str(identity))
        return found

    def _trainer(self) -> lightning.Trainer:
        """The trainer that these loaders serve."""
        if self.trainer is None:
            raise RuntimeError("the data module has no trainer yet; give it to Trainer.fit")
        return self.trainer
