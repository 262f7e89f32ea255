"""Triton kernels of the linear map per degree: a grouped matrix product and its gradient to the weights.

A tile of rows belongs to one degree: row r is component l * l + r % (2 l + 1) of node r / (2 l + 1). Programs of the
third grid axis are the degrees; those of a low degree, which has fewer rows, end early. COMPONENTS, FROM and TO are
sizes of the layer, never of a batch. Imported only where Triton is.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl


@triton.jit
def _rows(tile, degree, nodes, COMPONENTS: tl.constexpr, BLOCK: tl.constexpr):
    """Which rows of features a tile has, and which of them exist."""
    width = 2 * degree + 1
    r = tile * BLOCK + tl.arange(0, BLOCK)
    return (r // width) * COMPONENTS + degree * degree + r % width, r < nodes * width


@triton.jit
def _multiply(
    total, a, b, row, live, degree, column,
    FROM: tl.constexpr, TO: tl.constexpr, TURNED: tl.constexpr, BLOCK_K: tl.constexpr, REAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """total + a b[degree], or with its transpose where b is TURNED."""
    for begin in range(0, FROM, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        left = tl.load(a + row[:, None] * FROM + k[None, :], mask=live[:, None] & (k < FROM)[None, :], other=0)
        inside = (k < FROM)[:, None] & (column < TO)[None, :]
        if TURNED:
            place = (degree * TO + column[None, :]) * FROM + k[:, None]
        else:
            place = (degree * FROM + k[:, None]) * TO + column[None, :]
        right = tl.load(b + place, mask=inside, other=0)
        left, right = left.to(REAL), right.to(REAL)
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=REAL)
    return total


@triton.jit(do_not_specialize=["nodes", "start_components"])
def product(
    a, b, a2, b2, bias, start, out, nodes: tl.int64, start_components: tl.int64,
    COMPONENTS: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr, TURNED: tl.constexpr, FIRST: tl.constexpr,
    SECOND: tl.constexpr, BIAS: tl.constexpr, START: tl.constexpr, REAL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out = a b[l] + a2 b2[l] + bias (on the invariants) + start; the flags tell which of them are there."""
    degree = tl.program_id(2).to(tl.int64)
    tile = tl.program_id(0).to(tl.int64)
    if tile * BLOCK_M < nodes * (2 * degree + 1):
        row, live = _rows(tile, degree, nodes, COMPONENTS, BLOCK_M)
        column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        total = tl.zeros([BLOCK_M, BLOCK_N], REAL)
        if FIRST:
            total = _multiply(total, a, b, row, live, degree, column, FROM, TO, TURNED, BLOCK_K, REAL, PRECISION)
        if SECOND:
            total = _multiply(total, a2, b2, row, live, degree, column, FROM, TO, TURNED, BLOCK_K, REAL, PRECISION)
        inside = live[:, None] & (column < TO)[None, :]
        if BIAS:
            added = tl.load(bias + column, mask=(column < TO) & (degree == 0), other=0).to(REAL)
            total += added[None, :]
        if START:
            component = row % COMPONENTS
            place = (row // COMPONENTS * start_components + component)[:, None] * TO + column[None, :]
            there = inside & (component < start_components)[:, None]
            total += tl.load(start + place, mask=there, other=0).to(REAL)
        tl.store(out + row[:, None] * TO + column[None, :], total, mask=inside)


@triton.jit(do_not_specialize=["nodes", "tiles"])
def outer(
    a, b, out, nodes: tl.int64, tiles: tl.int64,
    COMPONENTS: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr, SIZE: tl.constexpr, REAL: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[slab, l] = a^T b over some of the rows of degree l: `tiles` tiles of BLOCK_K rows for each slab of SIZE."""
    degree = tl.program_id(2).to(tl.int64)
    blocks: tl.constexpr = (TO + BLOCK_N - 1) // BLOCK_N
    i = tl.program_id(1) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(1) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    slab = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK_M, BLOCK_N], REAL)
    for tile in range(slab * tiles, (slab + 1) * tiles):
        row, live = _rows(tile, degree, nodes, COMPONENTS, BLOCK_K)
        left = tl.load(a + row[None, :] * FROM + i[:, None], mask=live[None, :] & (i < FROM)[:, None], other=0)
        right = tl.load(b + row[:, None] * TO + j[None, :], mask=live[:, None] & (j < TO)[None, :], other=0)
        total = tl.dot(left.to(REAL), right.to(REAL), total, input_precision=PRECISION, out_dtype=REAL)
    place = slab * SIZE + (degree * FROM + i[:, None]) * TO + j[None, :]
    tl.store(out + place, total, mask=(i < FROM)[:, None] & (j < TO)[None, :])
