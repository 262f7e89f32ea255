"""The C++ emitter: one source file with one function `run` per spec, dtype, terms and wanted gradients.

The function of a row (an edge, or a node of a product) is generated path by path, its channel loop vectorised. Around it
stands one of two loops, written by hand. Results do not depend on the order in which threads run; the gradient to x is
summed in one slab of receivers per thread, so its rounding depends on the number of threads but never on their timing.
"""

from __future__ import annotations

import torch

from sciml_kernels.emit import Body, Term, emit
from sciml_kernels.spec import Spec, offsets, weight_offsets

REAL = {torch.float32: ("float", "f"), torch.float64: ("double", "")}

_HEAD = """// {title}
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

typedef {real} real;
"""

_CONV = """
// The first receiver of slab t of {{slabs}}: slabs hold about the same number of edges.
static int64_t slab_begin(const int64_t* pointers, int64_t nodes, int64_t slabs, int64_t t) {{
  if (t == 0 || t == slabs) return t ? nodes : 0;
  return std::lower_bound(pointers, pointers + nodes, pointers[nodes] * t / slabs) - pointers;
}}

extern "C" void run({arguments}) {{
  const int64_t slabs = std::max<int64_t>(1, std::min({slabs}, nodes));
{before}
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (int64_t t = 0; t < slabs; t++) {{
    const int64_t first = slab_begin(pointers, nodes, slabs, t), last = slab_begin(pointers, nodes, slabs, t + 1);
{slab}
    for (int64_t n = first; n < last; n++) {{
{node}
      for (int64_t e = pointers[n]; e < pointers[n + 1]; e++)
        row({row});
    }}
  }}
{after}
}}
"""

_SLAB_BEFORE = """  // Slab 0 sums straight into the result; the others into rows of their own, over the range of senders they meet.
  std::unique_ptr<real[]> scratch(new real[(slabs - 1) * rows_x * {dim_x}]);
  std::vector<int64_t> least(slabs), most(slabs);"""

_SLAB = """    real* sum_x = t ? scratch.get() + (t - 1) * rows_x * {dim_x} : out_x;
    const int64_t *begin = senders + pointers[first], *end = senders + pointers[last];
    least[t] = t == 0 ? 0 : begin == end ? rows_x : *std::min_element(begin, end);
    most[t] = t == 0 ? rows_x : begin == end ? 0 : *std::max_element(begin, end) + 1;
    if (least[t] < most[t]) std::memset(sum_x + least[t] * {dim_x}, 0, (most[t] - least[t]) * {dim_x} * sizeof(real));"""

_SLAB_AFTER = """  if (slabs == 1) return;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t n = 0; n < rows_x; n++)
    for (int64_t t = 1; t < slabs; t++) {{
      if (n < least[t] || n >= most[t]) continue;
      const real* part = scratch.get() + ((t - 1) * rows_x + n) * {dim_x};
#pragma omp simd
      for (int64_t c = 0; c < {dim_x}; c++) out_x[n * {dim_x} + c] += part[c];
    }}"""

_PRODUCT = """
extern "C" void run({arguments}) {{
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t n = 0; n < nodes; n++) {{
{node}
    row({row});
  }}
}}
"""


def array_names(terms: tuple[Term, ...], wants: str) -> tuple[list[str], list[str]]:
    """The arrays read (in the order of run's arguments) and those written."""
    tangents = sorted({name for term in terms for name in (term.x, term.y, term.w) if name.startswith("v")})
    return ["x", "y", "w", *([] if wants == "g" and not tangents else ["g"]), *tangents], [
        f"out_{want}" for want in wants
    ]


def source(spec: Spec, dtype: torch.dtype, gather: bool, terms: tuple[Term, ...], wants: str) -> str:
    """The C++ file; `run(threads, nodes[, rows_x, senders, pointers], arrays read..., arrays written...)`."""
    real, _ = REAL[dtype]
    reads, writes = array_names(terms, wants)
    arrays = [f"const real* {name}" for name in reads] + [f"real* {name}" for name in writes]
    sizes = ["int threads", "int64_t nodes"]
    if gather:
        sizes += ["int64_t rows_x", "const int64_t* senders", "const int64_t* pointers"]
    loop = _conv_loop if gather else _product_loop
    return (
        _HEAD.format(title=f"{spec.key}; wants {wants}", real=real)
        + _row_function(spec, dtype, terms, wants, reads, writes)
        + loop(spec, ", ".join(sizes + arrays), reads, writes)
    )


def _dims(spec: Spec) -> dict[str, int]:
    return {"x": spec.dim_x, "y": spec.dim_y, "w": spec.dim_w, "g": spec.dim_out}


def _clear(name: str, row: str, dim: int, indent: int) -> str:
    return " " * indent + f"std::memset({name} + {row} * {dim}, 0, {dim} * sizeof(real));"


def _conv_loop(spec: Spec, arguments: str, reads: list[str], writes: list[str]) -> str:
    dims = _dims(spec)
    rows = {"x": "senders[e]", "g": "n"}
    calls = []
    for name in reads + writes:
        side = name[-1]
        base = "sum_x" if name == "out_x" else name
        calls.append(f"{base} + {rows.get(side, 'e')} * {dims[side]}")
    to_x = "out_x" in writes
    return _CONV.format(
        arguments=arguments,
        slabs="(int64_t)threads" if to_x else "(int64_t)threads * 16",
        before=_SLAB_BEFORE.format(dim_x=dims["x"]) if to_x else "",
        slab=_SLAB.format(dim_x=dims["x"]) if to_x else "",
        node=_clear("out_g", "n", dims["g"], 6) if "out_g" in writes else "",
        row=", ".join(calls),
        after=_SLAB_AFTER.format(dim_x=dims["x"]) if to_x else "",
    )


def _product_loop(spec: Spec, arguments: str, reads: list[str], writes: list[str]) -> str:
    dims = _dims(spec)
    return _PRODUCT.format(
        arguments=arguments,
        node="\n".join(_clear(name, "n", dims[name[-1]], 4) for name in writes if name in ("out_x", "out_g")),
        row=", ".join(f"{name} + n * {dims[name[-1]]}" for name in reads + writes),
    )


def _row_function(
    spec: Spec, dtype: torch.dtype, terms: tuple[Term, ...], wants: str, reads: list[str], writes: list[str]
) -> str:
    """All paths of one row: adds to out_x and out_g, sets out_y and out_w."""
    real, suffix = REAL[dtype]
    arrays = [f"const real* __restrict__ {name}" for name in reads] + [f"real* __restrict__ {name}" for name in writes]
    lines = [f"static inline void row({', '.join(arrays)}) {{"]
    if "y" in wants:
        lines.append(f"  std::memset(out_y, 0, {spec.dim_y} * sizeof(real));")
    for number, path in enumerate(spec.paths):
        lines += _path_block(spec, number, emit(path, terms, wants, suffix))
    return "\n".join([*lines, "}"])


def _path_block(spec: Spec, number: int, body: Body) -> list[str]:
    path = spec.paths[number]
    mul = spec.irreps_x[path.x].mul
    start = {
        "x": offsets(spec.irreps_x)[path.x],
        "y": offsets(spec.irreps_y)[path.y],
        "w": weight_offsets(spec)[number],
        "g": offsets(spec.irreps_out)[path.out],
    }

    def at(array: str, component: int) -> str:
        side = array[-1]
        if side == "y" and not spec.y_channels:
            return f"{array}[{start[side] + component}]"
        return f"{array}[{start[side] + component * mul} + c]"

    loads = [(array, f"const real {name} = {at(array, i)};") for (array, i), name in body.loads.items()]
    loads_y = [line for array, line in loads if array[-1] == "y"]
    matrices = [f"const real {name} = {expression};" for name, expression in body.matrices.items()]
    gradient_y = [f"{at('out_y', j)} += {expression};" for j, expression in body.gradient_y.items()]
    channel = [line for array, line in loads if array[-1] != "y"]
    channel += [f"const real {name} = {expression};" for name, expression in body.channel.items()]
    for array, i, expression in body.sums:
        channel.append(f"{at('out_' + array, i)} {'=' if array == 'w' else '+='} {expression};")
    degrees = " x ".join(str(degree) for degree in path.degrees[:2]) + f" -> {path.degrees[2]}"
    block = [f"{{  // path {number}: {degrees}"]
    if spec.y_channels:
        couplings = [f"const real {name} = {expression};" for name, expression in body.couplings.items()]
        block += _loop("", mul, loads_y + matrices + channel + couplings + gradient_y)
    else:
        couplings = [f"{name} += {expression};" for name, expression in body.couplings.items()]
        block += ["  " + line for line in loads_y + matrices]
        block += [f"  real {name} = 0;" for name in body.couplings]
        reduction = f" reduction(+ : {', '.join(body.couplings)})" if couplings else ""
        block += _loop(reduction, mul, channel + couplings)
        block += ["  " + line for line in gradient_y]
    return ["  " + line for line in [*block, "}"]]


def _loop(reduction: str, mul: int, lines: list[str]) -> list[str]:
    return [
        f"#pragma omp simd{reduction}",
        f"  for (int c = 0; c < {mul}; c++) {{",
        *("    " + line for line in lines),
        "  }",
    ]
