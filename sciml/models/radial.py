"""Edge geometry: dimensionless vectors, spherical harmonics, radial basis and the smooth cutoff."""

import itertools
import math
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from sciml.models.layers import silu


class EdgeGeometry(NamedTuple):
    """What every block needs of the edges: harmonics (E, (lmax + 1)^2), basis (E, basis), envelope (E, 1)."""

    harmonics: Tensor
    basis: Tensor
    envelope: Tensor


def polynomial_envelope(x: Tensor, power: int = 6) -> Tensor:
    """Smooth cutoff on x = r / cutoff: one at 0, zero with zero first and second derivative at 1 (Gasteiger et al.,
    2020).
    """
    p = float(power)
    x = x.clamp(max=1.0)
    return 1.0 + x**power * (-(p + 1) * (p + 2) / 2 + p * (p + 2) * x - p * (p + 1) / 2 * x * x)


class BesselBasis(nn.Module):
    """sqrt(2) sin(n pi x) / x for n = 1..size on x = r / cutoff (Gasteiger et al., 2020); finite at x = 0."""

    orders: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("orders", torch.arange(1.0, size + 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (E, 1) -> (E, size)."""
        orders = self.orders.to(x.dtype)
        return torch.sinc(x * orders) * (math.sqrt(2.0) * math.pi * orders)


class SphericalHarmonics(nn.Module):
    """Solid harmonics r^l Y_l of vectors (E, 3) -> (E, (lmax + 1)^2), 'component' normalised as in e3nn.

    Degree l is the coupling of degree l - 1 with the vector itself, so that each degree costs one outer product and
    one matrix product in every order of differentiation.
    """

    def __init__(self, lmax: int) -> None:
        super().__init__()
        self.lmax = lmax
        for degree in range(2, lmax + 1):
            coupling = o3.wigner_3j(degree - 1, 1, degree, dtype=torch.float64).reshape(-1, 2 * degree + 1)
            self.register_buffer(f"coupling_{degree}", coupling * _coupling_norm(degree), persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        degrees = [torch.ones_like(vectors[:, :1]), math.sqrt(3.0) * vectors]
        for degree in range(2, self.lmax + 1):
            outer = (degrees[-1].unsqueeze(2) * vectors.unsqueeze(1)).flatten(1)
            degrees.append(outer @ getattr(self, f"coupling_{degree}").to(vectors.dtype))
        return torch.cat(degrees[: self.lmax + 1], dim=1)


def _coupling_norm(degree: int) -> float:
    """What makes the coupling of Y_(l-1) with a unit vector equal Y_l, read off at one point."""
    point = torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64)
    below, wanted = (o3.spherical_harmonics(d, point, True, normalization="component") for d in (degree - 1, degree))
    coupled = torch.einsum("ei,ej,ijk->ek", below, point, o3.wigner_3j(degree - 1, 1, degree, dtype=torch.float64))
    return float((wanted * coupled).sum() / coupled.square().sum())


class EdgeEmbedding(nn.Module):
    """Edge vectors in units of the cutoff (E, 3) -> EdgeGeometry."""

    def __init__(self, lmax: int, basis: int) -> None:
        super().__init__()
        self.harmonics = SphericalHarmonics(lmax)
        self.bessel = BesselBasis(basis)

    def forward(self, vectors: Tensor, solid: bool = False) -> EdgeGeometry:
        """``solid`` keeps the factor r^l of the solid harmonics, so that coincident nodes are no singularity."""
        lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        harmonics = self.harmonics(vectors if solid else vectors / lengths)
        return EdgeGeometry(harmonics, self.bessel(lengths), polynomial_envelope(lengths))


class RadialNetwork(nn.Module):
    """Path weights of a convolution from distance and the two ends of an edge.

    The first layer sees the radial basis, optional edge scalars and a linear map of either node's embedding; the
    envelope multiplies the last hidden layer and the last linear map has no bias, so that every weight vanishes
    smoothly at the cutoff.
    """

    def __init__(self, basis: int, hidden: list[int], paths: int, channels: int, edge_scalars: dict[str, int]) -> None:
        super().__init__()
        self.channels = channels
        self.basis = nn.Linear(basis, hidden[0])
        self.sender = nn.Linear(channels, hidden[0], bias=False)
        self.receiver = nn.Linear(channels, hidden[0], bias=False)
        self.edge_scalars = nn.ModuleDict({k: nn.Linear(n, hidden[0], bias=False) for k, n in edge_scalars.items()})
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(hidden))
        self.last = nn.Parameter(torch.randn(paths, channels, hidden[-1]) / math.sqrt(hidden[-1]))

    def forward(
        self,
        edges: EdgeGeometry,
        embedding: Tensor,
        senders: Tensor,
        receivers: Tensor,
        kind: str,
        edge_scalars: Tensor | None,
        paths: Tensor | None = None,
    ) -> Tensor:
        """Return weights (E, paths, channels); ``paths`` picks a subset of the rows."""
        hidden = self.basis(edges.basis) + self.sender(embedding)[senders] + self.receiver(embedding)[receivers]
        if edge_scalars is not None and kind in self.edge_scalars:
            hidden = hidden + self.edge_scalars[kind](edge_scalars)
        for layer in self.hidden:
            hidden = layer(silu(hidden))
        hidden = silu(hidden) * edges.envelope
        last = self.last if paths is None else self.last[paths]
        weights = hidden @ last.reshape(-1, last.shape[2]).t()
        return weights.view(hidden.shape[0], last.shape[0], self.channels)
