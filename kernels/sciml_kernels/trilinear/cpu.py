"""The C++ backend: from tensors to a compiled function and back."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sciml_kernels import cache
from sciml_kernels.edges import Tables
from sciml_kernels.trilinear import cpp
from sciml_kernels.trilinear.emit import Term
from sciml_kernels.trilinear.parts import arrays_read
from sciml_kernels.trilinear.spec import Spec

# Below this many weights waking a second thread costs more than it brings.
PARALLEL_WEIGHTS = 32768


class Kernel(NamedTuple):
    """A compiled function, the arrays that it reads (in order) and the length of a row of each side."""

    function: Callable[..., None]
    reads: tuple[str, ...]
    dims: dict[str, int]


@functools.cache
def kernel(key: str, dtype: torch.dtype, gather: bool, terms: tuple[Term, ...], wants: str) -> Kernel:
    """Compiled on first use; one lookup per call afterwards."""
    spec = Spec.from_key(key)
    function = cache.load(cpp.source(spec, dtype, gather, terms, wants)).run
    reads = arrays_read(terms, wants)
    pointers = len(reads) + len(wants) + (2 if gather else 0)
    sizes = [ctypes.c_int, ctypes.c_int64, *([ctypes.c_int64] if gather else [])]
    function.argtypes = sizes + [ctypes.c_void_p] * pointers
    function.restype = None
    return Kernel(function, reads, {"x": spec.dim_x, "y": spec.dim_y, "w": spec.dim_w, "g": spec.dim_out})


def launch(
    key: str, arrays: Mapping[str, Tensor], tables: Tables, terms: tuple[Term, ...], wants: str
) -> dict[str, Tensor]:
    """Gradients `wants` of the sum of `terms`, of a convolution where there are tables, else of a node-wise product.

    Args:
        key: of the spec.
        arrays: x, y, w and, where the terms need them, g and tangents vx, vy, vw, all flat.
        tables: senders and pointers of the edges, or none.
        terms, wants: see `sciml_kernels.trilinear.emit`.
    """
    x, w = arrays["x"], arrays["w"]
    function, reads, dims = kernel(key, x.dtype, tables.senders is not None, terms, wants)
    inputs = [arrays[name].contiguous() for name in reads]
    rows_x, rows = x.shape[0], w.shape[0]
    index: tuple[int, ...] = ()
    nodes = rows_x
    if tables.senders is not None and tables.pointers is not None:
        senders, pointers = tables.senders.contiguous(), tables.pointers.contiguous()
        nodes = pointers.shape[0] - 1
        index = (rows_x, senders.data_ptr(), pointers.data_ptr())
    counts = {"x": rows_x, "y": rows, "w": rows, "g": nodes}
    outputs = {want: x.new_empty((counts[want], dims[want])) for want in wants}
    threads = torch.get_num_threads() if rows * dims["w"] >= PARALLEL_WEIGHTS else 1
    function(threads, nodes, *index, *[t.data_ptr() for t in inputs], *[t.data_ptr() for t in outputs.values()])
    return outputs
