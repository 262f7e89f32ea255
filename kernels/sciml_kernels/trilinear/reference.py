"""The definition of the trilinear contraction in plain torch: any dtype, any order of derivative by autograd.

Shapes here are flat: x (rows, spec.dim_x), y (rows, spec.dim_y), w (rows, spec.dim_w), result (rows, spec.dim_out).
"""

from __future__ import annotations

import functools

import torch
from e3nn import o3
from torch import Tensor

from sciml_kernels.half import in_single
from sciml_kernels.trilinear.spec import Path, Spec, clebsch_gordan, weight_offsets


def coupling(path: Path, like: Tensor) -> Tensor:
    """Dense Clebsch-Gordan tensor (2 l_x + 1, 2 l_y + 1, 2 l_out + 1) of one path, dtype and device of `like`."""
    if type(like) is Tensor and not torch.compiler.is_compiling():
        return _kept(path.degrees, like.dtype, like.device)
    return _dense(path.degrees).to(like)  # a tensor of a tracer must not outlive it


@functools.cache
def _kept(degrees: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """One copy for each dtype and device: built entry by entry, it costs more than a small contraction."""
    with torch.inference_mode(False):  # what inference makes cannot be saved for a backward pass
        return _dense(degrees).to(dtype=dtype, device=device)


def _dense(degrees: tuple[int, int, int]) -> Tensor:
    dense = torch.zeros([2 * degree + 1 for degree in degrees], dtype=torch.float64)
    for i, j, k, value in clebsch_gordan(*degrees):
        dense[i, j, k] = value
    return dense


def blocks(rows: Tensor, irreps: o3.Irreps) -> list[Tensor]:
    """The (rows, 2 l + 1, mul) view of every slot of flat rows."""
    return [rows[:, part].unflatten(1, (ir.dim, mul)) for part, (mul, ir) in zip(irreps.slices(), irreps, strict=True)]


@in_single
def contract(x: Tensor, y: Tensor, w: Tensor, spec: Spec) -> Tensor:
    """Row by row: out[k, c] = sum of C[i, j, k] w[path, c] x[i, c] y[j(, c)] over the paths into each output slot."""
    blocks_x, blocks_y = blocks(x, spec.irreps_x), blocks(y, spec.irreps_y)
    slots: list[Tensor | None] = [None] * len(spec.irreps_out)
    for path, start in zip(spec.paths, weight_offsets(spec), strict=True):
        mul = spec.irreps_x[path.x].mul
        matrix = torch.einsum("ijk,rjc->rikc", coupling(path, x), blocks_y[path.y])
        message = (blocks_x[path.x].unsqueeze(2) * matrix).sum(1) * w[:, None, start : start + mul]
        previous = slots[path.out]
        slots[path.out] = message if previous is None else previous + message
    empty = [x.new_zeros(x.shape[0], ir.dim, mul) for mul, ir in spec.irreps_out]
    return torch.cat([(zero if slot is None else slot).flatten(1) for slot, zero in zip(slots, empty)], dim=1)
