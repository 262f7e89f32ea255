"""The convolution with the radial layer inside as torch operators, differentiable twice. They run on a CPU.

`wants` names the gradients to compute by the letters x, y, h, W, g, the others come back empty; absent tangents are
None; senders and pointers are those of `Edges`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sciml_kernels.autograd import fake, given, refuse_third, used, wanted
from sciml_kernels.convolution_radial import cpu
from sciml_kernels.convolution_radial.passes import reachable
from sciml_kernels.operators import operator
from sciml_kernels.trilinear.spec import Spec

_SIDES = "xyhW"


@operator("sciml_kernels::conv_radial")
def conv_radial(
    x: Tensor, y: Tensor, h: Tensor, weight: Tensor, senders: Tensor, pointers: Tensor, spec: str
) -> Tensor:
    """Flat rows in, flat rows out."""
    return cpu.launch(spec, {"x": x, "y": y, "h": h, "W": weight}, senders, pointers, "", "g")["g"]


@operator("sciml_kernels::conv_radial_backward")
def conv_radial_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    h: Tensor,
    weight: Tensor,
    senders: Tensor,
    pointers: Tensor,
    spec: str,
    wants: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, y, h, weight."""
    found = cpu.launch(spec, {"g": g, "x": x, "y": y, "h": h, "W": weight}, senders, pointers, "", wants)
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
    spec: str,
    wants: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to g, x, y, h, weight for gradients vx, vy, vh, vw arriving at the first-order ones."""
    tangents = {name: v for name, v in zip(_SIDES, (vx, vy, vh, vw), strict=True) if v is not None}
    arrays = {"g": g, "x": x, "y": y, "h": h, "W": weight, **{"v" + name: v for name, v in tangents.items()}}
    found = cpu.launch(spec, arrays, senders, pointers, "".join(tangents), wants)
    gg, gx, gy, gh, gw = given({name: found.get(name) for name in "g" + _SIDES}, x)
    return gg, gx, gy, gh, gw


@conv_radial.register_fake
def _(x, y, h, weight, senders, pointers, spec):  # type: ignore[no-untyped-def]
    return x.new_empty(pointers.shape[0] - 1, Spec.from_key(spec).dim_out)


@conv_radial_backward.register_fake
def _(g, x, y, h, weight, senders, pointers, spec, wants):  # type: ignore[no-untyped-def]
    return fake(_SIDES, (x, y, h, weight), wants)


@conv_radial_double_backward.register_fake
def _(vx, vy, vh, vw, g, x, y, h, weight, senders, pointers, spec, wants):  # type: ignore[no-untyped-def]
    return fake("g" + _SIDES, (g, x, y, h, weight), wants)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spec = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    wants = wanted(ctx, _SIDES)
    found: tuple[Tensor | None, ...] = (None,) * 4
    if wants:
        found = used(conv_radial_backward(g, *ctx.saved_tensors, ctx.spec, wants), _SIDES, wants)
    return *found, None, None, None


def _keep_first(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spec, ctx.wants = inputs
    ctx.set_materialize_grads(False)  # an absent tangent drops its term
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    tangents = [v if name in ctx.wants else None for name, v in zip(_SIDES, arriving, strict=True)]
    present = "".join(name for name, v in zip(_SIDES, tangents, strict=True) if v is not None)
    wants = reachable(present, wanted(ctx, "g" + _SIDES))
    found: tuple[Tensor | None, ...] = (None,) * 5
    if wants:
        computed = conv_radial_double_backward(*tangents, *ctx.saved_tensors, ctx.spec, wants)
        found = used(computed, "g" + _SIDES, wants)
    return *found, None, None, None, None


conv_radial.register_autograd(_backward, setup_context=_keep)
conv_radial_backward.register_autograd(_double_backward, setup_context=_keep_first)
conv_radial_double_backward.register_autograd(refuse_third)
