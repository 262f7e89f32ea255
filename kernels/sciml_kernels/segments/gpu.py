"""The Triton backend of segment sums; bfloat16 is summed in float32. What is no sum is left to torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciml_kernels.half import in_single
from sciml_kernels.segments.reference import counts, rows_of
from sciml_kernels.triton_launch import on_device

MOST_COLUMNS, ELEMENTS = 128, 512  # of the tile that a program has in flight


def tile(width: int) -> tuple[int, int]:
    """Rows and columns of the tile."""
    columns = min(MOST_COLUMNS, 1 << max(0, width - 1).bit_length())
    return ELEMENTS // columns, columns


@on_device
def segment_sum(values: Tensor, pointers: Tensor) -> Tensor:
    """Sums of the rows of each segment."""
    import triton.language as tl

    from sciml_kernels.segments import triton_sums

    values, pointers = values.contiguous(), pointers.contiguous()
    out = values.new_empty(pointers.shape[0] - 1, *values.shape[1:])
    width = math.prod(values.shape[1:])
    rows, columns = tile(width)
    real = tl.float64 if values.dtype == torch.float64 else tl.float32
    if out.numel():
        grid = (out.shape[0], -(-width // columns))
        triton_sums.segment_sum[grid](values, pointers, out, width, REAL=real, TILE=rows, BLOCK=columns)
    return out


def segment_expand(values: Tensor, pointers: Tensor, rows: int) -> Tensor:
    """The row of its segment for each row."""
    return values.index_select(0, rows_of(pointers, rows))


@in_single
def remove_mean(values: Tensor, pointers: Tensor) -> Tensor:
    """Rows less the mean of their segment."""
    mean = segment_sum(values, pointers) / counts(pointers, values)
    return values - segment_expand(mean, pointers, values.shape[0])
