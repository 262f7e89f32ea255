"""The C++ emitter: one source file with one function `run` per spec, hidden size, dtype and pass.

Edges are taken in blocks, paths in panels. Per block and panel: w = h W by a small matrix product into a buffer that
stays in the second-level cache; the couplings of all paths, row by row; the products of the gradients of w with W^T and
h^T, from the same buffers. No weight of an edge reaches memory.

W is copied once per call, panel by panel, with rows an odd number of cache lines apart (rows a power of two apart share
few sets of a cache), and transposed where gradients to h are wanted. Gradients to x and to W are summed in one slab of
receivers per thread, the slabs are added in order: results repeat bit for bit at a given number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from sciml_kernels import cache
from sciml_kernels.convolution_radial.passes import Pass
from sciml_kernels.cpp_matmul import BUFFER, MATMUL, PRODUCT
from sciml_kernels.trilinear import cpp
from sciml_kernels.trilinear.cpp import indent
from sciml_kernels.trilinear.emit import emit
from sciml_kernels.trilinear.spec import Spec, offsets, weight_offsets

BLOCK = 64  # edges
LINE = 64  # bytes of a line of the cache
PANEL, NARROW_PANEL = 128, 384  # most weights of an edge in a panel of several paths; of paths of up to 32 channels

_CONSTANTS = """
constexpr int64_t BLOCK = {block}, DIM_X = {dim_x}, DIM_Y = {dim_y}, DIM_W = {dim_w}, DIM_G = {dim_g};
constexpr int64_t HIDDEN = {hidden}, HIDDEN_ROW = {hidden_row}, WEIGHT_ROW = {weight_row}, PANELS = {panels};
constexpr int64_t BEGIN[PANELS + 1] = {{{begins}}};  // the first column of each panel
constexpr int64_t PANEL_SIZE = HIDDEN * WEIGHT_ROW;
"""

_PACKING = """
// Panel p of a (HIDDEN, DIM_W) matrix, rows padded by zeros; and its transpose.
static void pack(const real* matrix, int64_t p, real* panel) {
  const int64_t columns = BEGIN[p + 1] - BEGIN[p];
  for (int64_t m = 0; m < HIDDEN; m++) {
    std::memcpy(panel + m * WEIGHT_ROW, matrix + m * DIM_W + BEGIN[p], columns * sizeof(real));
    std::memset(panel + m * WEIGHT_ROW + columns, 0, (WEIGHT_ROW - columns) * sizeof(real));
  }
}
static void turn(const real* matrix, int64_t p, real* turned) {
  for (int64_t d = BEGIN[p]; d < BEGIN[p + 1]; d++) {
    for (int64_t m = 0; m < HIDDEN; m++) turned[d * HIDDEN_ROW + m] = matrix[m * DIM_W + d];
    std::memset(turned + d * HIDDEN_ROW + HIDDEN, 0, (HIDDEN_ROW - HIDDEN) * sizeof(real));
  }
}

struct Rows {  // of a block
  int64_t count;
  const int64_t* senders;
  int64_t receivers[BLOCK];
};
"""

_RUN = """
extern "C" void run(int threads, int64_t nodes, int64_t rows_x, const int64_t* senders, const int64_t* pointers,
                    {arguments}) {{
  const int64_t most_slabs = {slabs}, slabs = most_slabs < nodes ? most_slabs : nodes ? nodes : 1;
{packed}
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t p = 0; p < PANELS; p++) {{
{pack}
  }}
{before}
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (int64_t t = 0; t < slabs; t++) {{
    const int64_t first = slab_begin(pointers, nodes, slabs, t), last = slab_begin(pointers, nodes, slabs, t + 1);
{slab}
    Rows rows;
    int64_t n = first;
    for (int64_t e = pointers[first]; e < pointers[last]; e += BLOCK) {{
      rows.count = pointers[last] - e < BLOCK ? pointers[last] - e : BLOCK;
      rows.senders = senders + e;
      for (int64_t r = 0; r < rows.count; r++) {{
        while (pointers[n + 1] <= e + r) n++;
        rows.receivers[r] = n;
      }}
{block}
    }}
  }}
{after}
}}
"""

_SUM_MATRIX = """#pragma omp parallel for num_threads(threads) schedule(static) if (slabs > 1)
  for (int64_t p = 0; p < PANELS; p++)
    for (int64_t m = 0; m < HIDDEN; m++)
      for (int64_t d = BEGIN[p]; d < BEGIN[p + 1]; d++) {
        const real* part = sums_W + p * PANEL_SIZE + m * WEIGHT_ROW + d - BEGIN[p];
        real sum = 0;
        for (int64_t t = 0; t < slabs; t++) sum += part[t * PANELS * PANEL_SIZE];
        out_W[m * DIM_W + d] = sum;
      }"""


class Panel(NamedTuple):
    """Consecutive paths, whose weights stand in the columns `begin` to `end`."""

    paths: tuple[int, ...]
    begin: int
    end: int


def panels(spec: Spec) -> list[Panel]:
    """All paths in panels: of several paths up to a limit, or of one."""
    found: list[Panel] = []
    for index, (path, start) in enumerate(zip(spec.paths, weight_offsets(spec), strict=True)):
        mul = spec.irreps_x[path.x].mul
        end = start + mul
        if found and end - found[-1].begin <= (NARROW_PANEL if mul <= 32 else PANEL):
            last = found.pop()
            found.append(Panel((*last.paths, index), last.begin, end))
        else:
            found.append(Panel((index,), start, end))
    return found


def source(spec: Spec, hidden: int, dtype: torch.dtype, plan: Pass) -> str:
    """The C++ file; `run(threads, nodes, rows_x, senders, pointers, arrays read..., arrays written...)`."""
    return "".join(
        (
            cpp.head(f"{spec.key}; {hidden} hidden; tangents {plan.tangents or 'none'}, wants {plan.wants}", dtype),
            MATMUL,
            _constants(spec, hidden, dtype),
            PRODUCT,
            BUFFER,
            _PACKING,
            *_couplings(spec, dtype, plan).values(),
            cpp.SLAB_BEGIN,
            _run(spec, hidden, dtype, plan),
        )
    )


def _constants(spec: Spec, hidden: int, dtype: torch.dtype) -> str:
    parts = panels(spec)
    return _CONSTANTS.format(
        block=BLOCK, dim_x=spec.dim_x, dim_y=spec.dim_y, dim_w=spec.dim_w, dim_g=spec.dim_out,
        hidden=hidden, hidden_row=_padded(hidden, dtype),
        weight_row=max(_padded(part.end - part.begin, dtype) for part in parts),
        panels=len(parts), begins=", ".join(str(part.begin) for part in parts) + f", {spec.dim_w}",
    )  # fmt: skip


def _vectors(columns: int, dtype: torch.dtype) -> int:
    return -(-columns * dtype.itemsize // cache.vector_bytes())


def _padded(columns: int, dtype: torch.dtype) -> int:
    """Row length: whole cache lines, an odd number of them."""
    return (-(-columns * dtype.itemsize // LINE) | 1) * LINE // dtype.itemsize


def _arrays(plan: Pass) -> dict[str, str]:
    """The arrays of a coupling function, in order, and where each row of a block begins."""
    places = {"x": "rows.senders[r] * DIM_X", "y": "r * DIM_Y", "g": "rows.receivers[r] * DIM_G", "w": "r * WEIGHT_ROW"}
    places["v"] = places["w"]
    weights = list(plan.products_of_weights)
    tangents = [f"v{name}" for name in "xy" if name in plan.tangents]
    gradient = ["g"] if "g" in plan.reads else []
    names = ["x", "y", *weights, *gradient, *tangents, *(f"out_{want}" for want in plan.trilinear_wants)]
    return {name: places[name[-1]] for name in names}


def _couplings(spec: Spec, dtype: torch.dtype, plan: Pass) -> dict[str, str]:
    """A function per distinct coupling: all channels of one path in one row."""
    names = list(_arrays(plan))
    reads = [name for name in names if not name.startswith("out")]
    writes = [name for name in names if name.startswith("out")]
    return {
        cpp.coupling_name(spec, path): cpp.coupling_function(
            spec, path, emit(path, plan.terms, plan.trilinear_wants, cpp.SUFFIX[dtype]), reads, writes
        )
        for path in spec.paths
    }


def _run(spec: Spec, hidden: int, dtype: torch.dtype, plan: Pass) -> str:
    to_x, to_matrix = "x" in plan.wants, "W" in plan.wants
    packed = sorted({matrix for products in plan.products_of_weights.values() for _, matrix in products})
    turned = [matrix for _, matrix in plan.products_of_h]
    buffers = [f"Buffer packed_{name}(PANELS * PANEL_SIZE);" for name in packed]
    buffers += [f"Buffer turned_{name}(DIM_W * HIDDEN_ROW);" for name in turned]
    buffers += ["Buffer sums_W(slabs * PANELS * PANEL_SIZE);"] * to_matrix
    pack = [f"pack({name}, p, packed_{name} + p * PANEL_SIZE);" for name in packed]
    pack += [f"turn({name}, p, turned_{name});" for name in turned]
    after = [cpp.SLAB_AFTER.format(dim_x=spec.dim_x)] * to_x + [_SUM_MATRIX] * to_matrix
    return _RUN.format(
        arguments=", ".join([f"const real* {name}" for name in plan.reads] + [f"real* {name}" for name in plan.writes]),
        slabs="threads" if to_x or to_matrix else "threads * 4",
        packed=indent(buffers, 2),
        pack=indent(pack, 4),
        before=cpp.SLAB_BEFORE.format(dim_x=spec.dim_x) if to_x else "",
        slab=(cpp.SLAB.format(dim_x=spec.dim_x) + "\n") * to_x + indent(_slab(spec, plan), 4),
        block=indent(_block(spec, dtype, plan), 6),
        after="\n".join(after),
    )


def _slab(spec: Spec, plan: Pass) -> list[str]:
    """What a slab begins with: cleared sums, and the buffers of a block."""
    names = [*plan.products_of_weights, *(f"out_{name}" for name in plan.trilinear_wants if name in "wv")]
    lines = [f"Buffer {name}(BLOCK * WEIGHT_ROW);" for name in names]
    if "g" in plan.wants:
        lines.append("std::memset(out_g + first * DIM_G, 0, (last - first) * DIM_G * sizeof(real));")
    if "y" in plan.wants:
        lines += ["Buffer lanes_y(BLOCK * DIM_Y * LANES);", "vec* sums_y = (vec*)lanes_y.at;"]
    if "h" in plan.wants:
        lines.append("Buffer sums_h(BLOCK * HIDDEN_ROW);")
    if "W" in plan.wants:
        lines.append("real* sum_W = sums_W + t * PANELS * PANEL_SIZE;")
        lines.append("std::memset(sum_W, 0, PANELS * PANEL_SIZE * sizeof(real));")
    return lines


def _block(spec: Spec, dtype: torch.dtype, plan: Pass) -> list[str]:
    """All panels of one block of edges, then what is summed over panels."""
    lines = []
    if "y" in plan.wants:
        lines.append("std::memset(sums_y, 0, rows.count * DIM_Y * sizeof(vec));")
    for index, panel in enumerate(panels(spec)):
        lines += _panel(spec, dtype, plan, index, panel)
    if "y" in plan.wants:
        lines.append("for (int64_t j = 0; j < rows.count * DIM_Y; j++) out_y[e * DIM_Y + j] = sum_lanes(sums_y[j]);")
    if "h" in plan.wants:
        lines.append("for (int64_t r = 0; r < rows.count; r++)")
        lines.append("  std::memcpy(out_h + (e + r) * HIDDEN, sums_h + r * HIDDEN_ROW, HIDDEN * sizeof(real));")
    return lines


def _panel(spec: Spec, dtype: torch.dtype, plan: Pass, index: int, panel: Panel) -> list[str]:
    columns = panel.end - panel.begin
    wide, high = _vectors(columns, dtype), "(HIDDEN + LANES - 1) / LANES"
    lines = [f"// columns {panel.begin} to {panel.end}"]
    for name, products in plan.products_of_weights.items():
        for order, (rows, matrix) in enumerate(products):
            lines.append(
                f"product<{wide}, {_flag(order)}, HIDDEN, 1, WEIGHT_ROW, WEIGHT_ROW>(rows.count, HIDDEN, "
                f"{rows} + e * HIDDEN, packed_{matrix} + {index} * PANEL_SIZE, {name});"
            )
    lines += _rows(spec, plan, panel)
    for order, (gradient, matrix) in enumerate(plan.products_of_h):
        lines.append(
            f"product<{high}, {_flag(index + order)}, WEIGHT_ROW, 1, HIDDEN_ROW, HIDDEN_ROW>(rows.count, {columns}, "
            f"out_{gradient}, turned_{matrix} + {panel.begin} * HIDDEN_ROW, sums_h);"
        )
    for gradient, rows in plan.products_of_matrix:
        lines.append(
            f"product<{wide}, true, 1, HIDDEN, WEIGHT_ROW, WEIGHT_ROW>(HIDDEN, rows.count, "
            f"{rows} + e * HIDDEN, out_{gradient}, sum_W + {index} * PANEL_SIZE);"
        )
    return lines


def _flag(order: int) -> str:
    return "true" if order else "false"


def _rows(spec: Spec, plan: Pass, panel: Panel) -> list[str]:
    """All couplings of a panel, row by row: the rows of x and g that they share stay in the first-level cache."""
    bases = {"out_x": "sum_x", "out_y": "sums_y", "y": "y + e * DIM_Y", "vy": "vy + e * DIM_Y"}
    lines = ["for (int64_t r = 0; r < rows.count; r++) {"]
    for name, place in _arrays(plan).items():
        kind = "vec*" if name == "out_y" else "real*" if name.startswith("out") else "const real*"
        lines.append(f"  {kind} row_{name} = {bases.get(name, name)} + {place};")
    starts_w = weight_offsets(spec)
    for index in panel.paths:
        path = spec.paths[index]
        start = {
            "x": offsets(spec.irreps_x)[path.x],
            "y": offsets(spec.irreps_y)[path.y],
            "g": offsets(spec.irreps_out)[path.out],
            "w": starts_w[index] - panel.begin,
        }
        start["v"] = start["w"]
        arguments = [f"row_{name} + {start[name[-1]]}" for name in _arrays(plan)]
        lines.append(f"  {cpp.coupling_name(spec, path)}({', '.join(arguments)});")
    return [*lines, "}"]
