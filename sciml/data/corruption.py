"""What pretraining hides or shifts in a sample: which samples, by which random numbers, and how many labels it makes.

A corruption is drawn for every record anew in every optimizer step, from a Philox stream that is a pure function of
(seed, step, source, record). So a step holds the same noise on any number of ranks and workers and after resuming, and
its labels can be counted before any sample is read. A validation is one step: it always sees the same noise.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from sciml.data.records import Record
from sciml.graph import Graph


class Corruption(Protocol):
    """One objective on one ``kind`` of graph: it corrupts a ``fraction`` of the samples and makes the label ``target``.

    ``count`` is the number of labels that a corrupted sample of so many fine nodes has; ``record`` corrupts a record
    before its graph is made, and returns it as it is where the objective needs no other edges; ``graph`` corrupts the
    graph in place; ``blank`` adds the fields of a sample that is not corrupted where the graph lacks them.
    """

    kind: str
    target: str
    fraction: float

    def count(self, nodes: int) -> int: ...

    def record(self, record: Record, generator: np.random.Generator) -> Record: ...

    def graph(self, graph: Graph, generator: np.random.Generator) -> None: ...

    def blank(self, graph: Graph) -> None: ...


Drawn = tuple[Corruption, np.random.Generator]


class Corruptions:
    """All corruptions of a run; ``stream`` 0 for training, 1 for validation."""

    def __init__(self, corruptions: Sequence[Corruption], seed: int, stream: int = 0) -> None:
        self._of_kind: dict[str, list[tuple[int, Corruption]]] = {}
        for index, corruption in enumerate(corruptions):
            self._of_kind.setdefault(corruption.kind, []).append((index, corruption))
        self._key, self._stream = np.array([seed % 2**64, 0], np.uint64), stream

    def drawn(self, kind: str, step: int, source: int, record: int) -> list[Drawn]:
        """The corruptions of this record in this step, each with the generator that draws the rest of it."""
        found = []
        for index, corruption in self._of_kind.get(kind, ()):
            # The first word of the counter is the generator's own; no two records share a stream.
            place = (0, step, source << 32 | index << 1 | self._stream, record)
            generator = np.random.Generator(np.random.Philox(key=self._key, counter=place))
            if generator.random() < corruption.fraction:
                found.append((corruption, generator))
        return found

    def blank(self, graph: Graph, kind: str) -> None:
        """Add the fields of an uncorrupted sample, so that it can be batched with corrupted ones."""
        for _, corruption in self._of_kind.get(kind, ()):
            corruption.blank(graph)

    @staticmethod
    def corrupted(
        record: Record, drawn: Sequence[Drawn], clean: Callable[[], Graph], make: Callable[[Record], Graph]
    ) -> Graph:
        """The graph of a record with what was ``drawn``; ``clean`` gives its clean graph, ``make`` that of another."""
        shifted = record
        for corruption, generator in drawn:
            shifted = corruption.record(shifted, generator)
        graph = copy.copy(clean()) if shifted is record else make(shifted)
        for corruption, generator in drawn:
            corruption.graph(graph, generator)
        return graph

    def counts(
        self, kind: str, step: int, source: int, records: np.ndarray, nodes: np.ndarray
    ) -> tuple[dict[str, float], np.ndarray]:
        """Labels per target that corruption makes of ``records`` with so many ``nodes``, and which stay clean, bool."""
        total = {corruption.target: 0.0 for _, corruption in self._of_kind.get(kind, ())}
        clean = np.ones(len(records), bool)
        for row, (record, size) in enumerate(zip(records.tolist(), nodes.tolist(), strict=True)):
            for corruption, _ in self.drawn(kind, step, source, record):
                total[corruption.target] += corruption.count(size)
                clean[row] = False
        return total, clean
