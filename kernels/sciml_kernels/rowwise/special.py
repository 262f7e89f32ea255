"""From what only derivatives need to plain arithmetic, which every backend has.

`power` is r^k as a function of t = r^2. `bessel` is phi_m(z) = j_m(z) / z^m of z = pi r, again as a function of t; j_m
are the spherical Bessel functions, with phi_{-1} = cos z. Both families are closed under d/dt:

    d r^k / dt = k / 2 r^(k - 2)         d phi_m / dt = -pi^2 / 2 phi_{m + 1}

so that no derivative divides zero by zero at r = 0. For r < 1/2 phi_m is its power series in z^2; beyond, where nothing
cancels, phi_{m + 1} = ((2 m + 1) phi_m - phi_{m - 1}) / z^2 starts at cos z and sin z / z, whose argument is reduced to
|r - n| <= 1/2 without rounding, because pi is outside.

`erf` is its power series below 1/2. Beyond, it is 1 - exp(-x^2) p(u), where the polynomial p interpolates
exp(x^2) erfc(x), which is smooth, at the zeros of a Chebyshev polynomial of u, and u is linear in 1 / (x + 15/4)
(Shepherd, Laframboise, 1981). Past x = 6 it is 1 to less than a rounding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

from sciml_kernels.rowwise.expression import (
    PI_SQUARED,
    TWO_OVER_ROOT_PI,
    Expression,
    Graph,
    exp,
    floor,
    minimum,
    reachable,
    select,
    sqrt,
)

ERF_FROM, ERF_TO, ERF_POLE = 0.5, 6.0, 3.75


def lowered(roots: Sequence[Expression], epsilon: float) -> list[Expression]:
    """The same expressions without `power`, `bessel`, `erf` and `known`, in a graph of their own.

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
        elif node.operation == "erf":
            new[node.index] = _erf(operands[0], epsilon)
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
    return _polynomial(square, coefficients)


def _polynomial(x: Expression, coefficients: Sequence[float]) -> Expression:
    """sum_k coefficients[k] x^k by Horner's rule."""
    result = x.graph.constant(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result


def _erf(x: Expression, epsilon: float) -> Expression:
    size = select(x < 0, -x, x)
    series = [TWO_OVER_ROOT_PI]
    while abs(series[-1]) * ERF_FROM ** (2 * len(series) - 2) > 0.1 * epsilon:
        k = len(series)
        series.append(-series[-1] * (2 * k - 1) / (k * (2 * k + 1)))
    bounded = minimum(size, ERF_TO)
    shift, slope = _argument()
    complement = exp(-(bounded * bounded)) * _polynomial(shift + slope / (bounded + ERF_POLE), _complement(epsilon))
    far = 1 - complement
    return select(size < ERF_FROM, x * _polynomial(x * x, series), select(x < 0, -far, far))


def _argument() -> tuple[float, float]:
    """(a, b) of u = a + b / (x + ERF_POLE), which runs from -1 to 1 as x comes down from ERF_TO to ERF_FROM."""
    low, high = 1 / (ERF_TO + ERF_POLE), 1 / (ERF_FROM + ERF_POLE)
    return -(high + low) / (high - low), 2 / (high - low)


@functools.cache
def _complement(epsilon: float) -> list[float]:
    """Coefficients of p(u) = exp(x^2) erfc(x) in powers of u, as far as they count."""
    count = 32
    shift, slope = _argument()
    places = [math.pi * (j + 0.5) / count for j in range(count)]
    x = torch.tensor([slope / (math.cos(place) - shift) - ERF_POLE for place in places], dtype=torch.float64)
    values = torch.special.erfcx(x).tolist()
    chebyshev = [
        (2 if n else 1) / count * sum(value * math.cos(n * place) for value, place in zip(values, places))
        for n in range(count // 2)
    ]
    while abs(chebyshev[-1]) < 0.1 * epsilon:
        chebyshev.pop()
    powers = [0.0] * len(chebyshev)
    before, now = [0.0], [1.0]  # T_(n - 1) and T_n in powers of u
    for n, coefficient in enumerate(chebyshev):
        for k, value in enumerate(now):
            powers[k] += coefficient * value
        after = [0.0, *((2 if n else 1) * value for value in now)]
        before, now = now, [a - (before[k] if n and k < len(before) else 0.0) for k, a in enumerate(after)]
    return powers
