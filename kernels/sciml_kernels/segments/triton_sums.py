"""The Triton kernel of segment sums. Imported only where Triton is."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["width"])
def segment_sum(values, pointers, out, width: tl.int64, REAL: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """out[s] = sum of the rows of segment s; a program has BLOCK columns of a segment, TILE rows in flight."""
    segment = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    first, last = tl.load(pointers + segment), tl.load(pointers + segment + 1)
    total = tl.zeros([TILE, BLOCK], REAL)
    for begin in range(first, last, TILE):
        row = begin + tl.arange(0, TILE)
        inside = (row < last)[:, None] & (c < width)[None, :]
        total += tl.load(values + row[:, None] * width + c[None, :], mask=inside, other=0).to(REAL)
    tl.store(out + segment * width + c, tl.sum(total, 0), mask=c < width)
