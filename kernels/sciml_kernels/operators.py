"""Torch operators that cost little to call: registered for compilers, without the dispatcher where nothing watches.

`torch.library.custom_op` costs about as much as ten small torch operations in every pass, which on a CPU is more than
many kernels take. Its registrations are needed by torch.compile, torch.export, tracers and functorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sciml_kernels.checks import PLAIN, traced


class Operator:
    """A function of tensors and plain values as `torch.library.custom_op` makes it, with a short way in eager mode.

    Both ways run the same function and the same autograd formula, so they give the same numbers. Use as a decorator:

        @operator("sciml_kernels::name")
        def name(x: Tensor, backend: str) -> Tensor: ...
    """

    def __init__(self, name: str, function: Callable[..., Any], schema: str | None = None) -> None:
        self._function = function
        self._registered = torch.library.custom_op(name, function, mutates_args=(), schema=schema)
        self._node: type[torch.autograd.Function] | None = None
        self.register_fake = self._registered.register_fake
        self.__doc__ = function.__doc__

    def register_autograd(
        self, backward: Callable[..., Any], setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None = None
    ) -> None:
        """As `CustomOpDef.register_autograd`; the formula may call other operators and is traced as it is."""
        self._registered.register_autograd(backward, setup_context=setup_context)
        self._node = _node(self._function, backward, setup_context)

    def __call__(self, *arguments: Any) -> Any:
        if forward_ad._current_level >= 0:
            self._refuse_tangents(arguments)
        if traced() or torch._C._are_functorch_transforms_active():
            return self._registered(*arguments)
        differentiable = False
        for value in arguments:
            if isinstance(value, Tensor):
                if type(value) not in PLAIN:
                    return self._registered(*arguments)
                differentiable = differentiable or value.requires_grad
        if self._node is None or not differentiable or not torch.is_grad_enabled():
            return self._function(*arguments)
        return self._node.apply(*arguments)

    def _refuse_tangents(self, arguments: tuple[Any, ...]) -> None:
        """Raise NotImplementedError where forward-mode differentiation would lose a tangent without a word."""
        tensors = (value for value in arguments if isinstance(value, Tensor))
        if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
            raise NotImplementedError(
                "forward-mode derivatives: found a tangent at a compiled operation, which has those of reverse mode "
                'only; call it with backend="reference".'
            )


def operator(name: str, schema: str | None = None) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator: see :class:`Operator`; without a schema the annotations of the function are one."""
    return lambda function: Operator(name, function, schema)


def _node(
    function: Callable[..., Any],
    formula: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None,
) -> type[torch.autograd.Function]:
    """The autograd node of the short way, named as the function: profilers show it."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = function(*arguments)
        if setup_context is not None:
            setup_context(ctx, arguments, output)
        return output

    def backward(ctx: Any, *gradients: Any) -> Any:
        return formula(ctx, *gradients)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(function.__name__, (torch.autograd.Function,), methods)
