"""Classes of jets, their true mass and transverse momentum, and the true four-momenta of their particles."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from torch_geometric.data import Batch

from sciml.models.layers import multilayer_perceptron
from sciml.models.readout import Features, Geometry, Head, HeadContext, pool_mean, pool_sum
from sciml.physics import lorentz
from sciml.physics.phase_space import conserving

MOST_STRETCH = 3.0
"""Largest logarithm of the factor by which a head stretches a momentum."""
DIRECTIONS = 16
"""At a time, of the derivatives of momenta: a bound to the memory."""


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
        return {"label": self.readout(jet_means(features, batch))}


def jet_means(features: Features, batch: Batch) -> Tensor:
    """Two means (B, 2 C) of the particles' features: over all, and weighted by momentum in the rest frame."""
    particles = features.invariants
    momentum = batch.vectors[:, :1].square().sum(dim=2).sqrt().to(particles.dtype)
    weighted = pool_sum(particles * momentum, batch.batch, batch.num_graphs)
    total = pool_sum(momentum, batch.batch, batch.num_graphs)
    plain = pool_mean(particles, batch.batch, batch.num_graphs)
    return torch.cat([plain, weighted / total.clamp_min(1e-12)], dim=1)


class JetKinematicsHead(Head):
    """True mass and transverse momentum (B,) of jets in GeV, float64: the measured ones times learned factors.

    The factors are invariant, so the outputs scale and transform as what was measured. The loss sees the logarithm of
    predicted over true, which weighs light and heavy jets alike. A head without training returns what was measured.
    """

    kind = "jets"
    targets = ("true_mass", "true_pt")

    def __init__(self, context: HeadContext, hidden: int = 64) -> None:
        super().__init__(context)
        self.readout = multilayer_perceptron([2 * context.channels, hidden, len(self.targets)], zero=True)

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
        """Return {"true_mass": GeV, "true_pt": GeV}."""
        factors = self.readout(jet_means(features, batch)).double()
        factors = (MOST_STRETCH * torch.tanh(factors / MOST_STRETCH)).exp()
        return {"true_mass": batch.jet_mass * factors[:, 0], "true_pt": batch.jet_pt * factors[:, 1]}

    def last_layers(self, target: str) -> list[nn.Module]:
        """That of both factors."""
        return [self.readout[-1]]

    def pool_features(self, target: str, inputs: list[Tensor], batch: Batch) -> Tensor:
        """What was measured times the inputs: the change of a factor near one."""
        measured = batch.jet_mass if target == "true_mass" else batch.jet_pt
        return (inputs[0] * measured[:, None])[:, None]

    def error(self, target: str, prediction: Tensor, label: Tensor, batch: Batch) -> Tensor:
        """The logarithm of predicted over true."""
        return (prediction / label).log()


class FourMomentaHead(Head):
    """True four-momenta (n, 4) of the particles in GeV, float64, in the frame of the record, from those measured.

    In the rest frame of the jet, where the features live, a particle's momentum is stretched and gets a vector beside
    it, in units of its energy, made of the features of degree 1. :func:`sciml.physics.phase_space.conserving` turns the
    result into momenta with the measured masses that sum to ``batch.total_momentum``, and the boost back is that of the
    frame which the graph was made in. So, whatever the weights:

    - the sum is the total, and no energy is negative, to rounding of float64;
    - masses are the measured ones, to the rounding of a boost, 20 eps (gamma E)^2 of their squares, unless they do not
      fit into the total or the jet has no rest frame (see ``conserving``);
    - a Lorentz transformation of momenta and spurions transforms the output, to the precision of the features.

    A head without training returns what was measured, brought to the total.
    """

    kind = "jets"
    targets = ("true_momenta",)
    lmax = 1

    def __init__(self, context: HeadContext, hidden: int = 64) -> None:
        super().__init__(context)
        self.readout = multilayer_perceptron([context.channels, hidden, 1 + context.channels], zero=True)
        self.vectors = nn.Identity()  # where uncertainties look

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
        """Return {"true_momenta": four-momenta}."""
        vectors = self.vectors(features.fine[:, 1:4])
        found = self._conserving(self._momenta(self.readout(features.invariants), vectors, batch), batch)
        return {"true_momenta": lorentz.boost_from_rest_frame(found[:, None], batch.frame[batch.batch])[:, 0]}

    def _momenta(self, weights: Tensor, vectors: Tensor, batch: Batch) -> Tensor:
        """Momenta (n, 3) in the rest frame, whatever the total is."""
        stretch = MOST_STRETCH * torch.tanh(weights[:, :1] / MOST_STRETCH)
        beside = (vectors * weights[:, None, 1:]).mean(dim=2)
        measured = self._measured(batch)
        return stretch.double().exp() * measured[:, 1:] + beside.double() * measured[:, :1]

    @staticmethod
    def _conserving(momenta: Tensor, batch: Batch) -> Tensor:
        """Four-momenta (n, 4) in the rest frame, with the measured masses, that sum to the total."""
        total = lorentz.boost_to_rest_frame(batch.total_momentum[:, None], batch.frame)[:, 0]
        return conserving(momenta, lorentz.mass_squared(batch.momenta), total, batch.batch)

    @staticmethod
    def _measured(batch: Batch) -> Tensor:
        """The measured four-momenta (n, 4) in the rest frame of the jet."""
        return lorentz.boost_to_rest_frame(batch.momenta[:, None], batch.frame[batch.batch])[:, 0]

    def last_layers(self, target: str) -> list[nn.Module]:
        """The end of the network, and the vectors that its outputs weigh."""
        return [self.readout[-1], self.vectors]

    def pool_features(self, target: str, inputs: list[Tensor], batch: Batch) -> Tensor:
        """The change (n, 4, w) [GeV] of the four-momenta in the rest frame with w numbers of the last layer: the row
        that stretches, its bias, and the biases of those that weigh vectors. All of it would be too many for a matrix.
        """
        hidden, vectors = inputs
        last, channels = self.readout[-1], vectors.shape[2]
        assert isinstance(last, nn.Linear)
        weights = linear(hidden, torch.cat([last.weight, last.bias[:, None]], dim=1).double())
        biases = torch.eye(1 + channels, dtype=hidden.dtype, device=hidden.device)[1:, None]
        directions = torch.cat([pad(hidden.T[..., None], (0, channels)), biases.expand(-1, len(hidden), -1)])

        def momenta(weights: Tensor) -> Tensor:
            return self._conserving(self._momenta(weights, vectors, batch), batch)

        change = torch.func.vmap(
            lambda direction: torch.func.jvp(momenta, (weights,), (direction,))[1], chunk_size=DIRECTIONS
        )
        return change(directions).permute(1, 2, 0)

    def compared(self, target: str, values: Tensor, batch: Batch) -> Tensor:
        """(n, 4) [GeV] in the rest frame, so that a loss is the same in every Lorentz frame, up to a rotation."""
        return lorentz.boost_to_rest_frame(values[:, None], batch.frame[batch.batch])[:, 0]

    def scale(self, target: str, batch: Batch) -> Tensor | None:
        """The mean energy of a particle in the rest frame."""
        particles = torch.bincount(batch.batch, minlength=batch.num_graphs)
        return lorentz.mass_squared(batch.frame).sqrt() / particles
