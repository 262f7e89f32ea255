"""The Triton backend of the sums over pairs of atoms and waves; bfloat16 is computed and summed in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciml_kernels.structure_factors.cpp import terms
from sciml_kernels.structure_factors.passes import Pair, Points, either
from sciml_kernels.triton_launch import on_device

TILE = {torch.float32: 32, torch.float64: 16}  # rows of a program, and others at a time; more spill registers
CHANNELS = 16  # of a program, the least that a matrix product takes


def constants(channels: int, dtype: torch.dtype) -> dict[str, Any]:
    """The sizes of every kernel."""
    import triton.language as tl

    real = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "CHANNELS": channels,
        "TERMS": terms(0, real) - 1,
        "REAL": tl.float64 if dtype == torch.float64 else tl.float32,
        "ROWS": TILE[real],
        "TILE": TILE[real],
        "BLOCK": CHANNELS,
    }


def table(rows: Points, others: Points, tile: int) -> Tensor:
    """First row, end of rows, first and end of the others for each block; as many blocks as any pointers can need."""
    ends = rows.pointers.diff().add(tile - 1).div(tile, rounding_mode="floor").cumsum(0)
    count = rows.values.shape[0] // tile + ends.shape[0]
    block = torch.arange(count, device=ends.device)
    graph = torch.searchsorted(ends, block, right=True)
    live = graph < ends.shape[0]
    graph = graph.clamp(max=ends.shape[0] - 1)
    starts = torch.nn.functional.pad(ends, (1, 0))
    first = rows.pointers[graph] + (block - starts[graph]) * tile
    columns = (first, rows.pointers[graph + 1], others.pointers[graph], others.pointers[graph + 1])
    return torch.stack([column * live for column in columns], 1)


def waves(waves: Points, atoms: Points, plain: Tensor | None, turned: Tensor | None) -> Tensor:
    """See `passes.Sums`."""
    from sciml_kernels.structure_factors import triton_pairs

    like = either(plain, turned)
    out = like.new_empty(waves.values.shape[0], 2, like.shape[1])
    flags = {"PLAIN": plain is not None, "TURNED": turned is not None}
    _run(triton_pairs.waves, waves, atoms, (plain, turned), out, like.shape[1], True, **flags)
    return out


def charges(atoms: Points, waves: Points, g: Tensor) -> Tensor:
    """See `passes.Sums`."""
    from sciml_kernels.structure_factors import triton_pairs

    out = g.new_empty(atoms.values.shape[0], g.shape[2])
    _run(triton_pairs.charges, atoms, waves, (g,), out, g.shape[2], True)
    return out


def points(rows: Points, others: Points, plain: Pair | None, turned: Pair | None) -> Tensor:
    """See `passes.Sums`."""
    from sciml_kernels.structure_factors import triton_pairs

    row, other = either(plain, turned)
    out = row.new_empty(rows.values.shape)
    flags = {"PLAIN": plain is not None, "TURNED": turned is not None}
    parts = {"ROW_PARTS": row.shape[1], "OTHER_PARTS": other.shape[1]}
    tensors = (*(plain or (None, None)), *(turned or (None, None)))
    _run(triton_pairs.points, rows, others, tensors, out, row.shape[2], False, **flags, **parts)
    return out


@on_device
def _run(
    kernel: Any,
    rows: Points,
    others: Points,
    tensors: tuple[Tensor | None, ...],
    out: Tensor,
    channels: int,
    split: bool,
    **flags: int,
) -> None:
    """Launch with contiguous tensors; in the place of one that is not there stands the output, which is not read."""
    if not out.numel():
        return
    sizes = constants(channels, out.dtype)
    blocks = table(rows, others, sizes["ROWS"])
    given = (rows.values, rows.changes, others.values, others.changes, *tensors)
    arguments = [out if tensor is None else tensor.contiguous() for tensor in given]
    moved = {"MOVED": rows.changes is not None, "OTHER_MOVED": others.changes is not None}
    grid = (blocks.shape[0], -(-channels // sizes["BLOCK"]) if split else 1)
    kernel[grid](blocks, *arguments, out, **flags, **moved, **sizes, num_warps=4, num_stages=1)
