"""Triton kernels of the three sums over pairs of atoms and waves (`passes.py`).

A program has a block of ROWS rows of one graph and walks over its others in tiles of TILE; sums over a tile are matrix
products. table[b] holds the first row of block b, the end of the rows of its graph, and the first and the end of the
others. CHANNELS is a size of the problem, never of a batch. Imported only where Triton is.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl


@triton.jit
def _turn(t, TERMS: tl.constexpr):
    """cos and sin of t turns: half turns are taken off without rounding, then power series as nested products."""
    half = tl.floor(t * 2.0 + 0.5)
    z = (t - half * 0.5) * 6.283185307179586
    square = z * z
    even = square * 0.0 + 1.0
    odd = even
    for step in tl.static_range(TERMS):  # k = 2 (TERMS - step); the factors are folded when this is compiled
        even = 1.0 - square * (1.0 / ((2 * TERMS - 2 * step) * (2 * TERMS - 2 * step - 1))) * even
        odd = 1.0 - square * (1.0 / ((2 * TERMS - 2 * step) * (2 * TERMS - 2 * step + 1))) * odd
    sign = 1.0 - 2.0 * (half - 2.0 * tl.floor(half * 0.5))
    return sign * even, sign * z * odd


@triton.jit
def _block(table):
    """First row, end of the rows, first and end of the others of this program."""
    at = table + tl.program_id(0).to(tl.int64) * 4
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)


@triton.jit
def _point(p, i, live, REAL: tl.constexpr):
    """The three components of points."""
    x = tl.load(p + i * 3, mask=live, other=0).to(REAL)
    y = tl.load(p + i * 3 + 1, mask=live, other=0).to(REAL)
    z = tl.load(p + i * 3 + 2, mask=live, other=0).to(REAL)
    return x, y, z


@triton.jit
def _products(a, b, i, i_live, j, j_live, REAL: tl.constexpr):
    """a_i . b_j of points."""
    ax, ay, az = _point(a, i, i_live, REAL)
    bx, by, bz = _point(b, j, j_live, REAL)
    return ax[:, None] * bx[None, :] + ay[:, None] * by[None, :] + az[:, None] * bz[None, :]


@triton.jit
def _change(
    values, changes, other_values, other_changes, i, i_live, j, j_live,
    MOVED: tl.constexpr, OTHER_MOVED: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """The change of the phase of each pair."""
    delta = tl.zeros([ROWS, TILE], REAL)
    if MOVED:
        delta += _products(changes, other_values, i, i_live, j, j_live, REAL)
    if OTHER_MOVED:
        delta += _products(values, other_changes, i, i_live, j, j_live, REAL)
    return delta * 6.283185307179586


@triton.jit
def _matrix(p, i, live, part, c, PARTS: tl.constexpr, CHANNELS: tl.constexpr, REAL: tl.constexpr):
    """Rows i and channels c of one part of (rows, PARTS, CHANNELS)."""
    inside = live[:, None] & (c < CHANNELS)[None, :]
    return tl.load(p + (i[:, None] * PARTS + part) * CHANNELS + c[None, :], mask=inside, other=0).to(REAL)


@triton.jit
def _turned(p, i, live, part, c, PARTS: tl.constexpr, CHANNELS: tl.constexpr, REAL: tl.constexpr):
    """The transpose of `_matrix`."""
    inside = live[None, :] & (c < CHANNELS)[:, None]
    return tl.load(p + (i[None, :] * PARTS + part) * CHANNELS + c[:, None], mask=inside, other=0).to(REAL)


@triton.jit
def _dot(a, b, total, REAL: tl.constexpr):
    return tl.dot(a, b, total, input_precision="ieee", out_dtype=REAL)


@triton.jit
def waves(
    table, values, changes, other_values, other_changes, plain, turned, out,
    PLAIN: tl.constexpr, TURNED: tl.constexpr, MOVED: tl.constexpr, OTHER_MOVED: tl.constexpr, CHANNELS: tl.constexpr,
    TERMS: tl.constexpr, REAL: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[k] = sum over atoms of plain (c, s) + turned d (-s, c); the flags tell which of them are there."""
    row, end, first, last = _block(table)
    i = row + tl.arange(0, ROWS)
    i_live = i < end
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    even = tl.zeros([ROWS, BLOCK], REAL)
    odd = tl.zeros([ROWS, BLOCK], REAL)
    for begin in range(first, last, TILE):
        j = begin + tl.arange(0, TILE)
        j_live = j < last
        cosine, sine = _turn(_products(values, other_values, i, i_live, j, j_live, REAL), TERMS)
        if PLAIN:
            weights = _matrix(plain, j, j_live, 0, c, 1, CHANNELS, REAL)
            even = _dot(cosine, weights, even, REAL)
            odd = _dot(sine, weights, odd, REAL)
        if TURNED:
            weights = _matrix(turned, j, j_live, 0, c, 1, CHANNELS, REAL)
            delta = _change(
                values, changes, other_values, other_changes, i, i_live, j, j_live, MOVED, OTHER_MOVED, ROWS, TILE,
                REAL,
            )  # fmt: skip
            even = _dot(-delta * sine, weights, even, REAL)
            odd = _dot(delta * cosine, weights, odd, REAL)
    inside = i_live[:, None] & (c < CHANNELS)[None, :]
    at = out + i[:, None] * (2 * CHANNELS) + c[None, :]
    tl.store(at, even, mask=inside)
    tl.store(at + CHANNELS, odd, mask=inside)


@triton.jit
def charges(
    table, values, changes, other_values, other_changes, g, out,
    MOVED: tl.constexpr, OTHER_MOVED: tl.constexpr, CHANNELS: tl.constexpr,
    TERMS: tl.constexpr, REAL: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[a] = sum over waves of g . (c, s), or of g . d (-s, c) where something moved."""
    row, end, first, last = _block(table)
    i = row + tl.arange(0, ROWS)
    i_live = i < end
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([ROWS, BLOCK], REAL)
    for begin in range(first, last, TILE):
        j = begin + tl.arange(0, TILE)
        j_live = j < last
        cosine, sine = _turn(_products(values, other_values, i, i_live, j, j_live, REAL), TERMS)
        if MOVED or OTHER_MOVED:
            delta = _change(
                values, changes, other_values, other_changes, i, i_live, j, j_live, MOVED, OTHER_MOVED, ROWS, TILE,
                REAL,
            )  # fmt: skip
            cosine, sine = -delta * sine, delta * cosine
        total = _dot(cosine, _matrix(g, j, j_live, 0, c, 2, CHANNELS, REAL), total, REAL)
        total = _dot(sine, _matrix(g, j, j_live, 1, c, 2, CHANNELS, REAL), total, REAL)
    tl.store(out + i[:, None] * CHANNELS + c[None, :], total, mask=i_live[:, None] & (c < CHANNELS)[None, :])


@triton.jit
def _over_channels(
    row, other, i, i_live, j, j_live, ROW_PARTS: tl.constexpr, OTHER_PARTS: tl.constexpr, CHANNELS: tl.constexpr,
    REAL: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Products over channels with the part of the cosine and with that of the sine."""
    u = tl.zeros([ROWS, TILE], REAL)
    v = tl.zeros([ROWS, TILE], REAL)
    for start in range(0, CHANNELS, BLOCK):
        c = start + tl.arange(0, BLOCK)
        left = _matrix(row, i, i_live, 0, c, ROW_PARTS, CHANNELS, REAL)
        u = _dot(left, _turned(other, j, j_live, 0, c, OTHER_PARTS, CHANNELS, REAL), u, REAL)
        left = _matrix(row, i, i_live, ROW_PARTS - 1, c, ROW_PARTS, CHANNELS, REAL)
        v = _dot(left, _turned(other, j, j_live, OTHER_PARTS - 1, c, OTHER_PARTS, CHANNELS, REAL), v, REAL)
    return u, v


@triton.jit
def points(
    table, values, changes, other_values, other_changes, plain_row, plain_other, turned_row, turned_other, out,
    PLAIN: tl.constexpr, TURNED: tl.constexpr, MOVED: tl.constexpr, OTHER_MOVED: tl.constexpr,
    ROW_PARTS: tl.constexpr, OTHER_PARTS: tl.constexpr, CHANNELS: tl.constexpr,
    TERMS: tl.constexpr, REAL: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = 2 pi sum of the others' values times m, and of their changes."""
    row, end, first, last = _block(table)
    i = row + tl.arange(0, ROWS)
    i_live = i < end
    x = tl.zeros([ROWS], REAL)
    y = tl.zeros([ROWS], REAL)
    z = tl.zeros([ROWS], REAL)
    for begin in range(first, last, TILE):
        j = begin + tl.arange(0, TILE)
        j_live = j < last
        cosine, sine = _turn(_products(values, other_values, i, i_live, j, j_live, REAL), TERMS)
        m = tl.zeros([ROWS, TILE], REAL)
        if PLAIN:
            u, v = _over_channels(
                plain_row, plain_other, i, i_live, j, j_live, ROW_PARTS, OTHER_PARTS, CHANNELS, REAL, ROWS, TILE, BLOCK
            )
            m += v * cosine - u * sine
        if TURNED:
            u, v = _over_channels(
                turned_row, turned_other, i, i_live, j, j_live, ROW_PARTS, OTHER_PARTS, CHANNELS, REAL, ROWS, TILE,
                BLOCK,
            )  # fmt: skip
            delta = _change(
                values, changes, other_values, other_changes, i, i_live, j, j_live, MOVED, OTHER_MOVED, ROWS, TILE,
                REAL,
            )  # fmt: skip
            m -= delta * (v * sine + u * cosine)
            if OTHER_MOVED:
                along = v * cosine - u * sine
                ox, oy, oz = _point(other_changes, j, j_live, REAL)
                x += tl.sum(along * ox[None, :], 1)
                y += tl.sum(along * oy[None, :], 1)
                z += tl.sum(along * oz[None, :], 1)
        ox, oy, oz = _point(other_values, j, j_live, REAL)
        x += tl.sum(m * ox[None, :], 1)
        y += tl.sum(m * oy[None, :], 1)
        z += tl.sum(m * oz[None, :], 1)
    tl.store(out + i * 3, x * 6.283185307179586, mask=i_live)
    tl.store(out + i * 3 + 1, y * 6.283185307179586, mask=i_live)
    tl.store(out + i * 3 + 2, z * 6.283185307179586, mask=i_live)
