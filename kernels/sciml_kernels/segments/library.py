"""Segment sums and projections as torch operators.

Sum and expansion are each other's gradient, and `remove_mean` is its own, so these three have derivatives of every
order. The momentum projection is differentiable twice; letters: f forces, r positions, g what arrived.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sciml_kernels.autograd import fake, given, refuse_third, used, wanted
from sciml_kernels.operators import operator
from sciml_kernels.segments import implementation


@operator("sciml_kernels::segment_sum")
def segment_sum(values: Tensor, pointers: Tensor, backend: str) -> Tensor:
    """Sums of the rows of each segment."""
    return implementation.of(backend).segment_sum(values, pointers)


@operator("sciml_kernels::segment_expand")
def segment_expand(values: Tensor, pointers: Tensor, rows: int, backend: str) -> Tensor:
    """The row of its segment for each of `rows` rows."""
    return implementation.of(backend).segment_expand(values, pointers, rows)


@operator("sciml_kernels::remove_mean")
def remove_mean(values: Tensor, pointers: Tensor, backend: str) -> Tensor:
    """Rows less the mean of their segment."""
    return implementation.of(backend).remove_mean(values, pointers)


@operator("sciml_kernels::momentum")
def momentum(forces: Tensor, positions: Tensor, pointers: Tensor, backend: str) -> Tensor:
    """Forces without net force and torque."""
    return implementation.of(backend).momentum(forces, positions, pointers)


@operator("sciml_kernels::momentum_backward")
def momentum_backward(
    g: Tensor, forces: Tensor, positions: Tensor, pointers: Tensor, backend: str, wants: str
) -> tuple[Tensor, Tensor]:
    """Gradients to forces and positions."""
    gf, gr = given(implementation.of(backend).momentum_backward(g, forces, positions, pointers, wants), g)
    return gf, gr


@operator("sciml_kernels::momentum_double_backward")
def momentum_double_backward(
    vf: Tensor | None,
    vr: Tensor | None,
    g: Tensor,
    forces: Tensor,
    positions: Tensor,
    pointers: Tensor,
    backend: str,
    wants: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to g, forces and positions."""
    found = implementation.of(backend).momentum_double_backward(vf, vr, g, forces, positions, pointers, wants)
    gg, gf, gr = given(found, g)
    return gg, gf, gr


@segment_sum.register_fake
def _(values, pointers, backend):  # type: ignore[no-untyped-def]
    return values.new_empty(pointers.shape[0] - 1, *values.shape[1:])


@segment_expand.register_fake
def _(values, pointers, rows, backend):  # type: ignore[no-untyped-def]
    return values.new_empty(rows, *values.shape[1:])


@remove_mean.register_fake
def _(values, pointers, backend):  # type: ignore[no-untyped-def]
    return values.new_empty(values.shape)


@momentum.register_fake
def _(forces, positions, pointers, backend):  # type: ignore[no-untyped-def]
    return forces.new_empty(forces.shape)


@momentum_backward.register_fake
def _(g, forces, positions, pointers, backend, wants):  # type: ignore[no-untyped-def]
    return fake("fr", (forces, positions), wants)


@momentum_double_backward.register_fake
def _(vf, vr, g, forces, positions, pointers, backend, wants):  # type: ignore[no-untyped-def]
    return fake("gfr", (g, forces, positions), wants)


def _keep_sum(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    values, pointers, ctx.backend = inputs
    ctx.rows = values.shape[0]
    ctx.save_for_backward(pointers)


def _sum_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return segment_expand(g, *ctx.saved_tensors, ctx.rows, ctx.backend), None, None


def _keep_expand(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, pointers, _, ctx.backend = inputs
    ctx.save_for_backward(pointers)


def _expand_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return segment_sum(g, *ctx.saved_tensors, ctx.backend), None, None, None


def _mean_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return remove_mean(g, *ctx.saved_tensors, ctx.backend), None, None


def _keep_momentum(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _momentum_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    wants = wanted(ctx, "fr")
    found = momentum_backward(g, *ctx.saved_tensors, ctx.backend, wants)
    return *used(found, "fr", wants), None, None


def _keep_momentum_first(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.backend, ctx.wants = inputs
    ctx.set_materialize_grads(False)  # an absent tangent drops its terms
    ctx.save_for_backward(*tensors)


def _momentum_double_backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    vf, vr = (v if name in ctx.wants else None for name, v in zip("fr", tangents, strict=True))
    wants = wanted(ctx, "gfr")
    if (vf is None and vr is None) or not wants:
        return (None,) * 6
    found = momentum_double_backward(vf, vr, *ctx.saved_tensors, ctx.backend, wants)
    return *used(found, "gfr", wants), None, None, None


segment_sum.register_autograd(_sum_backward, setup_context=_keep_sum)
segment_expand.register_autograd(_expand_backward, setup_context=_keep_expand)
remove_mean.register_autograd(_mean_backward, setup_context=_keep_sum)
momentum.register_autograd(_momentum_backward, setup_context=_keep_momentum)
momentum_backward.register_autograd(_momentum_double_backward, setup_context=_keep_momentum_first)
momentum_double_backward.register_autograd(refuse_third)
