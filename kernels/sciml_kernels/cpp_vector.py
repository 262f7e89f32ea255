"""C++ text that kernels begin with: vectors, their partial loads and stores, exp and sigmoid.

No operation here is reordered by the compiler (no -ffast-math), so that NaN and Inf propagate.
"""

from __future__ import annotations

import torch

from sciml_kernels import cache

REAL = {torch.float32: "float", torch.float64: "double"}

_VECTOR = """#include <cstdint>
#include <cstring>

typedef {real} real;
typedef {integer} integer;  // as wide as real
#define VECTOR_BYTES {bytes}
typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef integer ivec __attribute__((vector_size(VECTOR_BYTES)));
constexpr int LANES = VECTOR_BYTES / sizeof(real);

#define INLINE static inline __attribute__((always_inline))
template <int N = LANES> INLINE vec load(const real* p) {{  // the first N lanes; the others are 0
  vec v = {{}};
  std::memcpy(&v, p, N * sizeof(real));
  return v;
}}
template <int N = LANES> INLINE void put(real* p, vec v) {{ std::memcpy(p, &v, N * sizeof(real)); }}

// f(i, lanes) for i = 0, LANES, ... below COUNT; `lanes()` is LANES, at the ragged end the number of those left.
template <int N> struct Lanes {{ constexpr int operator()() const {{ return N; }} }};
template <int COUNT, class F> INLINE void each_vector(F f) {{
  for (int i = 0; i + LANES <= COUNT; i += LANES) f(i, Lanes<LANES>());
  if constexpr (COUNT % LANES != 0) f(COUNT / LANES * LANES, Lanes<COUNT % LANES>());
}}

INLINE real sum_lanes(vec v) {{  // in halves that stay in registers, an order of its own: the same on every processor
  typedef real quarter __attribute__((vector_size(16)));
  quarter parts[VECTOR_BYTES / 16];
  std::memcpy(parts, &v, sizeof v);
#pragma GCC unroll 4
  for (int half = VECTOR_BYTES / 32; half > 0; half /= 2)
#pragma GCC unroll 4
    for (int i = 0; i < half; i++) parts[i] += parts[i + half];
  real sum = parts[0][0];
  for (int lane = 1; lane < 16 / (int)sizeof(real); lane++) sum += parts[0][lane];
  return sum;
}}

// exp by 2^n p(r), r = x - n ln 2 within ln 2 / 2, p the Taylor polynomial; Inf above the range, 0 below it.
INLINE vec exponential(vec x) {{
  const real shift = {shift};  // adding it rounds to an integer, which stands in the lowest bits
  x = x > {largest} ? vec{{}} + {largest} : x;
  x = x < {smallest} ? vec{{}} + {smallest} : x;
  const vec shifted = x * (real)1.4426950408889634 + shift;
  const vec rounded = shifted - shift;
  const vec r = (x - rounded * (real){ln2_high}) - rounded * (real){ln2_low};
  vec sum = vec{{}} + (real){first_coefficient};
{horner}
  const ivec n = (ivec)shifted - (ivec)(vec{{}} + shift), half = n >> 1;  // two factors: 2^n alone may leave the range
  return sum * (vec)((half + {bias}) << {mantissa}) * (vec)((n - half + {bias}) << {mantissa});
}}

INLINE vec sigmoid(vec x) {{ return (real)1 / ((real)1 + exponential(-x)); }}
"""

_EXPONENTIAL: dict[torch.dtype, dict[str, object]] = {
    torch.float32: {
        "integer": "int32_t",
        "shift": "12582912.0f",
        "largest": "89.0f",
        "smallest": "-104.0f",
        "ln2_high": "0.693359375",
        "ln2_low": "-2.12194440054690583e-4",
        "bias": 127,
        "mantissa": 23,
    },
    torch.float64: {
        "integer": "int64_t",
        "shift": "6755399441055744.0",
        "largest": "710.0",
        "smallest": "-746.0",
        "ln2_high": "6.93147180369123816490e-01",
        "ln2_low": "1.90821492927058770002e-10",
        "bias": 1023,
        "mantissa": 52,
    },
}
_TAYLOR_DEGREE = {torch.float32: 7, torch.float64: 13}


def vector_text(dtype: torch.dtype) -> str:
    """The head of a C++ file for float32 or float64: `real`, `vec`, `load`, `put`, `each_vector`, `sigmoid`, ...

    Vectors are as wide as the registers of the processor: compilers keep wider ones in memory, which costs more than
    it brings (four times the time of a training step, where registers have 32 bytes).
    """
    coefficients = [1.0]
    for k in range(1, _TAYLOR_DEGREE[dtype] + 1):
        coefficients.append(coefficients[-1] / k)
    first, *others = reversed(coefficients)
    return _VECTOR.format(
        real=REAL[dtype],
        bytes=cache.vector_bytes(),
        first_coefficient=repr(first),
        horner="\n".join(f"  sum = sum * r + (real){value!r};" for value in others),
        **_EXPONENTIAL[dtype],
    )
