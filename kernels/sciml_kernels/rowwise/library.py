"""Row-wise functions as torch operators, differentiable twice: forward, backward and double backward.

`register` makes the three operators of a family of functions. A member of the family travels as its key, because
operators take tensors and plain values only.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml_kernels.autograd import refuse_third, wanted
from sciml_kernels.operators import Operator
from sciml_kernels.rowwise import cpu, gpu
from sciml_kernels.rowwise.function import Function, Pass, backward, double_backward, forward

Names = tuple[str, ...]


class Family(NamedTuple):
    """Functions with the same names of inputs and outputs.

    Attributes:
        name: of the operators.
        inputs, outputs: names of the arrays; a function may lack outputs, which are then empty tensors.
        function: from a key to the function.
        indices: names of the index arrays (int64, one entry per row) of inputs that are tables.
    """

    name: str
    inputs: Names
    outputs: Names
    function: Callable[[str], Function]
    indices: Names = ()


def register(family: Family) -> Operator:
    """The operator sciml_kernels::<name>(*inputs, *indices, key, backend) -> outputs, with its derivatives.

    The backward operator takes the gradients g of the outputs before that, the double backward operator the gradients u
    of the inputs' gradients before those; either may be None. Both are told which results are wanted.
    """
    return _Operators(family).forward


class _Stage:
    """One of the three operators: what it takes, what it returns, and how it runs."""

    def __init__(self, family: Family, order: str, optional: Names, results: Names) -> None:
        self.family, self.order, self.results = family, order, results
        self.names = (*optional, *family.inputs, *family.indices)
        tensors = [f"Tensor{'?' if name in optional else ''} {name}" for name in self.names]
        plain = ["str key", "str backend", *(["str wants"] if optional else [])]
        returned = "Tensor" if len(results) == 1 else f"({', '.join(['Tensor'] * len(results))})"
        suffix = "" if order == "forward" else f"_{order}"
        schema = f"({', '.join(tensors + plain)}) -> {returned}"
        self.operator = Operator(f"sciml_kernels::{family.name}{suffix}", self._run, schema)
        self.operator.register_fake(self._fake)

    def _run(self, *arguments: Any) -> Any:
        """One pass, and the sum over rows for the gradient to a table."""
        arrays, key, backend, wants = self._parsed(arguments)
        like = arrays[self.family.inputs[0]]
        along, given = _without("u_", arrays), _without("g_", arrays)
        found = _kernel(self.family, self.order, key, backend, like.dtype, along, given, wants)(arrays)
        for name, index in self.family.function(key).gathered.items():
            if name in found:
                sum_rows = cpu.sum_rows if backend == "cpu" else gpu.sum_rows
                found[name] = sum_rows(found[name], arrays[index], arrays[name].shape[0])
        return self._returned(found, like)

    def _fake(self, *arguments: Any) -> Any:
        """Results like an input, or with one row of an output for each row of the function."""
        arrays, key, _, wants = self._parsed(arguments)
        like, widths = arrays[self.family.inputs[0]], self.family.function(key).outputs
        rows = arrays[self.family.indices[0]].shape[0] if self.family.indices else like.shape[0]
        names = wants or self.results
        found = {name: like.new_empty(rows, widths[name]) for name in names if name in widths}
        found |= {name: like.new_empty(arrays[name].shape) for name in names if name in self.family.inputs}
        return self._returned(found, like)

    def _parsed(self, arguments: tuple[Any, ...]) -> tuple[dict[str, Tensor], str, str, Names]:
        """The tensors that are there by name, the key, the backend and the wanted results."""
        count = len(self.names)
        named = zip(self.names, arguments[:count], strict=True)
        key, backend, *wants = arguments[count:]
        return {name: tensor for name, tensor in named if tensor is not None}, key, backend, _split(*wants)

    def _returned(self, found: dict[str, Tensor], like: Tensor) -> Any:
        """In the order of the schema; what was not computed is empty."""
        if len(self.results) == 1:
            return found[self.results[0]]
        return tuple(found[name] if name in found else like.new_empty(0) for name in self.results)


class _Operators:
    """The three operators of a family and what autograd needs of them."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.tables = (*family.inputs, *family.indices)
        seeds = tuple(f"g_{name}" for name in family.outputs)
        tangents = tuple(f"u_{name}" for name in family.inputs)
        both = (*family.inputs, *family.outputs)
        self.forward = _Stage(family, "forward", (), family.outputs).operator
        self.backward = _Stage(family, "backward", seeds, family.inputs).operator
        self.double_backward = _Stage(family, "double_backward", (*tangents, *seeds), both).operator
        self.forward.register_autograd(self._differentiate, setup_context=self._keep)
        self.backward.register_autograd(self._differentiate_again, setup_context=self._keep)
        self.double_backward.register_autograd(refuse_third)

    def _keep(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.key, ctx.backend, *ctx.wants = (value for value in inputs if isinstance(value, str))
        ctx.set_materialize_grads(False)  # a gradient that does not arrive drops out of the kernel
        ctx.save_for_backward(*(value for value in inputs if not isinstance(value, str)))

    def _differentiate(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wants = _wanted(ctx, self.tables)
        widths = self.family.function(ctx.key).outputs
        given = [grad if name in widths else None for name, grad in zip(self.family.outputs, grads, strict=True)]
        found: dict[str, Tensor] = {}
        if wants and any(grad is not None for grad in given):
            results = self.backward(*given, *ctx.saved_tensors, ctx.key, ctx.backend, ",".join(wants))
            found = _named(self.family.inputs, results, wants)
        return *(found.get(name) for name in self.tables), None, None

    def _differentiate_again(self, ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, outputs = self.family.inputs, self.family.outputs
        first_wants = _split(*ctx.wants)
        along = [u if name in first_wants else None for name, u in zip(inputs, tangents, strict=True)]
        wants = _wanted(ctx, (*outputs, *self.tables))
        found: dict[str, Tensor] = {}
        if wants and any(u is not None for u in along):
            results = self.double_backward(*along, *ctx.saved_tensors, ctx.key, ctx.backend, ",".join(wants))
            found = _named((*inputs, *outputs), results, wants)
        return *(found.get(name) for name in (*outputs, *self.tables)), None, None, None


@functools.cache
def _kernel(
    family: Family, order: str, key: str, backend: str, dtype: torch.dtype, along: Names, given: Names, wants: Names
) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """From arrays to what the pass writes. Compiled on first use; one lookup per call afterwards."""
    title = f"{family.name} {key}: {order} {','.join((*along, *given, *wants))}"
    work = _pass(family.function(key), order, along, given, wants)
    if backend == "cpu":
        return functools.partial(cpu.launch, cpu.compiled(title, work, dtype))
    return functools.partial(gpu.launch, gpu.compiled(title, work, dtype))


def _pass(function: Function, order: str, along: Names, given: Names, wants: Names) -> Pass:
    if order == "forward":
        return forward(function)
    return backward(function, given, wants) if order == "backward" else double_backward(function, along, given, wants)


def _without(prefix: str, arrays: Mapping[str, Tensor]) -> Names:
    return tuple(name.removeprefix(prefix) for name in arrays if name.startswith(prefix))


def _split(names: str = "") -> Names:
    return tuple(names.split(",")) if names else ()


def _wanted(ctx: Any, names: Names) -> Names:
    """The tensors whose gradients will be used; the engine is only asked where there is a choice."""
    if sum(ctx.needs_input_grad) == 1:
        return (names[ctx.needs_input_grad.index(True)],)
    letters = string.ascii_letters[: len(names)]
    found = wanted(ctx, letters, tuple(tensor is not None for tensor in ctx.saved_tensors))
    return tuple(name for name, letter in zip(names, letters, strict=True) if letter in found)


def _named(names: Names, results: Any, wants: Names) -> dict[str, Tensor]:
    tensors = (results,) if isinstance(results, Tensor) else results
    return {name: tensor for name, tensor in zip(names, tensors, strict=True) if name in wants}
