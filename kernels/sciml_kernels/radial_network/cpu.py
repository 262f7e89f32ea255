"""The C++ backend: from tensors to compiled functions and back. An absent tensor is a null pointer."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sciml_kernels import cache
from sciml_kernels.radial_network import cpp

# Below this many products waking a second thread costs more than it brings.
PARALLEL_PRODUCTS = 1 << 19


@functools.cache
def _functions(sizes: tuple[int, ...], dtype: torch.dtype) -> dict[str, Callable[..., None]]:
    """Compiled on first use: (threads, edges, pointers...)."""
    library = cache.load(cpp.source(sizes, dtype))
    found: dict[str, Callable[..., None]] = {}
    for name, pointers in (("forward", 5), ("backward", 9), ("double_backward", 14)):
        function = getattr(library, name)
        function.argtypes = [ctypes.c_int, ctypes.c_int64, *([ctypes.c_void_p] * pointers)]
        function.restype = None
        found[name] = function
    return found


def _run(name: str, sizes: Sequence[int], edges: int, *tensors: Tensor | None) -> None:
    like = next(tensor for tensor in tensors if tensor is not None)
    products = edges * sum(a * b for a, b in zip(sizes[1:], sizes, strict=False))
    threads = torch.get_num_threads() if products >= PARALLEL_PRODUCTS else 1
    function = _functions(tuple(sizes), like.dtype)[name]
    function(threads, edges, *(None if tensor is None else tensor.data_ptr() for tensor in tensors))


def _dense(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _room(names: str, like: Sequence[Tensor], wants: str) -> dict[str, Tensor | None]:
    return {
        name: tensor.new_empty(tensor.shape) if name in wants else None
        for name, tensor in zip(names, like, strict=True)
    }


def forward(basis: Tensor, shift: Tensor, envelope: Tensor, parameters: Tensor, sizes: Sequence[int]) -> Tensor:
    """The value (edges, sizes[-1])."""
    out = basis.new_empty(basis.shape[0], sizes[-1])
    _run("forward", sizes, basis.shape[0], *_dense(basis, shift, envelope, parameters), out)
    return out


def backward(
    g: Tensor,
    basis: Tensor,
    shift: Tensor,
    envelope: Tensor,
    parameters: Tensor,
    sizes: Sequence[int],
    wants: str,
) -> dict[str, Tensor | None]:
    """Gradients to basis b, shift s, envelope e and parameters p."""
    found = _room("bsep", (basis, shift, envelope, parameters), wants)
    _run("backward", sizes, basis.shape[0], *_dense(g, basis, shift, envelope, parameters), *found.values())
    return found


def double_backward(
    tangents: Sequence[Tensor | None],
    g: Tensor,
    basis: Tensor,
    shift: Tensor,
    envelope: Tensor,
    parameters: Tensor,
    sizes: Sequence[int],
    wants: str,
) -> dict[str, Tensor | None]:
    """Gradients to g, basis b, shift s, envelope e and parameters p; `tangents` of b, s, e and p."""
    found = _room("gbsep", (g, basis, shift, envelope, parameters), wants)
    inputs = _dense(*tangents, g, basis, shift, envelope, parameters)
    _run("double_backward", sizes, basis.shape[0], *inputs, *found.values())
    return found
