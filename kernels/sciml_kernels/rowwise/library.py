"""Row-wise functions as torch operators, differentiable twice: forward, backward and double backward.

`register` makes the three operators of a family of functions. A member of the family travels as its key, because
operators take tensors and plain values only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml_kernels.rowwise import cpu
from sciml_kernels.rowwise.function import Function, Pass, backward, double_backward, forward

Names = tuple[str, ...]


class Family(NamedTuple):
    """Functions with the same names of inputs and outputs.

    Attributes:
        name: of the operators.
        inputs, outputs: names of the arrays; a function may lack outputs, which are then empty tensors.
        function: from a key to the function.
    """

    name: str
    inputs: Names
    outputs: Names
    function: Callable[[str], Function]


def register(family: Family) -> Callable[..., Any]:
    """The operator sciml_kernels::<name>(*inputs, key, backend) -> outputs, with its derivatives."""
    return _Operators(family).forward


class _Operators:
    """The three operators and what autograd needs of them."""

    def __init__(self, family: Family) -> None:
        self.family = family
        inputs, outputs = family.inputs, family.outputs
        tail = ("str key", "str backend")
        tensors, maybe = [f"Tensor {name}" for name in inputs], [f"Tensor? g_{name}" for name in outputs]
        tangents = [f"Tensor? u_{name}" for name in inputs]
        self.forward = self._operator("", self._forward, [*tensors, *tail], len(outputs))
        self.backward = self._operator("_backward", self._backward, [*maybe, *tensors, *tail, "str wants"], len(inputs))
        self.double_backward = self._operator(
            "_double_backward",
            self._double_backward,
            [*tangents, *maybe, *tensors, *tail, "str wants"],
            len(inputs) + len(outputs),
        )
        self.forward.register_fake(self._fake_forward)
        self.backward.register_fake(self._fake_backward)
        self.double_backward.register_fake(self._fake_double_backward)
        self.forward.register_autograd(self._differentiate, setup_context=self._keep)
        self.backward.register_autograd(self._differentiate_again, setup_context=self._keep_first)
        self.double_backward.register_autograd(_third)

    def _operator(self, suffix: str, body: Callable[..., Any], arguments: list[str], results: int) -> Any:
        returned = "Tensor" if results == 1 else f"({', '.join(['Tensor'] * results)})"
        schema = f"({', '.join(arguments)}) -> {returned}"
        return torch.library.custom_op(
            f"sciml_kernels::{self.family.name}{suffix}", body, mutates_args=(), schema=schema
        )

    def _forward(self, *arguments: Any) -> Any:
        *inputs, key, backend = arguments
        found = _run(self.family, "forward", key, backend, dict(zip(self.family.inputs, inputs)), (), (), ())
        return _results(found, self.family.outputs, inputs[0])

    def _backward(self, *arguments: Any) -> Any:
        *tensors, key, backend, wants = arguments
        arrays, given = self._arrays(tensors)
        found = _run(self.family, "backward", key, backend, arrays, (), given, _split(wants))
        return _results(found, self.family.inputs, tensors[-1])

    def _double_backward(self, *arguments: Any) -> Any:
        *tensors, key, backend, wants = arguments
        inputs = self.family.inputs
        tangents = {f"u_{name}": u for name, u in zip(inputs, tensors) if u is not None}
        arrays, given = self._arrays(tensors[len(inputs) :])
        along = tuple(name[2:] for name in tangents)
        found = _run(self.family, "double_backward", key, backend, arrays | tangents, along, given, _split(wants))
        return _results(found, (*inputs, *self.family.outputs), tensors[-1])

    def _arrays(self, tensors: Sequence[Tensor | None]) -> tuple[dict[str, Tensor], Names]:
        """Gradients and inputs by name, and the outputs whose gradients are there."""
        names = [*(f"g_{name}" for name in self.family.outputs), *self.family.inputs]
        arrays = {name: tensor for name, tensor in zip(names, tensors, strict=True) if tensor is not None}
        return arrays, tuple(name for name in self.family.outputs if f"g_{name}" in arrays)

    def _fake_forward(self, *arguments: Any) -> Any:
        like, widths = arguments[0], self.family.function(arguments[-2]).outputs
        empty = {name: like.new_empty(like.shape[0], width) for name, width in widths.items()}
        return _results(empty, self.family.outputs, like)

    def _fake_backward(self, *arguments: Any) -> Any:
        return self._fake_gradients(arguments, self.family.inputs)

    def _fake_double_backward(self, *arguments: Any) -> Any:
        return self._fake_gradients(arguments, (*self.family.inputs, *self.family.outputs))

    def _fake_gradients(self, arguments: tuple[Any, ...], names: Names) -> Any:
        *_, like, key, _, wants = arguments
        function = self.family.function(key)
        widths = {**function.inputs, **function.outputs}
        empty = {name: like.new_empty(like.shape[0], widths[name]) for name in _split(wants)}
        return _results(empty, names, like)

    def _keep(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.key, ctx.backend = inputs
        ctx.set_materialize_grads(False)  # an output that nobody used drops out of the kernel
        ctx.save_for_backward(*tensors)

    def _differentiate(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        names = self.family.inputs
        wants = _wanted(names, ctx.needs_input_grad)
        widths = self.family.function(ctx.key).outputs
        given = [grad if name in widths else None for name, grad in zip(self.family.outputs, grads)]
        if not wants or all(grad is None for grad in given):
            return (None,) * (len(names) + 2)
        found = self.backward(*given, *ctx.saved_tensors, ctx.key, ctx.backend, ",".join(wants))
        return *_kept(found, names, wants), None, None

    def _keep_first(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.key, ctx.backend, wants = inputs
        ctx.wants = _split(wants)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    def _differentiate_again(self, ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, outputs = self.family.inputs, self.family.outputs
        along = [u if name in ctx.wants else None for name, u in zip(inputs, tangents)]
        wants = _wanted((*outputs, *inputs), ctx.needs_input_grad)
        if not wants or all(u is None for u in along):
            return (None,) * (len(outputs) + len(inputs) + 3)
        found = self.double_backward(*along, *ctx.saved_tensors, ctx.key, ctx.backend, ",".join(wants))
        to_inputs, to_outputs = found[: len(inputs)], found[len(inputs) :]
        return *_kept(to_outputs, outputs, wants), *_kept(to_inputs, inputs, wants), None, None, None


def _third(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        "sciml_kernels: third derivatives are not available in compiled kernels, use backend='reference' for them"
    )


def _run(
    family: Family,
    order: str,
    key: str,
    backend: str,
    arrays: dict[str, Tensor],
    along: Names,
    given: Names,
    wants: Names,
) -> dict[str, Tensor]:
    """Launch one pass."""
    dtype = next(iter(arrays.values())).dtype
    return cpu.launch(_kernel(family, order, key, dtype, along, given, wants), arrays)


@functools.cache
def _kernel(
    family: Family, order: str, key: str, dtype: torch.dtype, along: Names, given: Names, wants: Names
) -> cpu.Kernel:
    """Compiled on first use; one lookup per call afterwards."""
    title = f"{family.name} {key}: {order} {','.join((*along, *given, *wants))}"
    return cpu.compiled(title, _pass(family.function(key), order, along, given, wants), dtype)


def _pass(function: Function, order: str, along: Names, given: Names, wants: Names) -> Pass:
    if order == "forward":
        return forward(function)
    return backward(function, given, wants) if order == "backward" else double_backward(function, along, given, wants)


def _split(names: str) -> Names:
    return tuple(names.split(","))


def _wanted(names: Sequence[str], needed: Sequence[bool]) -> Names:
    return tuple(name for name, need in zip(names, needed) if need)


def _kept(found: Any, names: Names, wants: Names) -> list[Tensor | None]:
    tensors = (found,) if isinstance(found, Tensor) else found
    return [tensor if name in wants else None for name, tensor in zip(names, tensors, strict=True)]


def _results(found: dict[str, Tensor], names: Names, like: Tensor) -> Any:
    """In the order of the schema; what was not computed is empty."""
    tensors = tuple(found[name] if name in found else like.new_empty(0) for name in names)
    return tensors[0] if len(tensors) == 1 else tensors
