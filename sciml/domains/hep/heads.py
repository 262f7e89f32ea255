"""Classes of jets."""

import torch
from torch import Tensor
from torch_geometric.data import Batch

from sciml.models.layers import multilayer_perceptron
from sciml.models.readout import Features, Geometry, Head, HeadContext, pool_mean, pool_sum


class JetClassHead(Head):
    """Class logits (B, classes) from two means of the particles' features: over all, and weighted by momentum.

    The second follows the hard particles, which carry the jet's structure; the first also counts the soft ones.
    """

    kind = "jets"
    targets = ("label",)

    def __init__(self, context: HeadContext, hidden: int = 64) -> None:
        super().__init__(context)
        self.readout = multilayer_perceptron([2 * context.channels, hidden, max(1, len(context.classes))])

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
        """Return {"label": logits}."""
        momentum = batch.vectors[:, :1].square().sum(dim=2).sqrt()  # in the rest frame
        particles = features.invariants
        momentum = momentum.to(particles.dtype)
        weighted = pool_sum(particles * momentum, batch.batch, batch.num_graphs)
        total = pool_sum(momentum, batch.batch, batch.num_graphs)
        plain = pool_mean(particles, batch.batch, batch.num_graphs)
        return {"label": self.readout(torch.cat([plain, weighted / total.clamp_min(1e-12)], dim=1))}
