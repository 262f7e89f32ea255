"""One block of the backbone: convolution over edges, many-body product, feed-forward; each with a residual."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor, nn

from sciml.models.layers import DegreeLinear, FeedForward, lmax_of
from sciml.models.radial import RadialNetwork
from sciml.models.recompute import recomputed
from sciml_kernels import EdgeEmbedding, Edges, Spec, conv_radial, product


@dataclass(frozen=True)
class EdgeSet:
    """Edges with their geometry: what a convolution runs along.

    ``mean_neighbors`` () is the mean number of edges at a receiver, ``scalars`` (E, k) optional invariant inputs.
    """

    edges: Edges
    embedding: EdgeEmbedding
    mean_neighbors: Tensor
    scalars: Tensor | None = None


def _irreps(channels: int, lmax: int) -> o3.Irreps:
    """``channels`` copies of every degree 0..lmax in natural parity."""
    return o3.Irreps([(channels, ir) for _, ir in o3.Irreps.spherical_harmonics(lmax)])


class Convolution(nn.Module):
    """Trilinear equivariant convolution: node features x edge harmonics x edge weights, summed at the receiver.

    The weights of an edge are a linear map, without bias, of the radial network's last layer. Maps
    (n, (lmax_in + 1)^2, C) to (n, (lmax_out + 1)^2, C); inputs with fewer degrees use the paths they have.
    """

    def __init__(self, channels: int, hidden: int, lmax_in: int, lmax_edge: int, lmax_out: int, backend: str) -> None:
        super().__init__()
        self.backend = backend
        harmonics = o3.Irreps.spherical_harmonics(lmax_edge)
        out = _irreps(channels, lmax_out)
        self.specs = [Spec.summed(_irreps(channels, lmax), harmonics, out) for lmax in range(lmax_in + 1)]
        paths = len(self.specs[-1].paths)
        self.weight = nn.Parameter(torch.randn(hidden, paths, channels) / math.sqrt(hidden))
        for lmax, spec in enumerate(self.specs[:-1]):
            self.register_buffer(f"paths_{lmax}", self._paths(spec), persistent=False)

    def _paths(self, spec: Spec) -> Tensor:
        """Which paths of the widest spec a narrower one has."""
        keys = [path.degrees for path in self.specs[-1].paths]
        return torch.tensor([keys.index(path.degrees) for path in spec.paths])

    def forward(self, x: Tensor, harmonics: Tensor, hidden: Tensor, edges: Edges, scale: Tensor) -> Tensor:
        """x (n, d, C), harmonics (E, (lmax_edge + 1)^2), hidden (E, hidden), scale () of the sum.

        Computes in the precision of the harmonics.
        """
        dtype, lmax = harmonics.dtype, lmax_of(x)
        weight = self.weight if lmax == len(self.specs) - 1 else self.weight[:, getattr(self, f"paths_{lmax}")]
        weight = (weight * scale).flatten(1).to(dtype)
        return conv_radial(
            x.to(dtype), harmonics, hidden.to(dtype), weight, edges, self.specs[lmax], backend=self.backend
        )


class ManyBodyProduct(nn.Module):
    """Products of a node's features with themselves up to ``correlation``, weighted by the node's embedding.

    Nested as ((c3 A + c2) A + c1) A with A (x) A the coupling of channels alike, as in the atomic cluster expansion
    (Drautz, 2019; Batatia et al., 2022): every factor is A beside the constant 1. The weights of all paths are a linear
    map of the node embedding, so they carry element, dataset, charge and spin.
    """

    def __init__(self, channels: int, lmax: int, lmax_out: int, correlation: int, backend: str) -> None:
        super().__init__()
        self.channels, self.backend = channels, backend
        last = max(correlation, 2)
        self.specs = [
            self._spec(lmax, lmax_out if order == last else lmax, min(order, correlation))
            for order in range(2, last + 1)
        ]
        self.rows = [len(spec.paths) for spec in self.specs]
        self.weights = nn.Linear(channels, sum(self.rows) * channels)
        with torch.no_grad():
            self.weights.weight.normal_(std=0.3 / math.sqrt(channels))
            biases = [torch.randn(rows, channels) * math.sqrt((lmax + 1) / rows) for rows in self.rows]
            self.weights.bias.copy_(torch.cat(biases).flatten())

    def _spec(self, lmax: int, lmax_out: int, order: int) -> Spec:
        """x (x) (1 + A) up to ``order``; A (x) A is symmetric, so that half of its couplings are enough."""
        features = _irreps(self.channels, lmax)
        factor = o3.Irreps([(self.channels, "0e"), *features])
        spec = Spec.summed(features, factor, _irreps(self.channels, lmax_out), y_channels=True)
        if order > 2:
            return spec
        paths = (path for path in spec.paths if path.y == 0 or (order == 2 and path.degrees[0] <= path.degrees[1]))
        return dataclasses.replace(spec, paths=tuple(paths))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(n, (lmax + 1)^2, C), embedding (n, C) -> (n, (lmax_out + 1)^2, C)."""
        x = x.to(embedding.dtype)  # products of products stay in full precision
        weights = self.weights(embedding).to(x.dtype).view(x.shape[0], sum(self.rows), self.channels)
        factor = torch.cat([torch.ones_like(x[:, :1]), x], dim=1)
        for spec, path_weights in zip(self.specs, weights.split(self.rows, dim=1), strict=True):
            x = product(x, factor, path_weights, spec, backend=self.backend)
        return x


class Block(nn.Module):
    """norm -> linear -> convolution -> linear -> product -> linear -> residual; norm -> feed-forward -> residual.

    ``lmax_in`` is the highest degree of the senders' features, ``lmax_out`` that of the result; ``radial`` {basis,
    hidden}; ``edge_scalars`` {kind: their number}. With ``recompute`` set nothing inside is kept for a backward pass,
    which computes it again.
    """

    recompute = False

    def __init__(
        self,
        channels: int,
        lmax_in: int,
        lmax_edge: int,
        lmax_out: int,
        correlation: int,
        radial: dict,
        edge_scalars: dict[str, int],
        expansion: int,
        backend: str,
    ) -> None:
        super().__init__()
        hidden = radial["hidden"]
        self.linear_in = DegreeLinear(channels, channels, lmax_in, backend)
        self.radial = RadialNetwork(radial["basis"], hidden, channels, edge_scalars, backend)
        self.convolution = Convolution(channels, hidden[-1], lmax_in, lmax_edge, lmax_edge, backend)
        self.linear_message = DegreeLinear(channels, channels, lmax_edge, backend)
        self.product = ManyBodyProduct(channels, lmax_edge, lmax_out, correlation, backend)
        self.linear_out = DegreeLinear(channels, channels, lmax_out, backend)
        self.feed_forward = FeedForward(channels, lmax_out, expansion, backend)

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        along: EdgeSet,
        kind: str,
        senders: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """x (n, d, C) with its invariant ``embedding`` (n, C) -> (n, (lmax_out + 1)^2, C).

        ``senders`` holds features and embedding of the other side where the edges are bipartite.
        """
        if not (self.recompute and torch.is_grad_enabled()):
            return self._forward(x, embedding, along, kind, senders)

        def again(x: Tensor, embedding: Tensor, *others: Tensor) -> Tensor:
            edges = dataclasses.replace(along, embedding=EdgeEmbedding(*others[:3]))
            return self._forward(x, embedding, edges, kind, others[3:] or None)

        tensors = [x, embedding, *along.embedding, *(senders or ())]
        return recomputed(again, tensors, list(self.parameters()))

    def _forward(
        self, x: Tensor, embedding: Tensor, along: EdgeSet, kind: str, senders: tuple[Tensor, ...] | None
    ) -> Tensor:
        sent, of_sender = (x, embedding) if senders is None else senders
        hidden = self.radial(along.embedding, along.edges, of_sender, embedding, kind, along.scalars)
        sent = self.linear_in(sent, norm=True)
        scale = torch.rsqrt(along.mean_neighbors)
        message = self.convolution(sent, along.embedding.harmonics, hidden, along.edges, scale)
        # A cube of the message would outgrow everything else; an epsilon of one leaves small messages as they are.
        message = self.linear_message(message, norm=True, eps=1.0)
        x = self.linear_out(self.product(message, embedding), residual=x)
        return self.feed_forward(x)
