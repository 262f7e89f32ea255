"""Masked residue types on the coarse level."""

from torch import Tensor
from torch_geometric.data import Batch

from sciml.graph import RESIDUES
from sciml.models.layers import multilayer_perceptron
from sciml.models.readout import Features, Geometry, Head, HeadContext, pool_mean


class ResidueTypeHead(Head):
    """Residue type logits (r, 20) from the mean of the features of a residue's atoms, and its own where there are."""

    kind = "residues"
    targets = ("residue_types",)
    levels = {"residue_types": "coarse"}

    def __init__(self, context: HeadContext, hidden: int = 64) -> None:
        super().__init__(context)
        self.readout = multilayer_perceptron([context.channels, hidden, len(RESIDUES)])

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
        pooled = pool_mean(features.invariants[batch.children], batch.parents, batch.coarse_types.shape[0])
        if features.coarse is not None:
            pooled = pooled + features.coarse[:, 0]
        return {"residue_types": self.readout(pooled)}
