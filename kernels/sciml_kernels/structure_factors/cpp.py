"""C++ source of the three sums over pairs of atoms and waves (`passes.py`).

A block of LANES rows meets tiles of TILE others: cosines and sines of a tile stay in the first cache, and the sums over
it are small matrix products with accumulators in registers. A block is computed by one thread, in the order of the
others, so results do not depend on the number of threads.
"""

from __future__ import annotations

import math

import torch

from sciml_kernels.cpp_vector import vector_text

_SUMS = """
#include <algorithm>
#include <vector>

constexpr int CHANNELS = {channels}, TILE = 32;
constexpr real TWO_PI = {two_pi};

INLINE vec splat(real x) {{ return x - vec{{}}; }}
INLINE vec round_down(vec x) {{
#pragma omp simd
  for (int lane = 0; lane < LANES; lane++) x[lane] = __builtin_floor{suffix}(x[lane]);
  return x;
}}

// cos and sin of t turns. Half turns are taken off without rounding, since pi stands outside; then power series.
INLINE void turn(vec t, vec& cosine, vec& sine) {{
  const vec half = round_down(t * 2 + (real)0.5);
  const vec z = (t - half * (real)0.5) * TWO_PI, square = z * z;
  const vec sign = 1 - 2 * (half - 2 * round_down(half * (real)0.5));
  vec even = splat({last_cosine}), odd = splat({last_sine});
{series}
  cosine = sign * even;
  sine = sign * z * odd;
}}

struct Points {{  // atoms or waves
  const int64_t* pointers;
  const real *values, *changes;  // (rows, 3); no changes: null
}};

struct Block {{  // rows [row, row + live) meet the others [first, last)
  int64_t row, live, first, last;
}};

static std::vector<Block> blocks(int64_t graphs, Points rows, Points others) {{
  std::vector<Block> found;
  for (int64_t s = 0; s < graphs; s++)
    for (int64_t row = rows.pointers[s]; row < rows.pointers[s + 1]; row += LANES)
      found.push_back({{row, std::min<int64_t>(LANES, rows.pointers[s + 1] - row), others.pointers[s],
                       others.pointers[s + 1]}});
  return found;
}}

// COUNT columns of a block, one vector each; rows that are not there repeat the last one.
template <int COUNT> INLINE void gather(const real* matrix, int64_t stride, Block block, vec* columns) {{
  for (int lane = 0; lane < LANES; lane++) {{
    const real* row = matrix + (block.row + std::min<int64_t>(lane, block.live - 1)) * stride;
    for (int i = 0; i < COUNT; i++) columns[i][lane] = row[i];
  }}
}}
template <int COUNT> INLINE void scatter(const vec* columns, int64_t stride, Block block, real* matrix) {{
  for (int lane = 0; lane < block.live; lane++)
    for (int i = 0; i < COUNT; i++) matrix[(block.row + lane) * stride + i] = columns[i][lane];
}}

struct Rows {{  // the points of a block
  vec value[3], change[3];
  Rows(Points points, Block block) {{
    gather<3>(points.values, 3, block, value);
    std::memset(change, 0, sizeof change);
    if (points.changes) gather<3>(points.changes, 3, block, change);
  }}
}};
INLINE vec dot(const vec* row, const real* other) {{
  return row[0] * other[0] + row[1] * other[1] + row[2] * other[2];
}}

// A tile: c and s of every pair, and d (-s, c) where anything changes.
struct Tile {{
  int count;
  vec c[TILE], s[TILE], turned_c[TILE], turned_s[TILE], delta[TILE];

  Tile(const Rows& rows, Points others, int64_t begin, int64_t last, bool moved) {{
    count = std::min<int64_t>(TILE, last - begin);
    const real* value = others.values + 3 * begin;
    for (int o = 0; o < count; o++) turn(dot(rows.value, value + 3 * o), c[o], s[o]);
    if (!moved) return;
    for (int o = 0; o < count; o++) {{
      delta[o] = dot(rows.change, value + 3 * o);
      if (others.changes) delta[o] += dot(rows.value, others.changes + 3 * (begin + o));
      delta[o] *= TWO_PI;
      turned_c[o] = -delta[o] * s[o];
      turned_s[o] = delta[o] * c[o];
    }}
  }}
}};

// Channels by groups whose sums fill registers: f(first channel, how many as a constant).
template <int N> struct Count {{ constexpr int operator()() const {{ return N; }} }};
template <int GROUP, int FIRST = 0, class F> INLINE void each_group(F f) {{
  if constexpr (FIRST + GROUP <= CHANNELS) {{
    f(FIRST, Count<GROUP>());
    each_group<GROUP, FIRST + GROUP>(f);
  }} else if constexpr (FIRST < CHANNELS)
    f(FIRST, Count<CHANNELS - FIRST>());
}}

// sum[0][i] += weights c, sum[1][i] += weights s over a tile; weights are one row of channels for each other.
INLINE void add_waves(vec (*sum)[CHANNELS], const vec* c, const vec* s, const real* weights, int count) {{
  each_group<8>([&](int first, auto size) __attribute__((always_inline)) {{
    vec even[size()] = {{}}, odd[size()] = {{}};
    for (int o = 0; o < count; o++)
#pragma GCC unroll 8
      for (int i = 0; i < size(); i++) {{
        const real weight = weights[o * CHANNELS + first + i];
        even[i] += weight * c[o];
        odd[i] += weight * s[o];
      }}
    for (int i = 0; i < size(); i++) sum[0][first + i] += even[i], sum[1][first + i] += odd[i];
  }});
}}

// sum[i] += g[0] c + g[1] s over a tile; g has two rows of channels for each other.
INLINE void add_charges(vec* sum, const vec* c, const vec* s, const real* g, int count) {{
  each_group<8>([&](int first, auto size) __attribute__((always_inline)) {{
    vec part[size()] = {{}};
    for (int o = 0; o < count; o++)
#pragma GCC unroll 8
      for (int i = 0; i < size(); i++) {{
        const real* at = g + 2 * o * CHANNELS + first + i;
        part[i] += at[0] * c[o] + at[CHANNELS] * s[o];
      }}
    for (int i = 0; i < size(); i++) sum[first + i] += part[i];
  }});
}}

// Charges (parts = 1) or gradients (parts = 2, of c and of s) of the rows and of the others; null where there are none.
struct Weights {{
  const real *row, *other;
  int row_parts, other_parts;
}};

// The products over channels of a block with each other: u with the part of c, v with that of s.
struct Products {{
  vec u[TILE], v[TILE];
  void compute(const vec* row_u, const vec* row_v, Weights weights, int64_t begin, int count) {{
    int o = 0;
    for (; o + 4 <= count; o += 4) some<4>(row_u, row_v, weights, begin, o);  // sums that do not wait for each other
    for (; o < count; o++) some<1>(row_u, row_v, weights, begin, o);
  }}
  template <int N>
  inline __attribute__((always_inline)) void some(const vec* row_u, const vec* row_v, Weights weights, int64_t begin,
                                                  int o) {{
    const int64_t stride = weights.other_parts * CHANNELS, sine = stride - CHANNELS;
    const real* other = weights.other + (begin + o) * stride;
    vec sum_u[N] = {{}}, sum_v[N] = {{}};
    for (int i = 0; i < CHANNELS; i++)
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) {{
        sum_u[n] += row_u[i] * other[n * stride + i];
        sum_v[n] += row_v[i] * other[n * stride + sine + i];
      }}
    for (int n = 0; n < N; n++) u[o + n] = sum_u[n], v[o + n] = sum_v[n];
  }}
}};
struct RowWeights {{
  vec u[CHANNELS], v[CHANNELS];
  RowWeights(Weights weights, Block block) {{
    if (!weights.row) return;
    const int64_t stride = weights.row_parts * CHANNELS;
    gather<CHANNELS>(weights.row, stride, block, u);
    gather<CHANNELS>(weights.row + stride - CHANNELS, stride, block, v);
  }}
}};

extern "C" void waves(int threads, int64_t graphs, const int64_t* row_pointers, const real* values, const real* changes,
                      const int64_t* other_pointers, const real* other_values, const real* other_changes,
                      const real* plain, const real* turned, real* out) {{
  const Points points{{row_pointers, values, changes}}, others{{other_pointers, other_values, other_changes}};
  const std::vector<Block> todo = blocks(graphs, points, others);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (size_t b = 0; b < todo.size(); b++) {{
    const Block block = todo[b];
    const Rows rows(points, block);
    vec sum[2][CHANNELS] = {{}};
    for (int64_t begin = block.first; begin < block.last; begin += TILE) {{
      const Tile tile(rows, others, begin, block.last, turned);
      if (plain) add_waves(sum, tile.c, tile.s, plain + begin * CHANNELS, tile.count);
      if (turned) add_waves(sum, tile.turned_c, tile.turned_s, turned + begin * CHANNELS, tile.count);
    }}
    scatter<2 * CHANNELS>(sum[0], 2 * CHANNELS, block, out);
  }}
}}

extern "C" void charges(int threads, int64_t graphs, const int64_t* row_pointers, const real* values,
                        const real* changes, const int64_t* other_pointers, const real* other_values,
                        const real* other_changes, const real* g, real* out) {{
  const Points points{{row_pointers, values, changes}}, others{{other_pointers, other_values, other_changes}};
  const bool moved = changes || other_changes;
  const std::vector<Block> todo = blocks(graphs, points, others);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (size_t b = 0; b < todo.size(); b++) {{
    const Block block = todo[b];
    const Rows rows(points, block);
    vec sum[CHANNELS] = {{}};
    for (int64_t begin = block.first; begin < block.last; begin += TILE) {{
      const Tile tile(rows, others, begin, block.last, moved);
      add_charges(sum, moved ? tile.turned_c : tile.c, moved ? tile.turned_s : tile.s, g + begin * 2 * CHANNELS,
                  tile.count);
    }}
    scatter<CHANNELS>(sum, CHANNELS, block, out);
  }}
}}

extern "C" void points(int threads, int64_t graphs, const int64_t* row_pointers, const real* values,
                       const real* changes, const int64_t* other_pointers, const real* other_values,
                       const real* other_changes, int row_parts, int other_parts, const real* plain_row,
                       const real* plain_other, const real* turned_row, const real* turned_other, real* out) {{
  const Points points{{row_pointers, values, changes}}, others{{other_pointers, other_values, other_changes}};
  const Weights plain{{plain_row, plain_other, row_parts, other_parts}};
  const Weights turned{{turned_row, turned_other, row_parts, other_parts}};
  const std::vector<Block> todo = blocks(graphs, points, others);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (size_t b = 0; b < todo.size(); b++) {{
    const Block block = todo[b];
    const Rows rows(points, block);
    const RowWeights plain_rows(plain, block), turned_rows(turned, block);
    vec sum[3] = {{}};
    for (int64_t begin = block.first; begin < block.last; begin += TILE) {{
      const Tile tile(rows, others, begin, block.last, turned.row);
      Products product;
      vec m[TILE] = {{}};
      if (plain.row) {{
        product.compute(plain_rows.u, plain_rows.v, plain, begin, tile.count);
        for (int o = 0; o < tile.count; o++) m[o] = product.v[o] * tile.c[o] - product.u[o] * tile.s[o];
      }}
      if (turned.row) {{
        product.compute(turned_rows.u, turned_rows.v, turned, begin, tile.count);
        for (int o = 0; o < tile.count; o++)
          m[o] += product.v[o] * tile.turned_c[o] - product.u[o] * tile.turned_s[o];
      }}
      for (int o = 0; o < tile.count; o++)
        for (int axis = 0; axis < 3; axis++) sum[axis] += m[o] * others.values[3 * (begin + o) + axis];
      if (turned.row && others.changes)
        for (int o = 0; o < tile.count; o++)
          for (int axis = 0; axis < 3; axis++)
            sum[axis] += (product.v[o] * tile.c[o] - product.u[o] * tile.s[o]) * others.changes[3 * (begin + o) + axis];
    }}
    for (int axis = 0; axis < 3; axis++) sum[axis] *= TWO_PI;
    scatter<3>(sum, 3, block, out);
  }}
}}
"""


def source(channels: int, dtype: torch.dtype) -> str:
    """The C++ file for so many channels in float32 or float64."""
    cosine, sine = _series(0, dtype), _series(1, dtype)
    lines = [f"  even = even * square + (real){value!r};" for value in reversed(cosine[:-1])]
    lines += [f"  odd = odd * square + (real){value!r};" for value in reversed(sine[:-1])]
    return vector_text(dtype) + _SUMS.format(
        channels=channels,
        two_pi=repr(2 * math.pi),
        suffix="f" if dtype == torch.float32 else "",
        last_cosine=f"(real){cosine[-1]!r}",
        last_sine=f"(real){sine[-1]!r}",
        series="\n".join(lines),
    )


def terms(odd: int, dtype: torch.dtype) -> int:
    """How many terms of the series of cos z (0) or sin z / z (1) count for |z| <= pi / 2."""
    count = 1
    while (math.pi / 2) ** (2 * count) / math.factorial(2 * count + odd) > 0.1 * torch.finfo(dtype).eps:
        count += 1
    return count


def _series(odd: int, dtype: torch.dtype) -> list[float]:
    return [(-1) ** k / math.factorial(2 * k + odd) for k in range(terms(odd, dtype))]
