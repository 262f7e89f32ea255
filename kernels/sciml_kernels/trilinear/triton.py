"""The Triton emitter: one source file with one kernel for the paths of one part of a pass.

From the inside out: a function per distinct coupling; a loop over rows (edges, or rows of a product), each of which
loads what the paths need, calls the functions and stores; and around it what a node holds in registers.

A program serves one block of channels of one piece of a node's edges (see `Edges`), or some rows of a product. The node
is the receiver or the sender ("walk"); its own rows are read once, its gradient is summed in registers and stored in
the row of the piece. Everything else is read and stored at every edge. Nothing is shared between programs: no atomics,
no barriers where a program is one warp, and results that repeat bit for bit.

With several stages the rows of the next edges are on their way while one is computed: Triton copies vectors ahead into
shared memory. It would do so with the single numbers of y too, which takes it minutes to compile. They are hidden from
it in a branch, and one number of each sector of memory is read an edge ahead: the others then come from the cache.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Iterator

import torch

from sciml_kernels.trilinear.emit import Step, Term, emit
from sciml_kernels.trilinear.parts import Part, Walk, arrays_read
from sciml_kernels.trilinear.spec import Path, Spec, offsets, weight_offsets

REAL = {torch.float32: "tl.float32", torch.bfloat16: "tl.float32", torch.float64: "tl.float64"}
NAME = "trilinear"

_HEAD = """# {title}
import triton
import triton.language as tl
"""

_KERNEL = """

@triton.jit(do_not_specialize=["count"])
def {name}({arguments}, count: tl.int64):
    c = tl.program_id(1) * {block} + tl.arange(0, {block})
"""

_PIECE = """    piece = tl.program_id(0).to(tl.int64)
    node, first, last = tl.load(pieces + 5 * piece), tl.load(pieces + 5 * piece + 1), tl.load(pieces + 5 * piece + 2)
"""

_LOOP = {
    "rows": """    for row in range(tl.program_id(0).to(tl.int64), count, tl.num_programs(0)):
""",
    "receiver": """    for row in tl.range(first, last, num_stages={stages}):
        other = tl.load(senders + row)
""",
    "sender": """    for at in tl.range(first, last, num_stages={stages}):
        row = tl.load(order + at)
        other = tl.load(receivers + row)
""",
}

TABLES = {"rows": (), "receiver": ("pieces", "senders"), "sender": ("pieces", "order", "receivers")}
AT = {"receiver": "row", "sender": "at"}  # the variable of the loop
FIRST = {"receiver": "first", "sender": "tl.load(order + first, mask=first < last, other=0)"}  # row that it begins with
AFTER = {"receiver": "row + 1", "sender": "tl.load(order + at + 1)"}  # row that follows
SECTOR = 32  # bytes that a GPU reads at a time
HELD = {"rows": "", "receiver": "g", "sender": "x"}
OTHER = {"rows": "", "receiver": "x", "sender": "g"}


@dataclasses.dataclass(frozen=True)
class Text:
    """The source of one kernel.

    Attributes:
        source: the file; the kernel in it is `NAME`.
        reads, writes, tables: names of its arguments, in this order; the last one is `count`, the number of rows.
        blocks: programs along the channels.
    """

    source: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    tables: tuple[str, ...]
    blocks: int


def source(
    spec: Spec,
    part: Part,
    dtype: torch.dtype,
    walk: Walk,
    terms: tuple[Term, ...],
    wants: str,
    earlier: Iterable[Part] = (),
    slab: int = 0,
    stages: int = 1,
) -> Text:
    """The kernel of one part.

    Args:
        spec, terms, wants: see `sciml_kernels.trilinear.emit`.
        part: its paths.
        dtype: of the tensors; bfloat16 is computed in float32.
        walk: what a program walks along.
        earlier: the parts that ran before; what they stored, this one adds to.
        slab: the first of the slabs of this part's gradient to a y without channels, one for each block of channels.
        stages: edges whose rows are on their way to a program at a time.
    """
    return _Kernel(spec, part, dtype.itemsize, REAL[dtype], walk, terms, wants, tuple(earlier), slab, stages).text()


@dataclasses.dataclass(frozen=True)
class _Kernel:
    spec: Spec
    part: Part
    itemsize: int
    real: str
    walk: Walk
    terms: tuple[Term, ...]
    wants: str
    earlier: tuple[Part, ...]
    slab: int
    stages: int

    def text(self) -> Text:
        reads, writes, tables = arrays_read(self.terms, self.wants), self.writes, TABLES[self.walk]
        arguments = ", ".join((*reads, *writes, *tables))
        pieces = (
            _HEAD.format(title=f"{self.spec.key}; paths {self.part.paths}; wants {self.wants}"),
            *dict.fromkeys(coupling(path, emit(path, self.terms, self.wants)) for path in self.paths),
            _KERNEL.format(name=NAME, arguments=arguments, block=self.part.block),
            f"    mask = c < {self.mul}\n" if self.masked else "",
            _PIECE if HELD[self.walk] else "",
            *indented(4, self._held(reads)),
            _LOOP[self.walk].format(stages=self.stages),
            *indented(8, self._row(reads)),
            *indented(4, self._end()),
        )
        return Text("".join(pieces), reads, writes, tables, -(-self.mul // self.part.block))

    @property
    def paths(self) -> list[Path]:
        return [self.spec.paths[index] for index in self.part.paths]

    @property
    def mul(self) -> int:
        return self.spec.irreps_x[self.paths[0].x].mul

    @property
    def masked(self) -> bool:
        return self.mul % self.part.block != 0

    @property
    def writes(self) -> tuple[str, ...]:
        return tuple(f"out_{want}" for want in self.wants)

    def _held(self, reads: tuple[str, ...]) -> Iterator[str]:
        """Before the loop: rows of the node, and sums to which every edge adds."""
        kind = HELD[self.walk]
        for name in reads:
            if name[-1] == kind:
                yield from self._load_row(name, "node")
        if kind and kind in self.wants:
            yield self._pointer(f"out_{kind}", "piece")
            yield from self._begin_sums(f"out_{kind}")
        if self._ahead:
            yield f"after = {FIRST[self.walk]}"
            yield from self._load_ahead(", mask=first < last, other=0")

    def _row(self, reads: tuple[str, ...]) -> Iterator[str]:
        """In the loop: load what belongs to this row, call the coupling of every path, store."""
        held, other = HELD[self.walk], OTHER[self.walk]
        for name in reads:
            if name[-1] != held and name not in self._ahead:
                yield from self._load_row(name, "other" if name[-1] == other else "row")
        yield from self._read_ahead()
        stored = [name for name in self.writes if name[-1] != held]
        for name in stored:
            yield self._pointer(name, "row")
            if name != "out_w":
                yield from self._begin_sums(name)
        for index, path in zip(self.part.paths, self.paths, strict=True):
            yield call(index, path, emit(path, self.terms, self.wants))
        for name in stored:
            yield from self._store(name)

    @property
    def _ahead(self) -> list[str]:
        """The y without channels, where rows of several edges are on their way."""
        if self.stages == 1 or self.walk == "rows":
            return []
        return [name for name in arrays_read(self.terms, self.wants) if self._shared(name)]

    def _sectors(self, name: str) -> dict[tuple[int, int], int]:
        """Of the numbers of y the first of each sector."""
        found: dict[int, tuple[tuple[int, int], int]] = {}
        for slot, offset in self._values(name).items():
            found.setdefault(offset * self.itemsize // SECTOR, (slot, offset))
        return dict(found.values())

    def _load_ahead(self, mask: str = "") -> Iterator[str]:
        """Of the row `after` the first number of each sector."""
        for name in self._ahead:
            yield f"{name}_after = {name} + after * {self.spec.dim_y}"
            for (slot, component), offset in self._sectors(name).items():
                loaded = f"tl.load({name}_after + {offset}{mask}).to({self.real})"
                yield f"next_{value_name(name, slot, component)} = {loaded}"

    def _read_ahead(self) -> Iterator[str]:
        """This row's numbers of y: some were read before, the others are in the cache; then some of the next row."""
        if not self._ahead:
            return
        branch = []
        for name in self._ahead:
            sectors = self._sectors(name)
            branch.append(self._pointer(name, "row"))
            for (slot, component), offset in self._values(name).items():
                value = value_name(name, slot, component)
                if (slot, component) in sectors:
                    yield f"{value} = next_{value}"
                else:
                    yield f"{value} = tl.zeros([], {self.real})"
                    branch.append(f"{value} = {self._load(name, offset)}")
        yield "if other >= 0:"  # always so, which the compiler does not know
        yield from (f"    {line}" for line in branch)
        yield f"if {AT[self.walk]} + 1 < last:"
        yield f"    after = {AFTER[self.walk]}"
        yield from (f"    {line}" for line in self._load_ahead())

    def _end(self) -> Iterator[str]:
        kind = HELD[self.walk]
        if kind and kind in self.wants:
            yield from self._store(f"out_{kind}")

    def _values(self, name: str, parts: Iterable[Part] | None = None) -> dict[tuple[int, int], int]:
        """The (slot, component) of this kind that the paths touch, and where each lies in a row."""
        paths = [index for part in (parts or (self.part,)) for index in part.paths]
        if name[-1] == "w":
            starts = weight_offsets(self.spec)
            return {(index, 0): starts[index] for index in paths}
        irreps = {"x": self.spec.irreps_x, "y": self.spec.irreps_y, "g": self.spec.irreps_out}[name[-1]]
        chosen = [self.spec.paths[index] for index in paths]
        slots = sorted({{"x": path.x, "y": path.y, "g": path.out}[name[-1]] for path in chosen})
        if name == "out_y" and not self.spec.y_channels:
            slots = list(range(len(irreps)))  # a slab is stored whole
        starts = offsets(irreps)
        return {
            (slot, component): starts[slot] + component * irreps[slot].mul
            for slot in slots
            for component in range(irreps[slot].ir.dim)
        }

    def _shared(self, name: str) -> bool:
        """Whether this is a y without channels, one number for all of them."""
        return name[-1] == "y" and not self.spec.y_channels

    def _pointer(self, name: str, row: str) -> str:
        dims = {"x": self.spec.dim_x, "y": self.spec.dim_y, "w": self.spec.dim_w, "g": self.spec.dim_out}
        if name == "out_y" and self._shared(name):
            row = f"(({self.slab} + tl.program_id(1)) * count + {row})"
        return f"{name}_row = {name} + {row} * {dims[name[-1]]}" + ("" if self._shared(name) else " + c")

    def _load_row(self, name: str, row: str) -> Iterator[str]:
        yield self._pointer(name, row)
        for (slot, component), offset in self._values(name).items():
            yield f"{value_name(name, slot, component)} = {self._load(name, offset)}"

    def _load(self, name: str, offset: int) -> str:
        mask = ", mask=mask, other=0" if self.masked and not self._shared(name) else ""
        return f"tl.load({name}_row + {offset}{mask}).to({self.real})"

    def _begin_sums(self, name: str) -> Iterator[str]:
        """Zeros, or what an earlier part has stored."""
        before = self._values(name, self.earlier) if self.earlier and not self._shared(name) else {}
        for (slot, component), offset in self._values(name).items():
            zero = f"tl.zeros([{self.part.block}], {self.real})"
            yield f"{value_name(name, slot, component)} = " + (
                self._load(name, offset) if (slot, component) in before else zero
            )

    def _store(self, name: str) -> Iterator[str]:
        for (slot, component), offset in self._values(name).items():
            value = value_name(name, slot, component)
            if self._shared(name):
                yield f"tl.store({name}_row + {offset}, tl.sum({value}))"
            else:
                yield f"tl.store({name}_row + {offset}, {value}" + (", mask=mask)" if self.masked else ")")


def call(index: int, path: Path, steps: list[Step]) -> str:
    """The statement that calls the coupling of path number `index` with values named by `value_name`."""
    results, arguments = signature(steps)
    slots = {"x": path.x, "y": path.y, "g": path.out, "w": index, "v": index}

    def global_name(name: tuple[str, int]) -> str:
        array, component = name
        return value_name(array, slots[array[-1]], component)

    called = f"{coupling_name(path)}({', '.join(map(global_name, arguments))})"
    return f"{', '.join(map(global_name, results))} = {called}"


def value_name(array: str, slot: int, component: int) -> str:
    """The name of a value in the loop over rows: slots are those of its side, or the paths of weights."""
    return f"{array}_{slot}" if array[-1] in "wv" else f"{array}_{slot}_{component}"


def coupling_name(path: Path) -> str:
    """Of the function of its degrees."""
    l_x, l_y, l_out = path.degrees
    return f"couple_{l_x}_{l_y}_{l_out}"


def signature(steps: list[Step]) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The (array, component) that a coupling returns, and those that it takes: what it loads and what it adds to."""
    results = [(step.name, step.component) for step in steps if step.kind in ("add", "put")]
    loads = [(step.expression, step.component) for step in steps if step.kind == "load"]
    arguments = loads + [(step.name, step.component) for step in steps if step.kind == "add"]
    return list(dict.fromkeys(results)), list(dict.fromkeys(arguments))


def coupling(path: Path, steps: list[Step]) -> str:
    """A function of the values of one path."""
    results, arguments = signature(steps)
    names = ", ".join(f"{array}{component}" for array, component in arguments)
    lines = [f"\n\n@triton.jit\ndef {coupling_name(path)}({names}):\n"]
    declared: set[str] = set()
    for step in steps:
        if step.kind in ("sum", "couple") and step.name in declared:
            lines.append(f"    {step.name} = {_chain(step.name, step.expression)}\n")
        elif step.kind == "add":
            name = f"{step.name}{step.component}"
            lines.append(f"    {name} = {_chain(name, step.expression)}\n")
        elif step.kind == "put":
            lines.append(f"    {step.name}{step.component} = {step.expression}\n")
        elif step.kind != "load":
            lines.append(f"    {step.name} = {_chain('', step.expression)}\n")
        declared.add(step.name)
    lines.append(f"    return {', '.join(f'{array}{component}' for array, component in results)}\n")
    return "".join(lines)


def _chain(sum_: str, expression: str) -> str:
    """A sum of products added to another sum, as fused multiply-adds: the fewer operations, the faster Triton compiles.

    Products with a number stay as they are: as an argument of `tl.fma` it would be rounded to single precision.
    """
    for product in expression.split(" + "):
        left, _, right = product.partition("*")
        if sum_ and left.isidentifier() and right:
            sum_ = f"tl.fma({left}, {right}, {sum_})"
        else:
            sum_ = f"{sum_} + {product}" if sum_ else product
    return sum_


def indented(indent: int, lines: Iterable[str]) -> Iterator[str]:
    """Each line with so many blanks before it."""
    for line in lines:
        yield textwrap.indent(line, " " * indent) + "\n"
