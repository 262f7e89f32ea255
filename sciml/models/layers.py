"""Equivariant layers on features of shape [node, component, channel] with degrees 0..lmax in natural parity.

Component ``l * l + m`` holds the m-th component of degree l in e3nn's real basis (degree 1 is x, y, z).
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn


def num_components(lmax: int) -> int:
    """Number of components of the degrees 0..lmax."""
    return (lmax + 1) ** 2


def lmax_of(x: Tensor) -> int:
    """Highest degree of features [node, component, channel]."""
    return math.isqrt(x.shape[1]) - 1


def degree_of_component(lmax: int) -> Tensor:
    """Degree of each component, shape ((lmax + 1)^2,)."""
    return torch.repeat_interleave(torch.arange(lmax + 1), 2 * torch.arange(lmax + 1) + 1)


def pad_degrees(x: Tensor, lmax: int) -> Tensor:
    """Add zero components up to degree ``lmax``, or drop those above it."""
    missing = num_components(lmax) - x.shape[1]
    if missing <= 0:
        return x[:, : num_components(lmax)]
    return torch.nn.functional.pad(x, (0, 0, 0, missing))


def split_degrees(x: Tensor) -> tuple[Tensor, ...]:
    """The components of each degree, (n, 2 l + 1, C)."""
    return x.split([2 * degree + 1 for degree in range(lmax_of(x) + 1)], dim=1)


class DegreeLinear(nn.Module):
    """A linear map of the channels for each degree, with a bias on the invariants.

    Maps [node, component, channels_in] to [node, component, channels_out]; accepts any lmax up to its own.
    """

    def __init__(self, channels_in: int, channels_out: int, lmax: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            torch.randn(channels_in, channels_out) / math.sqrt(channels_in) for _ in range(lmax + 1)
        )
        self.bias = nn.Parameter(torch.zeros(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        invariants, *others = split_degrees(x)
        parts = [torch.addmm(self.bias, invariants.squeeze(1), self.weights[0]).unsqueeze(1)]
        parts += [part @ weight for part, weight in zip(others, self.weights[1:], strict=False)]
        return torch.cat(parts, dim=1) if others else parts[0]


class DegreeNorm(nn.Module):
    """Equivariant RMS norm: x / rms, where every degree has the same say in the mean square.

    Follows the degree-balanced RMS norm of EquiformerV2 (Liao et al., 2023), without centring, and without gains, which
    the linear map that follows would absorb.
    """

    balance: Tensor

    def __init__(self, channels: int, lmax: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        weights = 1.0 / (channels * (2 * degree_of_component(lmax) + 1.0))
        self.register_buffer("balance", weights, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.balance[: x.shape[1]].to(x.dtype) / (lmax_of(x) + 1)
        mean_square = (x.square() * weights[:, None]).sum(dim=(1, 2), keepdim=True)
        return x * torch.rsqrt(mean_square + self.eps)


class FeedForward(nn.Module):
    """Gated equivariant feed-forward: invariants pass SiLU, every other degree is gated by invariants."""

    def __init__(self, channels: int, lmax: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.expand = DegreeLinear(channels, hidden, lmax)
        self.gates = nn.Linear(channels, lmax * hidden) if lmax > 0 else None
        self.contract = DegreeLinear(hidden, channels, lmax)
        for weight in self.contract.weights:
            nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.expand(x)
        if self.gates is None:
            return self.contract(silu(hidden))
        invariants, *others = split_degrees(hidden)
        gates = torch.sigmoid(self.gates(x[:, 0])).view(x.shape[0], -1, hidden.shape[2]).split(1, dim=1)
        gated = [part * gate for part, gate in zip(others, gates, strict=False)]
        return self.contract(torch.cat([silu(invariants), *gated], dim=1))


class _SiLU(torch.autograd.Function):
    """SiLU whose derivatives to second order each take one pass; torch's own second derivative takes a dozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.silu(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _SiLUBackward.apply(gradient, x)


class _SiLUBackward(torch.autograd.Function):
    """gradient * silu'(x)."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(gradient, x)
        return torch.ops.aten.silu_backward(gradient, x)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor]:
        gradient, x = ctx.saved_tensors
        sigmoid = torch.sigmoid(x)
        # silu'' = s (1 - s) (2 + x (1 - 2 s)), with s the sigmoid
        curvature = torch.addcmul(x, x, sigmoid, value=-2.0).add_(2.0).mul_(sigmoid).mul_(1.0 - sigmoid)
        return torch.ops.aten.silu_backward(outer, x), curvature.mul_(outer).mul_(gradient)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), twice differentiable."""
    return _SiLU.apply(x)


class SiLU(nn.Module):
    """:func:`silu` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return silu(x)


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context in which nothing is cast below the precision of its inputs, for geometry and reductions."""
    return torch.autocast(tensor.device.type, enabled=False)


def multilayer_perceptron(widths: list[int]) -> nn.Sequential:
    """Linear layers with SiLU between them: widths[0] inputs, widths[-1] outputs."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), SiLU()]
    return nn.Sequential(*layers[:-1])
