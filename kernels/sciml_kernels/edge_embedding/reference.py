"""The definition of the edge embedding in plain torch: any dtype, any order of derivative by autograd."""

from __future__ import annotations

import functools
import math

import torch
from e3nn import o3
from torch import Tensor

from sciml_kernels.half import in_single


@in_single
def spherical_harmonics(vectors: Tensor, lmax: int, solid: bool = False) -> Tensor:
    """Harmonics of vectors (E, 3) -> (E, (lmax + 1)^2), 'component' normalised; solid ones keep the factor r^l.

    Degree l is the coupling of degree l - 1 with the vector itself, so that each degree costs one outer product and
    one matrix product in every order of differentiation.
    """
    if not solid:
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    degrees = [torch.ones_like(vectors[:, :1]), math.sqrt(3.0) * vectors]
    for degree in range(2, lmax + 1):
        outer = (degrees[-1].unsqueeze(2) * vectors.unsqueeze(1)).flatten(1)
        degrees.append(outer @ _coupling(degree, vectors))
    return torch.cat(degrees[: lmax + 1], dim=1)


def bessel_basis(x: Tensor, size: int) -> Tensor:
    """sqrt(2) sin(n pi x) / x for n = 1..size on x = r / cutoff (E, 1) -> (E, size); finite at 0 (Gasteiger et al.,
    2020).
    """
    orders = torch.arange(1, size + 1, dtype=x.dtype, device=x.device)
    return torch.sinc(x * orders) * (math.sqrt(2.0) * math.pi * orders)


def polynomial_envelope(x: Tensor, power: int = 6) -> Tensor:
    """Smooth cutoff on x = r / cutoff: one at 0, zero with zero first and second derivative at 1 (Gasteiger et al.,
    2020).
    """
    p = float(power)
    x = x.clamp(max=1.0)
    return 1.0 + x**power * (-(p + 1) * (p + 2) / 2 + p * (p + 2) * x - p * (p + 1) / 2 * x * x)


@in_single
def edge_embedding(vectors: Tensor, lmax: int, basis: int, solid: bool, power: int) -> tuple[Tensor, Tensor, Tensor]:
    """Harmonics, basis and envelope of edge vectors in units of the cutoff (E, 3)."""
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    harmonics = spherical_harmonics(vectors, lmax, solid)
    return harmonics, bessel_basis(lengths, basis), polynomial_envelope(lengths, power)


def _coupling(degree: int, like: Tensor) -> Tensor:
    """What couples Y_(l-1) with a unit vector to Y_l, (3 (2 l - 1), 2 l + 1), dtype and device of `like`."""
    if type(like) is Tensor and not torch.compiler.is_compiling():
        return _kept(degree, like.dtype, like.device)
    return _dense(degree).to(like)  # a tensor of a tracer must not outlive it


@functools.cache
def _kept(degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what inference makes cannot be saved for a backward pass
        return _dense(degree).to(dtype=dtype, device=device)


def _dense(degree: int) -> Tensor:
    """The Wigner 3j symbols in fp64 times a factor that is read off at one point."""
    coupling = o3.wigner_3j(degree - 1, 1, degree, dtype=torch.float64)
    point = torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64)
    below, wanted = (o3.spherical_harmonics(d, point, True, normalization="component") for d in (degree - 1, degree))
    coupled = torch.einsum("ei,ej,ijk->ek", below, point, coupling)
    return (coupling * (wanted * coupled).sum() / coupled.square().sum()).reshape(-1, 2 * degree + 1)
