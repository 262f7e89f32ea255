"""The public operations: check the arguments, choose a backend, restore the caller's shape."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from sciml_kernels import cpp, cpu, library, reference
from sciml_kernels.edges import Edges
from sciml_kernels.spec import Spec


def conv(x: Tensor, y: Tensor, w: Tensor, edges: Edges, spec: Spec, backend: str = "auto") -> Tensor:
    """Equivariant convolution: out[n] = sum over edges e into n of  C w[e] x[sender(e)] y[e], differentiable twice.

    Args:
        x: node features, (num_senders, components, channels) with equal multiplicities, or flat (num_senders, dim_x).
        y: edge features, (edges, spec.dim_y); with y channels also (edges, components, channels).
        w: edge weights, (edges, paths, channels) or flat (edges, spec.dim_w).
        edges: the edge list, sorted by receiver.
        spec: the operation.
        backend: "auto" (compiled where possible), "reference" (plain torch), "cpu" (generated C++), "triton".

    Returns:
        (num_nodes, out components, channels), or flat (num_nodes, spec.dim_out) where x was flat.

    Raises:
        ValueError: an argument of wrong shape, dtype or device, or a backend that is not possible here.
    """
    _check_type("spec", spec, Spec)
    _check_type("edges", edges, Edges)
    rows = edges.num_edges
    flat_x = _flat("x", x, edges.num_senders, spec.dim_x, spec.channels)
    flat_y = _flat("y", y, rows, spec.dim_y, spec.channels if spec.y_channels else None)
    flat_w = _flat("w", w, rows, spec.dim_w, spec.channels)
    _check_alike(x, y, w)
    if edges.senders.device != x.device:
        raise ValueError(f"edges: found on {edges.senders.device}, expected on {x.device} as x")
    if choose(backend, x) == "cpu":
        out = library.trilinear(flat_x, flat_y, flat_w, edges.senders, edges.pointers, spec.key)
    else:
        out = reference.conv(flat_x, flat_y, flat_w, edges, spec)
    return out if x.dim() == 2 else out.reshape(out.shape[0], spec.dim_out // x.shape[2], x.shape[2])


def product(x: Tensor, y: Tensor, w: Tensor, spec: Spec, backend: str = "auto") -> Tensor:
    """Node-wise product of x and y with weights per node: out[n] = C w[n] x[n] y[n], differentiable twice.

    Two chained calls give a many-body product of correlation 3. Arguments, shapes and errors as for `conv`, with one
    row per node everywhere.
    """
    _check_type("spec", spec, Spec)
    rows = x.shape[0]
    flat_x = _flat("x", x, rows, spec.dim_x, spec.channels)
    flat_y = _flat("y", y, rows, spec.dim_y, spec.channels if spec.y_channels else None)
    flat_w = _flat("w", w, rows, spec.dim_w, spec.channels)
    _check_alike(x, y, w)
    if choose(backend, x) == "cpu":
        out = library.trilinear(flat_x, flat_y, flat_w, None, None, spec.key)
    else:
        out = reference.product(flat_x, flat_y, flat_w, spec)
    return out if x.dim() == 2 else out.reshape(out.shape[0], spec.dim_out // x.shape[2], x.shape[2])


def choose(backend: str, x: Tensor) -> str:
    """The backend that runs: "auto" resolved for this tensor, an impossible choice refused."""
    if backend == "triton":
        raise ValueError("backend: found 'triton', which is not available yet, expected 'auto', 'cpu' or 'reference'")
    if backend not in ("auto", "reference", "cpu"):
        raise ValueError(f"backend: found {backend!r}, expected 'auto', 'reference', 'cpu' or 'triton'")
    if backend == "reference":
        return backend
    reason = _refusal(x)
    if not reason:
        return "cpu"
    if backend == "cpu":
        raise ValueError(f"backend: 'cpu' is not possible, {reason}")
    return "reference"


def _refusal(x: Tensor) -> str:
    if x.device.type != "cpu":
        return f"x is on {x.device}, expected on the CPU"
    if x.dtype not in cpp.REAL:
        return f"x is {x.dtype}, expected float32 or float64"
    reason = _compiler_refusal()
    if reason:
        _warn(reason)
    return reason


@torch.compiler.assume_constant_result  # torch.compile must not look into the search for a compiler
def _compiler_refusal() -> str:
    return cpu.unavailable()


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(f"sciml_kernels runs on its slower plain-torch reference: {reason}.", stacklevel=4)


def _flat(name: str, tensor: Tensor, rows: int, dim: int, channels: int | None) -> Tensor:
    shape = tensor.shape
    if len(shape) == 2 and shape[0] == rows and shape[1] == dim:
        return tensor
    if len(shape) == 3 and shape[0] == rows and shape[2] == channels and shape[1] * shape[2] == dim:
        return tensor.reshape(rows, dim)
    shaped = f" or ({rows}, {dim // channels}, {channels})" if channels else ""
    raise ValueError(f"{name}: found shape {tuple(shape)}, expected ({rows}, {dim}){shaped}")


def _check_type(name: str, value: object, expected: type) -> None:
    if not isinstance(value, expected):
        article = "a " if expected is Spec else ""
        raise ValueError(f"{name}: found {type(value).__name__}, expected {article}{expected.__name__}")


def _check_alike(x: Tensor, y: Tensor, w: Tensor) -> None:
    for name, tensor in (("y", y), ("w", w)):
        if tensor.dtype != x.dtype:
            raise ValueError(f"{name}: found {tensor.dtype}, expected {x.dtype} as x")
        if tensor.device != x.device:
            raise ValueError(f"{name}: found on {tensor.device}, expected on {x.device} as x")
    if not torch.is_floating_point(x):
        raise ValueError(f"x: found {x.dtype}, expected a floating point dtype")
