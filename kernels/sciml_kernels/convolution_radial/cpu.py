"""The C++ backend: from tensors to a compiled function and back."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sciml_kernels import cache
from sciml_kernels.convolution_radial import cpp
from sciml_kernels.convolution_radial.passes import Pass
from sciml_kernels.edges import Tables
from sciml_kernels.trilinear.spec import Spec

# Below this many weights waking a second thread costs more than it brings.
PARALLEL_WEIGHTS = 8192


@functools.cache
def _kernel(key: str, hidden: int, dtype: torch.dtype, tangents: str, wants: str) -> tuple[Callable[..., None], Pass]:
    """Compiled on first use; one lookup per call afterwards."""
    plan = Pass(tangents, wants)
    function = cache.load(cpp.source(Spec.from_key(key), hidden, dtype, plan)).run
    pointers = 2 + len(plan.reads) + len(plan.writes)
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, *([ctypes.c_void_p] * pointers)]
    function.restype = None
    return function, plan


def launch(key: str, arrays: Mapping[str, Tensor], tables: Tables, tangents: str, wants: str) -> dict[str, Tensor]:
    """The gradients `wants` of a pass (see `passes.Pass`).

    Args:
        key: of the spec.
        arrays: x, y, h, W and, where the pass needs them, g and tangents vx, vy, vh, vW; all flat.
        tables: of `Edges.tables`.
        tangents, wants: the pass.
    """
    x, h, matrix = arrays["x"], arrays["h"], arrays["W"]
    function, plan = _kernel(key, matrix.shape[0], x.dtype, tangents, wants)
    inputs = [arrays[name].contiguous() for name in plan.reads]
    senders, pointers = (table.contiguous() for table in tables[:2] if table is not None)
    nodes = pointers.shape[0] - 1
    shapes = {name: arrays[name].shape for name in "xyhW"}
    shapes["g"] = torch.Size((nodes, Spec.from_key(key).dim_out))
    outputs = {want: x.new_empty(shapes[want]) for want in wants}
    threads = torch.get_num_threads() if h.shape[0] * matrix.shape[1] >= PARALLEL_WEIGHTS else 1
    tensors = [senders, pointers, *inputs, *outputs.values()]
    function(threads, nodes, x.shape[0], *[tensor.data_ptr() for tensor in tensors])
    return outputs
