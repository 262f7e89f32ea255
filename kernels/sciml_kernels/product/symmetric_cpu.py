"""The symmetric contraction in one C++ kernel per pass: lanes are channels, powers of x stay in registers.

The sum over couplings is written once as expressions of one node and channel, by the specs of `SymmetricSpec.steps`;
its derivatives and statements are those of `sciml_kernels.rowwise`. Threads share out the channels, so that the
gradient to the weights of a species is summed node by node, in order, whatever their number.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sciml_kernels import cache
from sciml_kernels.checks import check_index
from sciml_kernels.cpp_vector import vector_text
from sciml_kernels.product.symmetric_spec import SymmetricSpec
from sciml_kernels.rowwise.expression import Expression, total
from sciml_kernels.rowwise.function import Function, Pass, Row, backward, double_backward, forward
from sciml_kernels.rowwise.statements import Dialect, statements
from sciml_kernels.trilinear.spec import Spec

# More entries of all couplings than this make a function that takes longer to compile than it saves.
MOST_ENTRIES = 300
# Below this many numbers in x waking a second thread costs more than it brings.
PARALLEL_NUMBERS = 32768

Names = tuple[str, ...]

_FILE = """// {title}
{vectors}
extern "C" int run(int threads, int64_t nodes, int64_t count, const int64_t* species, {arguments}) {{
  for (int64_t n = 0; n < nodes; n++)
    if (species[n] < 0 || species[n] >= count) return 1;
{before}
  auto block = [&](int64_t c, auto lanes) __attribute__((always_inline)) {{
    for (int64_t n = 0; n < nodes; n++) {{
      const int64_t s = species[n];
{body}
    }}
  }};
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t v = 0; v < {channels} / LANES; v++) block(v * LANES, Lanes<LANES>());
  if constexpr ({channels} % LANES) block({channels} / LANES * LANES, Lanes<{channels} % LANES>());
  return 0;
}}
"""


def fits(spec: SymmetricSpec) -> bool:
    """Whether the contraction is small enough for one kernel."""
    return spec.entries <= MOST_ENTRIES


@functools.cache
def function(key: str) -> Function:
    """Outputs of one node and channel as expressions of x and of the weights w of its species."""
    spec = SymmetricSpec.from_key(key)

    def body(rows: Mapping[str, Row]) -> dict[str, Row]:
        x = rows["x"]
        graph = x[0].graph
        *powers, last = spec.steps
        parts = [[graph.constant(1.0)], x][: spec.correlation]
        for step in powers:
            parts.append(_contract(step, parts[-1], x, [graph.constant(1.0)] * len(step.paths)))
        return {"out": _contract(last, [value for part in parts for value in part], x, rows["w"])}

    dim = spec.irreps_x.dim // spec.channels
    return Function({"x": dim, "w": len(spec.steps[-1].paths)}, {"out": spec.irreps_out.dim // spec.channels}, body)


def _contract(spec: Spec, left: Row, right: Row, weights: Row) -> Row:
    """One step, in one channel: the weighted sum of left x right over all paths."""
    graph = left[0].graph
    starts = [
        [part.start // mul for part, (mul, _) in zip(irreps.slices(), irreps, strict=True)]
        for irreps in (spec.irreps_x, spec.irreps_y, spec.irreps_out)
    ]
    sums: list[list[Expression]] = [[] for _ in range(spec.dim_out // spec.irreps_out[0].mul)]
    for path, weight in zip(spec.paths, weights, strict=True):
        values: dict[int, list[Expression]] = {}
        for i, j, k, value in path.entries:
            term = left[starts[0][path.x] + i] * right[starts[1][path.y] + j] * value
            values.setdefault(starts[2][path.out] + k, []).append(term)
        for k, terms in values.items():
            sums[k].append(weight * total(terms, graph))
    return [total(terms, graph) for terms in sums]


@functools.cache
def _kernel(key: str, dtype: torch.dtype, along: Names, given: Names, wants: Names) -> tuple[Callable[..., int], Pass]:
    """A compiled pass: forward without `given`, double backward with `along`."""
    if along:
        work = double_backward(function(key), along, given, wants)
    else:
        work = backward(function(key), given, wants) if given else forward(function(key))
    compiled = cache.load(_source(key, dtype, work)).run
    pointers = 1 + len(work.reads) + len(work.writes)
    compiled.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64] + [ctypes.c_void_p] * pointers
    compiled.restype = ctypes.c_int
    return compiled, work


def _source(key: str, dtype: torch.dtype, work: Pass) -> str:
    channels = SymmetricSpec.from_key(key).channels
    suffix = {torch.float32: "f", torch.float64: ""}[dtype]
    dialect = Dialect(f"{{}}{suffix}", f"(vec{{{{}}}} + {{}}{suffix})", "{array}_{component}", "{} ? {} : {}", "{}({})")
    text = statements(work, torch.finfo(dtype).eps, dialect)

    def place(array: str, width: int, component: int) -> str:
        row = "s" if array in ("w", "u_w", "out_w") else "n"
        return f"{array} + ({row} * {width} + {component}) * {channels} + c"

    body = [
        f"const vec {array}_{i} = load<lanes()>({place(array, width, i)});"
        for array, width in work.reads.items()
        for i in range(width)
    ]
    body += [f"const vec {name} = {value};" for name, value in text.assignments]
    for array, columns in text.columns.items():
        for i, value in enumerate(columns):
            at = place(f"out_{array}", len(columns), i)
            sum_ = f"load<lanes()>({at}) + {value}" if array == "w" else value
            body.append(f"put<lanes()>({at}, {sum_});")
    size = len(work.writes.get("w", ())) * channels
    arguments = [f"const real* {array}" for array in work.reads] + [f"real* out_{array}" for array in work.writes]
    return _FILE.format(
        title=f"{key}: {', '.join(work.reads)} to {', '.join(work.writes)}",
        vectors=vector_text(dtype),
        arguments=", ".join(arguments),
        before=f"  std::memset(out_w, 0, count * {size} * sizeof(real));" if size else "",
        body="\n".join(f"      {line}" for line in body),
        channels=channels,
    )


def launch(
    key: str, arrays: Mapping[str, Tensor], species: Tensor, along: Names, given: Names, wants: Names
) -> dict[str, Tensor]:
    """What a pass writes.

    Args:
        key: of the spec.
        arrays: x (nodes, dim), w (species, paths * channels), and by these names g_out, u_x, u_w.
        species: of every node.
        along, given, wants: see `sciml_kernels.rowwise.function`.

    Raises:
        ValueError: a species that has no row of weights.
    """
    x, w = arrays["x"], arrays["w"]
    run, work = _kernel(key, x.dtype, along, given, wants)
    species = species.contiguous()
    inputs = [arrays[name].contiguous() for name in work.reads]
    nodes, channels = x.shape[0], SymmetricSpec.from_key(key).channels
    rows = {"x": nodes, "w": w.shape[0], "out": nodes}
    outputs = {name: x.new_empty(rows[name], len(row) * channels) for name, row in work.writes.items()}
    threads = torch.get_num_threads() if x.numel() >= PARALLEL_NUMBERS else 1
    pointers = [tensor.data_ptr() for tensor in (species, *inputs, *outputs.values())]
    if run(threads, nodes, w.shape[0], *pointers):
        check_index("species", species, w.shape[0])
    return outputs
