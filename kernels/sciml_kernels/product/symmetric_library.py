"""The symmetric contraction of `symmetric_cpu` as torch operators, differentiable twice.

x is flat, w (species, paths * channels) has the weights of independent chains. `wants` names results by x, w, g.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sciml_kernels.autograd import fake, given, refuse_third, used, wanted
from sciml_kernels.operators import operator
from sciml_kernels.product import symmetric_cpu
from sciml_kernels.product.symmetric_spec import SymmetricSpec

_NAMES = {"x": "x", "w": "w", "g": "out"}  # of the function


@operator("sciml_kernels::symmetric_contraction")
def contraction(x: Tensor, w: Tensor, species: Tensor, spec: str) -> Tensor:
    """Flat rows in, flat rows out."""
    return symmetric_cpu.launch(spec, {"x": x, "w": w}, species, (), (), ("out",))["out"]


@operator("sciml_kernels::symmetric_contraction_backward")
def contraction_backward(
    g: Tensor, x: Tensor, w: Tensor, species: Tensor, spec: str, wants: str
) -> tuple[Tensor, Tensor]:
    """Gradients to x and w."""
    found = symmetric_cpu.launch(spec, {"g_out": g, "x": x, "w": w}, species, (), ("out",), tuple(wants))
    gx, gw = given({name: found.get(name) for name in "xw"}, x)
    return gx, gw


@operator("sciml_kernels::symmetric_contraction_double_backward")
def contraction_double_backward(
    vx: Tensor | None, vw: Tensor | None, g: Tensor, x: Tensor, w: Tensor, species: Tensor, spec: str, wants: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to g, x and w for gradients vx, vw arriving at the first-order ones."""
    tangents = {name: v for name, v in (("x", vx), ("w", vw)) if v is not None}
    arrays = {"g_out": g, "x": x, "w": w, **{f"u_{name}": v for name, v in tangents.items()}}
    names = tuple(_NAMES[want] for want in wants)
    found = symmetric_cpu.launch(spec, arrays, species, tuple(tangents), ("out",), names)
    gg, gx, gw = given({name: found.get(_NAMES[name]) for name in "gxw"}, x)
    return gg, gx, gw


@contraction.register_fake
def _(x, w, species, spec):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], SymmetricSpec.from_key(spec).irreps_out.dim)


@contraction_backward.register_fake
def _(g, x, w, species, spec, wants):  # type: ignore[no-untyped-def]
    return fake("xw", (x, w), wants)


@contraction_double_backward.register_fake
def _(vx, vw, g, x, w, species, spec, wants):  # type: ignore[no-untyped-def]
    return fake("gxw", (g, x, w), wants)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spec = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    wants = wanted(ctx, "xw")
    found: tuple[Tensor | None, ...] = (None, None)
    if wants:
        found = used(contraction_backward(g, *ctx.saved_tensors, ctx.spec, wants), "xw", wants)
    return *found, None, None


def _keep_first(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.spec, ctx.wants = inputs
    ctx.set_materialize_grads(False)  # an absent tangent drops its terms
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    tangents = [v if name in ctx.wants else None for name, v in zip("xw", arriving, strict=True)]
    wants = wanted(ctx, "gxw")
    found: tuple[Tensor | None, ...] = (None,) * 3
    if wants and any(v is not None for v in tangents):
        computed = contraction_double_backward(*tangents, *ctx.saved_tensors, ctx.spec, wants)
        found = used(computed, "gxw", wants)
    return *found, None, None, None


contraction.register_autograd(_backward, setup_context=_keep)
contraction_backward.register_autograd(_double_backward, setup_context=_keep_first)
contraction_double_backward.register_autograd(refuse_third)
