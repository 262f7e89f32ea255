"""The fine-level equivariant backbone: one set of weights for atoms, jets and residues."""

import itertools

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from sciml.graph import INPUTS, KINDS
from sciml.models.block import Block
from sciml.models.embedding import NodeEmbedding
from sciml.models.layers import full_precision
from sciml.models.readout import Features
from sciml_kernels import Edges, degree_norm, edge_embedding


def edge_vectors(batch: Batch, positions: Tensor, cell: Tensor) -> Tensor:
    """Vectors from receiver to sender (E, 3) through the periodic images, in the unit of the positions."""
    vectors = positions[batch.senders] - positions[batch.receivers]
    if bool(batch.pbc.any()):
        vectors = vectors + torch.einsum("ei,eij->ej", batch.shifts, cell[batch.batch[batch.receivers]])
    return vectors


class Backbone(nn.Module):
    """Node features from a batch of one kind.

    Parameters: ``kinds`` the kinds of graph it takes; ``cutoffs`` {kind: Å, or chord length for jets};
    ``num_datasets`` levels of theory; ``channels``; ``layers`` blocks; ``lmax_node`` highest degree between blocks;
    ``lmax_edge`` highest degree of the edge harmonics and of the messages; ``correlation`` order of the many-body
    product; ``radial`` {basis, hidden}; ``feed_forward`` expansion; ``backend`` of sciml_kernels; ``lmax_out`` highest
    degree of the features that the heads read.
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
    ) -> None:
        super().__init__()
        inputs = {kind: INPUTS[kind] for kind in kinds}
        edge_scalars = {kind: value.edge_scalars for kind, value in inputs.items() if value.edge_scalars}
        self.embedding = NodeEmbedding(channels, inputs, num_datasets)
        self.lmax_edge, self.basis, self.backend = lmax_edge, radial["basis"], backend
        self.register_buffer("cutoffs", torch.tensor([cutoffs.get(kind, 1.0) for kind in KINDS], dtype=torch.float64))
        self.register_buffer("mean_neighbors", torch.ones(len(KINDS)))
        first = 1 if any(value.vectors for value in inputs.values()) else 0
        degrees = [first] + [lmax_node] * (layers - 1) + [lmax_out]
        self.blocks = nn.ModuleList(
            Block(
                channels,
                lmax_in,
                lmax_edge,
                lmax_out,
                correlation,
                radial["basis"],
                radial["hidden"],
                edge_scalars,
                feed_forward,
                backend,
            )
            for lmax_in, lmax_out in itertools.pairwise(degrees)
        )

    def forward(self, batch: Batch, kind: str, positions: Tensor, cell: Tensor) -> Features:
        """Return the features of the nodes, normalised.

        ``positions`` (n, 3) and ``cell`` (B, 3, 3) are given apart from the batch because forces and stress
        differentiate them.
        """
        index = KINDS.index(kind)
        with full_precision(positions):
            vectors = edge_vectors(batch, positions, cell) / self.cutoffs[index].to(positions.dtype)
            # jets keep the factor r^l of the solid harmonics, so that coincident particles are no singularity
            edge = edge_embedding(vectors, self.lmax_edge, self.basis, solid=kind == "jets", backend=self.backend)
        edges = Edges(batch.senders, batch.receivers, batch.types.shape[0])
        x = self.embedding(batch, kind)
        embedding = x[:, 0]
        edge_scalars = batch.edge_scalars if "edge_scalars" in batch else None
        for block in self.blocks:
            x = block(x, embedding, edge, edges, self.mean_neighbors[index], kind, edge_scalars)
        return Features(degree_norm(x, backend=self.backend))
