"""The definition in plain torch: any dtype, any order of derivative by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sciml_kernels.half import in_single

Activation = Callable[[Tensor], Tensor]


def layers(parameters: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The weight (out, in) and the bias (out,) of every layer from the flat (parameters,); ``sizes`` from the first
    input to the last output.
    """
    shapes = list(zip(sizes[1:], sizes, strict=False))
    parts = iter(parameters.split([size for out, inner in shapes for size in (out * inner, out)]))
    return [(next(parts).view(out, inner), next(parts)) for out, inner in shapes]


@in_single
def radial_network(
    basis: Tensor,
    shift: Tensor,
    envelope: Tensor,
    parameters: Tensor,
    sizes: Sequence[int],
    activation: Activation = torch.nn.functional.silu,
) -> Tensor:
    """silu(W_L ... silu(W_2 silu(W_1 basis + b_1 + shift) + b_2) ... + b_L) * envelope."""
    (first, bias), *others = layers(parameters, sizes)
    hidden = torch.nn.functional.linear(basis, first, bias) + shift
    for weight, bias in others:
        hidden = torch.nn.functional.linear(activation(hidden), weight, bias)
    return activation(hidden) * envelope
