"""The trilinear operation as torch operators, differentiable twice: forward, backward and double backward.

One family serves both public operations: with senders and pointers it is the convolution, without them the node-wise
product. A spec travels as its key, because operators take tensors and plain values only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciml_kernels.trilinear import cpu
from sciml_kernels.trilinear.emit import FIRST_ORDER, reachable, second_order
from sciml_kernels.trilinear.spec import Spec


@torch.library.custom_op("sciml_kernels::trilinear", mutates_args=(), device_types="cpu")
def trilinear(x: Tensor, y: Tensor, w: Tensor, senders: Tensor | None, pointers: Tensor | None, spec: str) -> Tensor:
    """Flat rows in, flat rows out."""
    return cpu.launch(spec, {"x": x, "y": y, "w": w}, senders, pointers, FIRST_ORDER, "g")["g"]


@torch.library.custom_op("sciml_kernels::trilinear_backward", mutates_args=(), device_types="cpu")
def trilinear_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor,
    senders: Tensor | None,
    pointers: Tensor | None,
    spec: str,
    wants: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, y, w; those not in `wants` are empty."""
    found = cpu.launch(spec, {"g": g, "x": x, "y": y, "w": w}, senders, pointers, FIRST_ORDER, wants)
    gx, gy, gw = (found[name] if name in found else x.new_empty(0) for name in "xyw")
    return gx, gy, gw


@torch.library.custom_op("sciml_kernels::trilinear_double_backward", mutates_args=(), device_types="cpu")
def trilinear_double_backward(
    vx: Tensor | None,
    vy: Tensor | None,
    vw: Tensor | None,
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor,
    senders: Tensor | None,
    pointers: Tensor | None,
    spec: str,
    wants: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, y, w, g for gradients vx, vy, vw arriving at the first-order ones; the unwanted are empty."""
    tangents = {name: v for name, v in zip("xyw", (vx, vy, vw), strict=True) if v is not None}
    arrays = {"g": g, "x": x, "y": y, "w": w, **{"v" + name: v for name, v in tangents.items()}}
    found = cpu.launch(spec, arrays, senders, pointers, second_order("".join(tangents)), wants)
    gx, gy, gw, gg = (found[name] if name in found else x.new_empty(0) for name in "xywg")
    return gx, gy, gw, gg


@trilinear.register_fake
def _(x: Tensor, y: Tensor, w: Tensor, senders: Tensor | None, pointers: Tensor | None, spec: str) -> Tensor:
    nodes = x.shape[0] if pointers is None else pointers.shape[0] - 1
    return x.new_empty(nodes, Spec.from_key(spec).dim_out)


@trilinear_backward.register_fake
def _(g, x, y, w, senders, pointers, spec, wants):  # type: ignore[no-untyped-def]
    return tuple(_like(t) if name in wants else t.new_empty(0) for name, t in zip("xyw", (x, y, w), strict=True))


@trilinear_double_backward.register_fake
def _(vx, vy, vw, g, x, y, w, senders, pointers, spec, wants):  # type: ignore[no-untyped-def]
    return tuple(_like(t) if name in wants else t.new_empty(0) for name, t in zip("xywg", (x, y, w, g), strict=True))


def _like(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, y, w, senders, pointers, ctx.spec = inputs
    ctx.save_for_backward(x, y, w, senders, pointers)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    wants = _wanted("xyw", ctx.needs_input_grad[:3])
    found = trilinear_backward(g, *ctx.saved_tensors, ctx.spec, wants)
    return *(grad if name in wants else None for name, grad in zip("xyw", found, strict=True)), None, None, None


def _keep_first(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    g, x, y, w, senders, pointers, ctx.spec, ctx.wants = inputs
    ctx.set_materialize_grads(False)  # an absent tangent drops its term
    ctx.save_for_backward(g, x, y, w, senders, pointers)


def _double_backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    given = [v if name in ctx.wants else None for name, v in zip("xyw", tangents, strict=True)]
    terms = second_order("".join(name for name, v in zip("xyw", given, strict=True) if v is not None))
    wants = reachable(terms, _wanted("gxyw", ctx.needs_input_grad[:4]))
    if not wants:
        return (None,) * 8
    gx, gy, gw, gg = trilinear_double_backward(*given, *ctx.saved_tensors, ctx.spec, wants)
    found = {"g": gg, "x": gx, "y": gy, "w": gw}
    return *(grad if name in wants else None for name, grad in found.items()), None, None, None, None


def _third(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        "sciml_kernels: third derivatives are not available in compiled kernels, use backend='reference' for them"
    )


def _wanted(names: str, needed: tuple[bool, ...]) -> str:
    return "".join(name for name, need in zip(names, needed, strict=True) if need)


trilinear.register_autograd(_backward, setup_context=_keep)
trilinear_backward.register_autograd(_double_backward, setup_context=_keep_first)
trilinear_double_backward.register_autograd(_third)
