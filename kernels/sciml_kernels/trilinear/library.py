"""The trilinear operation as torch operators, differentiable twice: forward, backward and double backward.

One family serves both public operations: with the tables of its edges it is the convolution, without any the node-wise
product. A spec travels as its key, because operators take tensors and plain values only; a backend as its name, so
that one operator serves every device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sciml_kernels.autograd import fake, given, refuse_third, used, wanted
from sciml_kernels.edges import Tables
from sciml_kernels.operators import operator
from sciml_kernels.trilinear import cpu, gpu
from sciml_kernels.trilinear.emit import FIRST_ORDER, Term, reachable, second_order
from sciml_kernels.trilinear.spec import Spec

# No gradients to the index tables (a list of them would be slow where torch registers it), the spec and the backend.
REST = (None,) * (len(Tables._fields) + 2)


@operator("sciml_kernels::trilinear")
def trilinear(
    x: Tensor,
    y: Tensor,
    w: Tensor,
    senders: Tensor | None,
    pointers: Tensor | None,
    pieces: Tensor | None,
    receivers: Tensor | None,
    order: Tensor | None,
    sender_pieces: Tensor | None,
    spec: str,
    backend: str,
) -> Tensor:
    """Flat rows in, flat rows out; the index tables are those of `Edges.tables`, all None for a product."""
    tables = Tables(senders, pointers, pieces, receivers, order, sender_pieces)
    return _launch(backend, spec, {"x": x, "y": y, "w": w}, tables, FIRST_ORDER, "g")["g"]


@operator("sciml_kernels::trilinear_backward")
def trilinear_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor,
    senders: Tensor | None,
    pointers: Tensor | None,
    pieces: Tensor | None,
    receivers: Tensor | None,
    order: Tensor | None,
    sender_pieces: Tensor | None,
    spec: str,
    backend: str,
    wants: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, y, w; those not in `wants` are empty."""
    tables = Tables(senders, pointers, pieces, receivers, order, sender_pieces)
    found = _launch(backend, spec, {"g": g, "x": x, "y": y, "w": w}, tables, FIRST_ORDER, wants)
    gx, gy, gw = given({name: found.get(name) for name in "xyw"}, x)
    return gx, gy, gw


@operator("sciml_kernels::trilinear_double_backward")
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
    pieces: Tensor | None,
    receivers: Tensor | None,
    order: Tensor | None,
    sender_pieces: Tensor | None,
    spec: str,
    backend: str,
    wants: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to g, x, y, w for gradients vx, vy, vw arriving at the first-order ones; the unwanted are empty."""
    tables = Tables(senders, pointers, pieces, receivers, order, sender_pieces)
    tangents = {name: v for name, v in zip("xyw", (vx, vy, vw), strict=True) if v is not None}
    arrays = {"g": g, "x": x, "y": y, "w": w, **{"v" + name: v for name, v in tangents.items()}}
    found = _launch(backend, spec, arrays, tables, second_order("".join(tangents)), wants)
    gg, gx, gy, gw = given({name: found.get(name) for name in "gxyw"}, x)
    return gg, gx, gy, gw


def _launch(
    backend: str, spec: str, arrays: Mapping[str, Tensor], tables: Tables, terms: tuple[Term, ...], wants: str
) -> dict[str, Tensor]:
    launch = cpu.launch if backend == "cpu" else gpu.launch
    return launch(spec, arrays, tables, terms, wants)


@trilinear.register_fake
def _(x, y, w, senders, pointers, pieces, receivers, order, sender_pieces, spec, backend):  # type: ignore[no-untyped-def]
    nodes = x.shape[0] if pointers is None else pointers.shape[0] - 1
    return x.new_empty(nodes, Spec.from_key(spec).dim_out)


@trilinear_backward.register_fake
def _(g, x, y, w, *rest):  # type: ignore[no-untyped-def]
    return fake("xyw", (x, y, w), rest[-1])


@trilinear_double_backward.register_fake
def _(vx, vy, vw, g, x, y, w, *rest):  # type: ignore[no-untyped-def]
    return fake("gxyw", (g, x, y, w), rest[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spec, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    wants = wanted(ctx, "xyw")
    return *used(trilinear_backward(g, *ctx.saved_tensors, ctx.spec, ctx.backend, wants), "xyw", wants), *REST


def _keep_first(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spec, ctx.backend, ctx.wants = inputs
    ctx.set_materialize_grads(False)  # an absent tangent drops its term
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    arriving = {name: v for name, v in zip("xyw", tangents, strict=True) if v is not None and name in ctx.wants}
    wants = reachable(second_order("".join(arriving)), wanted(ctx, "gxyw"))
    if not wants:
        return None, None, None, None, *REST, None
    first = (arriving.get(name) for name in "xyw")
    found = trilinear_double_backward(*first, *ctx.saved_tensors, ctx.spec, ctx.backend, wants)
    return *used(found, "gxyw", wants), *REST, None


trilinear.register_autograd(_backward, setup_context=_keep)
trilinear_backward.register_autograd(_double_backward, setup_context=_keep_first)
trilinear_double_backward.register_autograd(refuse_third)
