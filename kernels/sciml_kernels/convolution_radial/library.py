"""The convolution with the radial layer inside as torch operators, differentiable twice.

`wants` names the gradients to compute by the letters x, y, h, W, g, the others come back empty; absent tangents are
None; the index tables are those of `Edges.tables`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sciml_kernels.autograd import fake, given, refuse_third, used, wanted
from sciml_kernels.convolution_radial import cpu, gpu
from sciml_kernels.convolution_radial.passes import reachable
from sciml_kernels.edges import Tables
from sciml_kernels.operators import operator
from sciml_kernels.trilinear.library import REST
from sciml_kernels.trilinear.spec import Spec

_SIDES = "xyhW"
_LAUNCH = {"cpu": cpu.launch, "triton": gpu.launch}


@operator("sciml_kernels::conv_radial")
def conv_radial(
    x: Tensor,
    y: Tensor,
    h: Tensor,
    weight: Tensor,
    senders: Tensor,
    pointers: Tensor,
    pieces: Tensor | None,
    receivers: Tensor | None,
    order: Tensor | None,
    sender_pieces: Tensor | None,
    spec: str,
    backend: str,
) -> Tensor:
    """Flat rows in, flat rows out."""
    tables = Tables(senders, pointers, pieces, receivers, order, sender_pieces)
    return _LAUNCH[backend](spec, {"x": x, "y": y, "h": h, "W": weight}, tables, "", "g")["g"]


@operator("sciml_kernels::conv_radial_backward")
def conv_radial_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    h: Tensor,
    weight: Tensor,
    senders: Tensor,
    pointers: Tensor,
    pieces: Tensor | None,
    receivers: Tensor | None,
    order: Tensor | None,
    sender_pieces: Tensor | None,
    spec: str,
    backend: str,
    wants: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, y, h, weight."""
    tables = Tables(senders, pointers, pieces, receivers, order, sender_pieces)
    found = _LAUNCH[backend](spec, {"g": g, "x": x, "y": y, "h": h, "W": weight}, tables, "", wants)
    gx, gy, gh, gw = given({name: found.get(name) for name in _SIDES}, x)
    return gx, gy, gh, gw


@operator("sciml_kernels::conv_radial_double_backward")
def conv_radial_double_backward(
    vx: Tensor | None,
    vy: Tensor | None,
    vh: Tensor | None,
    vw: Tensor | None,
    g: Tensor,
    x: Tensor,
    y: Tensor,
    h: Tensor,
    weight: Tensor,
    senders: Tensor,
    pointers: Tensor,
    pieces: Tensor | None,
    receivers: Tensor | None,
    order: Tensor | None,
    sender_pieces: Tensor | None,
    spec: str,
    backend: str,
    wants: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to g, x, y, h, weight for gradients vx, vy, vh, vw arriving at the first-order ones."""
    tangents = {name: v for name, v in zip(_SIDES, (vx, vy, vh, vw), strict=True) if v is not None}
    arrays = {"g": g, "x": x, "y": y, "h": h, "W": weight, **{"v" + name: v for name, v in tangents.items()}}
    tables = Tables(senders, pointers, pieces, receivers, order, sender_pieces)
    found = _LAUNCH[backend](spec, arrays, tables, "".join(tangents), wants)
    gg, gx, gy, gh, gw = given({name: found.get(name) for name in "g" + _SIDES}, x)
    return gg, gx, gy, gh, gw


@conv_radial.register_fake
def _(x, y, h, weight, senders, pointers, pieces, receivers, order, sender_pieces, spec, backend):  # type: ignore[no-untyped-def]
    return x.new_empty(pointers.shape[0] - 1, Spec.from_key(spec).dim_out)


@conv_radial_backward.register_fake
def _(g, x, y, h, weight, *rest):  # type: ignore[no-untyped-def]
    return fake(_SIDES, (x, y, h, weight), rest[-1])


@conv_radial_double_backward.register_fake
def _(vx, vy, vh, vw, g, x, y, h, weight, *rest):  # type: ignore[no-untyped-def]
    return fake("g" + _SIDES, (g, x, y, h, weight), rest[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spec, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    wants = wanted(ctx, _SIDES)
    found: tuple[Tensor | None, ...] = (None,) * 4
    if wants:
        found = used(conv_radial_backward(g, *ctx.saved_tensors, ctx.spec, ctx.backend, wants), _SIDES, wants)
    return *found, *REST


def _keep_first(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spec, ctx.backend, ctx.wants = inputs
    ctx.set_materialize_grads(False)  # an absent tangent drops its term
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    tangents = [v if name in ctx.wants else None for name, v in zip(_SIDES, arriving, strict=True)]
    present = "".join(name for name, v in zip(_SIDES, tangents, strict=True) if v is not None)
    wants = reachable(present, wanted(ctx, "g" + _SIDES))
    found: tuple[Tensor | None, ...] = (None,) * 5
    if wants:
        computed = conv_radial_double_backward(*tangents, *ctx.saved_tensors, ctx.spec, ctx.backend, wants)
        found = used(computed, "g" + _SIDES, wants)
    return *found, *REST, None


conv_radial.register_autograd(_backward, setup_context=_keep)
conv_radial_backward.register_autograd(_double_backward, setup_context=_keep_first)
conv_radial_double_backward.register_autograd(refuse_third)
