"""The one data schema: a scientific sample as a two-level graph, batched by PyTorch Geometric.

A Graph carries a fine level (atoms, particles), optionally a coarse level (residues, subjets) and graph-level
fields. Shapes below use n fine nodes, r coarse nodes, m children, E edges, F coarse edges; a batch of B graphs
concatenates along the first axis.

Fine nodes belong to coarse ones by pairs (child, parent), so a system that has no coarse nodes, such as a crystal,
batches with one that has some. A coarse node lies at the weighted mean of its children, which the model computes from
their positions.

===================  ==============  ============================================================="""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch_geometric.data import Batch, Data

DOMAINS = ("materials", "hep", "biology")
KINDS = ("atoms", "jets", "residues")
ELEMENTS = 118
PARTICLE_KINDS = ("charged hadron", "neutral hadron", "photon", "electron", "muon", "other")
NUM_TYPES = 1 + ELEMENTS + len(PARTICLE_KINDS)
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
RESIDUE_NAMES = (
    *("ALA", "CYS", "ASP", "GLU", "PHE", "GLY", "HIS", "ILE", "LYS", "LEU"),
    *("MET", "ASN", "PRO", "GLN", "ARG", "SER", "THR", "VAL", "TRP", "TYR"),
)  # in the order of their one-letter codes
NUM_COARSE_TYPES = 2 + len(RESIDUES)  # masked, twenty residues, unknown


@dataclass(frozen=True)
class KindInputs:
    """Widths of the optional inputs that a kind of graph brings: S scalars, V vectors per node, P scalars per edge, on
    the fine and on the coarse level; ``coarse_types`` tells whether the types of coarse nodes are known to fine ones.
    """

    scalars: int = 0
    vectors: int = 0
    edge_scalars: int = 0
    coarse_types: bool = False
    coarse_scalars: int = 0
    child_roles: int = 0
    coarse_edge_scalars: int = 0


INPUTS: dict[str, KindInputs] = {
    "atoms": KindInputs(child_roles=3),
    "jets": KindInputs(scalars=10, vectors=4, edge_scalars=4, coarse_scalars=11, coarse_edge_scalars=4),
    "residues": KindInputs(scalars=4, coarse_types=True, child_roles=3),
}

LABELS = ("energy", "forces", "stress", "label", "residue_types")
_FINE_INDICES = {"senders", "receivers", "children", "far_senders", "far_receivers"}
_COARSE_INDICES = {"parents", "coarse_senders", "coarse_receivers"}


class Graph(Data):
    """One sample; see the module's table for the fields. Batched with :func:`collate`."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Offset indices by the number of nodes of their level."""
        if key in _FINE_INDICES:
            return self.types.shape[0]
        return self.coarse_types.shape[0] if key in _COARSE_INDICES else 0

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Every field concatenates along its first axis."""
        return 0


def collate(graphs: Iterable[Graph]) -> Batch:
    """Batch graphs of one kind. Adds ``batch`` (n,), ``ptr`` (B + 1,) and, with a coarse level, ``coarse_batch``
    (r,).
    """
    graphs = list(graphs)
    for graph in graphs:
        graph.num_nodes = graph.types.shape[0]
    batch = Batch.from_data_list(graphs)
    if "coarse_types" in batch:
        sizes = torch.tensor([graph.coarse_types.shape[0] for graph in graphs])
        batch.coarse_batch = torch.repeat_interleave(torch.arange(len(graphs)), sizes)
    return batch


def graph_of_rows(batch: Batch, label: torch.Tensor) -> torch.Tensor:
    """Graph index of every row of a label, which by its length belongs to graphs, fine nodes or coarse nodes."""
    if label.shape[0] == batch.num_graphs:
        return torch.arange(batch.num_graphs, device=label.device)
    return batch.batch if label.shape[0] == batch.batch.shape[0] else batch.coarse_batch
