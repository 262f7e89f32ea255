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


class _Operators:
    """The three operators and what autograd needs of them."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.tables = (*family.inputs, *family.indices)
        self.seeds = tuple(f"g_{name}" for name in family.outputs)
        self.tangents = tuple(f"u_{name}" for name in family.inputs)
        results = (family.outputs, family.inputs, (*family.inputs, *family.outputs))
        firsts: tuple[Names, ...] = ((), self.seeds, (*self.tangents, *self.seeds))
        bodies = (self._forward, self._backward, self._double_backward)
        fakes = (self._fake_forward, self._fake_backward, self._fake_double_backward)
        suffixes = ("", "_backward", "_double_backward")
        operators = []
        for suffix, first, result, body, fake in zip(suffixes, firsts, results, bodies, fakes, strict=True):
            schema = self._schema(first, len(result))
            name = f"sciml_kernels::{family.name}{suffix}"
            operator = Operator(name, body, schema)
            operator.register_fake(fake)
            operators.append(operator)
        self.forward, self.backward, self.double_backward = operators
        self.forward.register_autograd(self._differentiate, setup_context=self._keep)
        self.backward.register_autograd(self._differentiate_again, setup_context=self._keep)
        self.double_backward.register_autograd(refuse_third)

    def _schema(self, optional: Names, results: int) -> str:
        tensors = [*(f"Tensor? {name}" for name in optional), *(f"Tensor {name}" for name in self.tables)]
        plain = ["str key", "str backend", *(["str wants"] if optional else [])]
        returned = "Tensor" if results == 1 else f"({', '.join(['Tensor'] * results)})"
        return f"({', '.join(tensors + plain)}) -> {returned}"

    def _forward(self, *arguments: Any) -> Any:
        *tensors, key, backend = arguments
        found = self._launch("forward", key, backend, _present(self.tables, tensors), ())
        return _results(found, self.family.outputs, tensors[0])

    def _backward(self, *arguments: Any) -> Any:
        *tensors, key, backend, wants = arguments
        arrays = _present((*self.seeds, *self.tables), tensors)
        found = self._launch("backward", key, backend, arrays, _split(wants))
        return _results(found, self.family.inputs, arrays[self.tables[0]])

    def _double_backward(self, *arguments: Any) -> Any:
        *tensors, key, backend, wants = arguments
        arrays = _present((*self.tangents, *self.seeds, *self.tables), tensors)
        found = self._launch("double_backward", key, backend, arrays, _split(wants))
        return _results(found, (*self.family.inputs, *self.family.outputs), arrays[self.tables[0]])

    def _launch(self, order: str, key: str, backend: str, arrays: dict[str, Tensor], wants: Names) -> dict[str, Tensor]:
        """One pass, and the sum over rows for the gradient to a table."""
        like = arrays[self.tables[0]]
        along, given = _without("u_", arrays), _without("g_", arrays)
        found = _kernel(self.family, order, key, backend, like.dtype, along, given, wants)(arrays)
        for name, index in self.family.function(key).gathered.items():
            if name in found:
                sum_rows = cpu.sum_rows if backend == "cpu" else gpu.sum_rows
                found[name] = sum_rows(found[name], arrays[index], arrays[name].shape[0])
        return found

    def _fake_forward(self, *arguments: Any) -> Any:
        *tensors, key, _ = arguments
        arrays = _present(self.tables, tensors)
        return _results(self._empty(key, arrays, self.family.outputs), self.family.outputs, tensors[0])

    def _fake_backward(self, *arguments: Any) -> Any:
        *tensors, key, _, wants = arguments
        arrays = _present((*self.seeds, *self.tables), tensors)
        return _results(self._empty(key, arrays, _split(wants)), self.family.inputs, arrays[self.tables[0]])

    def _fake_double_backward(self, *arguments: Any) -> Any:
        *tensors, key, _, wants = arguments
        arrays = _present((*self.tangents, *self.seeds, *self.tables), tensors)
        names = (*self.family.inputs, *self.family.outputs)
        return _results(self._empty(key, arrays, _split(wants)), names, arrays[self.tables[0]])

    def _empty(self, key: str, arrays: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
        """Results as they will be: like an input, or one row of an output for each row of the function."""
        like, widths = arrays[self.tables[0]], self.family.function(key).outputs
        rows = arrays[self.family.indices[0]].shape[0] if self.family.indices else like.shape[0]
        found = {name: like.new_empty(rows, widths[name]) for name in names if name in widths}
        return found | {name: like.new_empty(arrays[name].shape) for name in names if name in self.family.inputs}

    def _keep(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = len(inputs) - next(i for i, value in enumerate(reversed(inputs)) if not isinstance(value, str))
        ctx.key, ctx.backend, *ctx.wants = inputs[tensors:]
        ctx.set_materialize_grads(False)  # a gradient that does not arrive drops out of the kernel
        ctx.save_for_backward(*inputs[:tensors])

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
        first_wants = _split(ctx.wants[0])
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


def _present(names: Names, tensors: list[Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in zip(names, tensors, strict=True) if tensor is not None}


def _without(prefix: str, arrays: Mapping[str, Tensor]) -> Names:
    return tuple(name.removeprefix(prefix) for name in arrays if name.startswith(prefix))


def _split(names: str) -> Names:
    return tuple(names.split(","))


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


def _results(found: Mapping[str, Tensor], names: Names, like: Tensor) -> Any:
    """In the order of the schema; what was not computed is empty."""
    if len(names) == 1:
        return found[names[0]]
    return tuple(found[name] if name in found else like.new_empty(0) for name in names)
