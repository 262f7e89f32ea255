"""The Triton emitter of the fused passes: the weights of a tile of edges are made, used and followed by their products
in registers.

A program serves one block of channels of some pieces of nodes (see `Edges`), one after another, in tiles of edges that
share the node: values are (edges, channels), a column (edges, 1) for y and a row (1, channels) for the node. The
arithmetic of a path is that of `sciml_kernels.trilinear`; around its call stand

    w = h W,  vw = vh W + h vW        before, where the path reads them,
    h += out_w W^T + out_v vW^T       after, summed over the paths in a tile (edges, hidden),
    W += h^T out_w + vh^T out_v       after, summed over all edges of the program.

The first reads h and W in blocks of hidden features, in a loop: kept for all paths of a tile, the operands alone would
fill the registers. Rows beyond the end of a piece are loaded as zeros, so that they add nothing to any sum. Paths are
served in the order of their y slots: a gradient to y then occupies registers only while its slot is in use.

Two things in a kernel are there for the compiler. Around each path stands a loop of `turns`, which are 1 at every
launch but unknown before: no instruction moves across it, while otherwise the operands of the products of many paths
lie in registers at once. And nothing is said of the alignment of x, y and g: a thread would load neighbouring channels,
and barriers would stand between every value and the couplings, where a thread has one channel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import torch

from sciml_kernels.convolution_radial.passes import Pass
from sciml_kernels.convolution_radial.tiles import Shape, sums_wait
from sciml_kernels.convolution_radial.values import Values
from sciml_kernels.trilinear.parts import Part, Walk
from sciml_kernels.trilinear.spec import Path, Spec, offsets, weight_offsets
from sciml_kernels.trilinear.triton import HELD, OTHER, REAL, TABLES, Text, call, coupling, indented, value_name

NAME = "conv_radial"
NUMBERS = ("count", "pieces_count", "turns")  # the last arguments of a kernel

_HEAD = """# {title}
import triton
import triton.language as tl
"""

_PRODUCT = """

@triton.jit
def product(total, rows, matrix, live{mask}):
    for begin in range(0, {padded}, {step}):
        k = begin + tl.arange(0, {step})
        left = tl.load(rows + k[None, :], mask={left}, other=0).to({real})
        right = tl.load(matrix + k[:, None] * {dim}{right}).to({real})
        total = tl.dot(left, right, total, {how})
    return total
"""

_KERNEL = """

@triton.jit(do_not_specialize={numbers}, do_not_specialize_on_alignment={unaligned})
def {name}({arguments}):
    c = tl.program_id(1) * {block} + tl.arange(0, {block})
    k = tl.arange(0, {hidden})
"""

_PIECE = """    for piece in range(tl.program_id(0).to(tl.int64), pieces_count, tl.num_programs(0)):
        node = tl.load(pieces + 5 * piece)
        last = tl.load(pieces + 5 * piece + 2)
"""

_TILE = {
    "receiver": """        for first in range(tl.load(pieces + 5 * piece + 1), last, {tile}):
            row = first + tl.arange(0, {tile})
            live = row < last
            other = tl.load(senders + row, mask=live, other=0)
""",
    "sender": """        for first in range(tl.load(pieces + 5 * piece + 1), last, {tile}):
            at = first + tl.arange(0, {tile})
            live = at < last
            row = tl.load(order + at, mask=live, other=0)
            other = tl.load(receivers + row, mask=live, other=0)
""",
}


def source(
    spec: Spec,
    part: Part,
    dtype: torch.dtype,
    walk: Walk,
    todo: Pass,
    shape: Shape,
    earlier: Iterable[Part] = (),
    slab: int = 0,
) -> Text:
    """The kernel of one part of a pass; arguments as of `sciml_kernels.trilinear.triton.source`.

    Gradients to h are written like those to y, in one slab for each part and block of channels; those to W in one slab
    for each program along the pieces. Last in the kernel's arguments are the numbers of edges, of pieces and of turns.
    """
    return _Kernel(spec, part, REAL[dtype], walk, todo, shape, tuple(earlier), slab).text()


@dataclasses.dataclass(frozen=True)
class _Kernel(Values):
    """The statements, from the outside in."""

    def text(self) -> Text:
        tables, block, tile = TABLES[self.walk], self.part.block, self.shape.tile
        title = f"{self.spec.key}; paths {self.part.paths}; tangents {self.todo.tangents}; wants {self.todo.wants}"
        pointers = (*self.reads, *self.writes, *tables)
        head = _KERNEL.format(
            numbers=list(NUMBERS),
            unaligned=[name for name in pointers if name[-1] in "xyg"],
            name=NAME,
            arguments=", ".join((*pointers, *(f"{number}: tl.int64" for number in NUMBERS))),
            block=block,
            hidden=self.shape.padded,
        )
        pieces = (
            _HEAD.format(title=title),
            *dict.fromkeys(coupling(path, self.todo.steps(path)) for path in self.paths.values()),
            *([self._product_function()] if self.todo.products_of_weights else []),
            head,
            *indented(4, self._begin_program()),
            _PIECE,
            *indented(8, self._begin_piece()),
            _TILE[self.walk].format(tile=tile),
            *indented(12, self._tile()),
            *indented(8, self._end_piece()),
            *indented(4, self._end_program()),
        )
        return Text("".join(pieces), self.reads, self.writes, tables, -(-self.mul // block))

    def _product_function(self) -> str:
        """total + rows matrix, in blocks of hidden features: what of the operands is in registers is small."""
        filled = f"(k < {self.shape.hidden})" if self.ragged else ""
        left = self.mask("live[:, None]", f"{filled}[None, :]" if filled else "")
        right = self.mask(f"{filled}[:, None]" if filled else "", "mask[None, :]" if self.masked else "")
        return _PRODUCT.format(
            mask=", mask" if self.masked else "",
            padded=self.shape.padded,
            step=min(self.shape.step, self.shape.padded),
            left=left,
            right=f", mask={right}, other=0" if right else "",
            real=self.real,
            dim=self.spec.dim_w,
            how=self.how,
        )

    def _begin_program(self) -> Iterator[str]:
        if self.masked:
            yield f"mask = c < {self.mul}"
        if self.ragged:
            yield f"filled = k < {self.shape.hidden}"
        if "W" in self.todo.wants:
            for index in self.paths:
                yield f"out_W_{index} = {self.zeros(self.shape.padded, self.part.block)}"

    def _begin_piece(self) -> Iterator[str]:
        kind = HELD[self.walk]
        for name in self.arrays:
            if name[-1] == kind:
                yield f"{name}_row = {name} + node * {self.dim(name)} + c"
        if kind in self.todo.wants:
            rows = [self.shape.tile] if sums_wait(self.todo) else []
            for slot, component, _ in self.values_of(kind):
                yield f"{self._sum(slot, component)} = {self.zeros(*rows, self.part.block)}"

    def _sum(self, slot: int, component: int) -> str:
        """The name of a sum over the edges of the node."""
        return f"{'out' if sums_wait(self.todo) else 'sum'}_{HELD[self.walk]}_{slot}_{component}"

    def _tile(self) -> Iterator[str]:
        yield f"inside = {self.mask('live[:, None]', 'mask[None, :]' if self.masked else '')}"
        for name in self.rows:
            yield f"{name}_rows = {name} + row[:, None] * {self.shape.hidden}"
        for name in dict.fromkeys(rows for _, rows in self.todo.products_of_matrix):
            mask = self.mask("live[:, None]", "filled[None, :]" if self.ragged else "")
            yield f"{name}_tile = tl.load({name}_rows + k[None, :], mask={mask}, other=0).to({self.real})"
        yield from self._begin_other()
        if "h" in self.todo.wants:
            yield f"out_h_tile = {self.zeros(self.shape.tile, self.shape.padded)}"
        slots_y = [path.y for path in self.paths.values()]
        for position, (index, path) in enumerate(self.paths.items()):
            if path.y not in slots_y[:position]:
                yield from self._begin_y(path.y)
            yield "for turn in range(turns):"
            yield from (f"    {line}" for line in (*self._held_rows(path), *self._path(index, path)))
            if path.y not in slots_y[position + 1 :]:
                yield from self._end_y(path.y)
        yield from self._end_tile(set(slots_y))

    def _path(self, index: int, path: Path) -> Iterator[str]:
        """The weights of a path, its coupling, and the products that follow.

        The sums over an axis of length 1 change nothing. They keep the compiler from computing a whole coupling in the
        layout of an operand or of a result of a product, of which a thread holds more, instead of moving one value.
        """
        start, mask = weight_offsets(self.spec)[index], ", mask" if self.masked else ""
        for name, products in self.todo.products_of_weights.items():
            total = self.zeros(self.shape.tile, self.part.block)
            for rows, matrix in products:
                total = f"product({total}, {rows}_rows, {matrix} + {start} + c[None, :], live{mask})"
            yield f"{name}_{index} = tl.sum({total}[:, None, :], 1)"
        summed = self._summed(path)
        for value, _ in summed:
            yield f"{value} = {self.zeros(self.shape.tile, self.part.block)}"
        yield call(index, path, self.todo.steps(path))
        for value, total in summed:
            yield f"{total} += tl.sum({value}, 0)"
        for gradient in dict.fromkeys(name for name, _ in (*self.todo.products_of_h, *self.todo.products_of_matrix)):
            yield f"out_{gradient}_{index} = tl.sum(out_{gradient}_{index}[:, None, :], 1)"
        for gradient, matrix in self.todo.products_of_h:
            yield f"{matrix}_{index} = {self.load_matrix(matrix, index)}"
            yield self._dot("out_h_tile", f"out_{gradient}_{index}", f"tl.trans({matrix}_{index})")
        for gradient, rows in self.todo.products_of_matrix:
            yield self._dot(f"out_W_{index}", f"tl.trans({rows}_tile)", f"out_{gradient}_{index}")

    def _summed(self, path: Path) -> list[tuple[str, str]]:
        """The values of a path that are summed over the edges of the tile at once, and their sums."""
        kind = HELD[self.walk]
        if kind not in self.todo.wants or sums_wait(self.todo):
            return []
        slot = {"g": path.out, "x": path.x}[kind]
        return [(f"out_{kind}_{slot}_{i}", self._sum(slot, i)) for _, i, _ in self.values_of(kind, {slot})]

    def _dot(self, total: str, left: str, right: str) -> str:
        return f"{total} = tl.dot({left}, {right}, {total}, {self.how})"

    def _begin_other(self) -> Iterator[str]:
        """The rows of the other node of each edge, and the gradient to them."""
        kind = OTHER[self.walk]
        for name in self.arrays:
            if name[-1] == kind:
                yield f"{name}_row = {name} + other[:, None] * {self.dim(name)} + c[None, :]"
                for slot, component, offset in self.values_of(kind):
                    yield f"{name}_{slot}_{component} = {self.load(name, offset, 'inside')}"
        if kind in self.todo.wants:
            yield f"out_{kind}_row = out_{kind} + row[:, None] * {self.dim(kind)} + c[None, :]"
            before = self.before(kind)
            for slot, component, offset in self.values_of(kind):
                zeros = self.zeros(self.shape.tile, self.part.block)
                value = self.load(f"out_{kind}", offset, "inside") if slot in before else zeros
                yield f"out_{kind}_{slot}_{component} = {value}"

    def _held_rows(self, path: Path) -> Iterator[str]:
        """Values of the node that a path reads; they come from the cache, not from registers that all paths share."""
        kind = HELD[self.walk]
        slot = {"g": path.out, "x": path.x}[kind]
        mask = "mask" if self.masked else ""
        for name in self.arrays:
            if name[-1] == kind:
                for _, component, offset in self.values_of(kind, {slot}):
                    yield f"{name}_{slot}_{component} = {self.load(name, offset, mask)}[None, :]"

    def _begin_y(self, slot: int) -> Iterator[str]:
        start, dim = offsets(self.spec.irreps_y)[slot], self.spec.irreps_y[slot].ir.dim
        for component in range(dim):
            for name in self.arrays:
                if name[-1] == "y":
                    at = f"{name} + row * {self.spec.dim_y} + {start + component}"
                    value = f"tl.load({at}, mask=live, other=0).to({self.real})[:, None]"
                    yield f"{value_name(name, slot, component)} = {value}"
            if "y" in self.todo.wants:
                zeros = self.zeros(self.shape.tile, self.part.block)
                yield f"{value_name('out_y', slot, component)} = {zeros}"

    def _end_y(self, slot: int) -> Iterator[str]:
        if "y" in self.todo.wants:
            for component in range(self.spec.irreps_y[slot].ir.dim):
                yield self._store_y(slot, component, f"tl.sum({value_name('out_y', slot, component)}, 1)")

    def _store_y(self, slot: int, component: int, value: str) -> str:
        at = f"{self.slab_row} * {self.spec.dim_y} + {offsets(self.spec.irreps_y)[slot] + component}"
        return f"tl.store(out_y + {at}, {value}, mask=live)"

    def _end_tile(self, slots_y: set[int]) -> Iterator[str]:
        """Stores; slots of y that no path of this part touches are zeros in its slab."""
        kind = OTHER[self.walk]
        if kind in self.todo.wants:
            for slot, component, offset in self.values_of(kind):
                yield f"tl.store(out_{kind}_row + {offset}, out_{kind}_{slot}_{component}, mask=inside)"
        if "y" in self.todo.wants:
            for slot, (_, ir) in enumerate(self.spec.irreps_y):
                for component in range(0 if slot in slots_y else ir.dim):
                    yield self._store_y(slot, component, f"tl.zeros([{self.shape.tile}], {self.real})")
        if "h" in self.todo.wants:
            at = f"out_h + {self.slab_row}[:, None] * {self.shape.hidden} + k[None, :]"
            mask = self.mask("live[:, None]", "filled[None, :]" if self.ragged else "")
            yield f"tl.store({at}, out_h_tile, mask={mask})"

    def _end_piece(self) -> Iterator[str]:
        """The sums of the node over its edges, in the row of the piece."""
        kind = HELD[self.walk]
        if kind not in self.todo.wants:
            return
        before, mask = self.before(kind), "mask" if self.masked else ""
        yield f"out_{kind}_row = out_{kind} + piece * {self.dim(kind)} + c"
        for slot, component, offset in self.values_of(kind):
            total = self._sum(slot, component)
            total = f"tl.sum({total}, 0)" if sums_wait(self.todo) else total
            if slot in before:
                total += " + " + self.load(f"out_{kind}", offset, mask)
            yield f"tl.store(out_{kind}_row + {offset}, {total}" + (", mask=mask)" if mask else ")")

    def _end_program(self) -> Iterator[str]:
        if "W" in self.todo.wants:
            starts = weight_offsets(self.spec)
            mask = self.matrix_mask
            for index in self.paths:
                at = f"out_W + (tl.program_id(0).to(tl.int64) * {self.shape.hidden} + k[:, None]) * {self.spec.dim_w}"
                yield f"tl.store({at} + {starts[index]} + c[None, :], out_W_{index}" + (
                    f", mask={mask})" if mask else ")"
                )
