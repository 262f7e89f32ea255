"""Initial node features from types, optional scalars and vectors, and the graph-level conditions."""

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from sciml.graph import DOMAINS, NUM_COARSE_TYPES, NUM_TYPES, KindInputs


class NodeEmbedding(nn.Module):
    """Features [node, component, channel] of degree 0, or 0 and 1 where the kind brings vectors.

    Invariants are the sum of embeddings of node type, coarse type of the parent, domain and dataset (level of theory),
    of the total charge and of the spin (both zero for a neutral singlet, which keeps neutral systems size extensive),
    and a linear map of the node's scalars. Vectors enter through a linear map of their count to the channels.
    """

    def __init__(self, channels: int, inputs: dict[str, KindInputs], num_datasets: int) -> None:
        super().__init__()
        self.types = nn.Embedding(NUM_TYPES, channels)
        self.domain = nn.Embedding(len(DOMAINS), channels)
        self.dataset = nn.Embedding(num_datasets, channels)
        self.charge = nn.Parameter(torch.zeros(channels))
        self.spin = nn.Parameter(torch.zeros(channels))
        coarse = any(kind.coarse for kind in inputs.values())
        self.coarse_types = nn.Embedding(NUM_COARSE_TYPES, channels) if coarse else None
        self.scalars = nn.ModuleDict({k: nn.Linear(v.scalars, channels) for k, v in inputs.items() if v.scalars})
        self.vectors = nn.ModuleDict(
            {k: nn.Linear(v.vectors, channels, bias=False) for k, v in inputs.items() if v.vectors}
        )
        nn.init.normal_(self.dataset.weight, std=0.1)
        nn.init.normal_(self.domain.weight, std=0.1)

    def forward(self, batch: Batch, kind: str) -> Tensor:
        """Return (n, 1, C), or (n, 4, C) with vectors."""
        of_graph = self.domain(batch.domain) + self.dataset(batch.dataset)
        of_graph = of_graph + batch.charge[:, None] * self.charge + (batch.spin[:, None] - 1.0) * self.spin
        invariants = self.types(batch.types) + of_graph[batch.batch]
        if self.coarse_types is not None and "coarse_types" in batch:
            invariants = invariants + self.coarse_types(batch.coarse_types)[batch.parent]
        if kind in self.scalars:
            invariants = invariants + self.scalars[kind](batch.scalars)
        if kind not in self.vectors:
            return invariants.unsqueeze(1)
        vectors = self.vectors[kind](batch.vectors.transpose(1, 2))
        return torch.cat([invariants.unsqueeze(1), vectors], dim=1)
