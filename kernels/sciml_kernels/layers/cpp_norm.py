"""C++ text of the norm of one node's features with its derivatives, and the source of the norm alone."""

from __future__ import annotations

import torch

from sciml_kernels.cpp_vector import vector_text

# A node's row is [component][channel] with COMPONENTS = DEGREES^2 and CHANNELS, constants of the file.
NORM = """
#include <cmath>
constexpr int ROW = COMPONENTS * CHANNELS;

// The weight of degree l in the mean square: every degree has the same say.
constexpr real balance(int l) { return (real)1 / ((real)DEGREES * (2 * l + 1) * CHANNELS); }

// sum of a b over a node, each degree multiplied by its balance where BALANCED.
template <bool BALANCED> INLINE real inner(const real* a, const real* b) {
  vec total = {};
  for (int l = 0; l < DEGREES; l++) {
    vec sum = {};
    for (int m = l * l; m < (l + 1) * (l + 1); m++)
      each_vector<CHANNELS>([&](int c, auto lanes) __attribute__((always_inline)) {
        sum += load<lanes()>(a + m * CHANNELS + c) * load<lanes()>(b + m * CHANNELS + c);
      });
    total += BALANCED ? sum * balance(l) : sum;
  }
  return sum_lanes(total);
}

// f(position, lanes, balance) over a node's row.
template <class F> INLINE void each_component(F f) {
  for (int l = 0; l < DEGREES; l++)
    for (int m = l * l; m < (l + 1) * (l + 1); m++)
      each_vector<CHANNELS>([&](int c, auto lanes) __attribute__((always_inline)) {
        f(m * CHANNELS + c, lanes, balance(l));
      });
}

INLINE real inverse_rms(const real* x, real eps) { return 1 / std::sqrt(inner<true>(x, x) + eps); }

// y = s x, with s = (x.x + eps)^(-1/2) and the balanced product.
static void norm(const real* x, real eps, real* out) {
  const real s = inverse_rms(x, eps);
  each_component([&](int i, auto lanes, real) __attribute__((always_inline)) {
    put<lanes()>(out + i, s * load<lanes()>(x + i));
  });
}

// The change of y for a change v of x: s v - s^3 (x.v) x.
static void norm_tangent(const real* v, const real* x, real eps, real* out) {
  const real s = inverse_rms(x, eps), along = s * s * s * inner<true>(x, v);
  each_component([&](int i, auto lanes, real) __attribute__((always_inline)) {
    put<lanes()>(out + i, s * load<lanes()>(v + i) - along * load<lanes()>(x + i));
  });
}

// The gradient to x for the gradient g to y: s g - s^3 (g x) balance x. `out` may be g.
static void norm_gradient(const real* g, const real* x, real eps, real* out) {
  const real s = inverse_rms(x, eps), along = s * s * s * inner<false>(g, x);
  each_component([&](int i, auto lanes, real weight) __attribute__((always_inline)) {
    put<lanes()>(out + i, s * load<lanes()>(g + i) - along * weight * load<lanes()>(x + i));
  });
}

// The gradient to x of v . norm_gradient(g, x), added to `out` or put there.
static void norm_second(const real* v, const real* g, const real* x, real eps, bool add, real* out) {
  const real s = inverse_rms(x, eps), cube = s * s * s;
  const real vg = inner<false>(v, g), gx = inner<false>(g, x), xv = inner<true>(x, v);
  const real to_x = 3 * cube * s * s * gx * xv - cube * vg, to_g = -cube * xv, to_v = -cube * gx;
  each_component([&](int i, auto lanes, real weight) __attribute__((always_inline)) {
    const vec balanced = to_x * load<lanes()>(x + i) + to_v * load<lanes()>(v + i);
    const vec before = add ? load<lanes()>(out + i) : vec{};
    put<lanes()>(out + i, before + weight * balanced + to_g * load<lanes()>(g + i));
  });
}
"""

_PASSES = """
extern "C" void forward(int threads, int64_t nodes, double eps, const real* x, real* out) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t n = 0; n < nodes; n++) norm(x + n * ROW, eps, out + n * ROW);
}

extern "C" void backward(int threads, int64_t nodes, double eps, const real* g, const real* x, real* out_x) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t n = 0; n < nodes; n++) norm_gradient(g + n * ROW, x + n * ROW, eps, out_x + n * ROW);
}

// v: what arrives at out_x of `backward`.
extern "C" void double_backward(int threads, int64_t nodes, double eps, const real* v, const real* g, const real* x,
                                real* out_g, real* out_x) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t n = 0; n < nodes; n++) {
    if (out_g) norm_tangent(v + n * ROW, x + n * ROW, eps, out_g + n * ROW);
    if (out_x) norm_second(v + n * ROW, g + n * ROW, x + n * ROW, eps, false, out_x + n * ROW);
  }
}
"""


def source(degrees: int, channels: int, dtype: torch.dtype) -> str:
    """The C++ file of the norm of features with this many degrees and channels."""
    constants = f"constexpr int DEGREES = {degrees}, COMPONENTS = DEGREES * DEGREES, CHANNELS = {channels};\n"
    return vector_text(dtype) + constants + NORM + _PASSES
