"""The C++ backend of the sums over pairs of atoms and waves."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from sciml_kernels import cache
from sciml_kernels.structure_factors import cpp
from sciml_kernels.structure_factors.passes import Pair, Points, either

# Waking a second thread costs about as much as this many pairs.
PARALLEL_PAIRS = 1 << 16


@functools.cache
def _library(channels: int, dtype: torch.dtype) -> ctypes.CDLL:
    library = cache.load(cpp.source(channels, dtype))
    number: Any = ctypes.c_int
    pointer: Any = ctypes.c_void_p
    head = [number, ctypes.c_int64, *[pointer] * 6]
    library.waves.argtypes = [*head, *[pointer] * 3]
    library.charges.argtypes = [*head, *[pointer] * 2]
    library.points.argtypes = [*head, number, number, *[pointer] * 5]
    for function in (library.waves, library.charges, library.points):
        function.restype = None
    return library


def waves(waves: Points, atoms: Points, plain: Tensor | None, turned: Tensor | None) -> Tensor:
    """See `passes.Sums`."""
    like = either(plain, turned)
    out = like.new_empty(waves.values.shape[0], 2, like.shape[1])
    _run("waves", waves, atoms, like.shape[1], out, plain, turned)
    return out


def charges(atoms: Points, waves: Points, g: Tensor) -> Tensor:
    """See `passes.Sums`."""
    out = g.new_empty(atoms.values.shape[0], g.shape[2])
    _run("charges", atoms, waves, g.shape[2], out, g)
    return out


def points(rows: Points, others: Points, plain: Pair | None, turned: Pair | None) -> Tensor:
    """See `passes.Sums`."""
    row, other = either(plain, turned)
    out = row.new_empty(rows.values.shape)
    tensors = (*(plain or (None, None)), *(turned or (None, None)))
    _run("points", rows, others, row.shape[2], out, row.shape[1], other.shape[1], *tensors)
    return out


def _run(name: str, rows: Points, others: Points, channels: int, out: Tensor, *values: Tensor | int | None) -> None:
    """Call a function with contiguous tensors; None is a null pointer."""
    kept = [value.contiguous() if isinstance(value, Tensor) else value for value in (*rows, *others, *values)]
    graphs = rows.pointers.shape[0] - 1
    pairs = rows.values.shape[0] * others.values.shape[0]
    threads = torch.get_num_threads() if pairs >= PARALLEL_PAIRS * max(1, graphs) else 1
    arguments = [value.data_ptr() if isinstance(value, Tensor) else value for value in kept]
    getattr(_library(channels, out.dtype), name)(threads, graphs, *arguments, out.data_ptr())
