"""The Triton backend of the layers, with the functions of `cpu.py`; bfloat16 is computed and summed in float32."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sciml_kernels.triton_launch import allows_tf32, on_device

MOST_SLABS = 64  # parts of the sum over rows that makes the gradient to the weights
ROW_BLOCK = 1024  # most elements of a row that a program has in flight


def _real(dtype: torch.dtype) -> tuple[Any, torch.dtype]:
    """The dtype of arithmetic, for Triton and for torch."""
    import triton.language as tl

    return (tl.float64, torch.float64) if dtype == torch.float64 else (tl.float32, torch.float32)


def precision(dtype: torch.dtype) -> str:
    """Of matrix products: IEEE, or TF32 where torch is told that it may (`torch.set_float32_matmul_precision`).

    Numbers of bfloat16 are numbers of TF32, so that their products are exact in it.
    """
    allowed = dtype == torch.bfloat16 or (dtype == torch.float32 and allows_tf32())
    return "tf32" if allowed and not torch.version.hip else "ieee"


def blocks(from_: int, to: int, dtype: torch.dtype) -> dict[str, int]:
    """Sizes of the tiles of a product."""
    rows = 32 if dtype == torch.float64 else 64  # more need more registers than there are
    return {"BLOCK_M": rows, "BLOCK_N": _block(to, 64), "BLOCK_K": _block(from_, 32)}


def outer_blocks(from_: int, to: int) -> dict[str, int]:
    """Sizes of the tiles of the gradient to the weights; the K axis is that of the rows."""
    return {"BLOCK_M": _block(from_, 64), "BLOCK_N": _block(to, 64), "BLOCK_K": 32}


def _block(size: int, most: int) -> int:
    return min(most, max(16, 1 << (size - 1).bit_length()))


def _product(
    pairs: list[tuple[Tensor, Tensor]],
    out: Tensor,
    turned: bool = False,
    bias: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """out = sum of a b[l] over one or two pairs, plus bias and start."""
    from sciml_kernels.layers.triton_linear import product

    nodes, components, to = out.shape
    like = pairs[0] if pairs else (out, out)
    from_ = pairs[0][0].shape[2] if pairs else 1
    (a, b), (a2, b2) = like, (pairs[1] if len(pairs) > 1 else like)
    tiles, degrees = blocks(from_, to, out.dtype), math.isqrt(components)
    most_rows = nodes * (2 * degrees - 1)
    grid = (-(-most_rows // tiles["BLOCK_M"]), -(-to // tiles["BLOCK_N"]), degrees)
    if out.numel():
        product[grid](
            a, b, a2, b2, out if bias is None else bias, out if start is None else start, out, nodes,
            0 if start is None else start.shape[1], COMPONENTS=components, FROM=from_, TO=to, TURNED=turned,
            FIRST=bool(pairs), SECOND=len(pairs) > 1, BIAS=bias is not None, START=start is not None,
            REAL=_real(out.dtype)[0], PRECISION=precision(out.dtype), **tiles, num_warps=4, num_stages=1,
        )  # fmt: skip
    return out


def _outer(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """The gradient to the weights: rows a^T b of each degree, in slabs that are added in order."""
    from sciml_kernels.layers.triton_linear import outer

    nodes, components, from_ = a.shape
    to, degrees = b.shape[2], math.isqrt(components)
    tiles = outer_blocks(from_, to)
    all_tiles = -(-nodes * (2 * degrees - 1) // tiles["BLOCK_K"])
    per_slab = max(8, -(-all_tiles // MOST_SLABS))
    slabs = max(1, -(-all_tiles // per_slab))
    real, dtype = _real(w.dtype)
    parts = w.new_empty((slabs, degrees, from_, to), dtype=dtype)
    grid = (slabs, -(-from_ // tiles["BLOCK_M"]) * -(-to // tiles["BLOCK_N"]), degrees)
    outer[grid](
        a, b, parts, nodes, per_slab, COMPONENTS=components, FROM=from_, TO=to, SIZE=degrees * from_ * to, REAL=real,
        PRECISION=precision(w.dtype), **tiles, num_warps=4, num_stages=1,
    )  # fmt: skip
    found = (parts[0] if slabs == 1 else parts.sum(0)).to(w.dtype)
    return found if w.shape[0] == degrees else torch.cat([found, w.new_zeros(w.shape[0] - degrees, from_, to)])


@on_device
def linear(x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, normed: bool, eps: float) -> Tensor:
    """The value."""
    x, w = x.contiguous(), w.contiguous()
    out = x.new_empty(x.shape[0], x.shape[1], w.shape[2])
    rows = norm(x, eps) if normed else x
    return _product([(rows, w)], out, bias=_dense(bias), start=_dense(residual))


@on_device
def linear_backward(g: Tensor, x: Tensor, w: Tensor, normed: bool, eps: float, wants: str) -> dict[str, Tensor | None]:
    """Gradients to x, w and the bias b."""
    g, x, w = g.contiguous(), x.contiguous(), w.contiguous()
    found: dict[str, Tensor | None] = dict.fromkeys("xwb")
    if "x" in wants:
        back = _product([(g, w)], x.new_empty(x.shape), turned=True)
        found["x"] = norm_backward(back, x, eps) if normed else back
    if "w" in wants:
        found["w"] = _outer(norm(x, eps) if normed else x, g, w)
    if "b" in wants:
        found["b"] = g[:, 0].sum(0, dtype=_real(g.dtype)[1]).to(g.dtype)
    return found


@on_device
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
    vx, vw, vb = _dense(vx), _dense(vw), _dense(vb)
    g, x, w = g.contiguous(), x.contiguous(), w.contiguous()
    tangent = norm_double_backward(vx, x, x, eps, "g")["g"] if normed and vx is not None else vx
    found: dict[str, Tensor | None] = dict.fromkeys("gxw")
    if "g" in wants:
        pairs = [] if tangent is None else [(tangent, w)]
        pairs += [] if vw is None else [(norm(x, eps) if normed else x, vw)]
        found["g"] = _product(pairs, g.new_empty(g.shape), bias=vb)
    if "w" in wants and tangent is not None:
        found["w"] = _outer(tangent, g, w)
    if "x" in wants:
        found["x"] = _second_to_x(vx, vw, g, x, w, normed, eps)
    return found


def _second_to_x(
    vx: Tensor | None, vw: Tensor | None, g: Tensor, x: Tensor, w: Tensor, normed: bool, eps: float
) -> Tensor | None:
    total = None
    if vw is not None:
        back = _product([(g, vw)], x.new_empty(x.shape), turned=True)
        total = norm_backward(back, x, eps) if normed else back
    if normed and vx is not None:
        back = _product([(g, w)], x.new_empty(x.shape), turned=True)
        total = _norm_second(vx, back, x, eps, "x", total)["x"]
    return total


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def row_sizes(x: Tensor, eps: float) -> dict[str, Any]:
    """Sizes of the layer for the kernels of the norm."""
    row = x.shape[1] * x.shape[2]
    block = min(ROW_BLOCK, 1 << (row - 1).bit_length())
    degrees = math.isqrt(x.shape[1])
    return {
        "ROW": row,
        "CHANNELS": x.shape[2],
        "DEGREES": degrees,
        "REAL": _real(x.dtype)[0],
        "BLOCK": block,
        "EPS": eps,
    }


@on_device
def norm(x: Tensor, eps: float) -> Tensor:
    """The value."""
    from sciml_kernels.layers import triton_rows

    x = x.contiguous()
    out = x.new_empty(x.shape)
    if x.shape[0]:
        triton_rows.norm[(x.shape[0],)](x, out, **row_sizes(x, eps))
    return out


@on_device
def norm_backward(g: Tensor, x: Tensor, eps: float) -> Tensor:
    """The gradient to x."""
    from sciml_kernels.layers import triton_rows

    g, x = g.contiguous(), x.contiguous()
    out = x.new_empty(x.shape)
    if x.shape[0]:
        triton_rows.norm_gradient[(x.shape[0],)](g, x, out, **row_sizes(x, eps))
    return out


@on_device
def norm_double_backward(v: Tensor, g: Tensor, x: Tensor, eps: float, wants: str) -> dict[str, Tensor | None]:
    """Gradients to g and x."""
    return _norm_second(v.contiguous(), g.contiguous(), x.contiguous(), eps, wants, None)


def _norm_second(
    v: Tensor, g: Tensor, x: Tensor, eps: float, wants: str, before: Tensor | None
) -> dict[str, Tensor | None]:
    from sciml_kernels.layers import triton_rows

    found = {name: x.new_empty(x.shape) if name in wants else None for name in "gx"}
    places = [x if tensor is None else tensor for tensor in (before, found["g"], found["x"])]
    if x.shape[0] and wants:
        flags = {"WANT_G": "g" in wants, "WANT_X": "x" in wants, "ADD": before is not None}
        triton_rows.norm_second[(x.shape[0],)](v, g, x, *places, **row_sizes(x, eps), **flags)
    return found


def gate_launch(x: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and sizes of the layer for the kernels of the gate."""
    block = _block(x.shape[2], 128)
    sizes = {"CHANNELS": x.shape[2], "DEGREES": math.isqrt(x.shape[1]), "REAL": _real(x.dtype)[0], "BLOCK": block}
    return (x.shape[0], -(-x.shape[2] // block)), sizes


@on_device
def gate(x: Tensor, gates: Tensor) -> Tensor:
    """The value."""
    from sciml_kernels.layers import triton_rows

    x, gates = x.contiguous(), gates.contiguous()
    out, (grid, sizes) = x.new_empty(x.shape), gate_launch(x)
    if x.shape[0]:
        triton_rows.gate[grid](x, gates, out, **sizes)
    return out


@on_device
def gate_backward(g: Tensor, x: Tensor, gates: Tensor, wants: str) -> dict[str, Tensor | None]:
    """Gradients to x and the gates t, both, whatever is wanted: they share all that is read."""
    from sciml_kernels.layers import triton_rows

    g, x, gates = g.contiguous(), x.contiguous(), gates.contiguous()
    gx, gt, (grid, sizes) = x.new_empty(x.shape), gates.new_empty(gates.shape), gate_launch(x)
    if x.shape[0]:
        triton_rows.gate_gradient[grid](g, x, gates, gx, gt, **sizes)
    return {"x": gx, "t": gt}


@on_device
def gate_double_backward(
    vx: Tensor | None, vt: Tensor | None, g: Tensor, x: Tensor, gates: Tensor, wants: str
) -> dict[str, Tensor | None]:
    """Gradients to g, x and the gates t, all, for what arrives at the gradients to x and t."""
    from sciml_kernels.layers import triton_rows

    vx = torch.zeros_like(x) if vx is None else vx.contiguous()
    vt = torch.zeros_like(gates) if vt is None else vt.contiguous()
    g, x, gates = g.contiguous(), x.contiguous(), gates.contiguous()
    gg, gx, gt = g.new_empty(g.shape), x.new_empty(x.shape), gates.new_empty(gates.shape)
    grid, sizes = gate_launch(x)
    if x.shape[0]:
        triton_rows.gate_second[grid](vx, vt, g, x, gates, gg, gx, gt, **sizes)
    return {"g": gg, "x": gx, "t": gt}


def flat_launch(x: Tensor) -> tuple[tuple[int], dict[str, Any]]:
    """Grid and sizes for the kernels of SiLU."""
    return (-(-x.numel() // ROW_BLOCK),), {"REAL": _real(x.dtype)[0], "BLOCK": ROW_BLOCK}


@on_device
def silu(x: Tensor) -> Tensor:
    """The value."""
    from sciml_kernels.layers import triton_rows

    x = x.contiguous()
    out, (grid, sizes) = x.new_empty(x.shape), flat_launch(x)
    if x.numel():
        triton_rows.silu[grid](x, out, x.numel(), **sizes)
    return out


@on_device
def silu_backward(g: Tensor, x: Tensor) -> Tensor:
    """The gradient to x."""
    from sciml_kernels.layers import triton_rows

    g, x = g.contiguous(), x.contiguous()
    out, (grid, sizes) = x.new_empty(x.shape), flat_launch(x)
    if x.numel():
        triton_rows.silu_gradient[grid](g, x, out, x.numel(), **sizes)
    return out


@on_device
def silu_double_backward(v: Tensor, g: Tensor, x: Tensor, wants: str) -> dict[str, Tensor | None]:
    """Gradients to g and x, both."""
    from sciml_kernels.layers import triton_rows

    v, g, x = v.contiguous(), g.contiguous(), x.contiguous()
    gg, gx, (grid, sizes) = x.new_empty(x.shape), x.new_empty(x.shape), flat_launch(x)
    if x.numel():
        triton_rows.silu_second[grid](v, g, x, gg, gx, x.numel(), **sizes)
    return {"g": gg, "x": gx}
