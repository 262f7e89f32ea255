"""The convolution with the radial layer inside as torch operators, differentiable twice.

The layout is that of `sciml_kernels.trilinear.library`; `backend` is "cpu" or "triton".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciml_kernels.convolution_radial import cpu
from sciml_kernels.convolution_radial.passes import reachable
from sciml_kernels.trilinear.spec import Spec

_SIDES = "xyhW"


@torch.library.custom_op("sciml_kernels::conv_radial", mutates_args=())
def conv_radial(
    x: Tensor, y: Tensor, h: Tensor, weight: Tensor, senders: Tensor, pointers: Tensor, spec: str, backend: str
) -> Tensor:
    """Flat rows in, flat rows out."""
    return cpu.launch(spec, {"x": x, "y": y, "h": h, "W": weight}, senders, pointers, "", "g")["g"]


@torch.library.custom_op("sciml_kernels::conv_radial_backward", mutates_args=())
def conv_radial_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    h: Tensor,
    weight: Tensor,
    senders: Tensor,
    pointers: Tensor,
    spec: str,
    backend: str,
    wants: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, y, h, weight; those not in `wants` are empty."""
    arrays = {"g": g, "x": x, "y": y, "h": h, "W": weight}
    found = cpu.launch(spec, arrays, senders, pointers, "", wants)
    gx, gy, gh, gw = (found[name] if name in found else x.new_empty(0) for name in _SIDES)
    return gx, gy, gh, gw


@torch.library.custom_op("sciml_kernels::conv_radial_double_backward", mutates_args=())
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
    backend: str,
    wants: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, y, h, weight, g for gradients vx, vy, vh, vw arriving at the first-order ones."""
    tangents = {name: v for name, v in zip(_SIDES, (vx, vy, vh, vw), strict=True) if v is not None}
    arrays = {"g": g, "x": x, "y": y, "h": h, "W": weight, **{"v" + name: v for name, v in tangents.items()}}
    found = cpu.launch(spec, arrays, senders, pointers, "".join(tangents), wants)
    gx, gy, gh, gw, gg = (found[name] if name in found else x.new_empty(0) for name in _SIDES + "g")
    return gx, gy, gh, gw, gg


@conv_radial.register_fake
def _(x, y, h, weight, senders, pointers, spec, backend):  # type: ignore[no-untyped-def]
    return x.new_empty(pointers.shape[0] - 1, Spec.from_key(spec).dim_out)


@conv_radial_backward.register_fake
def _(g, x, y, h, weight, senders, pointers, spec, backend, wants):  # type: ignore[no-untyped-def]
    return _empty(dict(zip(_SIDES, (x, y, h, weight), strict=True)), wants)


@conv_radial_double_backward.register_fake
def _(vx, vy, vh, vw, g, x, y, h, weight, senders, pointers, spec, backend, wants):  # type: ignore[no-untyped-def]
    return _empty(dict(zip(_SIDES + "g", (x, y, h, weight, g), strict=True)), wants)


def _empty(sides: dict[str, Tensor], wants: str) -> tuple[Tensor, ...]:
    return tuple(side.new_empty(side.shape if name in wants else 0) for name, side in sides.items())


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spec, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    wants = _wanted(_SIDES, ctx.needs_input_grad[:4])
    found = conv_radial_backward(g, *ctx.saved_tensors, ctx.spec, ctx.backend, wants)
    return *(gradient if name in wants else None for name, gradient in zip(_SIDES, found, strict=True)), *[None] * 4


def _keep_first(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spec, ctx.backend, ctx.wants = inputs
    ctx.set_materialize_grads(False)  # an absent tangent drops its term
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    tangents = [v if name in ctx.wants else None for name, v in zip(_SIDES, arriving, strict=True)]
    present = "".join(name for name, v in zip(_SIDES, tangents, strict=True) if v is not None)
    wants = reachable(present, _wanted("gxyhW", ctx.needs_input_grad[:5]))
    if not wants:
        return (None,) * 10
    *sides, gg = conv_radial_double_backward(*tangents, *ctx.saved_tensors, ctx.spec, ctx.backend, wants)
    found = dict(zip("gxyhW", (gg, *sides), strict=True))
    return *(gradient if name in wants else None for name, gradient in found.items()), *[None] * 5


def _third(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        "sciml_kernels: third derivatives are not available in compiled kernels, use backend='reference' for them"
    )


def _wanted(names: str, needed: tuple[bool, ...]) -> str:
    return "".join(name for name, need in zip(names, needed, strict=True) if need)


conv_radial.register_autograd(_backward, setup_context=_keep)
conv_radial_backward.register_autograd(_double_backward, setup_context=_keep_first)
conv_radial_double_backward.register_autograd(_third)
