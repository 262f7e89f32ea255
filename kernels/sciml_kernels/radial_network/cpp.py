"""C++ source of the radial network: value, first and second derivatives, a block of edges at a time.

With z the inputs of SiLU and a its values, a0 the basis, e the envelope and F = <g, a_L e>:

- value: z_l = W_l a_{l-1} + b_l (and the shift at the first layer), a_l = silu(z_l);
- first order: p_L = g e, P_l = p_l silu'(z_l), p_{l-1} = W_l^T P_l. Gradients: P_l a_{l-1}^T to W_l, P_l to b_l, P_1 to
  the shift, p_0 to the basis, g a_L to e;
- second order, of what arrives at these gradients (vb, vs, ve, vW and so on): it is the derivative of F along them. Its
  forward pass carries tangents, z'_l = W_l a'_{l-1} + vW_l a_{l-1} + ..., a'_l = silu'(z_l) z'_l; the derivative is
  <g, a'_L e + a_L ve>, and its backward pass two rows beside each other: p of a' as above, and q of a, where
  Q_l = q_l silu'(z_l) + p_l z'_l silu''(z_l) and q_{l-1} = W_l^T Q_l + vW_l^T P_l. The gradient to W_l is
  P_l a'_{l-1}^T + Q_l a_{l-1}^T, and those to the others are Q_l where they were P_l.

Blocks of 32 edges keep all rows of a block in the second-level cache. Gradients to the parameters are summed in a slab
for each thread, the slabs in order: results repeat bit for bit at a given number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sciml_kernels.cpp_matmul import BUFFER, MATMUL, PRODUCT
from sciml_kernels.cpp_vector import vector_text
from sciml_kernels.layers.cpp_gate import CURVES
from sciml_kernels.trilinear.cpp import indent

_ROWS = """
constexpr int64_t BLOCK = 32;

// Dense rows as rows of whole vectors, and back.
template <int COLUMNS> static void widen(int64_t count, const real* dense, real* rows) {
  for (int64_t r = 0; r < count; r++)
    each_vector<COLUMNS>([&](int j, auto lanes) __attribute__((always_inline)) {
      put(rows + r * padded(COLUMNS) + j, load<lanes()>(dense + r * COLUMNS + j));
    });
}
template <int COLUMNS> static void narrow(int64_t count, const real* rows, real* dense) {
  for (int64_t r = 0; r < count; r++)
    std::memcpy(dense + r * COLUMNS, rows + r * padded(COLUMNS), COLUMNS * sizeof(real));
}

// The bias of a layer in every row, and dense rows on top; either may be absent.
template <int COLUMNS> static void start(int64_t count, const real* bias, const real* dense, real* rows) {
  each_vector<COLUMNS>([&](int j, auto lanes) __attribute__((always_inline)) {
    const vec all = bias ? load<lanes()>(bias + j) : vec{};
    for (int64_t r = 0; r < count; r++)
      put(rows + r * padded(COLUMNS) + j, dense ? all + load<lanes()>(dense + r * COLUMNS + j) : all);
  });
}

template <int ORDER> static void activate(int64_t count, const real* z, real* a, real* first, real* second) {
  for (int64_t i = 0; i < count; i += LANES) {
    const vec at = load(z + i);
    const Sigmoid t(at);
    put(a + i, at * t.value);
    if (ORDER > 0) put(first + i, t.value + at * t.first);
    if (ORDER > 1) put(second + i, 2 * t.first + at * t.second);
  }
}

// a' of z'; P of p; and both p and q of the second order.
static void along(int64_t count, const real* first, const real* change, real* out) {
  for (int64_t i = 0; i < count; i += LANES) put(out + i, load(first + i) * load(change + i));
}
static void down(int64_t count, const real* first, const real* second, const real* change, real* p, real* q) {
  for (int64_t i = 0; i < count; i += LANES) {
    const vec above = load(p + i);
    put(q + i, load(q + i) * load(first + i) + above * load(change + i) * load(second + i));
    put(p + i, above * load(first + i));
  }
}

// sum[j] += the rows' sum.
template <int COLUMNS> static void add_rows(int64_t count, const real* rows, real* sum) {
  for (int j = 0; j < padded(COLUMNS); j += LANES) {
    vec all = load(sum + j);
    for (int64_t r = 0; r < count; r++) all += load(rows + r * padded(COLUMNS) + j);
    put(sum + j, all);
  }
}

// f(thread, rows of its own, first edge, how many) of every block of edges.
template <class Rows, class F> static void each_block(int threads, int64_t edges, F f) {
  const int64_t blocks = (edges + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int t = 0; t < threads; t++) {
    Rows rows;
    for (int64_t k = blocks * t / threads; k < blocks * (t + 1) / threads; k++)
      f(t, rows, k * BLOCK, edges - k * BLOCK < BLOCK ? edges - k * BLOCK : BLOCK);
  }
}
"""

_LAYERS = """
constexpr int DEPTH = {depth}, LAST = {last}, WIDTH = padded({last}), FIRST = {first};
constexpr int64_t ROW_SIZE = BLOCK * {widest}, SUMS = {sums};

struct Weights {{  // turned: (in, out), packed: (out, in), rows of whole vectors
  Buffer room;
  const real* bias[DEPTH + 1];
  real *turned[DEPTH + 1], *packed[DEPTH + 1];
  explicit Weights(const real* parameters) : room({weights}) {{
    real* at = room;
{fill}
  }}
}};

struct Rows {{  // of a block, of every layer
  Buffer room;
  real *a[DEPTH + 1], *first[DEPTH + 1], *second[DEPTH + 1], *change[DEPTH + 1], *along[DEPTH + 1];
  real *p, *q, *other_p, *other_q;
  Rows() : room((5 * (DEPTH + 1) + 4) * ROW_SIZE) {{
    real* at = room;
    real **of_layers[] = {{a, first, second, change, along}}, **others[] = {{&p, &q, &other_p, &other_q}};
    for (real** each : of_layers)
      for (int l = 0; l <= DEPTH; l++, at += ROW_SIZE) each[l] = at;
    for (real** each : others) *each = at, at += ROW_SIZE;
  }}
}};

template <int ORDER>
static void values(int64_t count, const real* basis, const real* shift, const Weights& weights, Rows& at) {{
  widen<FIRST>(count, basis, at.a[0]);
{values}
}}

static void tangents(int64_t count, const real* vb, const real* vs, const Weights& weights, const Weights* moved,
                     Rows& at) {{
  if (vb) widen<FIRST>(count, vb, at.along[0]);
{tangents}
}}

// From P_L (and Q_L) in at.p (and at.q) back to the gradients.
static void first_order(int64_t count, const Weights& weights, Rows& at, real* sums, real* out_s, real* out_b) {{
{first_order}
}}
static void second_order(int64_t count, const Weights& weights, const Weights* moved, bool vb, Rows& at, real* sums,
                         real* out_s, real* out_b) {{
{second_order}
}}

static void sum_slabs(int threads, const real* sums, real* out_p) {{
  Buffer total(SUMS);
  for (int64_t i = 0; i < SUMS; i++) {{
    real sum = 0;
    for (int t = 0; t < threads; t++) sum += sums[t * SUMS + i];
    total[i] = sum;
  }}
  const real* from = total;
{sum_slabs}
}}
"""

_FUNCTIONS = """
extern "C" void forward(int threads, int64_t edges, const real* basis, const real* shift, const real* envelope,
                        const real* parameters, real* out) {
  const Weights weights(parameters);
  each_block<Rows>(threads, edges, [&](int, Rows& at, int64_t e, int64_t count) {
    values<0>(count, basis + e * FIRST, shift + e * SHIFT, weights, at);
    for (int64_t r = 0; r < count; r++)
      each_vector<LAST>([&](int j, auto lanes) __attribute__((always_inline)) {
        put<lanes()>(out + (e + r) * LAST + j, load(at.a[DEPTH] + r * WIDTH + j) * envelope[e + r]);
      });
  });
}

extern "C" void backward(int threads, int64_t edges, const real* g, const real* basis, const real* shift,
                         const real* envelope, const real* parameters, real* out_b, real* out_s, real* out_e,
                         real* out_p) {
  const Weights weights(parameters);
  Buffer sums(out_p ? threads * SUMS : 0);
  if (out_p) std::memset(sums, 0, threads * SUMS * sizeof(real));
  each_block<Rows>(threads, edges, [&](int t, Rows& at, int64_t e, int64_t count) {
    values<1>(count, basis + e * FIRST, shift + e * SHIFT, weights, at);
    for (int64_t r = 0; r < count; r++) {
      vec sum = {};
      each_vector<LAST>([&](int j, auto lanes) __attribute__((always_inline)) {
        const vec incoming = load<lanes()>(g + (e + r) * LAST + j);
        const int64_t i = r * WIDTH + j;
        sum += incoming * load(at.a[DEPTH] + i);
        put(at.p + i, incoming * envelope[e + r] * load(at.first[DEPTH] + i));
      });
      if (out_e) out_e[e + r] = sum_lanes(sum);
    }
    if (out_b || out_s || out_p)
      first_order(count, weights, at, out_p ? sums + t * SUMS : nullptr, out_s ? out_s + e * SHIFT : nullptr,
                  out_b ? out_b + e * FIRST : nullptr);
  });
  if (out_p) sum_slabs(threads, sums, out_p);
}

// vb, vs, ve, vp: what arrives at out_b, out_s, out_e, out_p of `backward`; any may be absent.
extern "C" void double_backward(int threads, int64_t edges, const real* vb, const real* vs, const real* ve,
                                const real* vp, const real* g, const real* basis, const real* shift,
                                const real* envelope, const real* parameters, real* out_g, real* out_b, real* out_s,
                                real* out_e, real* out_p) {
  const Weights weights(parameters), changes(vp ? vp : parameters), *moved = vp ? &changes : nullptr;
  Buffer sums(out_p ? threads * SUMS : 0);
  if (out_p) std::memset(sums, 0, threads * SUMS * sizeof(real));
  each_block<Rows>(threads, edges, [&](int t, Rows& at, int64_t e, int64_t count) {
    values<2>(count, basis + e * FIRST, shift + e * SHIFT, weights, at);
    tangents(count, vb ? vb + e * FIRST : nullptr, vs ? vs + e * SHIFT : nullptr, weights, moved, at);
    for (int64_t r = 0; r < count; r++) {
      const real scale = envelope[e + r], change = ve ? ve[e + r] : 0;
      vec sum = {};
      each_vector<LAST>([&](int j, auto lanes) __attribute__((always_inline)) {
        const int64_t i = r * WIDTH + j, place = (e + r) * LAST + j;
        const vec incoming = load<lanes()>(g + place), along = load(at.along[DEPTH] + i);
        if (out_g) put<lanes()>(out_g + place, along * scale + load(at.a[DEPTH] + i) * change);
        sum += incoming * along;
        put(at.p + i, incoming * scale);
        put(at.q + i, incoming * change);
      });
      if (out_e) out_e[e + r] = sum_lanes(sum);
    }
    if (!(out_b || out_s || out_p)) return;
    down(count * WIDTH, at.first[DEPTH], at.second[DEPTH], at.change[DEPTH], at.p, at.q);
    second_order(count, weights, moved, vb, at, out_p ? sums + t * SUMS : nullptr, out_s ? out_s + e * SHIFT : nullptr,
                 out_b ? out_b + e * FIRST : nullptr);
  });
  if (out_p) sum_slabs(threads, sums, out_p);
}
"""


def source(sizes: Sequence[int], dtype: torch.dtype) -> str:
    """The C++ file of a network whose layers have `sizes`, from the first input to the last output."""
    depth = len(sizes) - 1
    layers = range(1, depth + 1)
    text = _LAYERS.format(
        depth=depth,
        first=sizes[0],
        last=sizes[-1],
        widest=f"padded({max(sizes)})",
        sums=" + ".join(f"{sizes[n]} * padded({sizes[n - 1]}) + padded({sizes[n]})" for n in layers),
        weights=" + ".join(
            f"{sizes[n - 1]} * padded({sizes[n]}) + {sizes[n]} * padded({sizes[n - 1]})" for n in layers
        ),
        fill=indent([line for n in layers for line in _fill(sizes, n)], 4),
        values=indent([line for n in layers for line in _values(sizes, n)], 2),
        tangents=indent([line for n in layers for line in _tangents(sizes, n)], 2),
        first_order=indent([line for n in reversed(layers) for line in _first_order(sizes, n)], 2),
        second_order=indent([line for n in reversed(layers) for line in _second_order(sizes, n)], 2),
        sum_slabs=indent([line for n in layers for line in _sum_slabs(sizes, n)], 2),
    )
    functions = _FUNCTIONS.replace("SHIFT", str(sizes[1]))
    return "".join((vector_text(dtype), CURVES, MATMUL, PRODUCT, BUFFER, _ROWS, text, functions))


def _vectors(size: int) -> str:
    return f"padded({size}) / LANES"


def _fill(sizes: Sequence[int], n: int) -> list[str]:
    """The weight of layer n in both layouts."""
    out, inner = sizes[n], sizes[n - 1]
    return [
        f"turned[{n}] = at, at += {inner} * padded({out}), packed[{n}] = at, at += {out} * padded({inner});",
        f"transpose<{out}, {inner}>(parameters, turned[{n}]);",
        f"pad<{out}, {inner}>(parameters, packed[{n}]);",
        f"bias[{n}] = parameters + {out * inner}, parameters += {out * inner + out};",
    ]


def _into(sizes: Sequence[int], n: int, rows: str, turned: str, out: str) -> str:
    """out += rows W^T, through layer n."""
    wide, row, inner_row = _vectors(sizes[n]), f"padded({sizes[n]})", f"padded({sizes[n - 1]})"
    return f"product<{wide}, true, {inner_row}, 1, {row}, {row}>(count, {sizes[n - 1]}, {rows}, {turned}, {out});"


def _back(sizes: Sequence[int], n: int, rows: str, packed: str, out: str, add: bool = False) -> str:
    """out = rows W, or += it, back through layer n."""
    wide, row, inner_row = _vectors(sizes[n - 1]), f"padded({sizes[n]})", f"padded({sizes[n - 1]})"
    flag = "true" if add else "false"
    return f"product<{wide}, {flag}, {row}, 1, {inner_row}, {inner_row}>(count, {sizes[n]}, {rows}, {packed}, {out});"


def _to_weights(sizes: Sequence[int], n: int, left: str, right: str) -> str:
    """The gradient to the weight of layer n += left^T right."""
    wide, row, inner_row = _vectors(sizes[n - 1]), f"padded({sizes[n]})", f"padded({sizes[n - 1]})"
    return (
        f"product<{wide}, true, 1, {row}, {inner_row}, {inner_row}>({sizes[n]}, count, {left}, {right}, "
        f"sums + {_place(sizes, n)});"
    )


def _place(sizes: Sequence[int], n: int) -> str:
    """Where the sums of layer n begin: its weight, and its bias behind."""
    return " + ".join(["0", *(f"{sizes[k]} * padded({sizes[k - 1]}) + padded({sizes[k]})" for k in range(1, n))])


def _bias_place(sizes: Sequence[int], n: int) -> str:
    return f"{_place(sizes, n)} + {sizes[n]} * padded({sizes[n - 1]})"


def _values(sizes: Sequence[int], n: int) -> list[str]:
    shift = "shift" if n == 1 else "nullptr"
    return [
        f"start<{sizes[n]}>(count, weights.bias[{n}], {shift}, at.p);",
        _into(sizes, n, f"at.a[{n - 1}]", f"weights.turned[{n}]", "at.p"),
        f"activate<ORDER>(count * padded({sizes[n]}), at.p, at.a[{n}], at.first[{n}], at.second[{n}]);",
    ]


def _tangents(sizes: Sequence[int], n: int) -> list[str]:
    shift, known = ("vs", "if (vb) ") if n == 1 else ("nullptr", "")
    return [
        f"start<{sizes[n]}>(count, moved ? moved->bias[{n}] : nullptr, {shift}, at.change[{n}]);",
        known + _into(sizes, n, f"at.along[{n - 1}]", f"weights.turned[{n}]", f"at.change[{n}]"),
        "if (moved) " + _into(sizes, n, f"at.a[{n - 1}]", f"moved->turned[{n}]", f"at.change[{n}]"),
        f"along(count * padded({sizes[n]}), at.first[{n}], at.change[{n}], at.along[{n}]);",
    ]


def _first_order(sizes: Sequence[int], n: int) -> list[str]:
    p, below = ("at.p", "at.other_p") if (len(sizes) - 1 - n) % 2 == 0 else ("at.other_p", "at.p")
    lines = [
        f"if (sums) {_to_weights(sizes, n, p, f'at.a[{n - 1}]')}",
        f"if (sums) add_rows<{sizes[n]}>(count, {p}, sums + {_bias_place(sizes, n)});",
    ]
    step = _back(sizes, n, p, f"weights.packed[{n}]", below)
    if n > 1:
        return [*lines, step, f"along(count * padded({sizes[n - 1]}), at.first[{n - 1}], {below}, {below});"]
    return [
        *lines,
        f"if (out_s) narrow<{sizes[1]}>(count, {p}, out_s);",
        "if (!out_b) return;",
        step,
        f"narrow<{sizes[0]}>(count, {below}, out_b);",
    ]


def _second_order(sizes: Sequence[int], n: int) -> list[str]:
    even = (len(sizes) - 1 - n) % 2 == 0
    p, below_p = ("at.p", "at.other_p") if even else ("at.other_p", "at.p")
    q, below_q = ("at.q", "at.other_q") if even else ("at.other_q", "at.q")
    known = "sums" if n > 1 else "sums && vb"
    lines = [
        f"if ({known}) {_to_weights(sizes, n, p, f'at.along[{n - 1}]')}",
        f"if (sums) {_to_weights(sizes, n, q, f'at.a[{n - 1}]')}",
        f"if (sums) add_rows<{sizes[n]}>(count, {q}, sums + {_bias_place(sizes, n)});",
    ]
    step = [
        _back(sizes, n, q, f"weights.packed[{n}]", below_q),
        "if (moved) " + _back(sizes, n, p, f"moved->packed[{n}]", below_q, add=True),
    ]
    if n > 1:
        under = n - 1
        return [
            *lines,
            *step,
            _back(sizes, n, p, f"weights.packed[{n}]", below_p),
            f"down(count * padded({sizes[under]}), at.first[{under}], at.second[{under}], at.change[{under}], "
            f"{below_p}, {below_q});",
        ]
    return [
        *lines,
        f"if (out_s) narrow<{sizes[1]}>(count, {q}, out_s);",
        "if (!out_b) return;",
        *step,
        f"narrow<{sizes[0]}>(count, {below_q}, out_b);",
    ]


def _sum_slabs(sizes: Sequence[int], n: int) -> list[str]:
    out, inner = sizes[n], sizes[n - 1]
    return [
        f"narrow<{inner}>({out}, from, out_p), out_p += {out * inner}, from += {out} * padded({inner});",
        f"narrow<{out}>(1, from, out_p), out_p += {out}, from += padded({out});",
    ]
