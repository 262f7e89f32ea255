"""Deterministic sums of rows on a GPU. Imported only where Triton is: its decorator needs it."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["dim"])
def sum_rows(rows, order, pieces, out, dim: tl.int32, GATHER: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Row p of out is the sum of the rows of piece p, which are listed in `order` (or lie one after another)."""
    piece = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    last = tl.load(pieces + 5 * piece + 2)
    total = tl.zeros([TILE, BLOCK], out.dtype.element_ty)
    for first in range(tl.load(pieces + 5 * piece + 1), last, TILE):
        at = first + tl.arange(0, TILE)
        row = tl.load(order + at, mask=at < last, other=0) if GATHER else at
        inside = (at < last)[:, None] & (c < dim)[None, :]
        total += tl.load(rows + row[:, None] * dim + c[None, :], mask=inside, other=0)
    tl.store(out + piece * dim + c, tl.sum(total, 0), mask=c < dim)


@triton.jit(do_not_specialize=["nodes", "dim"])
def join_pieces(out, pieces, nodes: tl.int64, dim: tl.int32, BLOCK: tl.constexpr):
    """Add to the row of a node with many edges those of its further pieces, which lie behind the rows of all nodes."""
    extra = tl.program_id(0).to(tl.int64)
    own = pieces + 5 * (nodes + extra)
    node, first, last = tl.load(own), tl.load(own + 3), tl.load(own + 4)
    if (first == extra) & (first < last):  # one program serves a node, that of its first further piece
        c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        total = tl.load(out + node * dim + c, mask=c < dim, other=0)
        for at in range(first, last):
            total += tl.load(out + (nodes + at) * dim + c, mask=c < dim, other=0)
        tl.store(out + node * dim + c, total, mask=c < dim)
