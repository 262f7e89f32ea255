"""The norm, the gate and SiLU as torch operators, differentiable twice.

`wants` names the gradients to compute by letters (x, t the gates, g what arrived); the others come back empty. Absent
tangents are None.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sciml_kernels.autograd import fake, given, refuse_third, used, wanted
from sciml_kernels.layers import implementation
from sciml_kernels.operators import operator


@operator("sciml_kernels::degree_norm")
def norm(x: Tensor, eps: float, backend: str) -> Tensor:
    """The norm; see `sciml_kernels.layers.op.degree_norm`."""
    return implementation.of(backend).norm(x, eps)


@operator("sciml_kernels::degree_norm_backward")
def norm_backward(g: Tensor, x: Tensor, eps: float, backend: str) -> Tensor:
    """The gradient to x."""
    return implementation.of(backend).norm_backward(g, x, eps)


@operator("sciml_kernels::degree_norm_double_backward")
def norm_double_backward(
    v: Tensor, g: Tensor, x: Tensor, eps: float, backend: str, wants: str
) -> tuple[Tensor, Tensor]:
    """Gradients to g and x."""
    gg, gx = given(implementation.of(backend).norm_double_backward(v, g, x, eps, wants), x)
    return gg, gx


@norm.register_fake
def _(x, eps, backend):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@norm_backward.register_fake
def _(g, x, eps, backend):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@norm_double_backward.register_fake
def _(v, g, x, eps, backend, wants):  # type: ignore[no-untyped-def]
    return fake("gx", (g, x), wants)


def _keep_norm(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, ctx.eps, ctx.backend = inputs
    ctx.save_for_backward(x)


def _norm_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return norm_backward(g, *ctx.saved_tensors, ctx.eps, ctx.backend), None, None


def _keep_norm_first(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    g, x, ctx.eps, ctx.backend = inputs
    ctx.save_for_backward(g, x)


def _norm_double_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    wants = wanted(ctx, "gx")
    found = norm_double_backward(v, *ctx.saved_tensors, ctx.eps, ctx.backend, wants)
    return *used(found, "gx", wants), None, None


norm.register_autograd(_norm_backward, setup_context=_keep_norm)
norm_backward.register_autograd(_norm_double_backward, setup_context=_keep_norm_first)
norm_double_backward.register_autograd(refuse_third)


@operator("sciml_kernels::gate")
def gate(x: Tensor, gates: Tensor, backend: str) -> Tensor:
    """The gate; see `sciml_kernels.layers.op.gate`."""
    return implementation.of(backend).gate(x, gates)


@operator("sciml_kernels::gate_backward")
def gate_backward(g: Tensor, x: Tensor, gates: Tensor, backend: str, wants: str) -> tuple[Tensor, Tensor]:
    """Gradients to x and the gates."""
    gx, gt = given(implementation.of(backend).gate_backward(g, x, gates, wants), x)
    return gx, gt


@operator("sciml_kernels::gate_double_backward")
def gate_double_backward(
    vx: Tensor | None, vt: Tensor | None, g: Tensor, x: Tensor, gates: Tensor, backend: str, wants: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to g, x and the gates."""
    gg, gx, gt = given(implementation.of(backend).gate_double_backward(vx, vt, g, x, gates, wants), x)
    return gg, gx, gt


@gate.register_fake
def _(x, gates, backend):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@gate_backward.register_fake
def _(g, x, gates, backend, wants):  # type: ignore[no-untyped-def]
    return fake("xt", (x, gates), wants)


@gate_double_backward.register_fake
def _(vx, vt, g, x, gates, backend, wants):  # type: ignore[no-untyped-def]
    return fake("gxt", (g, x, gates), wants)


def _keep_gate(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, gates, ctx.backend = inputs
    ctx.save_for_backward(x, gates)


def _gate_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    wants = wanted(ctx, "xt")
    return *used(gate_backward(g, *ctx.saved_tensors, ctx.backend, wants), "xt", wants), None


def _keep_gate_first(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    g, x, gates, ctx.backend, ctx.wants = inputs
    ctx.set_materialize_grads(False)  # an absent tangent drops its terms
    ctx.save_for_backward(g, x, gates)


def _gate_double_backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    vx, vt = (v if name in ctx.wants else None for name, v in zip("xt", tangents, strict=True))
    wants = wanted(ctx, "gxt")
    if (vx is None and vt is None) or not wants:
        return (None,) * 5
    found = gate_double_backward(vx, vt, *ctx.saved_tensors, ctx.backend, wants)
    return *used(found, "gxt", wants), None, None


gate.register_autograd(_gate_backward, setup_context=_keep_gate)
gate_backward.register_autograd(_gate_double_backward, setup_context=_keep_gate_first)
gate_double_backward.register_autograd(refuse_third)


@operator("sciml_kernels::silu")
def silu(x: Tensor, backend: str) -> Tensor:
    """x * sigmoid(x)."""
    return implementation.of(backend).silu(x)


@operator("sciml_kernels::silu_backward")
def silu_backward(g: Tensor, x: Tensor, backend: str) -> Tensor:
    """The gradient to x."""
    return implementation.of(backend).silu_backward(g, x)


@operator("sciml_kernels::silu_double_backward")
def silu_double_backward(v: Tensor, g: Tensor, x: Tensor, backend: str, wants: str) -> tuple[Tensor, Tensor]:
    """Gradients to g and x."""
    gg, gx = given(implementation.of(backend).silu_double_backward(v, g, x, wants), x)
    return gg, gx


@silu.register_fake
def _(x, backend):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@silu_backward.register_fake
def _(g, x, backend):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@silu_double_backward.register_fake
def _(v, g, x, backend, wants):  # type: ignore[no-untyped-def]
    return fake("gx", (g, x), wants)


def _keep_silu(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, ctx.backend = inputs
    ctx.save_for_backward(x)


def _silu_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return silu_backward(g, *ctx.saved_tensors, ctx.backend), None


def _keep_silu_first(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    g, x, ctx.backend = inputs
    ctx.save_for_backward(g, x)


def _silu_double_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    wants = wanted(ctx, "gx")
    found = silu_double_backward(v, *ctx.saved_tensors, ctx.backend, wants)
    return *used(found, "gx", wants), None


silu.register_autograd(_silu_backward, setup_context=_keep_silu)
silu_backward.register_autograd(_silu_double_backward, setup_context=_keep_silu_first)
silu_double_backward.register_autograd(refuse_third)
