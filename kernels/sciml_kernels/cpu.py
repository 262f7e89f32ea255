"""The C++ backend: from tensors to a compiled function and back."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sciml_kernels import cache, cpp
from sciml_kernels.emit import Term
from sciml_kernels.spec import Spec

# Below this many weights waking a second thread costs more than it brings.
PARALLEL_WEIGHTS = 32768

_PROBE = """#include <cstdint>
extern "C" int run() { int sum = 0;
#pragma omp parallel for reduction(+ : sum) num_threads(1)
  for (int i = 0; i < 3; i++) sum += i;
  return sum; }
"""


@functools.cache
def unavailable() -> str:
    """Why compiled kernels are not possible in this process; empty where they are."""
    try:
        cache.load(_PROBE)
    except (cache.CompilerError, OSError) as error:
        return str(error)
    return ""


@functools.cache
def kernel(
    key: str, dtype: torch.dtype, gather: bool, terms: tuple[Term, ...], wants: str
) -> tuple[Callable[..., None], tuple[str, ...]]:
    """The compiled function and the names of the arrays that it reads, in order."""
    spec = Spec.from_key(key)
    function = cache.load(cpp.source(spec, dtype, gather, terms, wants)).run
    reads, writes = cpp.array_names(terms, wants)
    pointers = len(reads) + len(writes) + (2 if gather else 0)
    sizes = [ctypes.c_int, ctypes.c_int64, *([ctypes.c_int64] if gather else [])]
    function.argtypes = sizes + [ctypes.c_void_p] * pointers
    function.restype = None
    return function, tuple(reads)


def launch(
    key: str,
    arrays: Mapping[str, Tensor],
    senders: Tensor | None,
    pointers: Tensor | None,
    terms: tuple[Term, ...],
    wants: str,
) -> dict[str, Tensor]:
    """Gradients `wants` of the sum of `terms`, of a convolution where edges are given, else of a node-wise product.

    Args:
        key: of the spec.
        arrays: x, y, w and, where the terms need them, g and tangents vx, vy, vw, all flat.
        senders, pointers: of the edges, both or none.
        terms, wants: see `sciml_kernels.emit`.
    """
    spec, x, w = Spec.from_key(key), arrays["x"], arrays["w"]
    function, reads = kernel(key, x.dtype, senders is not None, terms, wants)
    inputs = [arrays[name].contiguous() for name in reads]
    nodes = x.shape[0] if pointers is None else pointers.shape[0] - 1
    sizes = {
        "x": (x.shape[0], spec.dim_x),
        "y": (w.shape[0], spec.dim_y),
        "w": (w.shape[0], spec.dim_w),
        "g": (nodes, spec.dim_out),
    }
    outputs = {want: x.new_empty(sizes[want]) for want in wants}
    threads = torch.get_num_threads() if w.numel() >= PARALLEL_WEIGHTS else 1
    index = []
    if senders is not None and pointers is not None:
        senders, pointers = senders.contiguous(), pointers.contiguous()
        index = [x.shape[0], senders.data_ptr(), pointers.data_ptr()]
    function(threads, nodes, *index, *[t.data_ptr() for t in inputs], *[t.data_ptr() for t in outputs.values()])
    return outputs
