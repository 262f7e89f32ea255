"""Symbolic scalars in a graph where equal expressions are one node, and their two kinds of derivative.

A function is ordinary Python on `Expression` values: recurrences stay recurrences, and what occurs twice is computed
once. Reverse accumulation (`gradient`) and forward accumulation (`tangent`) extend the same graph, so that a derivative
shares what the value has already computed. No algebra is done beyond constants, zeros, ones and signs: the order of
the operations, and with it the rounding, is the author's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Number = int | float


class Expression:
    """One node of a graph: an operation on earlier nodes. Made by a `Graph` or by operators on other expressions.

    Attributes:
        index: its place in the graph; operands have lower ones.
        operation: "constant", "input", "add", "multiply", "divide", "negate", "sqrt", "floor", "log", "exp",
            "less" (a condition), "select" (condition, where true, else), and four that `rowwise.special` replaces
            once derivatives are taken: the families of functions "power" and "bessel", "erf", and "known".
        operands: the nodes that it works on.
        detail: the value of a constant, the (array, component) of an input, the order within a family.
    """

    __slots__ = ("detail", "graph", "index", "operands", "operation")

    def __init__(self, graph: Graph, operation: str, operands: tuple[Expression, ...], detail: object) -> None:
        self.graph, self.index = graph, len(graph.nodes)
        self.operation, self.operands, self.detail = operation, operands, detail

    def __add__(self, other: Expression | Number) -> Expression:
        return self.graph.add(self, self.graph.lift(other))

    def __mul__(self, other: Expression | Number) -> Expression:
        return self.graph.multiply(self, self.graph.lift(other))

    def __sub__(self, other: Expression | Number) -> Expression:
        return self + (-self.graph.lift(other))

    def __rsub__(self, other: Number) -> Expression:
        return self.graph.lift(other) + (-self)

    def __truediv__(self, other: Expression | Number) -> Expression:
        return self.graph.divide(self, self.graph.lift(other))

    def __rtruediv__(self, other: Number) -> Expression:
        return self.graph.divide(self.graph.lift(other), self)

    def __neg__(self) -> Expression:
        return self.graph.negate(self)

    def __lt__(self, other: Expression | Number) -> Expression:
        return self.graph.node("less", (self, self.graph.lift(other)))

    def __gt__(self, other: Expression | Number) -> Expression:
        return self.graph.node("less", (self.graph.lift(other), self))

    __radd__ = __add__
    __rmul__ = __mul__

    @property
    def value(self) -> float | None:
        """The number that a constant is, else None."""
        return self.detail if isinstance(self.detail, float) and self.operation == "constant" else None


class Graph:
    """The nodes of some expressions in an order in which they can be computed."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[object, ...], Expression] = {}

    def node(self, operation: str, operands: tuple[Expression, ...] = (), detail: object = None) -> Expression:
        """The node of this operation, new only where there is none."""
        key = (operation, detail, *(operand.index for operand in operands))
        if key not in self.nodes:
            self.nodes[key] = Expression(self, operation, operands, detail)
        return self.nodes[key]

    def constant(self, value: Number) -> Expression:
        """A number."""
        return self.node("constant", (), float(value))

    def inputs(self, array: str, width: int) -> list[Expression]:
        """The components of one row of an array."""
        return [self.node("input", (), (array, component)) for component in range(width)]

    def lift(self, value: Expression | Number) -> Expression:
        """A number as an expression."""
        return value if isinstance(value, Expression) else self.constant(value)

    def add(self, a: Expression, b: Expression) -> Expression:
        """a + b."""
        if a.value is not None and b.value is not None:
            return self.constant(a.value + b.value)
        if a.value == 0.0:
            return b
        if b.value == 0.0:
            return a
        return self.node("add", _ordered(a, b))

    def multiply(self, a: Expression, b: Expression) -> Expression:
        """a * b; a constant factor and a sign move outwards."""
        if b.value is not None:
            a, b = b, a
        if a.value is not None and b.value is not None:
            return self.constant(a.value * b.value)
        if a.value == 0.0:
            return a
        if a.value == 1.0:
            return b
        if a.value == -1.0:
            return self.negate(b)
        for one, other in ((b, a), (a, b)):
            if one.operation == "negate":
                return self.negate(self.multiply(one.operands[0], other))
            if one.operation == "multiply" and one.operands[0].value is not None:
                factor, rest = one.operands
                if other.value is not None:
                    return self.multiply(self.multiply(factor, other), rest)
                return self.multiply(factor, self.multiply(rest, other))
        return self.node("multiply", (a, b) if a.value is not None else _ordered(a, b))

    def divide(self, a: Expression, b: Expression) -> Expression:
        """a / b."""
        if a.value == 0.0 or b.value == 1.0:
            return a
        return self.constant(a.value / b.value) if a.value and b.value else self.node("divide", (a, b))

    def negate(self, a: Expression) -> Expression:
        """-a."""
        if a.value is not None:
            return self.constant(-a.value)
        if a.operation == "negate":
            return a.operands[0]
        if a.operation == "multiply" and a.operands[0].value is not None:
            return self.multiply(self.constant(-a.operands[0].value), a.operands[1])
        return self.node("negate", (a,))


def _ordered(a: Expression, b: Expression) -> tuple[Expression, Expression]:
    return (a, b) if a.index <= b.index else (b, a)


def total(terms: Iterable[Expression], graph: Graph) -> Expression:
    """The sum of any number of terms, from the left."""
    result = graph.constant(0)
    for term in terms:
        result = result + term
    return result


def sqrt(x: Expression) -> Expression:
    """The square root."""
    return x.graph.node("sqrt", (x,))


def log(x: Expression) -> Expression:
    """The natural logarithm."""
    return x.graph.node("log", (x,))


def exp(x: Expression) -> Expression:
    """The exponential."""
    return x.graph.node("exp", (x,))


def erf(x: Expression) -> Expression:
    """The error function."""
    return x.graph.node("erf", (x,))


def floor(x: Expression) -> Expression:
    """The largest integer that is not above x; its derivative is zero."""
    return x.graph.node("floor", (x,))


def select(condition: Expression, yes: Expression | Number, no: Expression | Number) -> Expression:
    """`yes` where the condition holds, else (NaN included) `no`."""
    yes, no = condition.graph.lift(yes), condition.graph.lift(no)
    return yes if yes is no else condition.graph.node("select", (condition, yes, no))


def minimum(x: Expression, bound: Expression | Number) -> Expression:
    """The smaller one; NaN where x is NaN."""
    return select(x > bound, bound, x)


def maximum(x: Expression, bound: Expression | Number) -> Expression:
    """The larger one; NaN where x is NaN."""
    return select(x < bound, bound, x)


def power(square: Expression, exponent: int) -> Expression:
    """r^exponent as a function of r^2, so that its derivatives have no 0 / 0 at r = 0."""
    if exponent in (0, 2):
        return square if exponent else square.graph.constant(1)
    return square.graph.node("power", (square,), exponent)


def bessel(square: Expression, order: int) -> Expression:
    """j_order(z) / z^order of z = pi r as a function of r^2: smooth at 0; cos z for order -1, sin z / z for order 0."""
    return square.graph.node("bessel", (square,), order)


def known(value: Expression, slopes: Sequence[tuple[Expression, Expression]]) -> Expression:
    """`value` with its derivatives given, as (variable, derivative): where those of its parts would be 0 / 0."""
    return value.graph.node("known", (value, *(part for pair in slopes for part in pair)))


def absolute(x: Expression) -> Expression:
    """|x|, with derivative 0 at 0."""
    return known(select(x < 0, -x, x), [(x, select(x < 0, -1, select(x > 0, 1, 0)))])


def partials(node: Expression) -> list[tuple[Expression, Expression]]:
    """Each operand on which a node depends smoothly, with the derivative to it."""
    one, operands = node.graph.constant(1), node.operands
    match node.operation:
        case "add":
            return [(operand, one) for operand in operands]
        case "multiply":
            a, b = operands
            return [(a, b), (b, a)]
        case "divide":
            inverse = 1 / operands[1]
            return [(operands[0], inverse), (operands[1], -(node * inverse))]
        case "negate":
            return [(operands[0], -one)]
        case "sqrt":
            return [(operands[0], 0.5 / node)]
        case "log":
            return [(operands[0], 1 / operands[0])]
        case "exp":
            return [(operands[0], node)]
        case "erf":
            x = operands[0]
            return [(x, TWO_OVER_ROOT_PI * exp(-(x * x)))]
        case "known":
            return list(zip(operands[1::2], operands[2::2]))
        case "power":
            exponent = _order(node)
            return [(operands[0], 0.5 * exponent * power(operands[0], exponent - 2))]
        case "bessel":
            return [(operands[0], -0.5 * PI_SQUARED * bessel(operands[0], _order(node) + 1))]
        case _:
            return []


PI_SQUARED = 9.869604401089358
TWO_OVER_ROOT_PI = 1.1283791670955126


def _order(node: Expression) -> int:
    assert isinstance(node.detail, int)
    return node.detail


def reachable(roots: Iterable[Expression]) -> list[Expression]:
    """The nodes that these need, in an order in which they can be computed."""
    found: dict[int, Expression] = {}
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node.index not in found:
            found[node.index] = node
            waiting.extend(node.operands)
    return [found[index] for index in sorted(found)]


def gradient(
    outputs: Sequence[Expression], seeds: Sequence[Expression], inputs: Sequence[Expression]
) -> list[Expression]:
    """Derivatives of sum_k seeds[k] outputs[k] to the inputs (reverse accumulation); seeds count as constants."""
    if not outputs:
        raise ValueError("outputs: found none, expected at least one")
    zero = outputs[0].graph.constant(0)
    bars: dict[int, Expression] = {}
    for output, seed in zip(outputs, seeds, strict=True):
        bars[output.index] = bars.get(output.index, zero) + seed
    for node in reversed(reachable(outputs)):
        bar = bars.get(node.index)
        if bar is None or bar.value == 0.0:
            continue
        if node.operation == "select":
            condition, yes, no = node.operands
            shares = [(yes, select(condition, bar, 0)), (no, select(condition, 0, bar))]
        else:
            shares = [(operand, bar * slope) for operand, slope in partials(node)]
        for operand, share in shares:
            bars[operand.index] = bars.get(operand.index, zero) + share
    return [bars.get(node.index, zero) for node in inputs]


def tangent(outputs: Sequence[Expression], directions: Mapping[Expression, Expression]) -> list[Expression]:
    """Derivatives of the outputs along a direction of the inputs (forward accumulation)."""
    zero = outputs[0].graph.constant(0)
    dots: dict[int, Expression] = {node.index: dot for node, dot in directions.items()}
    for node in reachable(outputs):
        if node.index in dots:
            continue
        if node.operation == "select":
            condition, yes, no = node.operands
            dots[node.index] = select(condition, dots[yes.index], dots[no.index])
        else:
            dots[node.index] = total((dots[operand.index] * slope for operand, slope in partials(node)), zero.graph)
    return [dots[node.index] for node in outputs]
