"""A row-wise function and its three passes.

With F = sum_k g_k f_k(v): the forward pass is f, the backward pass dF/dv. The double backward pass, for the gradients u
that arrive at dF/dv, is the derivative of u . dF/dv to v and g. Second derivatives are symmetric, so it is also the
derivative of dF/dv and of f along the direction u, which is cheaper to compute.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

from sciml_kernels.rowwise.expression import Expression, Graph, gradient, tangent

Row = list[Expression]


@dataclasses.dataclass(frozen=True)
class Function:
    """Outputs of each row as expressions of its inputs.

    Attributes:
        inputs, outputs: names and widths of the rows.
        body: from rows of input expressions to rows of output expressions, by name.
        gathered: inputs that are not given row by row: the name of the index that says which row of a table is meant.
    """

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    body: Callable[[Mapping[str, Row]], Mapping[str, Row]]
    gathered: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Pass(NamedTuple):
    """What one kernel does.

    Attributes:
        reads, gathered: arrays that it reads with their widths, and the index of those that are tables.
        writes: arrays that it writes, one row for each row of the function.
    """

    reads: dict[str, int]
    gathered: dict[str, str]
    writes: dict[str, Row]

    @property
    def indices(self) -> list[str]:
        """The index arrays that it reads, which come before the others."""
        return list(dict.fromkeys(self.gathered.values()))


def forward(function: Function) -> Pass:
    """Reads the inputs, writes the outputs under their names."""
    rows = _inputs(Graph(), function)
    outputs = function.body(rows)
    return Pass(
        dict(function.inputs), dict(function.gathered), {name: list(outputs[name]) for name in function.outputs}
    )


def backward(function: Function, given: tuple[str, ...], wanted: tuple[str, ...]) -> Pass:
    """Reads inputs and g_<output> for the outputs `given`; writes the gradients to the inputs `wanted` by name."""
    rows = _inputs(Graph(), function)
    gradients, seeds, _ = _first_order(function, rows, given)
    return Pass(dict(function.inputs) | seeds, dict(function.gathered), {name: gradients[name] for name in wanted})


def double_backward(
    function: Function, along: tuple[str, ...], given: tuple[str, ...], wanted: tuple[str, ...]
) -> Pass:
    """The derivative of the backward pass.

    Args:
        function: the function.
        along: inputs whose gradient has received one; read as u_<input>.
        given: outputs with a gradient in the backward pass; read as g_<output>.
        wanted: inputs, and outputs for the gradients to g; written under these names.
    """
    graph = Graph()
    rows = _inputs(graph, function)
    gradients, seeds, outputs = _first_order(function, rows, given)
    tangents = {f"u_{name}": function.inputs[name] for name in along}
    direction = {node: graph.constant(0) for name in function.inputs if name not in along for node in rows[name]} | {
        node: dot for name in along for node, dot in zip(rows[name], graph.inputs(f"u_{name}", len(rows[name])))
    }
    direction |= {node: graph.constant(0) for name, width in seeds.items() for node in graph.inputs(name, width)}
    results = {**gradients, **outputs}
    flat = tangent([node for name in wanted for node in results[name]], direction)
    starts = iter(flat)
    writes = {name: [next(starts) for _ in results[name]] for name in wanted}
    gathered = {f"u_{name}": index for name, index in function.gathered.items() if name in along}
    return Pass(dict(function.inputs) | seeds | tangents, dict(function.gathered) | gathered, writes)


def _inputs(graph: Graph, function: Function) -> dict[str, Row]:
    return {name: graph.inputs(name, width) for name, width in function.inputs.items()}


def _first_order(
    function: Function, rows: Mapping[str, Row], given: tuple[str, ...]
) -> tuple[dict[str, Row], dict[str, int], Mapping[str, Row]]:
    """Gradients to all inputs, the arrays of seeds, and the outputs."""
    outputs = function.body(rows)
    graph = next(iter(rows.values()))[0].graph
    seeds = {f"g_{name}": function.outputs[name] for name in given}
    pairs = [pair for name in given for pair in zip(outputs[name], graph.inputs(f"g_{name}", function.outputs[name]))]
    flat = [node for row in rows.values() for node in row]
    found = iter(gradient([output for output, _ in pairs], [seed for _, seed in pairs], flat))
    return {name: [next(found) for _ in row] for name, row in rows.items()}, seeds, outputs
