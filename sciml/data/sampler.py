"""The batch plan: which records make up which optimizer step, as a pure function of (seed, kind, epoch, step).

Each kind of graph has an endless stream of bins. An epoch of a stream is one Philox permutation over all its stores,
packed greedily by node, edge and graph budget on the **global** order; a step takes the next bins of every stream,
makes their edges equal and deals them to the ranks. So a step holds the same records in the same bins on any number of
ranks and workers, no rank waits long for another, and resuming needs nothing but the step.
"""

import copy
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sciml.data.packing import Budget, balance, pack
from sciml.data.store import Store, Subset
from sciml.errors import UserError

Items = tuple[tuple[int, int], ...]
Counts = Callable[[str, int, np.ndarray, int], Mapping[str, float]]


class MicroBatch(NamedTuple):
    """Records of one forward pass: ``items`` are (store index, record index).

    ``denominators`` count the labels per target in the whole optimizer step, over all ranks and micro-batches, so that
    a loss summed and divided by them is exact under accumulation and data parallelism.
    """

    kind: str
    items: Items
    denominators: dict[str, float]
    step: int
    seed: int


class Stream:
    """The endless sequence of bins of one kind of graph.

    ``nodes`` and ``edges`` hold one int array (records,) per store; a record of zero nodes cannot serve the kind and
    is never drawn. ``temperature`` T draws from store i in proportion to w_i n_i^(1/T), with the factors ``weights`` (1
    where not given): at 1 every record comes exactly once an epoch; above 1 small stores come more often. Within a
    store records are drawn without replacement.
    """

    def __init__(
        self,
        kind: str,
        nodes: Sequence[np.ndarray],
        edges: Sequence[np.ndarray],
        budget: Budget,
        seed: int,
        temperature: float = 1.0,
        weights: Sequence[float] | None = None,
    ) -> None:
        if not temperature > 0:
            raise UserError(f"data.temperature: {temperature} found, expected a positive number.")
        self.kind, self.budget, self.seed = kind, budget, seed
        self._records = [np.flatnonzero(np.asarray(size)) for size in nodes]
        self._draws = _draws([len(records) for records in self._records], temperature, weights or [1.0] * len(nodes))
        if not sum(self._draws):
            raise UserError(f"data: no record can serve the kind {kind!r}; check the stores or set its weight to 0.")
        self._costs = [_cost_table(n, e) for n, e in zip(nodes, edges, strict=True)]
        self._key = zlib.crc32(kind.encode())
        self._ends: list[int] = []  # bins up to the end of each epoch seen so far
        self._epoch: tuple[int, list[Items]] = (-1, [])

    @classmethod
    def from_stores(
        cls,
        kind: str,
        stores: Sequence[Store | Subset],
        cutoff: float,
        budget: Budget,
        seed: int,
        temperature: float = 1.0,
    ) -> "Stream":
        """Make the stream of ``kind`` over ``stores``, with edges estimated at ``cutoff`` (Å)."""
        nodes, edges = [], []
        for store in stores:
            serves = store.serves(kind)
            n, e = store.costs(kind, cutoff) if serves.any() else (serves, serves)
            nodes.append(n * serves)
            edges.append(e)
        return cls(kind, nodes, edges, budget, seed, temperature)

    def with_budget(self, budget: Budget) -> "Stream":
        """The same records in bins of another ``budget``."""
        other = copy.copy(self)
        other.budget, other._ends, other._epoch = budget, [], (-1, [])
        return other

    def edges(self, items: Items) -> int:
        """Return the edges of the records ``items``."""
        return sum(int(self._costs[store][record][2]) for store, record in items)

    def order(self, epoch: int) -> np.ndarray:
        """Return the global order of one epoch: (draws, 2) of store index and record index."""
        parts = []
        for store, (records, draws) in enumerate(zip(self._records, self._draws, strict=True)):
            chosen = records[self._drawn(store, epoch * draws, draws)]
            parts.append(np.stack([np.full(draws, store), chosen], axis=1))
        mixed = np.concatenate(parts)
        return mixed[_generator(self.seed, self._key, 0, epoch).permutation(len(mixed))]

    def epoch_bins(self, epoch: int) -> list[Items]:
        """Return every bin of ``epoch``, in order."""
        if self._epoch[0] != epoch:
            order = self.order(epoch)
            costs = np.concatenate(self._costs)
            offsets = np.concatenate([[0], np.cumsum([len(table) for table in self._costs])])
            bins = pack(costs[offsets[order[:, 0]] + order[:, 1]], self.budget)
            pairs = list(map(tuple, order.tolist()))
            self._epoch = (epoch, [tuple(pairs[i] for i in members) for members in bins])
        return self._epoch[1]

    def bins(self, index: int) -> Items:
        """Return bin ``index`` of the endless sequence: a pure function of the seed, the kind and ``index``."""
        epoch, first = self.locate(index)
        return self.epoch_bins(epoch)[index - first]

    def step_bins(self, first: int, count: int) -> list[Items]:
        """Return bins ``first`` to ``first + count``, their records dealt anew so that all have about as many edges."""
        bins = [self.bins(index) for index in range(first, first + count)]
        if count == 1:
            return bins
        pairs = [pair for items in bins for pair in items]
        costs = np.stack([self._costs[store][record] for store, record in pairs])
        ends = np.cumsum([0, *map(len, bins)]).tolist()
        members = [list(range(*between)) for between in itertools.pairwise(ends)]
        return [tuple(pairs[i] for i in dealt) for dealt in balance(costs, members, self.budget)]

    def locate(self, index: int) -> tuple[int, int]:
        """Return the epoch that holds bin ``index``, and the index of that epoch's first bin."""
        while not self._ends or self._ends[-1] <= index:
            count = len(self.epoch_bins(len(self._ends)))
            self._ends.append((self._ends[-1] if self._ends else 0) + count)
        epoch = int(np.searchsorted(self._ends, index, side="right"))
        return epoch, self._ends[epoch - 1] if epoch else 0

    def _drawn(self, store: int, start: int, count: int) -> np.ndarray:
        """Draws ``start`` to ``start + count`` of one store: its permutations, pass after pass."""
        size = len(self._records[store])
        if not count:
            return np.zeros(0, np.int64)
        first, last = start // size, (start + count - 1) // size
        passes = [_generator(self.seed, self._key, store + 1, i).permutation(size) for i in range(first, last + 1)]
        return np.concatenate(passes)[start - first * size :][:count]


class Plan:
    """The micro-batches of one rank, step by step; a sampler for a DataLoader with ``batch_size=None``.

    ``bins_per_step`` {kind: micro-batches of an optimizer step over all ranks}, of about equal edges; rank r takes bins
    r, r + R, ... of each kind, so every rank runs as many micro-batches of every kind (collectives need that) and their
    union is the same for any world size R. ``counts`` (kind, store index, record indices, step) gives the labels per
    target for the denominators.
    Iterates from ``start_step`` to ``stop_step`` (endless when None). Raises UserError when bins cannot be shared.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        bins_per_step: Mapping[str, int],
        seed: int,
        world_size: int = 1,
        rank: int = 0,
        counts: Counts | None = None,
        *,
        start_step: int = 0,
        stop_step: int | None = None,
    ) -> None:
        self.streams, self.seed, self.world_size, self.rank, self.counts = streams, seed, world_size, rank, counts
        self.bins_per_step = {kind: bins_per_step[kind] for kind in streams}
        self.start_step, self.stop_step = start_step, stop_step
        for kind, bins in self.bins_per_step.items():
            if bins <= 0 or bins % world_size:
                raise UserError(
                    f"data.bins_per_step.{kind}: {bins} found, expected a positive multiple of the {world_size} ranks, "
                    f"so that every rank runs as many micro-batches; set {-(-max(bins, 1) // world_size) * world_size}."
                )

    def bins(self, step: int) -> list[tuple[str, Items]]:
        """Return every bin of optimizer step ``step``, over all ranks."""
        return [
            (kind, items)
            for kind, stream in self.streams.items()
            for items in stream.step_bins(step * self.bins_per_step[kind], self.bins_per_step[kind])
        ]

    def step(self, step: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of optimizer step ``step``."""
        bins = self.bins(step)
        denominators = label_counts(bins, self.counts, step)
        seeds = np.random.SeedSequence((self.seed, step)).generate_state(len(bins)).tolist()
        mine: list[MicroBatch] = []
        position: dict[str, int] = dict.fromkeys(self.streams, 0)
        for (kind, items), seed in zip(bins, seeds, strict=True):
            if position[kind] % self.world_size == self.rank:
                mine.append(MicroBatch(kind, items, denominators, step, seed))
            position[kind] += 1
        return mine

    def __iter__(self) -> Iterator[MicroBatch]:
        step = self.start_step
        while self.stop_step is None or step < self.stop_step:
            yield from self.step(step)
            step += 1

    def __len__(self) -> int:
        if self.stop_step is None:
            raise TypeError("an endless plan has no length; give stop_step")
        steps = max(self.stop_step - self.start_step, 0)
        return steps * sum(self.bins_per_step.values()) // self.world_size


def evaluation_bins(
    kind: str,
    nodes: Sequence[np.ndarray],
    edges: Sequence[np.ndarray],
    budget: Budget,
    world_size: int = 1,
    rank: int = 0,
    counts: Counts | None = None,
) -> list[MicroBatch]:
    """Return this rank's share of a single pass over every record that can serve ``kind``, in storage order.

    Records are packed as they lie; rank r takes bins r, r + R, ..., and bins are halved until all ranks have as many:
    some strategies meet in every forward pass. The pass is one step: the denominators are those of all of it. An empty
    list when nothing can serve the kind.
    """
    records = [np.flatnonzero(np.asarray(size)) for size in nodes]
    order = [(store, int(record)) for store, chosen in enumerate(records) for record in chosen]
    tables = [_cost_table(n, e)[chosen] for n, e, chosen in zip(nodes, edges, records, strict=True)]
    packed = pack(np.concatenate(tables), budget, look_ahead=0) if order else []
    while len(packed) % world_size and max(map(len, packed)) > 1:
        longest = max(range(len(packed)), key=lambda index: len(packed[index]))
        members = packed[longest]
        packed[longest : longest + 1] = [members[: len(members) // 2], members[len(members) // 2 :]]
    bins = [(kind, tuple(order[i] for i in members)) for members in packed]
    denominators = label_counts(bins, counts)
    return [
        MicroBatch(kind, items, denominators, 0, index)
        for index, (_, items) in enumerate(bins)
        if index % world_size == rank
    ]


def label_counts(bins: Sequence[tuple[str, Items]], counts: Counts | None, step: int = 0) -> dict[str, float]:
    """Return the number of labels per target in the ``bins`` of a step, summed over kinds."""
    total: dict[str, float] = {}
    if counts is None:
        return total
    by_store: dict[tuple[str, int], list[int]] = {}
    for kind, items in bins:
        for store, record in items:
            by_store.setdefault((kind, store), []).append(record)
    for (kind, store), records in by_store.items():
        for target, number in counts(kind, store, np.array(records), step).items():
            total[target] = total.get(target, 0.0) + float(number)
    return total


def _cost_table(nodes: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.stack([np.ones(len(nodes), np.int64), np.asarray(nodes, np.int64), np.asarray(edges, np.int64)], axis=1)


def _draws(sizes: Sequence[int], temperature: float, factors: Sequence[float]) -> list[int]:
    """Draws per store in an epoch: w_i n_i^(1/T), scaled to the number of records; at least one of a store that has
    any.
    """
    weights = np.array([w * size ** (1.0 / temperature) if size else 0.0 for w, size in zip(factors, sizes)])
    if not weights.any():
        return [0] * len(sizes)
    shares = weights / weights.sum() * sum(sizes)
    return [max(round(share), 1) if size else 0 for share, size in zip(shares.tolist(), sizes, strict=True)]


def with_share(
    sizes: Sequence[int], temperature: float, factors: Sequence[float], chosen: Sequence[bool], share: float
) -> list[float]:
    """``factors`` of stores, with those of the ``chosen`` ones scaled so that they get ``share`` of the draws.

    ``sizes`` are their records. Nothing changes where one side has none.
    """
    weights = [factor * size ** (1.0 / temperature) if size else 0.0 for factor, size in zip(factors, sizes)]
    inside = sum(weight for weight, mine in zip(weights, chosen) if mine)
    outside = sum(weights) - inside
    if not inside or not outside:
        return list(factors)
    scale = share / (1.0 - share) * outside / inside
    return [factor * scale if mine else factor for factor, mine in zip(factors, chosen)]


def _generator(seed: int, *key: int) -> np.random.Generator:
    """A Philox generator of its own for every (seed, key)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy=seed, spawn_key=key)))
