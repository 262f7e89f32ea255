"""C++ source of SiLU and of the gate, each derivative in one pass.

With t the sigmoid: t' = t (1 - t), t'' = t' (1 - 2 t); silu = x t, silu' = t + x t', silu'' = 2 t' + x t''.
"""

from __future__ import annotations

import torch

from sciml_kernels.cpp_vector import vector_text

CURVES = """
struct Sigmoid {
  vec value, first, second;
  explicit Sigmoid(vec x) : value(sigmoid(x)), first(value * (1 - value)), second(first * (1 - 2 * value)) {}
};

INLINE vec silu(vec x) { return x * sigmoid(x); }
INLINE vec silu_first(vec x) { const Sigmoid t(x); return t.value + x * t.first; }
INLINE vec silu_second(vec x) { const Sigmoid t(x); return 2 * t.first + x * t.second; }
"""

_SILU = """
template <class F> INLINE void each_chunk(int threads, int64_t count, F f) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < count / LANES; i++) f(i * LANES, LANES);
  if (count % LANES) f(count / LANES * LANES, count % LANES);
}

INLINE vec some(const real* p, int64_t lanes) {
  if (lanes == LANES) return load(p);
  vec v = {};
  std::memcpy(&v, p, lanes * sizeof(real));
  return v;
}
INLINE void put_some(real* p, vec v, int64_t lanes) { std::memcpy(p, &v, lanes * sizeof(real)); }

extern "C" void forward(int threads, int64_t count, const real* x, real* out) {
  each_chunk(threads, count, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
    put_some(out + i, silu(some(x + i, lanes)), lanes);
  });
}

extern "C" void backward(int threads, int64_t count, const real* g, const real* x, real* out_x) {
  each_chunk(threads, count, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
    put_some(out_x + i, some(g + i, lanes) * silu_first(some(x + i, lanes)), lanes);
  });
}

// v: what arrives at out_x of `backward`.
extern "C" void double_backward(int threads, int64_t count, const real* v, const real* g, const real* x, real* out_g,
                                real* out_x) {
  each_chunk(threads, count, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
    const vec tangent = some(v + i, lanes), at = some(x + i, lanes);
    if (out_g) put_some(out_g + i, tangent * silu_first(at), lanes);
    if (out_x) put_some(out_x + i, tangent * some(g + i, lanes) * silu_second(at), lanes);
  });
}
"""

_GATE = """
constexpr int ROW = DEGREES * DEGREES * CHANNELS, GATES = (DEGREES - 1) * CHANNELS;

// f(node's offset of x, of the gates, lanes) for vectors of invariants, and g(degree, ...) for those of a gate.
template <class F, class G> INLINE void each_gate(int threads, int64_t nodes, F invariants, G gated) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t n = 0; n < nodes; n++)
    each_vector<CHANNELS>([&](int c, auto lanes) __attribute__((always_inline)) {
      invariants(n * ROW + c, lanes);
      for (int l = 1; l < DEGREES; l++)
        gated(n * ROW + l * l * CHANNELS + c, 2 * l + 1, n * GATES + (l - 1) * CHANNELS + c, lanes);
    });
}

extern "C" void forward(int threads, int64_t nodes, const real* x, const real* gates, real* out) {
  each_gate(
      threads, nodes,
      [&](int64_t i, auto lanes) __attribute__((always_inline)) { put<lanes()>(out + i, silu(load<lanes()>(x + i))); },
      [&](int64_t i, int width, int64_t gate, auto lanes) __attribute__((always_inline)) {
        const vec t = sigmoid(load<lanes()>(gates + gate));
        for (int m = 0; m < width; m++, i += CHANNELS) put<lanes()>(out + i, t * load<lanes()>(x + i));
      });
}

extern "C" void backward(int threads, int64_t nodes, const real* g, const real* x, const real* gates, real* out_x,
                         real* out_gates) {
  each_gate(
      threads, nodes,
      [&](int64_t i, auto lanes) __attribute__((always_inline)) {
        if (out_x) put<lanes()>(out_x + i, load<lanes()>(g + i) * silu_first(load<lanes()>(x + i)));
      },
      [&](int64_t i, int width, int64_t gate, auto lanes) __attribute__((always_inline)) {
        const Sigmoid t(load<lanes()>(gates + gate));
        vec gx = {};
        for (int m = 0; m < width; m++, i += CHANNELS) {
          const vec incoming = load<lanes()>(g + i);
          if (out_x) put<lanes()>(out_x + i, t.value * incoming);
          gx += incoming * load<lanes()>(x + i);
        }
        if (out_gates) put<lanes()>(out_gates + gate, t.first * gx);
      });
}

// vx, vgates: what arrives at out_x, out_gates of `backward`; either may be absent.
extern "C" void double_backward(int threads, int64_t nodes, const real* vx, const real* vgates, const real* g,
                                const real* x, const real* gates, real* out_g, real* out_x, real* out_gates) {
  each_gate(
      threads, nodes,
      [&](int64_t i, auto lanes) __attribute__((always_inline)) {
        const vec v = vx ? load<lanes()>(vx + i) : vec{}, at = load<lanes()>(x + i);
        if (out_g) put<lanes()>(out_g + i, v * silu_first(at));
        if (out_x) put<lanes()>(out_x + i, v * load<lanes()>(g + i) * silu_second(at));
      },
      [&](int64_t i, int width, int64_t gate, auto lanes) __attribute__((always_inline)) {
        const Sigmoid t(load<lanes()>(gates + gate));
        const vec change = vgates ? load<lanes()>(vgates + gate) : vec{};
        vec gv = {}, gx = {};
        for (int m = 0; m < width; m++, i += CHANNELS) {
          const vec v = vx ? load<lanes()>(vx + i) : vec{}, incoming = load<lanes()>(g + i), at = load<lanes()>(x + i);
          if (out_g) put<lanes()>(out_g + i, t.value * v + t.first * change * at);
          if (out_x) put<lanes()>(out_x + i, t.first * change * incoming);
          gv += incoming * v;
          gx += incoming * at;
        }
        if (out_gates) put<lanes()>(out_gates + gate, t.first * gv + t.second * change * gx);
      });
}
"""


def silu_source(dtype: torch.dtype) -> str:
    """The C++ file of SiLU on any number of elements."""
    return vector_text(dtype) + CURVES + _SILU


def gate_source(degrees: int, channels: int, dtype: torch.dtype) -> str:
    """The C++ file of the gate on features with this many degrees and channels."""
    constants = f"constexpr int DEGREES = {degrees}, CHANNELS = {channels};\n"
    return vector_text(dtype) + constants + CURVES + _GATE
