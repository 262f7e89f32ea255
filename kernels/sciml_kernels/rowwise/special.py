"""From what only derivatives need to plain arithmetic, which every backend has.

`power` is r^k as a function of t = r^2. `bessel` is phi_m(z) = j_m(z) / z^m of z = pi r, again as a function of t; j_m
are the spherical Bessel functions, with phi_{-1} = cos z. Both families are closed under d/dt:

    d r^k / dt = k / 2 r^(k - 2)         d phi_m / dt = -pi^2 / 2 phi_{m + 1}

so that no derivative divides zero by zero at r = 0. For r < 1/2 phi_m is its power series in z^2; beyond, where nothing
cancels, phi_{m + 1} = ((2 m + 1) phi_m - phi_{m - 1}) / z^2 starts at cos z and sin z / z, whose argument is reduced to
|r - n| <= 1/2 without rounding, because pi is outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sciml_kernels.rowwise.expression import PI_SQUARED, Expression, Graph, floor, reachable, select, sqrt


def lowered(roots: Sequence[Expression], epsilon: float) -> list[Expression]:
    """The same expressions without `power`, `bessel` and `known`, in a graph of their own.

    Args:
        roots: what is wanted.
        epsilon: of the dtype: series end where their terms fall below it.
    """
    graph = Graph()
    new: dict[int, Expression] = {}
    for node in reachable(roots):
        operands = tuple(new[operand.index] for operand in node.operands)
        if node.operation == "power":
            assert isinstance(node.detail, int)
            new[node.index] = _power(operands[0], node.detail)
        elif node.operation == "bessel":
            assert isinstance(node.detail, int)
            new[node.index] = _bessel(operands[0], node.detail, epsilon)
        elif node.operation == "known":
            new[node.index] = operands[0]
        else:
            new[node.index] = _again(graph, node, operands)
    return [new[root.index] for root in roots]


def _again(graph: Graph, node: Expression, operands: tuple[Expression, ...]) -> Expression:
    simple = {"add": graph.add, "multiply": graph.multiply, "divide": graph.divide}
    if node.operation in simple:
        return simple[node.operation](*operands)
    return graph.node(node.operation, operands, node.detail)


def _power(square: Expression, exponent: int) -> Expression:
    """By products of r = sqrt(t), t and 1 / r."""
    if exponent < 0:
        return _product(1 / sqrt(square), -exponent)
    whole = _product(square, exponent // 2)
    return whole * sqrt(square) if exponent % 2 else whole


def _product(base: Expression, exponent: int) -> Expression:
    """base^exponent by repeated squaring."""
    if exponent == 0:
        return base.graph.constant(1)
    half = _product(base, exponent // 2)
    return half * half * base if exponent % 2 else half * half


def _bessel(square: Expression, order: int, epsilon: float) -> Expression:
    length = sqrt(square)
    turns = floor(length + 0.5)
    rest = length - turns
    sign = 1 - 2 * (turns - 2 * floor(0.5 * turns))
    inner = PI_SQUARED * (rest * rest)
    if order == -1:
        return sign * _series(inner, -1, epsilon)
    if order == 0:
        far = sign * _series(inner, 0, epsilon) * rest / length
    else:
        below, before = (_bessel(square, order - step, epsilon) for step in (1, 2))
        far = ((2 * order - 1) * below - before) / (PI_SQUARED * square)
    return select(length < 0.5, _series(inner, order, epsilon), far)


def _series(square: Expression, order: int, epsilon: float) -> Expression:
    """phi_order as sum_k (-z^2 / 2)^k / (k! (2 k + 2 order + 1)!!) for |z| <= pi / 2, by Horner's rule."""
    coefficients = [1.0 / math.prod(range(2 * order + 1, 0, -2))]
    largest = PI_SQUARED / 4
    while abs(coefficients[-1]) * largest ** (len(coefficients) - 1) > 0.1 * epsilon * coefficients[0]:
        k = len(coefficients)
        coefficients.append(-coefficients[-1] / (2 * k * (2 * k + 2 * order + 1)))
    result = square.graph.constant(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * square + coefficient
    return result
