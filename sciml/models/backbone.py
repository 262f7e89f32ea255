"""The multi-scale equivariant backbone: one set of weights for atoms, jets and residues."""

import itertools

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from sciml.data.far_field import FarField
from sciml.graph import INPUTS, KINDS
from sciml.models.block import Block, EdgeSet
from sciml.models.coarse import CoarseLevel
from sciml.models.embedding import NodeEmbedding
from sciml.models.layers import at_nodes, full_precision, lmax_of, pad_degrees
from sciml.models.readout import Features
from sciml.models.reciprocal import ReciprocalBlock
from sciml_kernels import Edges, degree_norm, edge_embedding


def edges_of(batch: Batch) -> Edges:
    """The edges between the fine nodes of a batch."""
    # Checks that read the data would make a GPU wait, and cannot be compiled.
    checked = batch.senders.device.type == "cpu" and not torch.compiler.is_compiling()
    return Edges(batch.senders, batch.receivers, batch.types.shape[0], validate=checked)


def edge_vectors(batch: Batch, edges: Edges, positions: Tensor, cell: Tensor, backend: str = "auto") -> Tensor:
    """Vectors from receiver to sender (E, 3) through the periodic images, in the unit of the positions."""
    vectors = edges.at_senders(positions, backend) - edges.at_receivers(positions, backend)
    if torch.compiler.is_compiling() or batch.has_images:
        cells = edges.at_receivers(at_nodes(cell, batch, backend), backend)
        vectors = vectors + (batch.shifts.unsqueeze(2) * cells).sum(dim=1)
    return vectors


class Backbone(nn.Module):
    """Node features from a batch of one kind: embedding, ``layers`` fine blocks, the coarse level, ``layers_after``
    fine blocks.

    Parameters: ``kinds`` the kinds of graph it takes; ``cutoffs`` {kind: Å, or chord length for jets};
    ``num_datasets`` levels of theory; ``channels``; ``lmax_node`` highest degree between blocks;
    ``lmax_edge`` highest degree of the edge harmonics and of the messages; ``correlation`` order of the many-body
    product; ``radial`` {basis, hidden}; ``feed_forward`` expansion; ``backend`` of sciml_kernels; ``lmax_out`` highest
    degree of the features that the heads read; ``coarse_layers`` blocks among coarse nodes, 0 for no coarse level;
    ``coarse_cutoffs`` {kind: radius of their edges}; ``reciprocal`` {charges} sets of latent charges whose long-range
    potentials come back into the invariants of atoms, None or zero for no such block; ``noise`` whether noise in the
    positions is an input; ``spurions`` whether time and beam directions are inputs of jets, which the model sees to.
    """

    mean_neighbors: Tensor
    cutoffs: Tensor

    def __init__(
        self,
        kinds: list[str],
        cutoffs: dict[str, float],
        num_datasets: int,
        channels: int,
        layers: int,
        lmax_node: int,
        lmax_edge: int,
        correlation: int,
        radial: dict,
        feed_forward: int,
        backend: str = "auto",
        lmax_out: int = 0,
        coarse_layers: int = 0,
        layers_after: int = 0,
        coarse_cutoffs: dict[str, float] | None = None,
        reciprocal: dict | None = None,
        noise: bool = False,
        spurions: bool = True,
    ) -> None:
        super().__init__()
        if coarse_layers and not layers_after:
            raise ValueError("layers_after: found 0 with a coarse level, expected 1 or more to read what comes down")
        inputs = {kind: INPUTS[kind] for kind in kinds}
        edge_scalars = {kind: value.edge_scalars for kind, value in inputs.items() if value.edge_scalars}
        self.embedding = NodeEmbedding(channels, inputs, num_datasets, noise, backend)
        self.layers, self.lmax_edge, self.basis, self.backend = layers, lmax_edge, radial["basis"], backend
        self.spurions = spurions
        self.register_buffer("cutoffs", torch.tensor([cutoffs.get(kind, 1.0) for kind in KINDS], dtype=torch.float64))
        self.register_buffer("mean_neighbors", torch.ones(len(KINDS)))
        first = 1 if noise or any(value.vectors for value in inputs.values()) else 0
        degrees = [first] + [lmax_node] * (layers + layers_after - 1) + [lmax_out]
        self.blocks = nn.ModuleList(
            Block(channels, lmax_in, lmax_edge, lmax, correlation, radial, edge_scalars, feed_forward, backend)
            for lmax_in, lmax in itertools.pairwise(degrees)
        )
        self.coarse: CoarseLevel | None = None
        if coarse_layers:
            self.coarse = CoarseLevel(
                kinds,
                coarse_cutoffs or {},
                channels,
                coarse_layers,
                lmax_node,
                lmax_edge,
                lmax_out,
                correlation,
                radial,
                feed_forward,
                backend,
            )
        charges = (reciprocal or {}).get("charges", 0)
        self.reciprocal = ReciprocalBlock(channels, charges, backend) if charges else None

    @property
    def far_field(self) -> FarField:
        """What graphs of atoms need beyond their edges."""
        return FarField() if self.reciprocal is None else self.reciprocal.far_field

    def forward(self, batch: Batch, kind: str, positions: Tensor, cell: Tensor) -> Features:
        """Return the features of the nodes, normalised.

        ``positions`` (n, 3) and ``cell`` (B, 3, 3) are given apart from the batch because forces and stress
        differentiate them.
        """
        near = self._edges(batch, kind, positions, cell)
        conditions = self.embedding.conditions(batch)
        x = self.embedding(batch, kind, conditions)
        embedding, coarse = x[:, 0], None
        for block in self.blocks[: self.layers]:
            x = block(x, embedding, near, kind)
        if self.coarse is not None:
            x, coarse = self.coarse(x, embedding, batch, kind, positions, conditions)
        for block in self.blocks[self.layers :]:
            x = block(x, embedding, near, kind)
        if self.reciprocal is not None and kind == "atoms":
            x = self.reciprocal(x, near.embedding.envelope, near.edges, positions, cell, batch)
        return self._features(x, coarse)

    def _edges(self, batch: Batch, kind: str, positions: Tensor, cell: Tensor) -> EdgeSet:
        """The edges between fine nodes."""
        index, edges = KINDS.index(kind), edges_of(batch)
        with full_precision(positions):
            cutoff = self.cutoffs[index].to(positions.dtype)
            vectors = edge_vectors(batch, edges, positions, cell, self.backend) / cutoff
            # jets keep the factor r^l of the solid harmonics, so that coincident particles are no singularity
            edge = edge_embedding(vectors, self.lmax_edge, self.basis, solid=kind == "jets", backend=self.backend)
        return EdgeSet(edges, edge, self.mean_neighbors[index], batch.edge_scalars if "edge_scalars" in batch else None)

    def _features(self, x: Tensor, coarse: Tensor | None) -> Features:
        """Features of both levels, normalised, with the degrees that the heads read."""
        if coarse is not None:
            coarse = degree_norm(pad_degrees(coarse, lmax_of(x)), backend=self.backend)
        return Features(degree_norm(x, backend=self.backend), coarse)
