"""The C++ backend: from tensors to a compiled function and back."""

from __future__ import annotations

import ctypes
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
    """A compiled pass: the arrays that it reads and the widths of the rows that it writes, in order."""

    function: Callable[..., None]
    reads: tuple[str, ...]
    writes: dict[str, int]
    width: int


def compiled(name: str, work: Pass, dtype: torch.dtype) -> Kernel:
    """The kernel of a pass; `name` is for the reader of its source."""
    function = cache.load(cpp.source(name, work, dtype)).run
    writes = {array: len(row) for array, row in work.writes.items()}
    function.argtypes = [ctypes.c_int, ctypes.c_int64] + [ctypes.c_void_p] * (len(work.reads) + len(writes))
    function.restype = None
    return Kernel(function, tuple(work.reads), writes, sum(work.reads.values()) + sum(writes.values()))


def launch(kernel: Kernel, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays that the pass writes."""
    inputs = [arrays[name].contiguous() for name in kernel.reads]
    rows = inputs[0].shape[0]
    outputs = {name: inputs[0].new_empty((rows, width)) for name, width in kernel.writes.items()}
    threads = torch.get_num_threads() if rows * kernel.width >= PARALLEL_NUMBERS else 1
    kernel.function(threads, rows, *_pointers(inputs), *_pointers(outputs.values()))
    return outputs


def _pointers(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]
