"""The C++ backend of the layers: from tensors to compiled functions and back. An absent tensor is a null pointer."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml_kernels import cache
from sciml_kernels.layers import cpp_gate, cpp_linear, cpp_norm

# With less work than this (multiplications, elements of row-wise functions) waking a thread costs more than it brings.
PARALLEL_PRODUCTS = 1 << 22
PARALLEL_ELEMENTS = 1 << 17


class Passes(NamedTuple):
    """The three compiled functions of an operation."""

    forward: Callable[..., None]
    backward: Callable[..., None]
    double_backward: Callable[..., None]


_KINDS: dict[str, Any] = {"n": ctypes.c_int64, "d": ctypes.c_double, "p": ctypes.c_void_p}


def _passes(source: str, forward: str, backward: str, double_backward: str) -> Passes:
    """Compiled functions; after (threads, rows) one letter an argument: n for int64, d for double, p for a pointer."""
    library = cache.load(source)
    functions = (library.forward, library.backward, library.double_backward)
    for function, letters in zip(functions, (forward, backward, double_backward), strict=True):
        function.argtypes = [ctypes.c_int, ctypes.c_int64, *(_KINDS[letter] for letter in letters)]
        function.restype = None
    return Passes(*functions)


@functools.cache
def _linear(components: int, channels_in: int, channels_out: int, normed: bool, dtype: torch.dtype) -> Passes:
    source = cpp_linear.source(math.isqrt(components), channels_in, channels_out, normed, dtype)
    return _passes(source, "dn" + "p" * 5, "d" + "p" * 6, "d" + "p" * 9)


@functools.cache
def _norm(components: int, channels: int, dtype: torch.dtype) -> Passes:
    source = cpp_norm.source(math.isqrt(components), channels, dtype)
    return _passes(source, "d" + "p" * 2, "d" + "p" * 3, "d" + "p" * 5)


@functools.cache
def _gate(components: int, channels: int, dtype: torch.dtype) -> Passes:
    source = cpp_gate.gate_source(math.isqrt(components), channels, dtype)
    return _passes(source, "p" * 3, "p" * 5, "p" * 8)


@functools.cache
def _silu(dtype: torch.dtype) -> Passes:
    return _passes(cpp_gate.silu_source(dtype), "p" * 2, "p" * 3, "p" * 5)


def _run(function: Callable[..., None], threads: int, rows: int, *arguments: Tensor | float | None) -> None:
    """Call with the pointers of contiguous tensors; numbers and None (a null pointer) pass as they are."""
    function(threads, rows, *(value.data_ptr() if isinstance(value, Tensor) else value for value in arguments))


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _threads(work: int, enough: int) -> int:
    return torch.get_num_threads() if work >= enough else 1


def _like(tensor: Tensor, needed: bool) -> Tensor | None:
    return tensor.new_empty(tensor.shape) if needed else None


def _like_weights(w: Tensor, components: int, needed: bool) -> Tensor | None:
    """Room for the gradient to the weights: those of degrees that the rows do not have get zero."""
    if not needed:
        return None
    return w.new_empty(w.shape) if w.shape[0] ** 2 == components else w.new_zeros(w.shape)


def linear(x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, normed: bool, eps: float) -> Tensor:
    """The value."""
    passes, threads = _linear_of(x, w, normed)
    x, w, bias, residual = x.contiguous(), w.contiguous(), _dense(bias), _dense(residual)
    out = x.new_empty(x.shape[0], x.shape[1], w.shape[2])
    components = 0 if residual is None else residual.shape[1]
    _run(passes.forward, threads, x.shape[0], eps, components, x, w, bias, residual, out)
    return out


def linear_backward(g: Tensor, x: Tensor, w: Tensor, normed: bool, eps: float, wants: str) -> dict[str, Tensor | None]:
    """Gradients to x, w and the bias b."""
    passes, threads = _linear_of(x, w, normed)
    g, x, w = g.contiguous(), x.contiguous(), w.contiguous()
    gx, gw = _like(x, "x" in wants), _like_weights(w, x.shape[1], "w" in wants)
    gb = x.new_empty(w.shape[2]) if "b" in wants else None
    _run(passes.backward, threads, x.shape[0], eps, g, x, w, gx, gw, gb)
    return {"x": gx, "w": gw, "b": gb}


def linear_double_backward(
    vx: Tensor | None,
    vw: Tensor | None,
    vb: Tensor | None,
    g: Tensor,
    x: Tensor,
    w: Tensor,
    normed: bool,
    eps: float,
    wants: str,
) -> dict[str, Tensor | None]:
    """Gradients to g, x and w, for what arrives at the gradients to x, w and the bias."""
    passes, threads = _linear_of(x, w, normed)
    vx, vw, vb = _dense(vx), _dense(vw), _dense(vb)
    g, x, w = g.contiguous(), x.contiguous(), w.contiguous()
    gg, gx, gw = _like(g, "g" in wants), _like(x, "x" in wants), _like_weights(w, x.shape[1], "w" in wants)
    _run(passes.double_backward, threads, x.shape[0], eps, vx, vw, vb, g, x, w, gg, gx, gw)
    return {"g": gg, "x": gx, "w": gw}


def _linear_of(x: Tensor, w: Tensor, normed: bool) -> tuple[Passes, int]:
    passes = _linear(x.shape[1], w.shape[1], w.shape[2], normed, x.dtype)
    return passes, _threads(x.shape[0] * x.shape[1] * w.shape[1] * w.shape[2], PARALLEL_PRODUCTS)


def norm(x: Tensor, eps: float) -> Tensor:
    """The value."""
    x = x.contiguous()
    out = x.new_empty(x.shape)
    _run(_norm_of(x).forward, _threads(x.numel(), PARALLEL_ELEMENTS), x.shape[0], eps, x, out)
    return out


def norm_backward(g: Tensor, x: Tensor, eps: float) -> Tensor:
    """The gradient to x."""
    g, x = g.contiguous(), x.contiguous()
    gx = x.new_empty(x.shape)
    _run(_norm_of(x).backward, _threads(x.numel(), PARALLEL_ELEMENTS), x.shape[0], eps, g, x, gx)
    return gx


def norm_double_backward(v: Tensor, g: Tensor, x: Tensor, eps: float, wants: str) -> dict[str, Tensor | None]:
    """Gradients to g and x."""
    v, g, x = v.contiguous(), g.contiguous(), x.contiguous()
    gg, gx = _like(x, "g" in wants), _like(x, "x" in wants)
    _run(_norm_of(x).double_backward, _threads(x.numel(), PARALLEL_ELEMENTS), x.shape[0], eps, v, g, x, gg, gx)
    return {"g": gg, "x": gx}


def _norm_of(x: Tensor) -> Passes:
    return _norm(x.shape[1], x.shape[2], x.dtype)


def gate(x: Tensor, gates: Tensor) -> Tensor:
    """The value."""
    x, gates = x.contiguous(), gates.contiguous()
    out = x.new_empty(x.shape)
    _run(_gate_of(x).forward, _threads(x.numel(), PARALLEL_ELEMENTS), x.shape[0], x, gates, out)
    return out


def gate_backward(g: Tensor, x: Tensor, gates: Tensor, wants: str) -> dict[str, Tensor | None]:
    """Gradients to x and the gates t."""
    g, x, gates = g.contiguous(), x.contiguous(), gates.contiguous()
    gx, gt = _like(x, "x" in wants), _like(gates, "t" in wants)
    _run(_gate_of(x).backward, _threads(x.numel(), PARALLEL_ELEMENTS), x.shape[0], g, x, gates, gx, gt)
    return {"x": gx, "t": gt}


def gate_double_backward(
    vx: Tensor | None, vt: Tensor | None, g: Tensor, x: Tensor, gates: Tensor, wants: str
) -> dict[str, Tensor | None]:
    """Gradients to g, x and the gates t, for what arrives at the gradients to x and t."""
    vx, vt, g, x, gates = _dense(vx), _dense(vt), g.contiguous(), x.contiguous(), gates.contiguous()
    gg, gx, gt = _like(x, "g" in wants), _like(x, "x" in wants), _like(gates, "t" in wants)
    threads = _threads(x.numel(), PARALLEL_ELEMENTS)
    _run(_gate_of(x).double_backward, threads, x.shape[0], vx, vt, g, x, gates, gg, gx, gt)
    return {"g": gg, "x": gx, "t": gt}


def _gate_of(x: Tensor) -> Passes:
    return _gate(x.shape[1], x.shape[2], x.dtype)


def silu(x: Tensor) -> Tensor:
    """The value."""
    x = x.contiguous()
    out = x.new_empty(x.shape)
    _run(_silu(x.dtype).forward, _threads(x.numel(), PARALLEL_ELEMENTS), x.numel(), x, out)
    return out


def silu_backward(g: Tensor, x: Tensor) -> Tensor:
    """The gradient to x."""
    g, x = g.contiguous(), x.contiguous()
    gx = x.new_empty(x.shape)
    _run(_silu(x.dtype).backward, _threads(x.numel(), PARALLEL_ELEMENTS), x.numel(), g, x, gx)
    return gx


def silu_double_backward(v: Tensor, g: Tensor, x: Tensor, wants: str) -> dict[str, Tensor | None]:
    """Gradients to g and x."""
    v, g, x = v.contiguous(), g.contiguous(), x.contiguous()
    gg, gx = _like(x, "g" in wants), _like(x, "x" in wants)
    _run(_silu(x.dtype).double_backward, _threads(x.numel(), PARALLEL_ELEMENTS), x.numel(), v, g, x, gg, gx)
    return {"g": gg, "x": gx}
