"""The public edge embedding: checks the arguments, chooses a backend."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sciml_kernels.backends import choose
from sciml_kernels.checks import check_alike, check_range, check_shape
from sciml_kernels.edge_embedding import reference
from sciml_kernels.edge_embedding.function import from_key
from sciml_kernels.rowwise.library import Family, register

LARGEST_DEGREE = 6

_harmonics = register(Family("spherical_harmonics", ("vectors",), ("harmonics",), from_key))
_embedding = register(Family("edge_embedding", ("vectors",), ("harmonics", "basis", "envelope"), from_key))


class EdgeEmbedding(NamedTuple):
    """Of E edges: harmonics (E, (lmax + 1)^2), basis (E, basis), envelope (E, 1)."""

    harmonics: Tensor
    basis: Tensor
    envelope: Tensor


def edge_embedding(
    vectors: Tensor, lmax: int, basis: int, solid: bool = False, power: int = 6, backend: str = "auto"
) -> EdgeEmbedding:
    """Spherical harmonics, radial basis and cutoff envelope of edge vectors in one pass, differentiable twice.

    Args:
        vectors: (E, 3) in units of the cutoff.
        lmax: highest degree of the harmonics, at most 6; component-normalised, in e3nn's order.
        basis: number of Bessel functions sqrt(2) sin(n pi x) / x of x = |vector| (Gasteiger et al., 2020).
        solid: keep the factor x^l, so that a vector of length zero is no singularity.
        power: p of the envelope 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2), which is zero beyond x = 1.
        backend: "auto" (compiled where possible), "reference" (plain torch), "cpu" (generated C++), "triton".

    Raises:
        ValueError: an argument of wrong shape, dtype or range, or a backend that is not possible here.
    """
    _check(vectors, lmax)
    check_range("basis", basis, 1, 256)
    check_range("power", power, 2, 64)
    chosen = choose(backend, vectors)
    if chosen == "reference":
        return EdgeEmbedding(*reference.edge_embedding(vectors, lmax, basis, solid, power))
    return EdgeEmbedding(*_embedding(vectors, f"{lmax} {basis} {int(solid)} {power}", chosen))


def spherical_harmonics(vectors: Tensor, lmax: int, solid: bool = False, backend: str = "auto") -> Tensor:
    """The harmonics alone, (E, (lmax + 1)^2). Arguments and errors as for `edge_embedding`."""
    _check(vectors, lmax)
    chosen = choose(backend, vectors)
    if chosen == "reference":
        return reference.spherical_harmonics(vectors, lmax, solid)
    harmonics: Tensor = _harmonics(vectors, f"{lmax} 0 {int(solid)} 0", chosen)
    return harmonics


def _check(vectors: Tensor, lmax: int) -> None:
    check_shape("vectors", vectors, (None, 3))
    check_alike("vectors", vectors)
    check_range("lmax", lmax, 0, LARGEST_DEGREE)
