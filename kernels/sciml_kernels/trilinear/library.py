"""The trilinear operation as torch operators, differentiable twice: forward, backward and double backward.

One family serves both public operations: with the tables of its edges it is the convolution, without any the node-wise
product. A spec travels as its key, because operators take tensors and plain values only; a backend as its name, so
that one operator serves every device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sciml_kernels.autograd import refuse_third, wanted
from sciml_kernels.trilinear import cpu, gpu
from sciml_kernels.trilinear.emit import FIRST_ORDER, Term, reachable, second_order
from sciml_kernels.trilinear.spec import Spec


@torch.library.custom_op("sciml_kernels::trilinear", mutates_args=())
def trilinear(x: Tensor, y: Tensor, w: Tensor, tables: Sequence[Tensor], spec: str, backend: str) -> Tensor:
    """Flat rows in, flat rows out; `tables` of `Edges.tables`, or none."""
    return _launch(backend, spec, {"x": x, "y": y, "w": w}, tables, FIRST_ORDER, "g")["g"]


@torch.library.custom_op("sciml_kernels::trilinear_backward", mutates_args=())
def trilinear_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor,
    tables: Sequence[Tensor],
    spec: str,
    backend: str,
    wants: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, y, w; those not in `wants` are empty."""
    found = _launch(backend, spec, {"g": g, "x": x, "y": y, "w": w}, tables, FIRST_ORDER, wants)
    gx, gy, gw = (found[name] if name in found else x.new_empty(0) for name in "xyw")
    return gx, gy, gw


@torch.library.custom_op("sciml_kernels::trilinear_double_backward", mutates_args=())
def trilinear_double_backward(
    vx: Tensor | None,
    vy: Tensor | None,
    vw: Tensor | None,
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor,
    tables: Sequence[Tensor],
    spec: str,
    backend: str,
    wants: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, y, w, g for gradients vx, vy, vw arriving at the first-order ones; the unwanted are empty."""
    tangents = {name: v for name, v in zip("xyw", (vx, vy, vw), strict=True) if v is not None}
    arrays = {"g": g, "x": x, "y": y, "w": w, **{"v" + name: v for name, v in tangents.items()}}
    found = _launch(backend, spec, arrays, tables, second_order("".join(tangents)), wants)
    gx, gy, gw, gg = (found[name] if name in found else x.new_empty(0) for name in "xywg")
    return gx, gy, gw, gg


def _launch(
    backend: str,
    spec: str,
    arrays: Mapping[str, Tensor],
    tables: Sequence[Tensor],
    terms: tuple[Term, ...],
    wants: str,
) -> dict[str, Tensor]:
    launch = cpu.launch if backend == "cpu" else gpu.launch
    return launch(spec, arrays, tables, terms, wants)


@trilinear.register_fake
def _(x: Tensor, y: Tensor, w: Tensor, tables: Sequence[Tensor], spec: str, backend: str) -> Tensor:
    nodes = tables[1].shape[0] - 1 if tables else x.shape[0]
    return x.new_empty(nodes, Spec.from_key(spec).dim_out)


@trilinear_backward.register_fake
def _(g, x, y, w, tables, spec, backend, wants):  # type: ignore[no-untyped-def]
    return tuple(_like(t) if name in wants else t.new_empty(0) for name, t in zip("xyw", (x, y, w), strict=True))


@trilinear_double_backward.register_fake
def _(vx, vy, vw, g, x, y, w, tables, spec, backend, wants):  # type: ignore[no-untyped-def]
    return tuple(_like(t) if name in wants else t.new_empty(0) for name, t in zip("xywg", (x, y, w, g), strict=True))


def _like(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, y, w, tables, ctx.spec, ctx.backend = inputs
    ctx.save_for_backward(x, y, w, *tables)


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    wants = wanted(ctx, "xyw")
    x, y, w, *tables = ctx.saved_tensors
    found = trilinear_backward(g, x, y, w, tables, ctx.spec, ctx.backend, wants)
    return (
        *(grad if name in wants else None for name, grad in zip("xyw", found, strict=True)),
        [None] * len(tables),
        None,
        None,
    )


def _keep_first(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    g, x, y, w, tables, ctx.spec, ctx.backend, ctx.wants = inputs
    ctx.set_materialize_grads(False)  # an absent tangent drops its term
    ctx.save_for_backward(g, x, y, w, *tables)


def _double_backward(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
    given = [v if name in ctx.wants else None for name, v in zip("xyw", tangents, strict=True)]
    terms = second_order("".join(name for name, v in zip("xyw", given, strict=True) if v is not None))
    wants = reachable(terms, wanted(ctx, "gxyw"))
    g, x, y, w, *tables = ctx.saved_tensors
    rest = [None] * len(tables), None, None, None
    if not wants:
        return None, None, None, None, *rest
    gx, gy, gw, gg = trilinear_double_backward(*given, g, x, y, w, tables, ctx.spec, ctx.backend, wants)
    found = {"g": gg, "x": gx, "y": gy, "w": gw}
    return *(grad if name in wants else None for name, grad in found.items()), *rest


trilinear.register_autograd(_backward, setup_context=_keep)
trilinear_backward.register_autograd(_double_backward, setup_context=_keep_first)
trilinear_double_backward.register_autograd(refuse_third)
