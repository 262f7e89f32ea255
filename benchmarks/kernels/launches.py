"""The kernels of the operations that are no convolution of edges, one launch of each, and what a launch costs.

Sizes are those of a GPU: 5,000 nodes, 250,000 edges (or pairs), 128 channels up to degree 3, a structure of 5,000 atoms
with 1,000 waves. Where a kernel can leave out a term, it is the launch with all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from limits import count
from problems import PROBLEMS, SIZES

from sciml_kernels import Spec, triton_source
from sciml_kernels.trilinear.emit import PASSES

NODES, EDGES = SIZES["gpu"]
CHANNELS, LMAX, BASIS = 128, 3, 8
COMPONENTS = (LMAX + 1) ** 2
ATOMS, WAVES = NODES, 1000
SQUARE = ("128x0e+128x1o", "128x0e+128x1o", "0e+1o")


class Kernel(NamedTuple):
    """A jitted function, the Triton types of its arguments, the values of its constants, the warps of a program."""

    function: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int


@dataclasses.dataclass(frozen=True)
class Launch:
    """One pass, or one kernel where the passes share kernels.

    Attributes:
        operation, problem, name: which operation, on what, and which pass or kernel of it.
        dtype: of its numbers.
        kernels: from the threads of a warp to what is launched.
        moved: bytes; inputs are read once, outputs written once.
        flops: operations; a function such as exp is one.
    """

    operation: str
    problem: str
    name: str
    dtype: torch.dtype
    kernels: Callable[[int], list[Kernel]]
    moved: int
    flops: int


def product() -> Iterator[Launch]:
    """The node-wise product of features with themselves."""
    spec = Spec.summed(*SQUARE, y_channels=True, ordered=True)
    yield from _trilinear("product", "x (x) x, " + SQUARE[0], spec)


def symmetric_contraction() -> Iterator[Launch]:
    """Problem 5: every product of the chain."""
    *powers, last = PROBLEMS["5"].spec().steps
    for index, step in enumerate((*powers, last)):
        yield from _trilinear("symmetric_contraction", f"5, product {index + 1} of {len(powers) + 1}", step)


def _trilinear(operation: str, problem: str, spec: Spec) -> Iterator[Launch]:
    from sciml_kernels.trilinear import gpu
    from sciml_kernels.trilinear.parts import arrays_read
    from sciml_kernels.trilinear.tuned import default

    dims = {"x": spec.dim_x, "y": spec.dim_y, "w": spec.dim_w, "g": spec.dim_out}
    for name, (terms, wants) in PASSES.items():

        def kernels(warp: int, terms: Any = terms, wants: str = wants) -> list[Kernel]:
            made = gpu.build(spec, torch.float32, "rows", terms, wants, default(terms, wants), warp).kernels
            return [Kernel(one.function, gpu.signature(one.text, torch.float32), {}, one.warps) for one in made]

        numbers = sum(dims[array[-1]] for array in (*arrays_read(terms, wants), *wants))
        flops = NODES * count(spec, terms, wants)
        yield Launch(operation, problem, name, torch.float32, kernels, 4 * NODES * numbers, flops)


def edge_embedding() -> Iterator[Launch]:
    """Harmonics, basis and envelope in one; and problem 6, harmonics alone."""
    from sciml_kernels.edge_embedding.function import from_key

    for problem, key in ((f"degree {LMAX}, {BASIS} basis functions", f"{LMAX} {BASIS} 0 6"), ("6", f"{LMAX} 0 0 0")):
        function = from_key(key)
        yield from _rowwise("edge_embedding", problem, function, ("vectors",), torch.float32, EDGES)


def pair_features() -> Iterator[Launch]:
    """The table of the particles, and the pairs."""
    from sciml_kernels.pair_features import function

    particles, pairs = function.particles(""), function.pairs("")
    yield from _rowwise("pair_features", "particles", particles, ("momenta",), torch.float64, NODES)
    yield from _rowwise("pair_features", "pairs", pairs, ("first", "second"), torch.float64, EDGES)


def coulomb_pairs() -> Iterator[Launch]:
    """Pairs of Gaussian charges, with gradients to positions and offsets."""
    from sciml_kernels.coulomb_pairs.function import from_key

    yield from _rowwise("coulomb_pairs", "erf", from_key("1.0"), ("first", "second", "offsets"), torch.float32, EDGES)


def _rowwise(
    operation: str, problem: str, function: Any, inputs: tuple[str, ...], dtype: torch.dtype, rows: int
) -> Iterator[Launch]:
    from sciml_kernels.rowwise import gpu, triton
    from sciml_kernels.rowwise.function import backward, double_backward, forward
    from sciml_kernels.rowwise.statements import statements

    given = tuple(function.outputs)
    passes = {
        "forward": forward(function),
        "backward": backward(function, given, inputs),
        "double": double_backward(function, inputs, given, (*inputs, *given)),
    }
    for name, work in passes.items():

        def kernels(warp: int, work: Any = work) -> list[Kernel]:
            kernel = triton_source.load(triton.source(operation, work, dtype), triton.NAME)
            types = dict.fromkeys(work.indices, "*i64") | dict.fromkeys(work.reads, _pointer(dtype))
            types |= {f"out_{array}": _pointer(dtype) for array in work.writes} | {"rows": "i64"}
            return [Kernel(kernel, types, {"BLOCK": gpu.BLOCK}, gpu.warps(warp))]

        numbers = sum(work.reads.values()) + sum(len(row) for row in work.writes.values())
        moved = rows * (numbers * dtype.itemsize + 8 * len(work.indices))
        text = statements(work, torch.finfo(dtype).eps, triton._DIALECT)
        yield Launch(operation, problem, name, dtype, kernels, moved, rows * len(text.assignments))


def layers() -> Iterator[Launch]:
    """Linear map per degree (its value with bias and start, its gradient to the weights), norm, gate, SiLU."""
    from sciml_kernels.layers import gpu, triton_linear, triton_rows

    dtype = torch.float32
    x = torch.empty(1, COMPONENTS, CHANNELS, dtype=dtype)
    node = COMPONENTS * CHANNELS
    matrices, gates = (LMAX + 1) * CHANNELS**2, LMAX * CHANNELS
    sizes = {"COMPONENTS": COMPONENTS, "FROM": CHANNELS, "TO": CHANNELS, "REAL": gpu._real(dtype)[0]}
    sizes |= {"PRECISION": gpu.precision(dtype)}
    flags = {"TURNED": False, "FIRST": True, "SECOND": False, "BIAS": True, "START": True}
    back = {"TURNED": True, "FIRST": True, "SECOND": False, "BIAS": False, "START": False}
    second = {"TURNED": False, "FIRST": True, "SECOND": True, "BIAS": True, "START": False}
    tiles, outer_tiles = gpu.blocks(CHANNELS, CHANNELS, dtype), gpu.outer_blocks(CHANNELS, CHANNELS)
    row, gate_sizes, flat = gpu.row_sizes(x, 1e-5), gpu.gate_launch(x)[1], gpu.flat_launch(x)[1]
    both = {"WANT_G": True, "WANT_X": True, "ADD": True}
    multiply = 2 * NODES * node * CHANNELS
    # name, kernel, constants, int64 arguments, numbers moved, operations for each number of a node, and of products
    table: list[tuple[str, Any, dict[str, Any], tuple[str, ...], int, int, int]] = [
        ("linear", triton_linear.product, sizes | flags | tiles, ("nodes", "start_components"),
         3 * NODES * node + matrices + CHANNELS, 1, multiply),
        ("linear, to x", triton_linear.product, sizes | back | tiles, ("nodes", "start_components"),
         2 * NODES * node + matrices, 0, multiply),
        ("linear, second order to g", triton_linear.product, sizes | second | tiles, ("nodes", "start_components"),
         3 * NODES * node + 2 * matrices + CHANNELS, 0, 2 * multiply),
        ("linear, to the weights", triton_linear.outer, sizes | {"SIZE": matrices} | outer_tiles, ("nodes", "tiles"),
         2 * NODES * node + gpu.MOST_SLABS * matrices, 0, multiply),
        ("norm", triton_rows.norm, row, (), 2 * NODES * node, 4, 0),
        ("norm, backward", triton_rows.norm_gradient, row, (), 3 * NODES * node, 9, 0),
        ("norm, double", triton_rows.norm_second, row | both, (), 6 * NODES * node, 22, 0),
        ("gate", triton_rows.gate, gate_sizes, (), NODES * (2 * node + gates), 1, 0),
        ("gate, backward", triton_rows.gate_gradient, gate_sizes, (), NODES * (3 * node + 2 * gates), 4, 0),
        ("gate, double", triton_rows.gate_second, gate_sizes, (), NODES * (5 * node + 3 * gates), 12, 0),
        ("silu", triton_rows.silu, flat, ("count",), 2 * NODES * node, 5, 0),
        ("silu, backward", triton_rows.silu_gradient, flat, ("count",), 3 * NODES * node, 9, 0),
        ("silu, double", triton_rows.silu_second, flat, ("count",), 5 * NODES * node, 18, 0),
    ]  # fmt: skip
    problem = f"{CHANNELS} channels, degrees 0 to {LMAX}"
    for name, kernel, constants, integers, numbers, each, products in table:
        made = _plain(kernel, constants, integers, dtype)
        yield Launch("layers", problem, name, dtype, made, 4 * numbers, NODES * node * each + products)


def segments() -> Iterator[Launch]:
    """Sums of the rows of each graph; what the projections do beside them is left to torch."""
    import triton.language as tl

    from sciml_kernels.segments import gpu, triton_sums

    for width in (3, CHANNELS):
        rows, columns = gpu.tile(width)
        made = _plain(
            triton_sums.segment_sum, {"REAL": tl.float32, "TILE": rows, "BLOCK": columns}, ("width",), torch.float32
        )
        moved, problem = 4 * NODES * width, f"{width} columns"
        yield Launch("segments", problem, "segment_sum", torch.float32, made, moved, NODES * width)


def structure_factors() -> Iterator[Launch]:
    """The three sums over pairs, plain as in the first order, and with all that a second order can need."""
    from sciml_kernels.structure_factors import gpu, triton_pairs

    sizes = gpu.constants(1, torch.float32)
    still, moved = {"MOVED": False, "OTHER_MOVED": False}, {"MOVED": True, "OTHER_MOVED": True}
    parts = {"ROW_PARTS": 1, "OTHER_PARTS": 2}
    phase = 11 + 6 * sizes["TERMS"]  # operations of a pair: k.r, its turns, cosine and sine
    block = 4 * gpu.CHANNELS  # and a product of matrices for both parts, of so many channels at least
    table = [
        ("waves", triton_pairs.waves, {"PLAIN": True, "TURNED": False, **still}, phase + block),
        ("waves, moved", triton_pairs.waves, {"PLAIN": True, "TURNED": True, **moved}, phase + 14 + 2 * block),
        ("charges", triton_pairs.charges, still, phase + block),
        ("charges, moved", triton_pairs.charges, moved, phase + 14 + block),
        ("points", triton_pairs.points, {"PLAIN": True, "TURNED": False, **still, **parts}, phase + 9 + block),
        ("points, moved", triton_pairs.points, {"PLAIN": True, "TURNED": True, **moved, **parts},
         phase + 35 + 2 * block),
    ]  # fmt: skip
    for name, kernel, flags, each in table:
        changes = 3 * (ATOMS + WAVES) * (1 + flags["MOVED"])
        numbers = changes + ATOMS + 2 * WAVES + 3 * ATOMS * name.startswith("points")
        made = _plain(kernel, flags | sizes, (), torch.float32)
        problem = f"{ATOMS} atoms, {WAVES} waves, one channel"
        yield Launch("structure_factors", problem, name, torch.float32, made, 4 * numbers, ATOMS * WAVES * each)


def _plain(
    kernel: Any, constants: dict[str, Any], integers: tuple[str, ...], dtype: torch.dtype
) -> Callable[[int], list[Kernel]]:
    """A kernel that is no generated source, launched with four warps."""

    def made(warp: int) -> list[Kernel]:
        names = [
            name for name, parameter in zip(kernel.arg_names, kernel.params, strict=True) if not parameter.is_constexpr
        ]
        tables = ("pointers", "table")
        types = {name: "i64" if name in integers else "*i64" if name in tables else _pointer(dtype) for name in names}
        return [Kernel(kernel, types, constants, 4)]

    return made


def _pointer(dtype: torch.dtype) -> str:
    return {torch.float32: "*fp32", torch.float64: "*fp64"}[dtype]


OPERATIONS: dict[str, Callable[[], Iterator[Launch]]] = {
    "product": product,
    "symmetric_contraction": symmetric_contraction,
    "edge_embedding": edge_embedding,
    "layers": layers,
    "segments": segments,
    "pair_features": pair_features,
    "coulomb_pairs": coulomb_pairs,
    "structure_factors": structure_factors,
}
