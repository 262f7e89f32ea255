"""The coarse level of the backbone: up from children to parents, blocks among these, and down again."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from sciml.graph import INPUTS, KINDS
from sciml.models.block import Block, EdgeSet
from sciml.models.embedding import CoarseEmbedding
from sciml.models.layers import full_precision
from sciml.models.readout import pool_sum
from sciml_kernels import EdgeEmbedding, Edges, edge_embedding


class CoarseGeometry(NamedTuple):
    """Edge vectors in units of the coarse cutoff: ``arms`` (m, 3) from parent to child, ``vectors`` (F, 3) from
    receiver to sender among parents.
    """

    arms: Tensor
    vectors: Tensor


def coarse_geometry(batch: Batch, positions: Tensor, cutoff: Tensor) -> CoarseGeometry:
    """Place the coarse nodes at the weighted means of their children, so that all follows from ``positions`` (n, 3)."""
    nodes = batch.coarse_types.shape[0]
    weights = batch.child_weights.to(positions.dtype)[:, None]
    children = positions[batch.children]
    total = pool_sum(weights, batch.parents, nodes)
    places = pool_sum(weights * children, batch.parents, nodes) / total
    vectors = places[batch.coarse_senders] - places[batch.coarse_receivers]
    return CoarseGeometry((children - places[batch.parents]) / cutoff, vectors / cutoff)


class CoarseLevel(nn.Module):
    """Lets fine nodes speak through their coarse nodes; maps fine features to fine and coarse ones.

    up (children -> parents), ``layers`` blocks among parents, down (parents -> children), each with a residual. Who
    belongs to whom is fixed, so these edges have no cutoff; all harmonics here keep the factor r^l, as a parent may lie
    on its only child, or on another parent. Without coarse nodes all of it runs on empty sets.

    Parameters: ``cutoffs`` {kind: Å, or chord length for jets}; ``lmax_out`` highest degree of the coarse features that
    the heads read; the others as of the backbone.
    """

    cutoffs: Tensor
    mean_children: Tensor
    mean_neighbors: Tensor

    def __init__(
        self,
        kinds: list[str],
        cutoffs: Mapping[str, float],
        channels: int,
        layers: int,
        lmax_node: int,
        lmax_edge: int,
        lmax_out: int,
        correlation: int,
        radial: dict,
        feed_forward: int,
        backend: str,
    ) -> None:
        super().__init__()
        inputs = {kind: INPUTS[kind] for kind in kinds}
        edge_scalars = {kind: value.coarse_edge_scalars for kind, value in inputs.items() if value.coarse_edge_scalars}
        self.lmax_edge, self.basis, self.backend = lmax_edge, radial["basis"], backend
        self.register_buffer("cutoffs", torch.tensor([cutoffs.get(kind, 1.0) for kind in KINDS], dtype=torch.float64))
        self.register_buffer("mean_children", torch.ones(len(KINDS)))
        self.register_buffer("mean_neighbors", torch.ones(len(KINDS)))
        self.embedding = CoarseEmbedding(channels, inputs)

        def block(lmax_in: int, lmax: int, correlation: int, scalars: dict[str, int]) -> Block:
            return Block(channels, lmax_in, lmax_edge, lmax, correlation, radial, scalars, feed_forward, backend)

        last = max(lmax_node, lmax_out)
        degrees = [lmax_node] * layers + [last]
        self.up = block(lmax_node, lmax_node, correlation, {})
        self.blocks = nn.ModuleList(block(a, b, correlation, edge_scalars) for a, b in itertools.pairwise(degrees))
        # What comes down is one message a node: its powers would cost as much as a block and say little.
        self.down = block(last, lmax_node, 1, {})

    def forward(
        self, x: Tensor, embedding: Tensor, batch: Batch, kind: str, positions: Tensor, conditions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return fine features (n, (lmax_node + 1)^2, C) and coarse ones (r, d, C).

        ``x`` (n, (lmax_node + 1)^2, C), ``embedding`` (n, C), ``positions`` (n, 3), ``conditions`` (B, C). Raises
        ValueError for graphs that were made without a coarse level.
        """
        if "coarse_senders" not in batch:
            raise ValueError("the graphs have no coarse level; make them with coarse_cutoff, see sciml.domains.common")
        index = KINDS.index(kind)
        with full_precision(positions):
            geometry = coarse_geometry(batch, positions, self.cutoffs[index].to(positions.dtype))
        upward, among, downward = self._edge_sets(batch, geometry, index)
        coarse = self.embedding(batch, kind, conditions, geometry.arms)
        of_coarse = coarse[:, 0]
        coarse = self.up(coarse, of_coarse, upward, kind, senders=(x, embedding))
        for block in self.blocks:
            coarse = block(coarse, of_coarse, among, kind)
        return self.down(x, embedding, downward, kind, senders=(coarse, of_coarse)), coarse

    def _edge_sets(self, batch: Batch, geometry: CoarseGeometry, index: int) -> tuple[EdgeSet, EdgeSet, EdgeSet]:
        """Edges from children to parents, among parents, and from parents to children."""
        fine, coarse = batch.types.shape[0], batch.coarse_types.shape[0]
        one = torch.ones_like(self.mean_children[index])
        order = torch.argsort(batch.children)
        upward = Edges(batch.children, batch.parents, coarse, fine)
        among = Edges(batch.coarse_senders, batch.coarse_receivers, coarse)
        downward = Edges(batch.parents[order], batch.children[order], fine, coarse)
        scalars = batch.coarse_edge_scalars if "coarse_edge_scalars" in batch else None
        arms, vectors = geometry
        return (
            EdgeSet(upward, self._embed(arms, bonded=True), self.mean_children[index]),
            EdgeSet(among, self._embed(vectors), self.mean_neighbors[index], scalars),
            EdgeSet(downward, self._embed(-arms[order], bonded=True), one),
        )

    def _embed(self, vectors: Tensor, bonded: bool = False) -> EdgeEmbedding:
        """Harmonics and basis of vectors (E, 3); ``bonded`` edges have an envelope of one at any length."""
        with full_precision(vectors):
            found = edge_embedding(vectors, self.lmax_edge, self.basis, solid=True, backend=self.backend)
        return found._replace(envelope=torch.ones_like(found.envelope)) if bonded else found
