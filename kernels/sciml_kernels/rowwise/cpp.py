"""The C++ emitter: one source file with one function `run` per pass and dtype.

Rows are taken in blocks of as many as a vector has lanes. A block is transposed into one vector per column,
the expressions are evaluated on whole vectors, and the results are transposed back; both transpositions are perfect
shuffles within registers. The last, partial block goes through padded copies. Every row is written once, by one thread.
"""

from __future__ import annotations

import torch

from sciml_kernels import cache
from sciml_kernels.cpp_vector import vector_text
from sciml_kernels.rowwise.function import Pass
from sciml_kernels.rowwise.statements import Dialect, statements

_SUFFIX = {torch.float32: "f", torch.float64: ""}  # of a number

AHEAD = 2  # blocks from the prefetch to the use of their memory; saves a fifth of the time where memory is the limit
CACHE = 2**21  # bytes; smaller arrays are likely to be in a cache

_COLUMNS = """
INLINE vec splat(real x) {{ return x - vec{{}}; }}
INLINE vec sqrt(vec x) {{
#pragma omp simd
  for (int lane = 0; lane < LANES; lane++) x[lane] = __builtin_sqrt{suffix}(x[lane]);
  return x;
}}
INLINE vec exp(vec x) {{ return exponential(x); }}
// x = 2^n m with m within sqrt(1/2) to sqrt(2): n ln 2 + 2 artanh((m - 1) / (m + 1)).
INLINE vec log(vec x) {{
  const ivec tiny = x < {least}, root = (ivec)splat((real)0.70710678118654752);
  const vec whole = tiny ? x * {lift} : x;
  const ivec n = ((ivec)whole - root) >> {mantissa};
  const vec m = (vec)((ivec)whole - (n << {mantissa})), s = (m - 1) / (m + 1), z = s * s;
  vec sum = splat({first_logarithm});
{logarithm}
  const vec power = __builtin_convertvector(tiny ? n - {lifted} : n, vec);
  const vec result = power * {ln2_high} + (s * sum + power * ({ln2_low}));
  const vec special = x == 0 ? splat(-__builtin_inf()) : x < 0 ? splat(__builtin_nan("")) : x;  // Inf and NaN as is
  return x > 0 && x < splat(__builtin_inf()) ? result : special;
}}
INLINE vec floor(vec x) {{
#pragma omp simd
  for (int lane = 0; lane < LANES; lane++) x[lane] = __builtin_floor{suffix}(x[lane]);
  return x;
}}

// N columns of LANES rows: in v[0..N) one column per vector, in memory N neighbours of each row, rows `stride` apart.
// Seen as one array, a perfect shuffle moves the highest bit of an index to the bottom; after log2 N of them the bits
// of the column have come from the top to the bottom.
template <int N, int BIT = 1> INLINE void interleave(vec* v) {{
  if constexpr (BIT < N) {{
    vec w[N];
#pragma GCC unroll 16
    for (int i = 0; i < N / 2; i++) {{
      w[2 * i] = __builtin_shufflevector(v[i], v[i + N / 2], {low});
      w[2 * i + 1] = __builtin_shufflevector(v[i], v[i + N / 2], {high});
    }}
#pragma GCC unroll 16
    for (int i = 0; i < N; i++) v[i] = w[i];
    interleave<N, 2 * BIT>(v);
  }}
}}
template <int N, int BIT = 1> INLINE void separate(vec* v) {{
  if constexpr (BIT < N) {{
    vec w[N];
#pragma GCC unroll 16
    for (int i = 0; i < N / 2; i++) {{
      w[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], {even});
      w[i + N / 2] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], {odd});
    }}
#pragma GCC unroll 16
    for (int i = 0; i < N; i++) v[i] = w[i];
    separate<N, 2 * BIT>(v);
  }}
}}
template <int N> INLINE void put_columns(real* p, int stride, vec* v) {{
  interleave<N>(v);
#pragma GCC unroll 16
  for (int row = 0; row < LANES; row++) std::memcpy(p + row * stride, (const real*)v + row * N, N * sizeof(real));
}}
template <int N> INLINE void get_columns(const real* p, int stride, vec* v) {{
#pragma GCC unroll 16
  for (int row = 0; row < LANES; row++) std::memcpy((real*)v + row * N, p + row * stride, N * sizeof(real));
  separate<N>(v);
}}
template <int N> INLINE void prefetch(const real* p) {{  // N vectors to be read
  for (int i = 0; i < N; i++) __builtin_prefetch(p + i * LANES, 0);
}}
template <int N> INLINE void prefetch(real* p) {{  // N vectors to be written: the processor fetches these as well
  for (int i = 0; i < N; i++) __builtin_prefetch(p + i * LANES, 1);
}}
template <int N> INLINE void gather_columns(const real* p, const int64_t* index, int stride, vec* v) {{
#pragma GCC unroll 16
  for (int row = 0; row < LANES; row++) std::memcpy((real*)v + row * N, p + index[row] * stride, N * sizeof(real));
  separate<N>(v);
}}
"""

_BLOCK = """
// LANES rows, which lie one after another.
static void block({arguments}) {{
{body}
}}

extern "C" void run(int threads, int64_t rows, {arguments}) {{
  const int64_t whole = rows / LANES, rest = rows % LANES;
  const bool large = rows * {width} * (int64_t)sizeof(real) > {cache};
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t b = 0; b < whole; b++) {{
    if (large) {{
{prefetch}
    }}
    block({blocks});
  }}
  if (!rest) return;
{padded}
}}
"""

_SUM_ROWS = """
// out[n] = sum of the rows whose index is n. A thread owns a range of n, so the order of a sum is that of the rows.
extern "C" void run(int threads, int64_t rows, int64_t count, int64_t width, const int64_t* index, const real* values,
                    real* out) {
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int64_t t = 0; t < threads; t++) {
    const int64_t first = count * t / threads, last = count * (t + 1) / threads;
    std::memset(out + first * width, 0, (last - first) * width * sizeof(real));
    for (int64_t row = 0; row < rows; row++) {
      const int64_t n = index[row];
      if (n < first || n >= last) continue;
#pragma omp simd
      for (int64_t c = 0; c < width; c++) out[n * width + c] += values[row * width + c];
    }
  }
}
"""


def sum_rows_source(dtype: torch.dtype) -> str:
    """The C++ file of a sum over rows by an index."""
    return vector_text(dtype) + _SUM_ROWS


def source(name: str, work: Pass, dtype: torch.dtype) -> str:
    """The C++ file; `run(threads, rows, index arrays..., arrays read..., arrays written...)`."""
    suffix, lanes = _SUFFIX[dtype], cache.vector_bytes() // dtype.itemsize
    head = f"// {name}\n{vector_text(dtype)}{_COLUMNS.format(suffix=suffix, **_shuffles(lanes), **_logarithm(dtype))}"
    writes = {f"out_{array}": len(row) for array, row in work.writes.items()}
    text = statements(work, torch.finfo(dtype).eps, _dialect(suffix))
    arguments = [
        *(f"const int64_t* {index}" for index in work.indices),
        *(f"const real* {array}" for array in work.reads),
        *(f"real* {array}" for array in writes),
    ]
    lines = [
        *(line for array in work.reads for line in _read(work, array, lanes)),
        *(f"const auto {name} = {value};" for name, value in text.assignments),
        *(f"vec out_{array}_[] = {{{', '.join(columns)}}};" for array, columns in text.columns.items()),
        *(line for array, width in writes.items() for line in _write(array, width, lanes)),
    ]
    by_row = dict.fromkeys(work.indices, 1) | {a: n for a, n in work.reads.items() if a not in work.gathered} | writes
    names = [*work.indices, *work.reads, *writes]
    return head + _BLOCK.format(
        arguments=", ".join(arguments),
        body=_indent(lines),
        blocks=", ".join(f"{name} + b * LANES * {by_row[name]}" if name in by_row else name for name in names),
        prefetch="\n".join(
            f"      prefetch<{width}>({array} + (b + {AHEAD}) * LANES * {width});"
            for array, width in by_row.items()
            if array not in work.indices
        ),
        width=sum(by_row[name] for name in by_row if name not in work.indices),
        cache=CACHE,
        padded=_indent(_padded(work, by_row, names)),
    )


def _dialect(suffix: str) -> Dialect:
    return Dialect(f"{{}}{suffix}", f"splat({{}}{suffix})", "{array}_[{component}]", "{} ? {} : {}", "{}({})")


def _logarithm(dtype: torch.dtype) -> dict[str, object]:
    """The numbers in `log`: for float32 and float64, the series 2 z^k / (2 k + 1) as far as it counts."""
    single = dtype == torch.float32
    coefficients = [2.0 / (2 * k + 1) for k in range(6 if single else 12)]
    first, *others = (f"(real){value!r}" for value in reversed(coefficients))
    return {
        "least": "(real)1.1754943508222875e-38" if single else "2.2250738585072014e-308",
        "lift": "(real)16777216" if single else "18014398509481984.0",
        "lifted": 24 if single else 54,
        "mantissa": 23 if single else 52,
        "first_logarithm": first,
        "logarithm": "\n".join(f"  sum = sum * z + {value};" for value in others),
        "ln2_high": "(real)0.693359375" if single else "0.6931471803691238",
        "ln2_low": "(real)-0.00021219444005469057" if single else "1.9082149292705877e-10",
    }


def _shuffles(lanes: int) -> dict[str, str]:
    half = range(lanes // 2)
    pairs = {"low": [(i, lanes + i) for i in half], "high": [(lanes // 2 + i, lanes + lanes // 2 + i) for i in half]}
    index = {name: [i for pair in value for i in pair] for name, value in pairs.items()}
    index |= {"even": list(range(0, 2 * lanes, 2)), "odd": list(range(1, 2 * lanes, 2))}
    return {name: ", ".join(map(str, value)) for name, value in index.items()}


def _pieces(width: int, lanes: int) -> list[tuple[int, int]]:
    """(first column, number of columns), powers of two, the largest first."""
    pieces, start = [], 0
    while start < width:
        size = lanes
        while size > width - start:
            size //= 2
        pieces.append((start, size))
        start += size
    return pieces


def _read(work: Pass, array: str, lanes: int) -> list[str]:
    width, index = work.reads[array], work.gathered.get(array)
    call, rows = ("gather_columns", f", {index}") if index else ("get_columns", "")
    pieces = _pieces(width, lanes)
    calls = [f"{call}<{n}>({array} + {start}{rows}, {width}, {array}_ + {start});" for start, n in pieces]
    return [f"vec {array}_[{width}];", *calls]


def _write(array: str, width: int, lanes: int) -> list[str]:
    pieces = _pieces(width, lanes)
    return [f"put_columns<{n}>({array} + {start}, {width}, {array}_ + {start});" for start, n in pieces]


def _padded(work: Pass, by_row: dict[str, int], names: list[str]) -> list[str]:
    """The last rows by way of arrays that are as long as a whole block; a padded index points at row 0."""
    before, after = [], []
    for array, width in by_row.items():
        kind = "int64_t" if array in work.indices else "real"
        rows, size = f"{array} + whole * LANES * {width}", f"rest * {width} * sizeof({kind})"
        before.append(f"{kind} {array}_[LANES * {width}] = {{}};")
        if array.startswith("out_"):
            after.append(f"std::memcpy({rows}, {array}_, {size});")
        else:
            before.append(f"std::memcpy({array}_, {rows}, {size});")
    call = ", ".join(f"{name}_" if name in by_row else name for name in names)
    return [*before, f"block({call});", *after]


def _indent(lines: list[str]) -> str:
    return "\n".join("  " + line for line in lines)
