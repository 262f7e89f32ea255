"""Equivariant layers on features of shape [node, component, channel] with degrees 0..lmax in natural parity.

Component ``l * l + m`` holds the m-th component of degree l in e3nn's real basis (degree 1 is x, y, z).
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from sciml_kernels import degree_linear, degree_norm, gate, segment_expand, silu


def num_components(lmax: int) -> int:
    """Number of components of the degrees 0..lmax."""
    return (lmax + 1) ** 2


def lmax_of(x: Tensor) -> int:
    """Highest degree of features [node, component, channel]."""
    return math.isqrt(x.shape[1]) - 1


def pad_degrees(x: Tensor, lmax: int) -> Tensor:
    """Add zero components up to degree ``lmax``, or drop those above it."""
    missing = num_components(lmax) - x.shape[1]
    if missing <= 0:
        return x[:, : num_components(lmax)]
    return torch.nn.functional.pad(x, (0, 0, 0, missing))


def at_nodes(of_graphs: Tensor, batch: Batch, backend: str = "auto") -> Tensor:
    """The row (B, ...) of its graph for every fine node, (n, ...); gradients are sums in the order of the nodes.

    Indexing as such would let a GPU add them one by one.
    """
    return segment_expand(of_graphs, batch.ptr, batch.batch.shape[0], backend)


class DegreeLinear(nn.Module):
    """A linear map of the channels for each degree, with a bias on the invariants; see sciml_kernels.degree_linear.

    Maps [node, component, channels_in] to [node, component, channels_out]; accepts any lmax up to its own.
    """

    def __init__(self, channels_in: int, channels_out: int, lmax: int, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend
        self.weights = nn.Parameter(torch.randn(lmax + 1, channels_in, channels_out) / math.sqrt(channels_in))
        self.bias = nn.Parameter(torch.zeros(channels_out))

    def forward(self, x: Tensor, residual: Tensor | None = None, norm: bool = False, eps: float = 1e-5) -> Tensor:
        """Add ``residual`` where given (missing degrees count as zero); ``norm`` maps the RMS-normalised x instead."""
        if not torch.is_autocast_enabled(x.device.type):
            return degree_linear(x, self.weights, self.bias, residual, norm=norm, eps=eps, backend=self.backend)
        low = torch.get_autocast_dtype(x.device.type)
        x = degree_norm(x, eps, self.backend) if norm else x
        out = degree_linear(x.to(low), self.weights.to(low), self.bias.to(low))
        return out if residual is None else pad_degrees(residual, lmax_of(out)) + out


class FeedForward(nn.Module):
    """Gated equivariant feed-forward with its norm and residual: invariants pass SiLU, the other degrees are gated by
    invariants.
    """

    def __init__(self, channels: int, lmax: int, expansion: int, backend: str = "auto") -> None:
        super().__init__()
        hidden = channels * expansion
        self.backend = backend
        self.expand = DegreeLinear(channels, hidden, lmax, backend)
        self.gates = nn.Linear(channels, lmax * hidden) if lmax > 0 else None
        self.contract = DegreeLinear(hidden, channels, lmax, backend)
        nn.init.zeros_(self.contract.weights)

    def forward(self, x: Tensor) -> Tensor:
        normed = degree_norm(x, backend=self.backend)
        hidden = self.expand(normed)
        gates = None
        if self.gates is not None:
            width = hidden.shape[2]
            gates = self.gates(normed[:, 0]).view(x.shape[0], self.gates.out_features // width, width)
        return self.contract(gate(hidden, gates, self.backend), residual=x)


class SiLU(nn.Module):
    """x * sigmoid(x) with one pass a derivative, to the second."""

    def forward(self, x: Tensor) -> Tensor:
        return silu(x)


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context in which nothing is cast below the precision of its inputs, for geometry and reductions."""
    return torch.autocast(tensor.device.type, enabled=False)


def multilayer_perceptron(widths: list[int], zero: bool = False) -> nn.Sequential:
    """Linear layers with SiLU between them: widths[0] inputs, widths[-1] outputs; ``zero`` until it is trained."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        last = nn.Linear(width_in, width_out)
        layers += [last, SiLU()]
    if zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers[:-1])
