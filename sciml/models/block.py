"""One block of the backbone: convolution over edges, many-body product, feed-forward; each with a residual."""

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from sciml.models.layers import DegreeLinear, DegreeNorm, FeedForward, lmax_of, pad_degrees, split_degrees
from sciml.models.radial import EdgeGeometry, RadialNetwork
from sciml_kernels import Edges, Spec, conv, product


def _irreps(channels: int, lmax: int) -> o3.Irreps:
    """``channels`` copies of every degree 0..lmax in natural parity."""
    return o3.Irreps([(channels, ir) for _, ir in o3.Irreps.spherical_harmonics(lmax)])


class Convolution(nn.Module):
    """Trilinear equivariant convolution: node features x edge harmonics x radial weights, summed at the receiver.

    Maps (n, (lmax_in + 1)^2, C) to (n, (lmax_out + 1)^2, C). Inputs with fewer degrees use the paths they have.
    """

    def __init__(self, channels: int, lmax_in: int, lmax_edge: int, lmax_out: int, backend: str) -> None:
        super().__init__()
        self.backend = backend
        harmonics = o3.Irreps.spherical_harmonics(lmax_edge)
        out = _irreps(channels, lmax_out)
        self.specs = [Spec.summed(_irreps(channels, lmax), harmonics, out) for lmax in range(lmax_in + 1)]
        self.num_paths = len(self.specs[-1].paths)
        for lmax, spec in enumerate(self.specs):
            self.register_buffer(f"rows_{lmax}", self._rows(spec), persistent=False)

    def _rows(self, spec: Spec) -> Tensor | None:
        """Which rows of the full path table a narrower spec uses; None for all."""
        if spec is self.specs[-1]:
            return None
        keys = [path.degrees for path in self.specs[-1].paths]
        return torch.tensor([keys.index(path.degrees) for path in spec.paths])

    def paths(self, x: Tensor) -> Tensor | None:
        """Rows of the weights that an input of this many components needs."""
        return getattr(self, f"rows_{lmax_of(x)}")

    def forward(self, x: Tensor, harmonics: Tensor, weights: Tensor, edges: Edges) -> Tensor:
        """x (n, d, C), harmonics (E, (lmax_edge + 1)^2), weights (E, paths, C); summed in the harmonics' precision."""
        dtype = harmonics.dtype
        return conv(x.to(dtype), harmonics, weights.to(dtype), edges, self.specs[lmax_of(x)], backend=self.backend)


class ManyBodyProduct(nn.Module):
    """Products of a node's features with themselves up to ``correlation``, weighted by the node's embedding.

    B = c1 A + c2 (A x A) + c3 ((A x A) x A), channel by channel, as in the atomic cluster expansion (Drautz, 2019;
    Batatia et al., 2022); the weights of all paths are a linear map of the node embedding, so they carry element,
    dataset, charge and spin.
    """

    def __init__(self, channels: int, lmax: int, lmax_out: int, correlation: int, backend: str) -> None:
        super().__init__()
        self.channels, self.lmax_out, self.backend = channels, lmax_out, backend
        features = _irreps(channels, lmax)
        self.specs = [
            Spec.summed(
                features,
                features,
                _irreps(channels, lmax_out if order == correlation else lmax),
                y_channels=True,
                ordered=order == 2,
            )
            for order in range(2, correlation + 1)
        ]
        self.rows = [lmax_out + 1] + [len(spec.paths) for spec in self.specs]
        self.weights = nn.Linear(channels, sum(self.rows) * channels)
        with torch.no_grad():
            self.weights.weight.normal_(std=0.3 / math.sqrt(channels))
            scales = [1.0 if order == 0 else math.sqrt((lmax + 1) / rows) for order, rows in enumerate(self.rows)]
            biases = [torch.randn(rows, channels) * scale for rows, scale in zip(self.rows, scales, strict=True)]
            self.weights.bias.copy_(torch.cat(biases).flatten())

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(n, (lmax + 1)^2, C), embedding (n, C) -> (n, (lmax_out + 1)^2, C)."""
        x = x.to(embedding.dtype)  # products of products stay in full precision
        weights = self.weights(embedding).to(x.dtype).view(x.shape[0], -1, self.channels).split(self.rows, dim=1)
        degrees = split_degrees(pad_degrees(x, self.lmax_out))
        total = torch.cat(
            [part * weight for part, weight in zip(degrees, weights[0].split(1, dim=1), strict=True)], dim=1
        )
        power = x
        for spec, path_weights in zip(self.specs, weights[1:], strict=True):
            power = product(power, x, path_weights, spec, backend=self.backend)
            total = total + pad_degrees(power, self.lmax_out)
        return total


class Block(nn.Module):
    """norm -> linear -> convolution -> linear -> product -> linear -> residual; norm -> feed-forward -> residual."""

    def __init__(
        self,
        channels: int,
        lmax_in: int,
        lmax_edge: int,
        lmax_out: int,
        correlation: int,
        radial_basis: int,
        radial_hidden: list[int],
        edge_scalars: dict[str, int],
        expansion: int,
        backend: str,
    ) -> None:
        super().__init__()
        self.lmax_out = lmax_out
        self.norm = DegreeNorm(channels, lmax_in)
        self.linear_in = DegreeLinear(channels, channels, lmax_in)
        self.convolution = Convolution(channels, lmax_in, lmax_edge, lmax_edge, backend)
        self.radial = RadialNetwork(radial_basis, radial_hidden, self.convolution.num_paths, channels, edge_scalars)
        self.linear_message = DegreeLinear(channels, channels, lmax_edge)
        self.product = ManyBodyProduct(channels, lmax_edge, lmax_out, correlation, backend)
        self.linear_out = DegreeLinear(channels, channels, lmax_out)
        self.feed_forward_norm = DegreeNorm(channels, lmax_out)
        self.feed_forward = FeedForward(channels, lmax_out, expansion)

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        geometry: EdgeGeometry,
        edges: Edges,
        mean_neighbors: Tensor,
        kind: str,
        edge_scalars: Tensor | None,
    ) -> Tensor:
        """x (n, d, C) -> (n, (lmax_out + 1)^2, C)."""
        sent = self.linear_in(self.norm(x))
        weights = self.radial(
            geometry, embedding, edges.senders, edges.receivers, kind, edge_scalars, self.convolution.paths(sent)
        )
        message = self.convolution(sent, geometry.harmonics, weights, edges) * torch.rsqrt(mean_neighbors)
        update = self.linear_out(self.product(self.linear_message(message), embedding))
        x = pad_degrees(x, self.lmax_out) + update
        return x + self.feed_forward(self.feed_forward_norm(x))
