"""The Triton emitter: one jitted function per pass and dtype.

A program takes BLOCK rows, one per thread. Rows are read and written as tiles of whole rows, padded to a power of two
of columns, so that neighbouring threads touch neighbouring addresses; columns come out of a tile by halving its last
axis and go into one by doubling it. Nothing is summed between rows. Rows past the end read ones.
"""

from __future__ import annotations

import torch

from sciml_kernels.rowwise.function import Pass
from sciml_kernels.rowwise.statements import Dialect, statements

NAME = "rowwise"
_DIALECT = Dialect("{}", "(zero + {})", "{array}_{component}", "tl.where({}, {}, {})", "tl.{}({})")

_KERNEL = """# {title}
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def {name}({arguments}, rows: tl.int64, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    zero = tl.zeros([BLOCK], {real})
{body}
"""


def source(name: str, work: Pass, dtype: torch.dtype) -> str:
    """The Python file; `rowwise(index arrays, arrays read, arrays written, rows, BLOCK)`. Computes in fp32 at least."""
    real = torch.float64 if dtype == torch.float64 else torch.float32
    text = statements(work, torch.finfo(real).eps, _DIALECT)
    kind = f"tl.{str(real).removeprefix('torch.')}"
    lines = [f"at_{index} = tl.load({index} + row, mask=live, other=0)" for index in work.indices]
    for array, width in work.reads.items():
        rows = f"at_{work.gathered[array]}" if array in work.gathered else "row"
        lines += _read(array, rows, width, kind)
    lines += [f"{name} = {value}" for name, value in text.assignments]
    for array, columns in text.columns.items():
        lines += _write(f"out_{array}", columns)
    arguments = [*work.indices, *work.reads, *(f"out_{array}" for array in work.writes)]
    body = "\n".join("    " + line for line in lines)
    return _KERNEL.format(title=name, name=NAME, arguments=", ".join(arguments), real=kind, body=body)


def _addresses(rows: str, width: int) -> tuple[str, str]:
    """Offsets and mask of a tile."""
    columns = f"tl.arange(0, {_padded(width)})[None, :]"
    mask = "live[:, None]" if width == _padded(width) else f"live[:, None] & ({columns} < {width})"
    return f"{rows}[:, None] * {width} + {columns}", mask


def _read(array: str, rows: str, width: int, kind: str) -> list[str]:
    """A tile, cut in halves until every column stands alone."""
    if width == 1:
        return [f"{array}_0 = tl.load({array} + {rows}, mask=live, other=1).to({kind})"]
    offsets, mask = _addresses(rows, width)
    tiles = [f"{array}_"]
    lines = [f"{array}_ = tl.load({array} + {offsets}, mask={mask}, other=1).to({kind})"]
    columns = [list(range(_padded(width)))]
    while len(columns[0]) > 1:  # the lowest bit of the column is the last axis
        halves, parts = [], []
        for tile, members in zip(tiles, columns, strict=True):
            even, odd = members[::2], members[1::2]
            names = [
                f"{array}_{half[0]}" if len(half) == 1 else f"{tile}{bit}_" for bit, half in enumerate((even, odd))
            ]
            shape = f"[BLOCK, {len(even)}, 2]" if len(even) > 1 else "[BLOCK, 2]"
            lines.append(f"{names[0]}, {names[1]} = tl.split(tl.reshape({tile}, {shape}))")
            halves += names
            parts += [even, odd]
        tiles, columns = halves, parts
    return lines


def _write(array: str, columns: list[str]) -> list[str]:
    """The columns joined in pairs until there is one tile."""
    width = len(columns)
    if width == 1:
        return [f"tl.store({array} + row, {columns[0]}.to({array}.dtype.element_ty), mask=live)"]
    lines = []
    tiles = columns + ["zero"] * (_padded(width) - width)
    step = 0
    while len(tiles) > 1:  # the highest bit of the column first: each join appends a last axis
        half = len(tiles) // 2
        names = [f"{array}_{step}_{index}" for index in range(half)]
        shape = f"[BLOCK, {2 ** (step + 1)}]"
        pairs = zip(names, tiles[:half], tiles[half:], strict=True)
        lines += [f"{name} = tl.reshape(tl.join({a}, {b}), {shape})" for name, a, b in pairs]
        tiles, step = names, step + 1
    offsets, mask = _addresses("row", width)
    return [*lines, f"tl.store({array} + {offsets}, {tiles[0]}.to({array}.dtype.element_ty), mask={mask})"]


def _padded(width: int) -> int:
    return 1 << (width - 1).bit_length()
