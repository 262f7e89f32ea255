"""C++ source of segment sums and projections. Every sum runs in the order of the rows: nothing depends on threads.

The momentum projection is written once for any number type. With dual numbers the gradient of the backward pass along
a direction comes out, and that is the double backward pass, since second derivatives commute.
"""

from __future__ import annotations

import torch

from sciml_kernels.cpp_vector import REAL

_HEAD = """#include <cmath>
#include <cstdint>
#include <cstring>
typedef {real} real;
"""

_SUMS = """
// Whether pointers ascend from 0 to `rows`.
extern "C" int ascending(int64_t segments, int64_t rows, const int64_t* pointers) {
  if (pointers[0] != 0 || pointers[segments] != rows) return 0;
  for (int64_t s = 0; s < segments; s++)
    if (pointers[s + 1] < pointers[s]) return 0;
  return 1;
}

extern "C" void segment_sum(int threads, int64_t segments, int64_t width, const int64_t* pointers, const real* values,
                            real* out) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t s = 0; s < segments; s++) {
    real* sum = out + s * width;
    std::memset(sum, 0, width * sizeof(real));
    for (int64_t r = pointers[s]; r < pointers[s + 1]; r++)
#pragma omp simd
      for (int64_t i = 0; i < width; i++) sum[i] += values[r * width + i];
  }
}

extern "C" void segment_expand(int threads, int64_t segments, int64_t width, const int64_t* pointers,
                               const real* values, real* out) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t s = 0; s < segments; s++)
    for (int64_t r = pointers[s]; r < pointers[s + 1]; r++)
      std::memcpy(out + r * width, values + s * width, width * sizeof(real));
}

extern "C" void remove_mean(int threads, int64_t segments, int64_t width, const int64_t* pointers, const real* values,
                            real* out) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t s = 0; s < segments; s++) {
    const int64_t first = pointers[s], last = pointers[s + 1];
    for (int64_t i = 0; i < width; i++) {
      double sum = 0;
      for (int64_t r = first; r < last; r++) sum += values[r * width + i];
      for (int64_t r = first; r < last; r++) out[r * width + i] = values[r * width + i] - sum / (last - first);
    }
  }
}
"""

_MOMENTUM = """
struct Dual {  // a number and its change along the direction
  double value, change;
  Dual(double value = 0, double change = 0) : value(value), change(change) {}
};
static inline Dual operator+(Dual a, Dual b) { return {a.value + b.value, a.change + b.change}; }
static inline Dual operator-(Dual a, Dual b) { return {a.value - b.value, a.change - b.change}; }
static inline Dual operator*(Dual a, Dual b) { return {a.value * b.value, a.value * b.change + a.change * b.value}; }
static inline Dual operator/(Dual a, Dual b) {
  const double quotient = a.value / b.value;
  return {quotient, (a.change - quotient * b.change) / b.value};
}
static inline double plain(double a) { return a; }
static inline double plain(Dual a) { return a.value; }

template <class N> struct Vector {
  N x = 0, y = 0, z = 0;
  Vector& operator+=(Vector b) { return *this = Vector{x + b.x, y + b.y, z + b.z}; }
};
template <class N> static Vector<N> operator-(Vector<N> a, Vector<N> b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
template <class N> static Vector<N> operator*(N s, Vector<N> a) { return {s * a.x, s * a.y, s * a.z}; }
template <class N> static N dot(Vector<N> a, Vector<N> b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
template <class N> static Vector<N> cross(Vector<N> a, Vector<N> b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

// Rows of three numbers, with the rows of their change where N is Dual (null: no change).
struct Rows {
  const real *values, *changes;
};
static Vector<double> read(Rows rows, int64_t n, double) {
  const real* v = rows.values + 3 * n;
  return {v[0], v[1], v[2]};
}
static Vector<Dual> read(Rows rows, int64_t n, Dual) {
  const real *v = rows.values + 3 * n, *d = rows.changes ? rows.changes + 3 * n : nullptr;
  return {Dual(v[0], d ? d[0] : 0), Dual(v[1], d ? d[1] : 0), Dual(v[2], d ? d[2] : 0)};
}
static void write(real* out, int64_t n, Vector<double> v) {
  out[3 * n] = v.x, out[3 * n + 1] = v.y, out[3 * n + 2] = v.z;
}
static void write(real* out, int64_t n, Vector<Dual> v) {
  write(out, n, Vector<double>{v.x.change, v.y.change, v.z.change});
}

template <class N> struct Body {
  int64_t first, last;
  Rows positions;
  Vector<N> center;
  Vector<N> inertia[3];  // rows

  Body(int64_t first, int64_t last, Rows positions) : first(first), last(last), positions(positions) {
    center = mean(positions);
    for (int64_t n = first; n < last; n++) {
      const Vector<N> r = arm(n);
      const N square = dot(r, r);
      inertia[0] += Vector<N>{square - r.x * r.x, N(0) - r.x * r.y, N(0) - r.x * r.z};
      inertia[1] += Vector<N>{N(0) - r.y * r.x, square - r.y * r.y, N(0) - r.y * r.z};
      inertia[2] += Vector<N>{N(0) - r.z * r.x, N(0) - r.z * r.y, square - r.z * r.z};
    }
  }
  Vector<N> mean(Rows rows) const {
    Vector<N> sum;
    for (int64_t n = first; n < last; n++) sum += read(rows, n, N());
    return N(1.0 / (last - first)) * sum;
  }
  Vector<N> arm(int64_t n) const { return read(positions, n, N()) - center; }

  // The solution of inertia . turn = torque of these forces. Where all atoms lie on a line (the least moment is below
  // 1e-12 of the others, or is 0) there is no torque along it, and the others are alike; a point cannot turn.
  Vector<N> turn(Rows forces) const {
    Vector<N> torque;
    for (int64_t n = first; n < last; n++) torque += cross(arm(n), read(forces, n, N()));
    const Vector<N>*i = inertia, columns[3] = {cross(i[1], i[2]), cross(i[2], i[0]), cross(i[0], i[1])};
    const N determinant = dot(i[0], columns[0]), moment = N(0.5) * (i[0].x + i[1].y + i[2].z);
    const double size = plain(moment);
    if (size == 0) return Vector<N>();
    if (plain(determinant) <= 1e-12 * size * size * size) return (N(1) / moment) * torque;
    Vector<N> sum = torque.x * columns[0];
    sum += torque.y * columns[1];
    sum += torque.z * columns[2];
    return (N(1) / determinant) * sum;
  }
};

// What is left of the forces on atom n.
template <class N> static Vector<N> rest(const Body<N>& body, Rows forces, Vector<N> mean, Vector<N> turn, int64_t n) {
  return read(forces, n, N()) - mean - cross(turn, body.arm(n));
}

// Gradients of the sum of g . rest(forces), by N = double, or their changes, by N = Dual. With a = turn of the forces
// and b = turn of g that sum is  g . (forces - mean) - b . inertia . a, which is symmetric in forces and g.
template <class N>
static void gradients(int64_t first, int64_t last, Rows positions, Rows forces, Rows g, real* to_positions,
                      real* to_forces, real* to_g) {
  const Body<N> body(first, last, positions);
  const Vector<N> mean_f = body.mean(forces), mean_g = body.mean(g);
  const Vector<N> a = body.turn(forces), b = body.turn(g);
  const N twice = N(2) * dot(a, b);
  for (int64_t n = first; n < last; n++) {
    if (to_forces) write(to_forces, n, rest(body, g, mean_g, b, n));
    if (to_g) write(to_g, n, rest(body, forces, mean_f, a, n));
    if (!to_positions) continue;
    const Vector<N> r = body.arm(n), f = read(forces, n, N()) - mean_f, h = read(g, n, N()) - mean_g;
    Vector<N> sum = twice * r - dot(r, a) * b - dot(r, b) * a;
    sum += cross(a, h);
    sum += cross(b, f);
    write(to_positions, n, sum);
  }
}

extern "C" void momentum(int threads, int64_t segments, const int64_t* pointers, const real* forces,
                         const real* positions, real* out) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t s = 0; s < segments; s++) {
    const Rows f{forces, nullptr}, r{positions, nullptr};
    const Body<double> body(pointers[s], pointers[s + 1], r);
    const Vector<double> mean = body.mean(f), turn = body.turn(f);
    for (int64_t n = body.first; n < body.last; n++) write(out, n, rest(body, f, mean, turn, n));
  }
}

extern "C" void momentum_backward(int threads, int64_t segments, const int64_t* pointers, const real* g,
                                  const real* forces, const real* positions, real* to_forces, real* to_positions) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t s = 0; s < segments; s++)
    gradients<double>(pointers[s], pointers[s + 1], {positions, nullptr}, {forces, nullptr}, {g, nullptr}, to_positions,
                      to_forces, nullptr);
}

extern "C" void momentum_double_backward(int threads, int64_t segments, const int64_t* pointers, const real* v_forces,
                                         const real* v_positions, const real* g, const real* forces,
                                         const real* positions, real* to_g, real* to_forces, real* to_positions) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t s = 0; s < segments; s++)
    gradients<Dual>(pointers[s], pointers[s + 1], {positions, v_positions}, {forces, v_forces}, {g, nullptr},
                    to_positions, to_forces, to_g);
}
"""


def source(dtype: torch.dtype) -> str:
    """The C++ file with all functions for float32 or float64; the projections sum in double."""
    return _HEAD.format(real=REAL[dtype]) + _SUMS + _MOMENTUM
