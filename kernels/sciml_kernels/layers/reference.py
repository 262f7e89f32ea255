"""The definitions of the layers in plain torch: any dtype, any order of derivative by autograd."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciml_kernels.half import in_single


def degrees_of(x: Tensor) -> list[Tensor]:
    """The components of each degree, (n, 2 l + 1, channels)."""
    return list(x.split([2 * degree + 1 for degree in range(math.isqrt(x.shape[1]))], dim=1))


@in_single
def degree_norm(x: Tensor, eps: float) -> Tensor:
    """x / rms, where every degree has the same say in the mean square."""
    mean_square = torch.stack([part.square().mean(dim=(1, 2)) for part in degrees_of(x)]).mean(0)
    return x * torch.rsqrt(mean_square + eps)[:, None, None]


@in_single
def degree_linear(x: Tensor, weights: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x[l] @ weights[l] for each degree, plus the bias on the invariants and the residual where it has components."""
    parts = [part @ weight for part, weight in zip(degrees_of(x), weights, strict=False)]
    if bias is not None:
        parts[0] = parts[0] + bias
    out = torch.cat(parts, dim=1)
    return out if residual is None else out + fit_components(residual, x.shape[1])


def fit_components(x: Tensor, components: int) -> Tensor:
    """Zero components added, or the last ones dropped."""
    missing = components - x.shape[1]
    return x[:, :components] if missing <= 0 else torch.nn.functional.pad(x, (0, 0, 0, missing))


@in_single
def gate(x: Tensor, gates: Tensor | None) -> Tensor:
    """SiLU of the invariants; degree l times sigmoid(gates[:, l - 1])."""
    invariants, *others = degrees_of(x)
    parts = [silu(invariants)]
    if gates is not None:
        parts += [part * gates[:, i : i + 1].sigmoid() for i, part in enumerate(others)]
    return torch.cat(parts, dim=1)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return torch.nn.functional.silu(x)
