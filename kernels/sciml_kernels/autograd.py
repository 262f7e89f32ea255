"""What the autograd formulas of all operators share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def wanted(ctx: Any, names: str, given: tuple[bool, ...] | None = None) -> str:
    """Which gradients a backward pass is to compute: one letter of `names` for each of the first inputs.

    `ctx.needs_input_grad` tells which inputs are differentiable at all. When forces are taken (gradients to positions
    alone), nobody asks for the gradients to parameters, and computing them would be half of the work: the engine knows.

    Args:
        ctx: of the autograd formula.
        names: one letter for each input, from the first on.
        given: which of these inputs were tensors; all unless told.
    """
    nodes = iter(getattr(ctx, "next_functions", ()))
    found = ""
    for name, tensor, needed in zip(names, given or (True,) * len(names), ctx.needs_input_grad, strict=False):
        node = next(nodes, (None, 0))[0] if tensor else None
        if needed and (node is None or _will_run(node)):
            found += name
    return found


def _will_run(node: Any) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf whose gradient autograd.grad was asked for; or no engine runs, while tracing
        return True


def given(found: Mapping[str, Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """The gradients found, empty tensors for the others: operators cannot return None."""
    return tuple(like.new_empty(0) if tensor is None else tensor for tensor in found.values())


def fake(names: str, like: tuple[Tensor, ...], wants: str) -> tuple[Tensor, ...]:
    """What :func:`given` returns, without data."""
    return tuple(
        tensor.new_empty(tensor.shape if name in wants else (0,)) for name, tensor in zip(names, like, strict=True)
    )


def used(found: tuple[Tensor, ...], names: str, wants: str) -> tuple[Tensor | None, ...]:
    """What an operator returned for `names`, None where it was not wanted."""
    return tuple(tensor if name in wants else None for name, tensor in zip(names, found, strict=True))


def refuse_third(ctx: Any, *grads: Tensor) -> None:
    """The autograd formula of a double backward pass.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "sciml_kernels: third derivatives are not available in compiled kernels, use backend='reference' for them"
    )
