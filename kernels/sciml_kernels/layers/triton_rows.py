"""Triton kernels of the norm, the gate and SiLU: row-wise, nothing is shared between programs.

ROW, CHANNELS and DEGREES are sizes of the layer, never of a batch, and EPS is fixed. Imported only where Triton is.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl


@triton.jit
def _balance(i, CHANNELS: tl.constexpr, DEGREES: tl.constexpr, REAL: tl.constexpr):
    """The weight of flat element i of a node in the mean square: every degree has the same say."""
    component = (i // CHANNELS).to(tl.float32)
    degree = tl.floor(tl.sqrt(component + 0.5)).to(REAL)  # the half keeps squares clear of rounding
    return 1.0 / ((2.0 * degree + 1.0) * (DEGREES * CHANNELS))


@triton.jit
def _read(p, row, i, ROW: tl.constexpr, REAL: tl.constexpr):
    return tl.load(p + row * ROW + i, mask=i < ROW, other=0).to(REAL)


@triton.jit
def norm(
    x, out, ROW: tl.constexpr, CHANNELS: tl.constexpr, DEGREES: tl.constexpr, REAL: tl.constexpr,
    BLOCK: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """out = s x, s = (x.x + eps)^(-1/2) with the balanced product; a program is a node."""
    row = tl.program_id(0).to(tl.int64)
    square = tl.zeros([BLOCK], REAL)
    for begin in range(0, ROW, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        value = _read(x, row, i, ROW, REAL)
        square += value * value * _balance(i, CHANNELS, DEGREES, REAL)
    s = 1.0 / tl.sqrt(tl.sum(square) + EPS)
    for begin in range(0, ROW, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        tl.store(out + row * ROW + i, s * _read(x, row, i, ROW, REAL), mask=i < ROW)


@triton.jit
def norm_gradient(
    g, x, out, ROW: tl.constexpr, CHANNELS: tl.constexpr, DEGREES: tl.constexpr, REAL: tl.constexpr,
    BLOCK: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """out = s g - s^3 (g x) balance x."""
    row = tl.program_id(0).to(tl.int64)
    square = tl.zeros([BLOCK], REAL)
    along = tl.zeros([BLOCK], REAL)
    for begin in range(0, ROW, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        value = _read(x, row, i, ROW, REAL)
        square += value * value * _balance(i, CHANNELS, DEGREES, REAL)
        along += value * _read(g, row, i, ROW, REAL)
    s = 1.0 / tl.sqrt(tl.sum(square) + EPS)
    factor = s * s * s * tl.sum(along)
    for begin in range(0, ROW, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        weight = _balance(i, CHANNELS, DEGREES, REAL)
        value = s * _read(g, row, i, ROW, REAL) - factor * weight * _read(x, row, i, ROW, REAL)
        tl.store(out + row * ROW + i, value, mask=i < ROW)


@triton.jit
def norm_second(
    v, g, x, before, to_g, to_x, ROW: tl.constexpr, CHANNELS: tl.constexpr, DEGREES: tl.constexpr,
    REAL: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr, WANT_G: tl.constexpr, WANT_X: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    """Gradients of v . norm_gradient(g, x): to g (which needs no g), and to x, with `before` added where ADD."""
    row = tl.program_id(0).to(tl.int64)
    square = tl.zeros([BLOCK], REAL)
    xv = tl.zeros([BLOCK], REAL)
    gx = tl.zeros([BLOCK], REAL)
    vg = tl.zeros([BLOCK], REAL)
    for begin in range(0, ROW, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        value = _read(x, row, i, ROW, REAL)
        change = _read(v, row, i, ROW, REAL)
        balanced = value * _balance(i, CHANNELS, DEGREES, REAL)
        square += value * balanced
        xv += change * balanced
        if WANT_X:
            incoming = _read(g, row, i, ROW, REAL)
            gx += incoming * value
            vg += incoming * change
    s = 1.0 / tl.sqrt(tl.sum(square) + EPS)
    cube = s * s * s
    along = tl.sum(xv)
    across = tl.sum(gx)
    for begin in range(0, ROW, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        value = _read(x, row, i, ROW, REAL)
        change = _read(v, row, i, ROW, REAL)
        if WANT_G:
            tl.store(to_g + row * ROW + i, s * change - cube * along * value, mask=i < ROW)
        if WANT_X:
            balanced = (3.0 * cube * s * s * across * along - cube * tl.sum(vg)) * value - cube * across * change
            sum = _balance(i, CHANNELS, DEGREES, REAL) * balanced - cube * along * _read(g, row, i, ROW, REAL)
            if ADD:
                sum += _read(before, row, i, ROW, REAL)
            tl.store(to_x + row * ROW + i, sum, mask=i < ROW)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit(do_not_specialize=["count"])
def silu(x, out, count: tl.int64, REAL: tl.constexpr, BLOCK: tl.constexpr):
    """out = x sigmoid(x)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < count, other=0).to(REAL)
    tl.store(out + i, value * _sigmoid(value), mask=i < count)


@triton.jit
def _silu_first(x):
    t = _sigmoid(x)
    return t + x * t * (1.0 - t)


@triton.jit
def _silu_second(x):
    t = _sigmoid(x)
    first = t * (1.0 - t)
    return 2.0 * first + x * first * (1.0 - 2.0 * t)


@triton.jit(do_not_specialize=["count"])
def silu_gradient(g, x, out, count: tl.int64, REAL: tl.constexpr, BLOCK: tl.constexpr):
    """out = g silu'(x)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < count, other=0).to(REAL)
    incoming = tl.load(g + i, mask=i < count, other=0).to(REAL)
    tl.store(out + i, incoming * _silu_first(value), mask=i < count)


@triton.jit(do_not_specialize=["count"])
def silu_second(v, g, x, to_g, to_x, count: tl.int64, REAL: tl.constexpr, BLOCK: tl.constexpr):
    """to_g = v silu'(x), to_x = v g silu''(x)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < count, other=0).to(REAL)
    change = tl.load(v + i, mask=i < count, other=0).to(REAL)
    incoming = tl.load(g + i, mask=i < count, other=0).to(REAL)
    tl.store(to_g + i, change * _silu_first(value), mask=i < count)
    tl.store(to_x + i, change * incoming * _silu_second(value), mask=i < count)


@triton.jit
def gate(x, gates, out, CHANNELS: tl.constexpr, DEGREES: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr):
    """SiLU of the invariants, the others times the sigmoid of their gate; a program has BLOCK channels of a node."""
    node = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = c < CHANNELS
    row = node * DEGREES * DEGREES * CHANNELS + c
    value = tl.load(x + row, mask=live, other=0).to(REAL)
    tl.store(out + row, value * _sigmoid(value), mask=live)
    for degree in range(1, DEGREES):
        t = _sigmoid(tl.load(gates + (node * (DEGREES - 1) + degree - 1) * CHANNELS + c, mask=live, other=0).to(REAL))
        for component in range(degree * degree, (degree + 1) * (degree + 1)):
            at = row + component * CHANNELS
            tl.store(out + at, t * tl.load(x + at, mask=live, other=0).to(REAL), mask=live)


@triton.jit
def gate_gradient(
    g, x, gates, to_x, to_gates, CHANNELS: tl.constexpr, DEGREES: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr
):
    """Gradients to x and the gates."""
    node = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = c < CHANNELS
    row = node * DEGREES * DEGREES * CHANNELS + c
    value = tl.load(x + row, mask=live, other=0).to(REAL)
    tl.store(to_x + row, tl.load(g + row, mask=live, other=0).to(REAL) * _silu_first(value), mask=live)
    for degree in range(1, DEGREES):
        own = (node * (DEGREES - 1) + degree - 1) * CHANNELS + c
        t = _sigmoid(tl.load(gates + own, mask=live, other=0).to(REAL))
        gx = tl.zeros([BLOCK], REAL)
        for component in range(degree * degree, (degree + 1) * (degree + 1)):
            at = row + component * CHANNELS
            incoming = tl.load(g + at, mask=live, other=0).to(REAL)
            gx += incoming * tl.load(x + at, mask=live, other=0).to(REAL)
            tl.store(to_x + at, t * incoming, mask=live)
        tl.store(to_gates + own, t * (1.0 - t) * gx, mask=live)


@triton.jit
def gate_second(
    vx, vgates, g, x, gates, to_g, to_x, to_gates, CHANNELS: tl.constexpr, DEGREES: tl.constexpr, REAL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of vx . to_x + vgates . to_gates of `gate_gradient`."""
    node = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = c < CHANNELS
    row = node * DEGREES * DEGREES * CHANNELS + c
    value = tl.load(x + row, mask=live, other=0).to(REAL)
    change = tl.load(vx + row, mask=live, other=0).to(REAL)
    incoming = tl.load(g + row, mask=live, other=0).to(REAL)
    tl.store(to_g + row, change * _silu_first(value), mask=live)
    tl.store(to_x + row, change * incoming * _silu_second(value), mask=live)
    for degree in range(1, DEGREES):
        own = (node * (DEGREES - 1) + degree - 1) * CHANNELS + c
        t = _sigmoid(tl.load(gates + own, mask=live, other=0).to(REAL))
        first = t * (1.0 - t)
        turned = tl.load(vgates + own, mask=live, other=0).to(REAL)
        gv = tl.zeros([BLOCK], REAL)
        gx = tl.zeros([BLOCK], REAL)
        for component in range(degree * degree, (degree + 1) * (degree + 1)):
            at = row + component * CHANNELS
            value = tl.load(x + at, mask=live, other=0).to(REAL)
            change = tl.load(vx + at, mask=live, other=0).to(REAL)
            incoming = tl.load(g + at, mask=live, other=0).to(REAL)
            tl.store(to_g + at, t * change + first * turned * value, mask=live)
            tl.store(to_x + at, first * turned * incoming, mask=live)
            gv += incoming * change
            gx += incoming * value
        tl.store(to_gates + own, first * gv + first * (1.0 - 2.0 * t) * turned * gx, mask=live)
