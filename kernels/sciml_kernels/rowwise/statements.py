"""A pass as statements, one for each node of its graph, in the notation of the language that an emitter prints."""

from __future__ import annotations

from typing import NamedTuple

from sciml_kernels.rowwise.expression import Expression, reachable
from sciml_kernels.rowwise.function import Pass
from sciml_kernels.rowwise.special import lowered


class Dialect(NamedTuple):
    """How a language writes what is not the same everywhere.

    Attributes:
        number, vector: a constant; a vector that holds a constant.
        column: one component of the rows of an array.
        select: of a condition and two vectors.
        function: a call of sqrt, floor, log or exp.
    """

    number: str
    vector: str
    column: str
    select: str
    function: str


class Statements(NamedTuple):
    """Assignments (name, expression) in order, and the expressions of the columns of every array written."""

    assignments: list[tuple[str, str]]
    columns: dict[str, list[str]]


def statements(work: Pass, epsilon: float, dialect: Dialect) -> Statements:
    """The arithmetic of a pass; `epsilon` of the dtype tells where series end."""
    roots = lowered([node for row in work.writes.values() for node in row], epsilon)
    names: dict[int, str] = {}
    assignments = []
    for node in reachable(roots):
        names[node.index] = _name(node, dialect)
        if node.operation not in ("constant", "input"):
            assignments.append((names[node.index], _expression(node, names, dialect)))
    results = iter(roots)
    columns = {array: [_vector(next(results), names, dialect) for _ in row] for array, row in work.writes.items()}
    return Statements(assignments, columns)


def _name(node: Expression, dialect: Dialect) -> str:
    if node.operation == "constant":
        return dialect.number.format(repr(node.value))
    if node.operation == "input":
        assert isinstance(node.detail, tuple)
        array, component = node.detail
        return dialect.column.format(array=array, component=component)
    return f"t{node.index}"


def _vector(node: Expression, names: dict[int, str], dialect: Dialect) -> str:
    return dialect.vector.format(repr(node.value)) if node.operation == "constant" else names[node.index]


def _expression(node: Expression, names: dict[int, str], dialect: Dialect) -> str:
    if node.operation == "select":
        condition, yes, no = node.operands
        return dialect.select.format(names[condition.index], _vector(yes, names, dialect), _vector(no, names, dialect))
    operands = [names[operand.index] for operand in node.operands]
    if node.operation == "add" and node.operands[1].operation == "negate":
        return f"{operands[0]} - {names[node.operands[1].operands[0].index]}"
    signs = {"add": "+", "multiply": "*", "divide": "/", "less": "<"}
    if node.operation in signs:
        return f"{operands[0]} {signs[node.operation]} {operands[1]}"
    return f"-{operands[0]}" if node.operation == "negate" else dialect.function.format(node.operation, *operands)
