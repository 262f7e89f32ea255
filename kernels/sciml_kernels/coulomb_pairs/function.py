"""The interaction of one pair, as expressions."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from sciml_kernels.coulomb_pairs.reference import TINY
from sciml_kernels.rowwise.expression import erf, sqrt
from sciml_kernels.rowwise.function import Function, Row


@functools.cache
def from_key(key: str) -> Function:
    """Of the key "smearing"."""
    smearing = float(key)

    def body(rows: Mapping[str, Row]) -> Mapping[str, Row]:
        x, y, z = (q - p + d for p, q, d in zip(rows["first"], rows["second"], rows["offsets"], strict=True))
        (splitting,) = rows["splittings"]
        distance = sqrt(x * x + y * y + z * z + TINY)
        return {"interaction": [(erf(distance * (0.5 / smearing)) - erf(splitting * distance)) / distance]}

    inputs = {"first": 3, "second": 3, "offsets": 3, "splittings": 1}
    return Function(inputs, {"interaction": 1}, body, {"first": "receivers", "second": "senders"})
