"""The radial network on a CPU as torch operators, differentiable twice.

`wants` names the gradients to compute by letters (b the basis, s the shift, e the envelope, p the parameters, g what
arrived); the others come back empty. Absent tangents are None.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sciml_kernels.autograd import fake, given, refuse_third, used, wanted
from sciml_kernels.operators import operator
from sciml_kernels.radial_network import cpu

_SIDES = "bsep"
# The tangents that reach a gradient of the second order: the value is linear in the envelope, so that its own does not.
_SOURCES = dict.fromkeys("gbsp", "bsep") | {"e": "bsp"}


@operator("sciml_kernels::radial_network")
def radial_network(basis: Tensor, shift: Tensor, envelope: Tensor, parameters: Tensor, sizes: list[int]) -> Tensor:
    """The value; see `sciml_kernels.radial_network.op.radial_network`."""
    return cpu.forward(basis, shift, envelope, parameters, sizes)


@operator("sciml_kernels::radial_network_backward")
def radial_network_backward(
    g: Tensor, basis: Tensor, shift: Tensor, envelope: Tensor, parameters: Tensor, sizes: list[int], wants: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to basis, shift, envelope and parameters."""
    gb, gs, ge, gp = given(cpu.backward(g, basis, shift, envelope, parameters, sizes, wants), basis)
    return gb, gs, ge, gp


@operator("sciml_kernels::radial_network_double_backward")
def radial_network_double_backward(
    vb: Tensor | None,
    vs: Tensor | None,
    ve: Tensor | None,
    vp: Tensor | None,
    g: Tensor,
    basis: Tensor,
    shift: Tensor,
    envelope: Tensor,
    parameters: Tensor,
    sizes: list[int],
    wants: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to g, basis, shift, envelope and parameters for tangents that arrive at the first-order ones."""
    tangents = (vb, vs, ve, vp)
    found = cpu.double_backward(tangents, g, basis, shift, envelope, parameters, sizes, wants)
    gg, gb, gs, ge, gp = given(found, basis)
    return gg, gb, gs, ge, gp


@radial_network.register_fake
def _(basis, shift, envelope, parameters, sizes):  # type: ignore[no-untyped-def]
    return basis.new_empty(basis.shape[0], sizes[-1])


@radial_network_backward.register_fake
def _(g, basis, shift, envelope, parameters, sizes, wants):  # type: ignore[no-untyped-def]
    return fake(_SIDES, (basis, shift, envelope, parameters), wants)


@radial_network_double_backward.register_fake
def _(vb, vs, ve, vp, g, basis, shift, envelope, parameters, sizes, wants):  # type: ignore[no-untyped-def]
    return fake("g" + _SIDES, (g, basis, shift, envelope, parameters), wants)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.sizes = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    wants = wanted(ctx, _SIDES)
    found: tuple[Tensor | None, ...] = (None,) * 4
    if wants:
        found = used(radial_network_backward(g, *ctx.saved_tensors, ctx.sizes, wants), _SIDES, wants)
    return *found, None


def _keep_first(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.sizes, ctx.wants = inputs
    ctx.set_materialize_grads(False)  # an absent tangent drops its terms
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    tangents = [v if name in ctx.wants else None for name, v in zip(_SIDES, arriving, strict=True)]
    present = {name for name, v in zip(_SIDES, tangents, strict=True) if v is not None}
    wants = "".join(name for name in wanted(ctx, "g" + _SIDES) if present & set(_SOURCES[name]))
    found: tuple[Tensor | None, ...] = (None,) * 5
    if wants:
        computed = radial_network_double_backward(*tangents, *ctx.saved_tensors, ctx.sizes, wants)
        found = used(computed, "g" + _SIDES, wants)
    return *found, None, None


radial_network.register_autograd(_backward, setup_context=_keep)
radial_network_backward.register_autograd(_double_backward, setup_context=_keep_first)
radial_network_double_backward.register_autograd(refuse_third)
