"""Initial features of fine and coarse nodes from types, optional scalars and vectors, and graph-level conditions."""

import copy
import math

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from sciml.graph import DOMAINS, INPUTS, NUM_COARSE_TYPES, NUM_TYPES, KindInputs
from sciml.models.layers import at_nodes, pad_degrees
from sciml.models.readout import pool_sum


def without_spurions(batch: Batch, kind: str) -> Batch:
    """The same batch with zeros, near the mean of each, for all inputs that time and beam directions enter."""
    batch = copy.copy(batch)
    for name, columns in INPUTS[kind].of_spurions.items():
        if name in batch:
            value = batch[name].clone()
            value[:, list(columns)] = 0.0
            batch[name] = value
    return batch


class NodeEmbedding(nn.Module):
    """Features [node, component, channel] of degree 0, or 0 and 1 where the kind brings vectors.

    Invariants are the sum of embeddings of node type, coarse type of the parent, domain and dataset (level of theory),
    of the total charge and of the spin (both zero for a neutral singlet, which keeps neutral systems size extensive),
    and a linear map of the node's scalars. Vectors enter through a linear map of their count to the channels. With
    ``noise``, the level of noise in the positions and the forces before it are inputs too (NoiseEmbedding).
    """

    def __init__(
        self,
        channels: int,
        inputs: dict[str, KindInputs],
        num_datasets: int,
        noise: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.backend = backend
        self.types = nn.Embedding(NUM_TYPES, channels)
        self.domain = nn.Embedding(len(DOMAINS), channels)
        self.dataset = nn.Embedding(num_datasets, channels)
        self.charge = nn.Parameter(torch.zeros(channels))
        self.spin = nn.Parameter(torch.zeros(channels))
        self.typed_kinds = {kind for kind, value in inputs.items() if value.coarse_types}
        self.coarse_types = nn.Embedding(NUM_COARSE_TYPES, channels) if self.typed_kinds else None
        self.scalars = nn.ModuleDict({k: nn.Linear(v.scalars, channels) for k, v in inputs.items() if v.scalars})
        self.vectors = nn.ModuleDict(
            {k: nn.Linear(v.vectors, channels, bias=False) for k, v in inputs.items() if v.vectors}
        )
        nn.init.normal_(self.dataset.weight, std=0.1)
        nn.init.normal_(self.domain.weight, std=0.1)
        self.noise = NoiseEmbedding(channels) if noise else None

    def conditions(self, batch: Batch) -> Tensor:
        """What the graph as a whole tells each of its nodes, (B, C)."""
        of_graph = self.domain(batch.domain) + self.dataset(batch.dataset)
        return of_graph + batch.charge[:, None] * self.charge + (batch.spin[:, None] - 1.0) * self.spin

    def forward(self, batch: Batch, kind: str, conditions: Tensor) -> Tensor:
        """Return (n, 1, C), or (n, 4, C) with vectors or noise; ``conditions`` (B, C)."""
        invariants = self.types(batch.types) + at_nodes(conditions, batch, self.backend)
        if self.coarse_types is not None and kind in self.typed_kinds:
            invariants = invariants.index_add(0, batch.children, self.coarse_types(batch.coarse_types)[batch.parents])
        if kind in self.scalars:
            invariants = invariants + self.scalars[kind](batch.scalars)
        x = invariants.unsqueeze(1)
        if kind in self.vectors:
            x = torch.cat([x, self.vectors[kind](batch.vectors.transpose(1, 2))], dim=1)
        if self.noise is not None:
            x = pad_degrees(x, 1)  # of clean samples too: the norm that follows counts the degrees
            if "noise_level" in batch:
                x = x + self.noise(batch.noise_level[batch.batch], batch.clean_forces)
        return x


class NoiseEmbedding(nn.Module):
    """What a node knows of the noise: its level, and the forces of the clean frame (DeNS, Liao et al., 2024).

    Both enter through functions that vanish at zero, with linear maps without bias, so that a clean sample is embedded
    as if there were no such input. Levels and forces span decades: both are taken by their logarithm.
    """

    RESOLUTION = 0.01  # Å; below this a level counts as none
    FORCE = 0.1  # eV/Å; below this a force counts by its value, above by its logarithm
    WAVES = 8

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.level = nn.Linear(self.WAVES, channels, bias=False)
        self.magnitude = nn.Linear(1, channels, bias=False)
        self.force = nn.Linear(1, channels, bias=False)

    def forward(self, level: Tensor, forces: Tensor) -> Tensor:
        """level (n,) [Å], forces (n, 3) [eV/Å] -> (n, 4, C)."""
        waves = torch.arange(1, self.WAVES + 1, device=level.device) * (math.pi / 10.0)
        level = self.level(torch.sin(torch.log1p(level / self.RESOLUTION)[:, None] * waves.to(level.dtype)))
        length = torch.linalg.vector_norm(forces, dim=1, keepdim=True) / self.FORCE
        logarithm = torch.log1p(length)
        direction = forces / self.FORCE * (logarithm / length.clamp_min(1e-12))
        invariants = level + self.magnitude(logarithm)
        return torch.cat([invariants.unsqueeze(1), self.force(direction.unsqueeze(2))], dim=1)


class CoarseEmbedding(nn.Module):
    """Features [coarse node, component, channel] of degree 0, or 0 and 1 where the children have roles.

    Invariants are the sum of the embedding of the type, the graph's conditions and a linear map of the scalars; the
    vectors of roles, such as the frame of a residue, enter through a linear map of their count to the channels.
    """

    def __init__(self, channels: int, inputs: dict[str, KindInputs]) -> None:
        super().__init__()
        scalars = {kind: value.coarse_scalars for kind, value in inputs.items() if value.coarse_scalars}
        roles = {kind: value.child_roles for kind, value in inputs.items() if value.child_roles}
        self.types = nn.Embedding(NUM_COARSE_TYPES, channels)
        self.scalars = nn.ModuleDict({kind: nn.Linear(number, channels) for kind, number in scalars.items()})
        self.roles = nn.ModuleDict({kind: nn.Linear(number, channels, bias=False) for kind, number in roles.items()})

    def forward(self, batch: Batch, kind: str, conditions: Tensor, arms: Tensor) -> Tensor:
        """Return (r, 1, C), or (r, 4, C) with roles; ``conditions`` (B, C), ``arms`` (m, 3) from parent to child."""
        invariants = self.types(batch.coarse_types) + conditions[batch.coarse_batch]
        if kind in self.scalars:
            invariants = invariants + self.scalars[kind](batch.coarse_scalars)
        if kind not in self.roles:
            return invariants.unsqueeze(1)
        of_role = batch.child_roles.to(arms.dtype)[:, None, :] * arms[:, :, None]
        vectors = pool_sum(of_role, batch.parents, len(invariants)).to(invariants.dtype)
        return torch.cat([invariants.unsqueeze(1), self.roles[kind](vectors)], dim=1)
