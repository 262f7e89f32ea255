"""From a model built on e3nn: its tensor products as specs, its rows in our memory layout and back.

e3nn lays an irrep out as (multiplicity, component); kernels read (component, multiplicity). A model that stays in one
layout needs no conversion between its convolutions.
"""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor

from sciml_kernels.trilinear.spec import Path, Spec


def from_e3nn(tensor_product: o3.TensorProduct) -> tuple[Spec, Tensor]:
    """The spec of an e3nn `TensorProduct`, and the factors (spec.dim_w,) by which its normalisation scales the weights.

    With weights w of e3nn's order, `conv(x, y, w * factors, edges, spec)` is what
    `index_add(0, receivers, tensor_product(x[senders], y, w))` computes, in our memory layout.

    Raises:
        ValueError: a path that is not in mode 'uvu' with weights, or a y of several channels in one slot.
    """
    slots = (tensor_product.irreps_in1, tensor_product.irreps_in2, tensor_product.irreps_out)
    paths, factors = [], []
    for found in tensor_product.instructions:
        if found.connection_mode != "uvu" or not found.has_weight:
            kind = f"{found.connection_mode!r} {'with' if found.has_weight else 'without'} weights"
            raise ValueError(f"tensor_product: found a path in mode {kind}, expected 'uvu' with weights")
        index = (found.i_in1, found.i_in2, found.i_out)
        l_x, l_y, l_out = (irreps[slot].ir.l for irreps, slot in zip(slots, index, strict=True))
        paths.append(Path(*index, (l_x, l_y, l_out)))
        # e3nn's coefficient holds the sqrt(2 l + 1) that our couplings already have.
        factors += [found.path_weight / (2 * l_out + 1) ** 0.5] * slots[0][found.i_in1].mul
    return Spec(*slots, tuple(paths)), torch.tensor(factors, dtype=torch.get_default_dtype())


def component_major(rows: Tensor, irreps: str | o3.Irreps) -> Tensor:
    """Rows of e3nn, (..., irreps.dim) in (multiplicity, component) blocks, in our layout."""
    return _swapped(rows, o3.Irreps(irreps), own=False)


def channel_major(rows: Tensor, irreps: str | o3.Irreps) -> Tensor:
    """Our rows, (..., irreps.dim) in (component, multiplicity) blocks, in e3nn's layout."""
    return _swapped(rows, o3.Irreps(irreps), own=True)


def _swapped(rows: Tensor, irreps: o3.Irreps, own: bool) -> Tensor:
    blocks = []
    for part, (mul, ir) in zip(irreps.slices(), irreps, strict=True):
        sizes = (ir.dim, mul) if own else (mul, ir.dim)
        blocks.append(rows[..., part].unflatten(-1, sizes).mT.flatten(-2))
    return torch.cat(blocks, -1)
