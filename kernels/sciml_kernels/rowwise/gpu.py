"""The Triton backend: from tensors to a jitted function and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml_kernels import triton_source
from sciml_kernels.rowwise import triton
from sciml_kernels.rowwise.function import Pass

BLOCK = 128  # rows of a program


class Kernel(NamedTuple):
    """A jitted pass: the arrays that it reads (the index arrays first), and those that it writes with their widths."""

    function: Any
    reads: tuple[str, ...]
    writes: dict[str, int]


def compiled(name: str, work: Pass, dtype: torch.dtype) -> Kernel:
    """The kernel of a pass; `name` is for the reader of its source."""
    function = triton_source.load(triton.source(name, work, dtype), triton.NAME)
    return Kernel(function, (*work.indices, *work.reads), {array: len(row) for array, row in work.writes.items()})


def sum_rows(values: Tensor, index: Tensor, count: int) -> Tensor:
    """out[n] = sum of the rows of values whose index is n, n < count, in their dtype.

    torch sorts for it, so the order is fixed.
    """
    return values.new_zeros(count, values.shape[1]).index_put_((index,), values, accumulate=True)


def warps(lanes: int) -> int:
    """As many as make one thread per row."""
    return BLOCK // lanes


def launch(kernel: Kernel, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays that the pass writes."""
    inputs = [arrays[name].contiguous() for name in kernel.reads]
    rows, like = inputs[0].shape[0], inputs[-1]
    outputs = {name: like.new_empty((rows, width)) for name, width in kernel.writes.items()}
    if rows:
        with torch.cuda.device_of(like):
            grid, width = (-(-rows // BLOCK),), warps(64 if torch.version.hip else 32)
            kernel.function[grid](*inputs, *outputs.values(), rows, BLOCK=BLOCK, num_warps=width)
    return outputs
