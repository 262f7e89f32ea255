"""Structure factors as torch operators, differentiable twice; letters: r positions, q charges, k frequencies, g."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sciml_kernels.autograd import fake, given, refuse_third, used, wanted
from sciml_kernels.operators import operator
from sciml_kernels.structure_factors import cpu, gpu, passes


def _of(backend: str) -> passes.Sums:
    return gpu if backend == "triton" else cpu


@operator("sciml_kernels::structure_factors")
def structure_factors(r: Tensor, q: Tensor, k: Tensor, atoms: Tensor, waves: Tensor, backend: str) -> Tensor:
    """(waves, 2, channels) of positions (atoms, 3), charges (atoms, channels), frequencies (waves, 3)."""
    return passes.forward(_of(backend), r, q, k, atoms, waves)


@operator("sciml_kernels::structure_factors_backward")
def backward(
    g: Tensor, r: Tensor, q: Tensor, k: Tensor, atoms: Tensor, waves: Tensor, backend: str, wants: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to r, q and k."""
    gr, gq, gk = given(passes.backward(_of(backend), g, r, q, k, atoms, waves, wants), g)
    return gr, gq, gk


@operator("sciml_kernels::structure_factors_double_backward")
def double_backward(
    vr: Tensor | None,
    vq: Tensor | None,
    vk: Tensor | None,
    g: Tensor,
    r: Tensor,
    q: Tensor,
    k: Tensor,
    atoms: Tensor,
    waves: Tensor,
    backend: str,
    wants: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to g, r, q and k."""
    found = passes.double_backward(_of(backend), vr, vq, vk, g, r, q, k, atoms, waves, wants)
    gg, gr, gq, gk = given(found, g)
    return gg, gr, gq, gk


@structure_factors.register_fake
def _(r, q, k, atoms, waves, backend):  # type: ignore[no-untyped-def]
    return q.new_empty(k.shape[0], 2, q.shape[1])


@backward.register_fake
def _(g, r, q, k, atoms, waves, backend, wants):  # type: ignore[no-untyped-def]
    return fake("rqk", (r, q, k), wants)


@double_backward.register_fake
def _(vr, vq, vk, g, r, q, k, atoms, waves, backend, wants):  # type: ignore[no-untyped-def]
    return fake("grqk", (g, r, q, k), wants)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    wants = wanted(ctx, "rqk")
    return *used(backward(g, *ctx.saved_tensors, ctx.backend, wants), "rqk", wants), None, None, None


def _keep_first(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.backend, ctx.wants = inputs
    ctx.set_materialize_grads(False)  # an absent tangent drops its terms
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    along = [v if name in ctx.wants else None for name, v in zip("rqk", tangents, strict=True)]
    wants = wanted(ctx, "grqk")
    if all(v is None for v in along) or not wants:
        return (None,) * 8
    found = double_backward(*along, *ctx.saved_tensors, ctx.backend, wants)
    return *used(found, "grqk", wants), None, None, None, None


structure_factors.register_autograd(_backward, setup_context=_keep)
backward.register_autograd(_double_backward, setup_context=_keep_first)
double_backward.register_autograd(refuse_third)
