"""The C++ emitter: one source file with one function `run` per spec, dtype, terms and wanted gradients.

From the inside out: a function per distinct coupling, which walks the channels in vectors; a function `row`
that calls it for every path of one row (an edge, or a node of a product); and one of two loops over rows.

Nothing depends on the timing of threads. The gradient to x is summed in one slab of receivers per thread, so that its
rounding depends on their number.
"""

from __future__ import annotations

import torch

from sciml_kernels.cpp_vector import vector_text
from sciml_kernels.trilinear.emit import Step, Term, emit
from sciml_kernels.trilinear.parts import arrays_read
from sciml_kernels.trilinear.spec import Path, Spec, offsets, weight_offsets

SUFFIX = {torch.float32: "f", torch.float64: ""}  # of a number

_HEAD = """// {title}
{vectors}
template <int N> INLINE vec load(const real* p, Lanes<N>) {{ return load<N>(p); }}
template <int N> INLINE void put(real* p, vec v, Lanes<N>) {{ put<N>(p, v); }}
"""

_COUPLING = """
// {title}
static __attribute__((noinline)) void {name}({arguments}) {{
{before}
  auto step = [&](int c, auto lanes) __attribute__((always_inline)) {{
{body}
  }};
  for (int c = 0; c + LANES <= {mul}; c += LANES) step(c, Lanes<LANES>());
  if constexpr ({mul} % LANES) step({mul} / LANES * LANES, Lanes<{mul} % LANES>());
{after}
}}
"""

_ROW = """
INLINE void row({arguments}) {{
{before}
{calls}
{after}
}}
"""

# What a convolution's loop over slabs of receivers is made of; that with the radial layer inside has it too.
SLAB_BEGIN = """
// The first receiver of slab t: slabs hold about the same number of edges.
static int64_t slab_begin(const int64_t* pointers, int64_t nodes, int64_t slabs, int64_t t) {
  if (t == 0 || t == slabs) return t ? nodes : 0;
  int64_t low = 0, high = nodes;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (pointers[middle] < pointers[nodes] * t / slabs) low = middle + 1;
    else high = middle;
  }
  return low;
}
"""

_CONV = """
extern "C" void run({arguments}) {{
  const int64_t most_slabs = {slabs}, slabs = most_slabs < nodes ? most_slabs : nodes ? nodes : 1;
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

# Slab 0 sums straight into the result, the others into rows of their own, over the range of senders that they meet.
SLAB_BEFORE = """  real* scratch = new real[(slabs - 1) * rows_x * {dim_x}];
  int64_t* range = new int64_t[2 * slabs];"""

SLAB = """    real* sum_x = t ? scratch + (t - 1) * rows_x * {dim_x} : out_x;
    int64_t least = t ? rows_x : 0, most = t ? 0 : rows_x;
    for (int64_t e = pointers[first]; e < pointers[last]; e++) {{
      if (senders[e] < least) least = senders[e];
      if (senders[e] >= most) most = senders[e] + 1;
    }}
    for (int64_t s = least; s < most; s++) std::memset(sum_x + s * {dim_x}, 0, {dim_x} * sizeof(real));
    range[2 * t] = least, range[2 * t + 1] = most;"""

SLAB_AFTER = """#pragma omp parallel for num_threads(threads) schedule(static) if (slabs > 1)
  for (int64_t n = 0; n < rows_x; n++)
    for (int64_t t = 1; t < slabs; t++) {{
      if (n < range[2 * t] || n >= range[2 * t + 1]) continue;
      const real* part = scratch + ((t - 1) * rows_x + n) * {dim_x};
#pragma omp simd
      for (int64_t c = 0; c < {dim_x}; c++) out_x[n * {dim_x} + c] += part[c];
    }}
  delete[] scratch;
  delete[] range;"""

_PRODUCT = """
extern "C" void run({arguments}) {{
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t n = 0; n < nodes; n++) {{
{node}
    row({row});
  }}
}}
"""


def source(spec: Spec, dtype: torch.dtype, gather: bool, terms: tuple[Term, ...], wants: str) -> str:
    """The C++ file; `run(threads, nodes[, rows_x, senders, pointers], arrays read..., arrays written...)`."""
    reads, writes = list(arrays_read(terms, wants)), [f"out_{want}" for want in wants]
    sizes = "int threads, int64_t nodes" + (
        ", int64_t rows_x, const int64_t* senders, const int64_t* pointers" * gather
    )
    suffix = SUFFIX[dtype]
    couplings = {
        coupling_name(spec, path): coupling_function(
            spec, path, emit(path, terms, wants, suffix), reads, writes, fetch=spec.dim_w
        )
        for path in spec.paths
    }
    loop = _conv_loop if gather else _product_loop
    return "".join(
        (
            head(f"{spec.key}; wants {wants}", dtype),
            *couplings.values(),
            _row_function(spec, reads, writes),
            SLAB_BEGIN * gather,
            loop(spec, f"{sizes}, {_arguments(reads, writes)}", reads, writes),
        )
    )


def head(title: str, dtype: torch.dtype) -> str:
    """The vectors that the text of a coupling is written in."""
    return _HEAD.format(title=title, vectors=vector_text(dtype))


def _arguments(reads: list[str], writes: list[str], vector: str = "") -> str:
    """Declarations; `vector` names the one output that is summed in vectors."""
    outputs = [f"{'vec' if name == vector else 'real'}* {name}" for name in writes]
    return ", ".join([*(f"const real* {name}" for name in reads), *outputs])


def _vector_output(spec: Spec) -> str:
    """A y without channels gets its gradient as vectors, whose lanes are summed once per row."""
    return "" if spec.y_channels else "out_y"


def coupling_name(spec: Spec, path: Path) -> str:
    """The function of a path; paths of equal degrees and channels share it."""
    l_x, l_y, l_out = path.degrees
    return f"couple_{l_x}_{l_y}_{l_out}_{spec.irreps_x[path.x].mul}"


def coupling_function(
    spec: Spec, path: Path, steps: list[Step], reads: list[str], writes: list[str], fetch: int = 0
) -> str:
    """All channels of one path in one row; pointers are those of the path's own blocks.

    Where weights and gradients to them are in memory, those of the next row, `fetch` numbers ahead, are asked for while
    this one is computed. Processors follow such rows by themselves only to the end of a page, which a row often passes.
    Weights are asked into the second-level cache: in the first they would displace the sums of the node.
    """
    mul = spec.irreps_x[path.x].mul
    before, body, after = [], [], []
    declared: set[str] = set()
    for step in steps:
        if not spec.y_channels and _of_shared_y(step):
            if step.kind == "load":
                before.append(f"const real {step.name} = {step.expression}[{step.component}];")
            elif step.kind == "matrix":
                before.append(f"const real {step.name} = {step.expression};")
            elif step.kind == "couple":
                before.append(f"vec {step.name} = {{}};")
                body += _added(step)
            else:
                after.append(f"out_y[{step.component}] += {step.expression};")
        else:
            body += _statements(step, mul, declared)
            declared.add(step.name)
            if fetch and step.name == "out_w":
                body.append(f"__builtin_prefetch(out_w + {fetch} + c, 1);")
            if fetch and step.kind == "load" and step.expression in ("w", "vw"):
                body.append(f"__builtin_prefetch({step.expression} + {fetch} + c, 0, 2);")
    return _COUPLING.format(
        title=" x ".join(map(str, path.degrees[:2])) + f" -> {path.degrees[2]}, {mul} channels",
        name=coupling_name(spec, path),
        arguments=_arguments(reads, writes, _vector_output(spec)),
        mul=mul,
        before=indent(before, 2),
        body=indent(body, 4),
        after=indent(after, 2),
    )


def _of_shared_y(step: Step) -> bool:
    """Steps that stand outside the channel loop where y has no channels."""
    if step.kind == "load":
        return step.expression in ("y", "vy")
    return step.kind in ("matrix", "couple") or step.name == "out_y"


def _statements(step: Step, mul: int, declared: set[str]) -> list[str]:
    """One step within the channel loop."""
    place = f"{step.name} + {step.component * mul} + c"
    if step.kind == "load":
        return [f"const vec {step.name} = load({step.expression} + {step.component * mul} + c, lanes);"]
    if step.kind == "add":
        return [f"put({place}, load({place}, lanes) + {step.expression}, lanes);"]
    if step.kind == "put":
        return [f"put({place}, {step.expression}, lanes);"]
    if step.kind == "sum":
        return _added(step) if step.name in declared else [f"vec {step.name} = {step.expression};"]
    return [f"const vec {step.name} = {step.expression};"]


def _added(step: Step) -> list[str]:
    """A sum of products added to another sum, one after the other: each is one operation of the processor."""
    return [f"{step.name} += {product};" for product in step.expression.split(" + ")]


def _row_function(spec: Spec, reads: list[str], writes: list[str]) -> str:
    """All paths of one row: adds to out_x and out_g, sets out_y and out_w."""
    starts_x, starts_y, starts_out = offsets(spec.irreps_x), offsets(spec.irreps_y), offsets(spec.irreps_out)
    in_vectors = "out_y" in writes and not spec.y_channels
    calls = []
    for path, start_w in zip(spec.paths, weight_offsets(spec), strict=True):
        start = {"x": starts_x[path.x], "y": starts_y[path.y], "w": start_w, "g": starts_out[path.out]}
        names = [*reads, *("sum_y" if name == "out_y" and in_vectors else name for name in writes)]
        calls.append(f"{coupling_name(spec, path)}({', '.join(f'{name} + {start[name[-1]]}' for name in names)});")
    before, after = [], []
    if in_vectors:
        before = [f"vec sum_y[{spec.dim_y}] = {{}};"]
        after = [f"for (int j = 0; j < {spec.dim_y}; j++) out_y[j] = sum_lanes(sum_y[j]);"]
    elif "out_y" in writes:
        before = [clear("out_y", "0", spec.dim_y)]
    return _ROW.format(
        arguments=_arguments(reads, writes), before=indent(before, 2), calls=indent(calls, 2), after=indent(after, 2)
    )


def _conv_loop(spec: Spec, arguments: str, reads: list[str], writes: list[str]) -> str:
    dims = _dims(spec)
    rows = {"x": "senders[e]", "g": "n"}
    bases = [*reads, *("sum_x" if name == "out_x" else name for name in writes)]
    to_x = "out_x" in writes
    return _CONV.format(
        arguments=arguments,
        slabs="threads" if to_x else "threads * 16",
        before=SLAB_BEFORE.format(dim_x=dims["x"]) if to_x else "",
        slab=SLAB.format(dim_x=dims["x"]) if to_x else "",
        node=indent([clear("out_g", "n", dims["g"])] if "out_g" in writes else [], 6),
        row=", ".join(f"{name} + {rows.get(name[-1], 'e')} * {dims[name[-1]]}" for name in bases),
        after=SLAB_AFTER.format(dim_x=dims["x"]) if to_x else "",
    )


def _product_loop(spec: Spec, arguments: str, reads: list[str], writes: list[str]) -> str:
    dims = _dims(spec)
    return _PRODUCT.format(
        arguments=arguments,
        node=indent([clear(name, "n", dims[name[-1]]) for name in writes if name in ("out_x", "out_g")], 4),
        row=", ".join(f"{name} + n * {dims[name[-1]]}" for name in reads + writes),
    )


def _dims(spec: Spec) -> dict[str, int]:
    return {"x": spec.dim_x, "y": spec.dim_y, "w": spec.dim_w, "g": spec.dim_out}


def clear(name: str, row: str, dim: int) -> str:
    """A statement that sets a row to zero."""
    return f"std::memset({name} + {row} * {dim}, 0, {dim} * sizeof(real));"


def indent(lines: list[str], spaces: int) -> str:
    """Lines of C++ as one text."""
    return "\n".join(" " * spaces + line for line in lines)
