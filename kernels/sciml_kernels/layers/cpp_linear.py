"""C++ source of the linear map of channels per degree, with the norm of its input inside or without.

From the inside out: tiles of rows in registers; products over all rows of a block of nodes, one degree after another;
three functions `forward`, `backward`, `double_backward`, each one loop over blocks. Absent inputs and unwanted outputs
are null pointers. A thread sums its gradient to the weights in a slab of its own; slabs are added in order.
"""

from __future__ import annotations

import torch

from sciml_kernels.cpp_matmul import MATMUL
from sciml_kernels.cpp_vector import vector_text
from sciml_kernels.layers.cpp_norm import NORM

_CONSTANTS = """// linear map per degree: {degrees} degrees, {channels_in} -> {channels_out} channels, normed: {normed}
#include <memory>
{vector}
constexpr int DEGREES = {degrees}, COMPONENTS = DEGREES * DEGREES, CHANNELS = {channels_in}, OUT = {channels_out};
constexpr bool NORMED = {normed};
constexpr int BLOCK = 256 / COMPONENTS > 8 ? 256 / COMPONENTS : 8;  // nodes whose rows stay in the nearer caches
"""

_PRODUCTS = """
// What a product starts from: `rows` of features with `components`, plus `bias` for the invariants; each may be absent.
struct Start {
  const real* bias = nullptr;
  const real* rows = nullptr;
  int64_t components = 0;

  // That of degree l alone; a degree that the rows do not have starts from zero.
  Start degree(int l, int width) const {
    return Start{l ? nullptr : bias, rows && l * l < components ? rows + l * l * width : nullptr, components};
  }
  Start from(int64_t node, int64_t channel, int width) const {
    const int64_t offset = node * components * width + channel;
    return Start{bias ? bias + channel : nullptr, rows ? rows + offset : nullptr, components};
  }
};

// The VECTORS vectors at p, the last with TAIL lanes; zero where p is null.
template <int VECTORS, int TAIL> INLINE vec piece(const real* p, int v) {
  return !p ? vec{} : v + 1 < VECTORS ? load(p + v * LANES) : load<TAIL>(p + v * LANES);
}

// A tile of out = a b[L] + start: the rows of degree L of NODES nodes, VECTORS vectors of the channels of out, the last
// with TAIL lanes. Pointers are those of the tile.
template <int L, int NODES, int VECTORS, int TAIL, int FROM, int TO>
INLINE void product_tile(const real* a, const real* b, Start start, real* out) {
  constexpr int WIDTH = 2 * L + 1, ROWS = NODES * WIDTH;
  vec sum[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++) {
    const real* rows = start.rows ? start.rows + (r / WIDTH * start.components + r % WIDTH) * TO : nullptr;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      sum[r][v] = piece<VECTORS, TAIL>(rows, v);
      if (L == 0) sum[r][v] += piece<VECTORS, TAIL>(start.bias, v);
    }
  }
  multiply(sum, a, [](int r) { return r / WIDTH * COMPONENTS * FROM + r % WIDTH * FROM; }, 1, b, padded(TO), FROM);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++) {
    real* to = out + r / WIDTH * COMPONENTS * TO + r % WIDTH * TO;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      if (v + 1 < VECTORS) put(to + v * LANES, sum[r][v]);
      else put<TAIL>(to + v * LANES, sum[r][v]);
    }
  }
}

// All nodes of one panel of VECTORS vectors: tiles of NODES, then of half as many, ..., then of one.
template <int L, int NODES, int VECTORS, int TAIL, int FROM, int TO>
INLINE void product_panel(int64_t nodes, const real* a, const real* b, Start start, real* out) {
  int64_t n = 0;
  for (; n + NODES <= nodes; n += NODES)
    product_tile<L, NODES, VECTORS, TAIL, FROM, TO>(a + n * COMPONENTS * FROM, b, start.from(n, 0, TO),
                                                    out + n * COMPONENTS * TO);
  if constexpr (NODES > 1)
    product_panel<L, NODES / 2, VECTORS, TAIL, FROM, TO>(nodes - n, a + n * COMPONENTS * FROM, b, start.from(n, 0, TO),
                                                         out + n * COMPONENTS * TO);
}

// f(position, number of vectors, lanes of the last) for panels that cover COUNT channels.
template <int COUNT, class F> INLINE void each_panel(F f) {
  constexpr int PANEL = TILE_VECTORS * LANES, WHOLE = COUNT / PANEL * PANEL, REST = COUNT - WHOLE;
  constexpr int VECTORS = (REST + LANES - 1) / LANES;
  for (int j = 0; j < WHOLE; j += PANEL) f(j, Lanes<TILE_VECTORS>(), Lanes<LANES>());
  if constexpr (REST > 0) f(WHOLE, Lanes<VECTORS>(), Lanes<REST - (VECTORS - 1) * LANES>());
}

// out = a b + start for all degrees from L on; b is (DEGREES, FROM, TO) with padded rows.
template <int FROM, int TO, int L = 0>
static void product(int64_t nodes, const real* a, const real* b, Start start, real* out) {
  constexpr int WIDTH = 2 * L + 1, FIRST = L * L;
  const Start own = start.degree(L, TO);
  each_panel<TO>([&](int j, auto vectors, auto tail) __attribute__((always_inline)) {
    product_panel<L, (WIDTH < TILE_ROWS ? TILE_ROWS / WIDTH : 1), vectors(), tail(), FROM, TO>(
        nodes, a + FIRST * FROM, b + L * FROM * padded(TO) + j, own.from(0, j, TO), out + FIRST * TO + j);
  });
  if constexpr (L + 1 < DEGREES) product<FROM, TO, L + 1>(nodes, a, b, start, out);
}

// A tile of sum += a^T b over the rows of degree L: ROWS channels of a, VECTORS vectors of b.
template <int L, int ROWS, int VECTORS, int TAIL>
INLINE void outer_tile(int64_t nodes, const real* a, const real* b, real* out) {
  constexpr int LAST = VECTORS - 1;
  vec sum[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < LAST; v++) sum[r][v] = load(out + r * OUT + v * LANES);
    sum[r][LAST] = load<TAIL>(out + r * OUT + LAST * LANES);
  }
  for (int64_t n = 0; n < nodes; n++)
    multiply<ROWS, VECTORS, TAIL>(sum, a + n * COMPONENTS * CHANNELS, [](int r) { return r; }, CHANNELS,
                                  b + n * COMPONENTS * OUT, OUT, 2 * L + 1);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < LAST; v++) put(out + r * OUT + v * LANES, sum[r][v]);
    put<TAIL>(out + r * OUT + LAST * LANES, sum[r][LAST]);
  }
}

// out[l] += a[l]^T b[l] for all degrees from L on; a has CHANNELS, b has OUT channels.
template <int L = 0> static void outer(int64_t nodes, const real* a, const real* b, real* out) {
  constexpr int TILES = (CHANNELS + TILE_ROWS - 1) / TILE_ROWS;
  constexpr int ROWS = (CHANNELS + TILES - 1) / TILES, REST = CHANNELS % ROWS;
  a += L * L * CHANNELS, b += L * L * OUT;
  each_panel<OUT>([&](int j, auto vectors, auto tail) __attribute__((always_inline)) {
    int i = 0;
    for (; i + ROWS <= CHANNELS; i += ROWS)
      outer_tile<L, ROWS, vectors(), tail()>(nodes, a + i, b + j, out + i * OUT + j);
    if constexpr (REST > 0) outer_tile<L, REST, vectors(), tail()>(nodes, a + i, b + j, out + i * OUT + j);
  });
  if constexpr (L + 1 < DEGREES) outer<L + 1>(nodes, a - L * L * CHANNELS, b - L * L * OUT, out + CHANNELS * OUT);
}
"""

_PASSES = """
typedef std::unique_ptr<real[]> Buffer;
constexpr int ROW_OUT = COMPONENTS * OUT, WEIGHTS = CHANNELS * OUT;

static Buffer scratch(bool needed, int64_t count) { return Buffer(needed ? new real[count] : nullptr); }

// The weights of all degrees with rows of whole vectors: as they are, or copied into `buffer`.
static const real* padded_weights(const real* w, Buffer& buffer) {
  if (!w || OUT % LANES == 0) return w;
  buffer = scratch(true, DEGREES * CHANNELS * padded(OUT));
  for (int l = 0; l < DEGREES; l++) pad<CHANNELS, OUT>(w + l * WEIGHTS, &buffer[l * CHANNELS * padded(OUT)]);
  return buffer.get();
}

static Buffer transposed_weights(const real* w) {
  Buffer buffer = scratch(w, DEGREES * OUT * padded(CHANNELS));
  for (int l = 0; w && l < DEGREES; l++)
    transpose<CHANNELS, OUT>(w + l * WEIGHTS, &buffer[l * OUT * padded(CHANNELS)]);
  return buffer;
}

// The nodes of thread t, a block at a time.
struct Blocks {
  int64_t node, last, count;
  Blocks(int64_t t, int64_t threads, int64_t nodes)
      : node(nodes * t / threads), last(nodes * (t + 1) / threads) { cut(); }
  void next() { node += count, cut(); }
  void cut() { count = last - node < BLOCK ? last - node : BLOCK; }
};

// A sum over nodes of `size` elements: thread 0 sums in the result, every other one in a slab of its own.
struct Slabs {
  real* result;
  int64_t size, threads;
  Buffer others;
  Slabs(real* out, int64_t size, int threads)
      : result(out), size(size), threads(threads), others(scratch(out && threads > 1, (threads - 1) * size)) {}
  real* of(int64_t t) const {
    if (!result) return nullptr;
    real* slab = t ? &others[(t - 1) * size] : result;
    std::memset(slab, 0, size * sizeof(real));
    return slab;
  }
  void add() const {
    for (int64_t t = 1; result && t < threads; t++)
#pragma omp simd
      for (int64_t i = 0; i < size; i++) result[i] += others[(t - 1) * size + i];
  }
};

// out += the sum of the invariants.
static void add_invariants(int64_t nodes, const real* g, real* out) {
  for (int64_t n = 0; n < nodes; n++)
#pragma omp simd
    for (int64_t c = 0; c < OUT; c++) out[c] += g[n * ROW_OUT + c];
}

// out = start, where nothing else arrives.
static void fill(int64_t nodes, const real* invariants, real* out) {
  std::memset(out, 0, nodes * ROW_OUT * sizeof(real));
  for (int64_t n = 0; n < nodes; n++) std::memcpy(out + n * ROW_OUT, invariants, OUT * sizeof(real));
}

// The rows that are mapped: x, or its norm in `buffer`.
static const real* mapped(int64_t count, const real* x, real eps, Buffer& buffer) {
  if (!NORMED) return x;
  for (int64_t n = 0; n < count; n++) norm(x + n * ROW, eps, &buffer[n * ROW]);
  return buffer.get();
}

// The change of `mapped` for a change v of x.
static const real* mapped_tangent(int64_t count, const real* v, const real* x, real eps, Buffer& buffer) {
  if (!NORMED) return v;
  for (int64_t n = 0; n < count; n++) norm_tangent(v + n * ROW, x + n * ROW, eps, &buffer[n * ROW]);
  return buffer.get();
}

extern "C" void forward(int threads, int64_t nodes, double eps, int64_t residual_components, const real* x,
                        const real* w, const real* bias, const real* residual, real* out) {
  Buffer padded_w;
  const real* right = padded_weights(w, padded_w);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int t = 0; t < threads; t++) {
    Buffer normed = scratch(NORMED, BLOCK * ROW);
    for (Blocks block(t, threads, nodes); block.count > 0; block.next()) {
      const int64_t n = block.node;
      const real* left = mapped(block.count, x + n * ROW, eps, normed);
      const real* rows = residual ? residual + n * residual_components * OUT : nullptr;
      product<CHANNELS, OUT>(block.count, left, right, Start{bias, rows, residual_components}, out + n * ROW_OUT);
    }
  }
}

extern "C" void backward(int threads, int64_t nodes, double eps, const real* g, const real* x, const real* w,
                         real* out_x, real* out_w, real* out_bias) {
  const Buffer turned = transposed_weights(out_x ? w : nullptr);
  const Slabs sums_w(out_w, DEGREES * WEIGHTS, threads), sums_bias(out_bias, OUT, threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int t = 0; t < threads; t++) {
    Buffer normed = scratch(NORMED, BLOCK * ROW);
    real *sum_w = sums_w.of(t), *sum_bias = sums_bias.of(t);
    for (Blocks block(t, threads, nodes); block.count > 0; block.next()) {
      const int64_t n = block.node;
      if (out_bias) add_invariants(block.count, g + n * ROW_OUT, sum_bias);
      if (out_w) outer(block.count, mapped(block.count, x + n * ROW, eps, normed), g + n * ROW_OUT, sum_w);
      if (!out_x) continue;
      product<OUT, CHANNELS>(block.count, g + n * ROW_OUT, turned.get(), Start{}, out_x + n * ROW);
      for (int64_t i = n; NORMED && i < n + block.count; i++)
        norm_gradient(out_x + i * ROW, x + i * ROW, eps, out_x + i * ROW);
    }
  }
  sums_w.add();
  sums_bias.add();
}

// vx, vw, vbias: what arrives at out_x, out_w, out_bias of `backward`; each may be absent.
extern "C" void double_backward(int threads, int64_t nodes, double eps, const real* vx, const real* vw,
                                const real* vbias, const real* g, const real* x, const real* w, real* out_g,
                                real* out_x, real* out_w) {
  Buffer padded_w, padded_v;
  const real* right = padded_weights(w, padded_w);
  const real* right_v = padded_weights(vw, padded_v);
  const Buffer turned = transposed_weights(NORMED && out_x && vx ? w : nullptr);
  const Buffer turned_v = transposed_weights(out_x ? vw : nullptr);
  const Slabs sums_w(out_w, DEGREES * WEIGHTS, threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int t = 0; t < threads; t++) {
    Buffer normed = scratch(NORMED, BLOCK * ROW), back = scratch(NORMED, BLOCK * ROW);
    real* sum_w = sums_w.of(t);
    for (Blocks block(t, threads, nodes); block.count > 0; block.next()) {
      const int64_t n = block.node, count = block.count;
      const real *g_rows = g + n * ROW_OUT, *x_rows = x + n * ROW, *v_rows = vx ? vx + n * ROW : nullptr;
      if (vx && (out_g || out_w)) {
        const real* tangent = mapped_tangent(count, v_rows, x_rows, eps, normed);
        if (out_w) outer(count, tangent, g_rows, sum_w);
        if (out_g) product<CHANNELS, OUT>(count, tangent, right, Start{vbias}, out_g + n * ROW_OUT);
      }
      if (vw && out_g) {
        const Start start{vx ? nullptr : vbias, vx ? out_g + n * ROW_OUT : nullptr, COMPONENTS};
        product<CHANNELS, OUT>(count, mapped(count, x_rows, eps, normed), right_v, start, out_g + n * ROW_OUT);
      }
      if (out_g && !vx && !vw) fill(count, vbias, out_g + n * ROW_OUT);
      if (vw && out_x) {
        real* to = NORMED ? back.get() : out_x + n * ROW;
        product<OUT, CHANNELS>(count, g_rows, turned_v.get(), Start{}, to);
        for (int64_t i = 0; NORMED && i < count; i++)
          norm_gradient(to + i * ROW, x_rows + i * ROW, eps, out_x + (n + i) * ROW);
      }
      if (NORMED && vx && out_x) {
        product<OUT, CHANNELS>(count, g_rows, turned.get(), Start{}, back.get());
        for (int64_t i = 0; i < count; i++)
          norm_second(v_rows + i * ROW, &back[i * ROW], x_rows + i * ROW, eps, vw, out_x + (n + i) * ROW);
      }
    }
  }
  sums_w.add();
}
"""


def source(degrees: int, channels_in: int, channels_out: int, normed: bool, dtype: torch.dtype) -> str:
    """The C++ file of one shape; `degrees` are those of the rows, the weights may have more."""
    constants = _CONSTANTS.format(
        vector=vector_text(dtype),
        degrees=degrees,
        channels_in=channels_in,
        channels_out=channels_out,
        normed=str(normed).lower(),
    )
    return constants + NORM + MATMUL + _PRODUCTS + _PASSES
