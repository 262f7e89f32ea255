"""The linear map per degree as torch operators, differentiable twice.

`wants` names the gradients to compute by letters (x, w, b the bias, g what arrived); the others come back empty. Absent
tangents are None.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sciml_kernels.autograd import fake, given, refuse_third, used, wanted
from sciml_kernels.layers import implementation
from sciml_kernels.layers.reference import fit_components
from sciml_kernels.operators import operator


@operator("sciml_kernels::degree_linear")
def linear(
    x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, normed: bool, eps: float, backend: str
) -> Tensor:
    """The linear map per degree of x, or of its norm; see `sciml_kernels.layers.op.degree_linear`."""
    return implementation.of(backend).linear(x, w, bias, residual, normed, eps)


@operator("sciml_kernels::degree_linear_backward")
def linear_backward(
    g: Tensor, x: Tensor, w: Tensor, normed: bool, eps: float, backend: str, wants: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, w and the bias."""
    gx, gw, gb = given(implementation.of(backend).linear_backward(g, x, w, normed, eps, wants), x)
    return gx, gw, gb


@operator("sciml_kernels::degree_linear_double_backward")
def linear_double_backward(
    vx: Tensor | None,
    vw: Tensor | None,
    vb: Tensor | None,
    g: Tensor,
    x: Tensor,
    w: Tensor,
    normed: bool,
    eps: float,
    backend: str,
    wants: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to g, x and w."""
    found = implementation.of(backend).linear_double_backward(vx, vw, vb, g, x, w, normed, eps, wants)
    gg, gx, gw = given(found, x)
    return gg, gx, gw


@linear.register_fake
def _(x, w, bias, residual, normed, eps, backend):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], x.shape[1], w.shape[2])


@linear_backward.register_fake
def _(g, x, w, normed, eps, backend, wants):  # type: ignore[no-untyped-def]
    return fake("xwb", (x, w, w[0, 0]), wants)


@linear_double_backward.register_fake
def _(vx, vw, vb, g, x, w, normed, eps, backend, wants):  # type: ignore[no-untyped-def]
    return fake("gxw", (g, x, w), wants)


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, w, bias, residual, *ctx.options = inputs
    ctx.given = (True, True, bias is not None, residual is not None)
    ctx.residual_components = None if residual is None else residual.shape[1]
    ctx.save_for_backward(x, w)


def _linear_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    wants = wanted(ctx, "xwbr", ctx.given)
    to_residual = fit_components(g, ctx.residual_components) if "r" in wants else None
    found: tuple[Tensor | None, ...] = (None,) * 3
    if wants.strip("r"):
        found = used(linear_backward(g, *ctx.saved_tensors, *ctx.options, wants.strip("r")), "xwb", wants)
    return *found, to_residual, None, None, None


def _keep_linear_first(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    g, x, w, ctx.normed, ctx.eps, ctx.backend, ctx.wants = inputs
    ctx.set_materialize_grads(False)  # an absent tangent drops its terms
    ctx.save_for_backward(g, x, w)


def _linear_double_backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    vx, vw, vb = (v if name in ctx.wants else None for name, v in zip("xwb", tangents, strict=True))
    reachable = "g" * any(v is not None for v in (vx, vw, vb))
    reachable += "x" * (vw is not None or (ctx.normed and vx is not None)) + "w" * (vx is not None)
    wants = "".join(name for name in wanted(ctx, "gxw") if name in reachable)
    if not wants:
        return (None,) * 7
    found = linear_double_backward(vx, vw, vb, *ctx.saved_tensors, ctx.normed, ctx.eps, ctx.backend, wants)
    return *used(found, "gxw", wants), None, None, None, None


linear.register_autograd(_linear_backward, setup_context=_keep_linear)
linear_backward.register_autograd(_linear_double_backward, setup_context=_keep_linear_first)
linear_double_backward.register_autograd(refuse_third)
