"""Classes of jets that soft particles and collinear splittings do not change: energy-weighted sums alone.

A particle counts by z, its share of the momenta in the rest frame of the jet, and by the direction n of its momentum
there; its type and charge are not looked at. Two pieces of a collinear splitting have one direction and share z; a soft
particle has next to no z. So whatever is made of sums over z and of functions of directions stays the same in both
limits (energy flow networks: Komiske, Metodiev, Thaler, 2019; with messages: Konar, Ngairangbam, Spannowsky, 2022).
z is made of momenta rather than energies, because a massive particle at rest has an energy but no direction.
"""

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.utils import to_dense_batch

from sciml.domains.hep.graphs import SCALARS, VECTORS
from sciml.models.layers import multilayer_perceptron
from sciml.models.readout import Features, Geometry, Head, HeadContext

OF_JET = [i for i, (name, _, _) in enumerate(SCALARS) if name in ("log M", "log(P.t)")]
"""The scalars that belong to the jet as a whole."""
SPURIONS = len(VECTORS) - 1


class EnergyFlowHead(Head):
    """Class logits (B, classes), safe against infrared and collinear radiation by construction.

    With w(i, j) a network of the features of two particles and the cosine between them, every layer gathers at i the
    scalars sum_j z_j w(i, j) and vectors sum_j z_j w'(i, j) n_j, j = i included: without it, two pieces of a splitting
    would see each other where the whole saw nothing. A network of the features of i, these scalars, the squares of the
    vectors and their components along n_i gives the next features; the first ones are made of the angles to the
    spurions and of log M and log(P.t). The logits are a network of sum_i z_i h_i.

    It reads the geometry of the jet only and nothing of the backbone, whose messages count particles, so that the claim
    holds with any backbone. A soft particle of energy share z moves the logits by O(z), a splitting of opening angle
    theta by O(theta^2).
    """

    kind = "jets"
    targets = ("label",)
    irc_safe = True

    def __init__(self, context: HeadContext, hidden: int = 32, layers: int = 2) -> None:
        super().__init__(context)
        spurion_angles = SPURIONS + 1  # the length of time's vector, the speed of the jet, beside the directions
        self.first = multilayer_perceptron([spurion_angles + len(OF_JET), hidden, hidden])
        self.pairs = nn.ModuleList(multilayer_perceptron([2 * hidden + 1, hidden, 2 * hidden]) for _ in range(layers))
        self.updates = nn.ModuleList(multilayer_perceptron([4 * hidden, hidden, hidden]) for _ in range(layers))
        self.readout = multilayer_perceptron([hidden, hidden, max(1, len(context.classes))])

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
        """Return {"label": logits}."""
        vectors, _ = to_dense_batch(batch.vectors.flatten(1), batch.batch, batch_size=batch.num_graphs)
        vectors = vectors.unflatten(2, (len(VECTORS), 3))
        of_jet, _ = to_dense_batch(batch.scalars[:, OF_JET], batch.batch, batch_size=batch.num_graphs)
        lengths = torch.linalg.vector_norm(vectors[:, :, 0], dim=2)
        shares = lengths / lengths.sum(dim=1, keepdim=True).clamp_min(1e-12)
        directions = vectors[:, :, 0] / lengths.clamp_min(1e-30)[..., None]
        angles = torch.einsum("bnx,bnsx->bns", directions, vectors[:, :, 1:])
        speed = torch.linalg.vector_norm(vectors[:, :, 1], dim=2)[..., None]
        x = self.first(torch.cat([angles, speed, of_jet], dim=2))
        cosines = (directions @ directions.transpose(1, 2))[..., None]
        for pair, update in zip(self.pairs, self.updates, strict=True):
            x = x + self._gathered(x, cosines, directions, shares, pair, update)
        return {"label": self.readout((shares[..., None] * x).sum(dim=1))}

    @staticmethod
    def _gathered(
        x: Tensor, cosines: Tensor, directions: Tensor, shares: Tensor, pair: nn.Module, update: nn.Module
    ) -> Tensor:
        """What a layer adds to the features x (B, N, C); absent particles have no share."""
        count = x.shape[1]
        both = [x[:, :, None].expand(-1, -1, count, -1), x[:, None].expand(-1, count, -1, -1), cosines]
        weights = shares[:, None, :, None] * pair(torch.cat(both, dim=3))
        scalar, vector = weights.chunk(2, dim=3)
        vectors = torch.einsum("bijc,bjx->bicx", vector, directions)
        along = torch.einsum("bicx,bix->bic", vectors, directions)
        return update(torch.cat([x, scalar.sum(dim=2), vectors.square().sum(dim=3), along], dim=2))
