"""The public layers: check the arguments, choose a backend.

Features are (nodes, components, channels) with the degrees 0..lmax: component l * l + m is the m-th of degree l.
"""

from __future__ import annotations

import math

from torch import Tensor

from sciml_kernels.backends import choose
from sciml_kernels.checks import check_alike, check_shape, check_type
from sciml_kernels.layers import library_linear, library_rowwise, reference


def degree_norm(x: Tensor, eps: float = 1e-5, backend: str = "auto") -> Tensor:
    """Equivariant RMS norm: x / sqrt(mean over degrees of the mean square of a degree, + eps), differentiable twice.

    The degree-balanced RMS norm of EquiformerV2 (Liao et al., 2023), without centring and without gains.

    Args:
        x: (nodes, components, channels).
        eps: added to the mean square.
        backend: "auto" (compiled where possible), "reference" (plain torch), "cpu" (generated C++), "triton".

    Raises:
        ValueError: an argument of wrong shape or dtype, or a backend that is not possible here.
    """
    _check_features("x", x)
    check_alike("x", x)
    chosen = choose(backend, x)
    return reference.degree_norm(x, eps) if chosen == "reference" else library_rowwise.norm(x, eps, chosen)


def degree_linear(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    norm: bool = False,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """x[:, l * l + m] @ weights[l], plus bias on the invariants, plus residual; differentiable twice.

    Args:
        x: (nodes, components, channels_in).
        weights: (degrees, channels_in, channels_out), of all degrees of x or more.
        bias: (channels_out,).
        residual: (nodes, components, channels_out) with any degrees: those of x that it has not count as zero, further
            ones are left out.
        norm: map `degree_norm(x, eps)` in place of x; in C++ in the same pass, in Triton in one of its own before it.
        eps: of the norm.
        backend: as for `degree_norm`.

    Returns:
        (nodes, components of x, channels_out).

    Raises:
        ValueError: an argument of wrong shape, dtype or device, or a backend that is not possible here.
    """
    degrees = _check_features("x", x)
    nodes, _, channels = x.shape
    check_shape("weights", weights, (None, channels, None))
    if weights.shape[0] < degrees:
        raise ValueError(f"weights: found {weights.shape[0]} degrees, expected at least {degrees} as x")
    others = {"weights": weights}
    if bias is not None:
        check_shape("bias", bias, (weights.shape[2],))
        others["bias"] = bias
    if residual is not None:
        check_shape("residual", residual, (nodes, None, weights.shape[2]))
        _check_features("residual", residual)
        others["residual"] = residual
    check_alike("x", x, **others)
    chosen = choose(backend, x)
    if chosen == "reference":
        return reference.degree_linear(reference.degree_norm(x, eps) if norm else x, weights, bias, residual)
    return library_linear.linear(x, weights, bias, residual, norm, eps, chosen)


def gate(x: Tensor, gates: Tensor | None = None, backend: str = "auto") -> Tensor:
    """SiLU of the invariants; degree l >= 1 times sigmoid(gates[:, l - 1]). Differentiable twice.

    Args:
        x: (nodes, components, channels).
        gates: (nodes, lmax, channels); None where x has invariants alone.
        backend: as for `degree_norm`.

    Raises:
        ValueError: an argument of wrong shape, dtype or device, or a backend that is not possible here.
    """
    degrees = _check_features("x", x)
    if gates is None:
        if degrees > 1:
            raise ValueError(f"gates: found None, expected ({x.shape[0]}, {degrees - 1}, {x.shape[2]})")
        return silu(x, backend)
    check_shape("gates", gates, (x.shape[0], degrees - 1, x.shape[2]))
    check_alike("x", x, gates=gates)
    chosen = choose(backend, x)
    return reference.gate(x, gates) if chosen == "reference" else library_rowwise.gate(x, gates, chosen)


def silu(x: Tensor, backend: str = "auto") -> Tensor:
    """x * sigmoid(x) of any shape, differentiable twice with one pass a derivative.

    Raises:
        ValueError: x is not floating, or a backend that is not possible here.
    """
    check_alike("x", x)
    chosen = choose(backend, x)
    return reference.silu(x) if chosen == "reference" else library_rowwise.silu(x, chosen)


def _check_features(name: str, x: Tensor) -> int:
    """The number of degrees of (rows, components, channels)."""
    check_type(name, x, Tensor)
    if x.dim() == 3:
        degrees = math.isqrt(x.shape[1])
        if degrees > 0 and degrees * degrees == x.shape[1] and x.shape[2] > 0:
            return degrees
    raise ValueError(
        f"{name}: found shape {tuple(x.shape)}, expected (nodes, components, channels), components 1, 4, 9, ..."
    )
