"""Sources: records that belong together, what their graphs cost, and means over them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sciml import registry
from sciml.data.store import Store, Subset

Data = Store | Subset
JET_DIAMETER = 2.0  # no two particles of a jet are further apart in its rest frame
SAMPLE = 200  # graphs that an estimate is made of


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
