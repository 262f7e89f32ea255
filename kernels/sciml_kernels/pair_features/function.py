"""The two row-wise functions of the pair features, as expressions: of a particle, and of a pair of particles.

What pairs need of a particle is one row of a table, so that nothing of it is computed again for every pair: momentum
(4), mass^2, p+, p-, log pT, rapidity, 1 / pT.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from sciml_kernels.pair_features.reference import MASS_FLOOR, MOMENTUM_FLOOR, SEPARATION_FLOOR
from sciml_kernels.rowwise.expression import Expression, absolute, exp, known, log, maximum, power, sqrt
from sciml_kernels.rowwise.function import Function, Row

PARTICLE = 10


@functools.cache
def particles(key: str) -> Function:
    """The table of particles from momenta (4) and the spurions (3 * 4) of their graphs."""

    def body(rows: Mapping[str, Row]) -> Mapping[str, Row]:
        p, time, plus, minus = rows["momenta"], *(rows["spurions"][start : start + 4] for start in (0, 4, 8))
        scale_plus, scale_minus = minkowski(plus, time), minkowski(minus, time)
        symmetric = sqrt(0.5 * minkowski(plus, minus) / (scale_plus * scale_minus))
        p_plus = maximum(minkowski(p, plus) / (scale_plus * symmetric), 0)
        p_minus = maximum(minkowski(p, minus) / (scale_minus * symmetric), 0)
        squared = maximum(mass_squared(p), 0)
        pt_squared = maximum(p_plus * p_minus - squared, 0) + MOMENTUM_FLOOR**2
        along_beam = MOMENTUM_FLOOR**2 / (p_plus + p_minus + MOMENTUM_FLOOR)
        rapidity = 0.5 * (log(p_minus + along_beam) - log(p_plus + along_beam))
        row = [*p, squared, p_plus, p_minus, 0.5 * log(pt_squared), rapidity, 1 / sqrt(pt_squared)]
        return {"particles": row}

    return Function({"momenta": 4, "spurions": 12}, {"particles": PARTICLE}, body, {"spurions": "graphs"})


@functools.cache
def pairs(key: str) -> Function:
    """log kT, log z, log Delta, log m^2 from the rows of two particles."""

    def body(rows: Mapping[str, Row]) -> Mapping[str, Row]:
        p, squared_p, plus_p, minus_p, log_pt_p, rapidity_p, inverse_p = _parts(rows["first"])
        q, squared_q, plus_q, minus_q, log_pt_q, rapidity_q, inverse_q = _parts(rows["second"])
        product = minkowski(p, q)
        crossed = 0.5 * plus_p * minus_q + 0.5 * plus_q * minus_p
        cosine = (crossed - product) * (inverse_p * inverse_q)
        azimuth = maximum(2.0 + SEPARATION_FLOOR**2 - 2.0 * cosine, SEPARATION_FLOOR**2)
        apart = rapidity_p - rapidity_q
        log_separation = 0.5 * log(azimuth + apart * apart)
        mass = maximum(squared_p + (squared_q + MASS_FLOOR**2) + 2.0 * product, MASS_FLOOR**2)
        ratio = absolute(log_pt_p - log_pt_q)
        softer = 0.5 * (log_pt_p + log_pt_q - ratio)
        log_z = -ratio - log(1.0 + exp(-ratio))
        return {"features": [softer + log_separation, log_z, log_separation, log(mass)]}

    widths = {"first": PARTICLE, "second": PARTICLE}
    return Function(widths, {"features": 4}, body, {"first": "receivers", "second": "senders"})


def _parts(row: Row) -> tuple[Row, Expression, Expression, Expression, Expression, Expression, Expression]:
    return row[:4], row[4], row[5], row[6], row[7], row[8], row[9]


def minkowski(p: Row, q: Row) -> Expression:
    """The product with metric (+, -, -, -)."""
    return p[0] * q[0] - (p[1] * q[1] + p[2] * q[2] + p[3] * q[3])


def mass_squared(p: Row) -> Expression:
    """(E - |p|)(E + |p|), whose derivatives are those of E^2 - p^2."""
    energy, *momentum = p
    length = power(momentum[0] * momentum[0] + momentum[1] * momentum[1] + momentum[2] * momentum[2], 1)
    value = (energy - length) * (energy + length)
    return known(value, [(energy, 2 * energy), *((component, -2 * component) for component in momentum)])
