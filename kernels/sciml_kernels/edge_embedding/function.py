"""The edge embedding of one row, as expressions."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from sciml_kernels.rowwise.expression import Expression, bessel, minimum, power
from sciml_kernels.rowwise.function import Function, Row


@functools.cache
def from_key(key: str) -> Function:
    """Of the key "lmax basis solid power"; without a basis (0) there are harmonics alone."""
    lmax, basis, solid, exponent = (int(part) for part in key.split())
    outputs = {"harmonics": (lmax + 1) ** 2, **({"basis": basis, "envelope": 1} if basis else {})}

    def body(rows: Mapping[str, Row]) -> Mapping[str, Row]:
        x, y, z = rows["vectors"]
        square = x * x + y * y + z * z
        result = {"harmonics": harmonics([x, y, z], square, lmax, bool(solid))}
        if basis:
            result |= {"basis": bessel_basis(square, basis), "envelope": [envelope(square, exponent)]}
        return result

    return Function({"vectors": 3}, outputs, body)


def harmonics(vector: Row, square: Expression, lmax: int, solid: bool) -> Row:
    """Solid harmonics r^l Y_l, or those of the direction, 'component' normalised, in e3nn's order.

    With y as the polar axis, Y_lm = N_lm Q_lm(y, r^2) times the real (m >= 0) or imaginary (m < 0) part of
    (z + i x)^|m|, where Q_lm is the associated Legendre function without its factor in the angle.
    """
    graph = square.graph
    if not solid:
        inverse = power(square, -1)
        vector, square = [component * inverse for component in vector], graph.constant(1)
    x, y, z = vector
    real, imaginary = [graph.constant(1)], [graph.constant(0)]
    for _ in range(lmax):
        real, imaginary = (
            [*real, z * real[-1] - x * imaginary[-1]],
            [*imaginary, z * imaginary[-1] + x * real[-1]],
        )
    legendre = _legendre(y, square, lmax)
    result = []
    for degree in range(lmax + 1):
        for m in range(-degree, degree + 1):
            order = abs(m)
            part = imaginary[order] if m < 0 else real[order]
            result.append(_norm(degree, order) * legendre[degree, order] * part)
    return result


def _legendre(y: Expression, square: Expression, lmax: int) -> dict[tuple[int, int], Expression]:
    """Q_lm by (l - m) Q_lm = (2 l - 1) y Q_(l-1)m - (l + m - 1) r^2 Q_(l-2)m, from Q_mm = (2 m - 1)!!."""
    found = {}
    for m in range(lmax + 1):
        found[m, m] = y.graph.constant(math.prod(range(2 * m - 1, 0, -2)))
        for degree in range(m + 1, lmax + 1):
            value = (2 * degree - 1) / (degree - m) * (y * found[degree - 1, m])
            if degree > m + 1:
                value = value - (degree + m - 1) / (degree - m) * (square * found[degree - 2, m])
            found[degree, m] = value
    return found


def _norm(degree: int, order: int) -> float:
    ratio = math.factorial(degree - order) / math.factorial(degree + order)
    return math.sqrt((2 * degree + 1) * ratio * (2 if order else 1))


def bessel_basis(square: Expression, size: int) -> Row:
    """sqrt(2) sin(n pi r) / r for n = 1..size by s_(n+1) = 2 cos(pi r) s_n - s_(n-1), with no division by r."""
    twice_cosine = 2 * bessel(square, -1)
    rows = [square.graph.constant(0), math.sqrt(2.0) * math.pi * bessel(square, 0)]
    while len(rows) <= size:
        rows.append(twice_cosine * rows[-1] - rows[-2])
    return rows[1:]


def envelope(square: Expression, exponent: int) -> Expression:
    """1 - (p+1)(p+2)/2 r^p + p(p+2) r^(p+1) - p(p+1)/2 r^(p+2) up to r = 1, zero beyond."""
    p = exponent
    inside = minimum(square, 1)
    powers = [power(inside, p + step) for step in range(3)]
    return 1 - (p + 1) * (p + 2) / 2 * powers[0] + p * (p + 2) * powers[1] - p * (p + 1) / 2 * powers[2]
