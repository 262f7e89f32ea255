"""The C++ backend of segment sums and projections."""

from __future__ import annotations

import ctypes
import functools
import math

import torch
from torch import Tensor

from sciml_kernels import cache
from sciml_kernels.segments import cpp

# Waking a second thread costs about as much as this many sums.
PARALLEL_ELEMENTS = 1 << 16


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    library = cache.load(cpp.source(dtype))
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    library.ascending.argtypes = [size, size, pointer]
    for name in ("segment_sum", "segment_expand", "remove_mean"):
        getattr(library, name).argtypes = [ctypes.c_int, size, size, *[pointer] * 3]
    for name, count in (("momentum", 4), ("momentum_backward", 6), ("momentum_double_backward", 9)):
        getattr(library, name).argtypes = [ctypes.c_int, size, *[pointer] * count]
    return library


def ascending(pointers: Tensor, rows: int) -> bool:
    """Whether the pointers ascend from 0 to the number of rows."""
    pointers = pointers.contiguous()
    return bool(_library(torch.float32).ascending(pointers.shape[0] - 1, rows, pointers.data_ptr()))


def _rowwise(name: str, values: Tensor, pointers: Tensor, rows: int) -> Tensor:
    values, pointers = values.contiguous(), pointers.contiguous()
    out = values.new_empty(rows, *values.shape[1:])
    width, most = math.prod(values.shape[1:]), max(values.shape[0], rows)
    threads = torch.get_num_threads() if width * most >= PARALLEL_ELEMENTS else 1
    run = getattr(_library(values.dtype), name)
    run(threads, pointers.shape[0] - 1, width, pointers.data_ptr(), values.data_ptr(), out.data_ptr())
    return out


def segment_sum(values: Tensor, pointers: Tensor) -> Tensor:
    """Sums of the rows of each segment."""
    return _rowwise("segment_sum", values, pointers, pointers.shape[0] - 1)


def segment_expand(values: Tensor, pointers: Tensor, rows: int) -> Tensor:
    """The row of its segment for each row."""
    return _rowwise("segment_expand", values, pointers, rows)


def remove_mean(values: Tensor, pointers: Tensor) -> Tensor:
    """Rows less the mean of their segment."""
    return _rowwise("remove_mean", values, pointers, values.shape[0])


def _run(name: str, like: Tensor, pointers: Tensor, *tensors: Tensor | None) -> None:
    """Call a function of the momentum projection with contiguous tensors; None is a null pointer."""
    threads = torch.get_num_threads() if like.numel() >= PARALLEL_ELEMENTS // 8 else 1
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    getattr(_library(like.dtype), name)(threads, pointers.shape[0] - 1, pointers.data_ptr(), *addresses)


def momentum(forces: Tensor, positions: Tensor, pointers: Tensor) -> Tensor:
    """The value."""
    forces, positions, pointers = forces.contiguous(), positions.contiguous(), pointers.contiguous()
    out = forces.new_empty(forces.shape)
    _run("momentum", forces, pointers, forces, positions, out)
    return out


def momentum_backward(
    g: Tensor, forces: Tensor, positions: Tensor, pointers: Tensor, wants: str
) -> dict[str, Tensor | None]:
    """Gradients to forces f and positions r."""
    g, forces, positions = g.contiguous(), forces.contiguous(), positions.contiguous()
    pointers = pointers.contiguous()
    found = {name: forces.new_empty(forces.shape) if name in wants else None for name in "fr"}
    _run("momentum_backward", forces, pointers, g, forces, positions, found["f"], found["r"])
    return found


def momentum_double_backward(
    vf: Tensor | None,
    vr: Tensor | None,
    g: Tensor,
    forces: Tensor,
    positions: Tensor,
    pointers: Tensor,
    wants: str,
) -> dict[str, Tensor | None]:
    """Gradients to g, f and r, for what arrives at the gradients to f and r."""
    vf, vr = (None if v is None else v.contiguous() for v in (vf, vr))
    g, forces, positions = g.contiguous(), forces.contiguous(), positions.contiguous()
    pointers = pointers.contiguous()
    found = {name: forces.new_empty(forces.shape) if name in wants else None for name in "gfr"}
    tensors = (vf, vr, g, forces, positions, found["g"], found["f"], found["r"])
    _run("momentum_double_backward", forces, pointers, *tensors)
    return found
