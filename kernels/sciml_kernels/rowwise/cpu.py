"""The C++ backend: from tensors to a compiled function and back."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sciml_kernels import cache
from sciml_kernels.rowwise import cpp
from sciml_kernels.rowwise.function import Pass

# Below this many numbers read and written, waking a second thread costs more than it brings.
PARALLEL_NUMBERS = 2**20


class Kernel(NamedTuple):
    """A compiled pass.

    Attributes:
        function: run(threads, rows, pointers of the arrays that it reads, of those that it writes).
        reads, indices: arrays in order; the index arrays are the first of them.
        writes: arrays in order, with their widths.
        width: numbers read and written for a row.
    """

    function: Callable[..., None]
    reads: tuple[str, ...]
    indices: tuple[str, ...]
    writes: dict[str, int]
    width: int


def compiled(name: str, work: Pass, dtype: torch.dtype) -> Kernel:
    """The kernel of a pass; `name` is for the reader of its source."""
    function = cache.load(cpp.source(name, work, dtype)).run
    writes = {array: len(row) for array, row in work.writes.items()}
    reads = (*work.indices, *work.reads)
    function.argtypes = [ctypes.c_int, ctypes.c_int64] + [ctypes.c_void_p] * (len(reads) + len(writes))
    function.restype = None
    return Kernel(function, reads, tuple(work.indices), writes, sum(work.reads.values()) + sum(writes.values()))


def launch(kernel: Kernel, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays that the pass writes."""
    inputs = [arrays[name].contiguous() for name in kernel.reads]
    rows, like = inputs[0].shape[0], inputs[-1]
    outputs = {name: like.new_empty((rows, width)) for name, width in kernel.writes.items()}
    threads = torch.get_num_threads() if rows * kernel.width >= PARALLEL_NUMBERS else 1
    kernel.function(threads, rows, *_pointers(inputs), *_pointers(outputs.values()))
    return outputs


def sum_rows(values: Tensor, index: Tensor, count: int) -> Tensor:
    """out[n] = sum of the rows of values whose index is n, n < count."""
    values, index = values.contiguous(), index.contiguous()
    rows, width = values.shape
    out = values.new_empty(count, width)
    threads = torch.get_num_threads() if rows * width >= PARALLEL_NUMBERS else 1
    _sum_rows(values.dtype)(threads, rows, count, width, *_pointers((index, values, out)))
    return out


@functools.cache
def _sum_rows(dtype: torch.dtype) -> Callable[..., None]:
    function = cache.load(cpp.sum_rows_source(dtype)).run
    function.argtypes = [ctypes.c_int] + [ctypes.c_int64] * 3 + [ctypes.c_void_p] * 3
    function.restype = None
    return function


def _pointers(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]
