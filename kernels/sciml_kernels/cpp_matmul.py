"""C++ text of small matrix products in registers, for kernels whose sizes are known when their source is written.

A tile is ROWS x VECTORS vectors of sums, TILE_ROWS x TILE_VECTORS at most: these, the vectors of b and one broadcast
element of a fill the registers. The text goes after `cpp_vector.vector_text`.
"""

from __future__ import annotations

MATMUL = """
constexpr int TILE_ROWS = VECTOR_BYTES == 64 ? 14 : 6, TILE_VECTORS = 2;  // for 32 registers, or 16

// sum[r][v] += sum over k < inner of  a[row(r) + k * step] * b[k * stride + lanes of v]; the last vector of b has TAIL
// lanes. Pass offsets that are known when this is compiled, so that a row costs no register.
template <int ROWS, int VECTORS, int TAIL = LANES, class Row>
INLINE void multiply(vec (&sum)[ROWS][VECTORS], const real* a, Row row, int64_t step, const real* b, int64_t stride,
                     int64_t inner) {
  for (int64_t k = 0; k < inner; k++) {
    vec right[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      const real* from = b + k * stride + v * LANES;
      right[v] = v + 1 < VECTORS ? load(from) : load<TAIL>(from);
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      const real left = a[row(r) + k * step];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) sum[r][v] += left * right[v];
    }
  }
}

constexpr int padded(int count) { return (count + LANES - 1) / LANES * LANES; }

// A (rows, columns) matrix with rows padded to whole vectors by zeros.
template <int ROWS, int COLUMNS> INLINE void pad(const real* matrix, real* out) {
  for (int64_t i = 0; i < ROWS; i++)
    each_vector<COLUMNS>([&](int j, auto lanes) __attribute__((always_inline)) {
      put(out + i * padded(COLUMNS) + j, load<lanes()>(matrix + i * COLUMNS + j));
    });
}

// Transposes a block of LANES vectors in place: halves, quarters, ... change sides.
INLINE void transpose_block(vec (&rows)[LANES]) {
#ifdef __clang__
  vec columns[LANES];
  for (int i = 0; i < LANES; i++)
    for (int j = 0; j < LANES; j++) columns[i][j] = rows[j][i];
  std::memcpy(rows, columns, sizeof columns);
#else
  ivec lane;
  for (int i = 0; i < LANES; i++) lane[i] = i;
#pragma GCC unroll 4
  for (int half = LANES / 2; half > 0; half /= 2) {
    const ivec upper = (lane & half) / half;  // 1 in the lanes that change sides
    const ivec low = lane + upper * (LANES - half), high = lane + LANES * upper + (1 - upper) * half;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
      if (i & half) continue;
      const vec first = rows[i], second = rows[i + half];
      rows[i] = __builtin_shuffle(first, second, low);
      rows[i + half] = __builtin_shuffle(first, second, high);
    }
  }
#endif
}

// The transpose (columns, rows) of a (rows, columns) matrix, its rows padded to whole vectors by zeros.
template <int ROWS, int COLUMNS> static void transpose(const real* matrix, real* out) {
  each_vector<ROWS>([&](int i, auto rows) __attribute__((always_inline)) {
    each_vector<COLUMNS>([&](int j, auto columns) __attribute__((always_inline)) {
      vec block[LANES] = {};
#pragma GCC unroll 16
      for (int r = 0; r < rows(); r++) block[r] = load<columns()>(matrix + (int64_t)(i + r) * COLUMNS + j);
      transpose_block(block);
#pragma GCC unroll 16
      for (int c = 0; c < columns(); c++) put(out + (int64_t)(j + c) * padded(ROWS) + i, block[c]);
    });
  });
}
"""

PRODUCT = """
#include <type_traits>
// c = a b, or c += a b, for a (m, k) of any strides, b (k, VECTORS * LANES), all sizes but m and k known here.
template <int ROWS, int VECTORS, bool ADD, int A_ROW, int A_STEP, int B_ROW, int C_ROW>
static __attribute__((noinline)) void tile(int64_t k, const real* a, const real* b, real* c) {
  vec sum[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) sum[r][v] = vec{};
  multiply<ROWS, VECTORS>(
      sum, a, [](int r) __attribute__((always_inline)) { return r * A_ROW; }, A_STEP, b, B_ROW, k);
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      real* out = c + r * C_ROW + v * LANES;
      put(out, ADD ? load(out) + sum[r][v] : sum[r][v]);
    }
}

// The largest tile: 24 sums, 3 vectors of b and one number of a fit 32 registers; 12, 2 and 1 fit 16.
constexpr int MOST_ROWS = VECTOR_BYTES == 64 ? 8 : 6, MOST_VECTORS = VECTOR_BYTES == 64 ? 3 : 2;
template <int VECTORS, bool ADD, int A_ROW, int A_STEP, int B_ROW, int C_ROW>
static void product(int64_t m, int64_t k, const real* a, const real* b, real* c) {
  constexpr int width = VECTORS == 4 ? 2 : VECTORS < MOST_VECTORS ? VECTORS : MOST_VECTORS;
  int64_t r = 0;
  auto rows = [&](auto count) __attribute__((always_inline)) {
    for (; r + count() <= m; r += count())
      tile<count(), width, ADD, A_ROW, A_STEP, B_ROW, C_ROW>(k, a + r * A_ROW, b, c + r * C_ROW);
  };
  rows(std::integral_constant<int, MOST_ROWS>());
  rows(std::integral_constant<int, MOST_ROWS / 2>());
  rows(std::integral_constant<int, 1>());
  if constexpr (width < VECTORS)
    product<VECTORS - width, ADD, A_ROW, A_STEP, B_ROW, C_ROW>(m, k, a, b + width * LANES, c + width * LANES);
}
"""

BUFFER = """
#include <cstdlib>
struct Buffer {  // memory of one call, at a multiple of 64 bytes
  real* at;
  explicit Buffer(int64_t size) : at((real*)std::aligned_alloc(64, (size * sizeof(real) + 63) / 64 * 64 + 64)) {}
  ~Buffer() { std::free(at); }
  Buffer(const Buffer&) = delete;
  operator real*() const { return at; }
};
"""
