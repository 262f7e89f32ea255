"""Blocks that keep their inputs alone and are computed again in every backward pass, right to the second order.

``torch.utils.checkpoint`` is right for forces too but saves nothing there: the backward pass that makes the forces is
kept for the loss on them, with all that was computed again for it. Here that backward pass is an operation of its own
that keeps its inputs alone, after the recomputation of Chen et al. (2016) applied twice.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sciml.errors import UserError

Function = Callable[..., Tensor]


def recomputed(function: Function, tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """``function(*tensors)``, of which nothing is kept but ``tensors``; may be differentiated twice.

    ``parameters`` are all leaves with a gradient that the function uses beside its arguments. It must give the same
    numbers every time: no randomness, no state.

    In mixed precision first derivatives are those of a function that keeps everything, to the last bit. Second ones
    differ by the rounding of sums: what comes back through a first derivative and through the function itself meets at
    the inputs here, and after every operation there.
    """
    return _Forward.apply(_Again(function, len(tensors), tensors[0].device.type), *tensors, *parameters)


def recompute_blocks(model: nn.Module) -> None:
    """Switch the blocks of a model to :func:`recomputed`. Raises UserError where it has none that can."""
    blocks: list[Any] = [module for module in model.modules() if hasattr(module, "recompute")]
    if not blocks:
        raise UserError("trainer.recompute: found true, but the model has no block that can; use false.")
    for block in blocks:
        block.recompute = True


class _Again:
    """A function with the precision that it was first called in, and its derivative."""

    def __init__(self, function: Function, arguments: int, device: str) -> None:
        self.function, self.arguments, self.device = function, arguments, device
        self.autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def derivative(
        self, inputs: Sequence[Tensor], needed: Sequence[bool], grad: Tensor, create_graph: bool
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """What ``needed`` inputs the gradient was taken for, as leaves, and the gradients, from that of the output."""
        tensors, parameters = inputs[: self.arguments], inputs[self.arguments :]
        leaves = [x.detach().requires_grad_(need) for x, need in zip(tensors, needed, strict=False)]
        enabled, dtype = self.autocast
        with torch.enable_grad():
            with torch.autocast(self.device, dtype=dtype, enabled=enabled):
                # Views: the cast of a leaf is kept, and all gradients that meet there are summed in its precision.
                output = self.function(*(leaf.view_as(leaf) for leaf in leaves))
            wanted = [x for x, need in zip([*leaves, *parameters], needed, strict=True) if need]
            return wanted, list(torch.autograd.grad(output, wanted, grad, create_graph=create_graph, allow_unused=True))


class _Forward(torch.autograd.Function):
    """The function, and its derivative as :class:`_Derivative`."""

    @staticmethod
    def forward(ctx: Any, again: _Again, *inputs: Tensor) -> Tensor:
        ctx.again = again
        ctx.save_for_backward(*inputs)
        return again.function(*inputs[: again.arguments])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        return (None, *_Derivative.apply(ctx.again, needed, torch.is_grad_enabled(), grad, *ctx.saved_tensors))


class _Derivative(torch.autograd.Function):
    """The derivative of the function, and its own derivative, each by computing the function again."""

    @staticmethod
    def forward(ctx: Any, again: _Again, needed: tuple[bool, ...], twice: bool, grad: Tensor, *inputs: Tensor) -> Any:
        ctx.again, ctx.needed = again, needed
        ctx.save_for_backward(grad, *inputs)
        # A graph that nobody keeps: torch has other formulas where there is one, which round otherwise in bfloat16.
        _, found = again.derivative(inputs, needed, grad, create_graph=twice and again.autocast[0])
        return _spread([None if one is None else one.detach() for one in found], needed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *seconds: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, *inputs = ctx.saved_tensors
        grad = grad.detach().requires_grad_()
        wanted, found = ctx.again.derivative(inputs, ctx.needed, grad, create_graph=True)
        asked = [second for second, need in zip(seconds, ctx.needed, strict=True) if need]
        pairs = [
            (first, second)
            for first, second in zip(found, asked, strict=True)
            if first is not None and second is not None and first.requires_grad
        ]
        if not pairs:
            return (None,) * (4 + len(inputs))
        outputs, weights = zip(*pairs, strict=True)
        of_grad, *of_inputs = torch.autograd.grad(outputs, [grad, *wanted], weights, allow_unused=True)
        return (None, None, None, of_grad, *_spread(of_inputs, ctx.needed))


def _spread(found: Sequence[Tensor | None], needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Gradients in the order of all inputs, None for those that need none."""
    values = iter(found)
    return tuple(next(values) if need else None for need in needed)
