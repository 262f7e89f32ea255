"""From one path of a spec to the arithmetic of any derivative, in expressions that are valid C++ and Python alike.

    F(x, y, w, g) = sum of C[i, j, k] w[c] x[i, c] y[j] g[k, c]

Every order is a gradient of a sum of such terms: the forward pass is dF/dg; the backward pass dF/d{x, y, w}; the double
backward pass the gradient of F(vx, y, w, g) + F(x, vy, w, g) + F(x, y, vw, g), where vx, vy, vw are the gradients that
arrive at dF/dx, dF/dy, dF/dw (a term whose tangent is absent is left out).

The contraction is factored as m[i, k] = sum_j C[i, j, k] y[j]: where y has no channels, this is done once per row.

Names in the expressions: x0, vx1, g2, w0: components read from memory; y_0_2: the matrix m[0, 2] of y; wg2 = w * g[2];
wu2 = (x . m)[2], the part of the output that w multiplies; s_0_2: the gradient of m[0, 2].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from sciml_kernels.spec import Path


@dataclasses.dataclass(frozen=True)
class Term:
    """One F(x, y, w, g): the arrays that stand at its first three places."""

    x: str = "x"
    y: str = "y"
    w: str = "w"


FIRST_ORDER = (Term(),)


def second_order(tangents: str) -> tuple[Term, ...]:
    """The terms of the double backward pass for the tangents present, a subset of "xyw"."""
    terms = {"x": Term(x="vx"), "y": Term(y="vy"), "w": Term(w="vw")}
    return tuple(terms[name] for name in tangents)


def reachable(terms: Iterable[Term], wants: str) -> str:
    """The gradients among `wants` (a subset of "xywg") that are not zero: some term has the variable itself."""
    terms = tuple(terms)
    return "".join(want for want in wants if terms and (want == "g" or any(getattr(t, want) == want for t in terms)))


@dataclasses.dataclass
class Body:
    """The arithmetic of one path.

    Attributes:
        loads: (array, component) -> name, read once per channel (y: once per row where it has no channels).
        matrices: name -> linear combination of y loads.
        channel: name -> expression, in order, per channel.
        sums: (wanted array, component, expression), to be added per channel.
        couplings: name -> expression per channel, the gradient of the matrix of y.
        gradient_y: component j -> linear combination of couplings (summed over channels where y has none).
    """

    loads: dict[tuple[str, int], str] = dataclasses.field(default_factory=dict)
    matrices: dict[str, str] = dataclasses.field(default_factory=dict)
    channel: dict[str, str] = dataclasses.field(default_factory=dict)
    sums: list[tuple[str, int, str]] = dataclasses.field(default_factory=list)
    couplings: dict[str, str] = dataclasses.field(default_factory=dict)
    gradient_y: dict[int, str] = dataclasses.field(default_factory=dict)

    def load(self, array: str, component: int = 0) -> str:
        """Note that this component is read; its name."""
        return self.loads.setdefault((array, component), f"{array}{component}")


def emit(path: Path, terms: tuple[Term, ...], wants: str, suffix: str = "") -> Body:
    """The arithmetic of `path` for the gradients `wants` of the sum of `terms`; `suffix` ends a number ("f" in C++)."""
    body = Body()
    pairs: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for i, j, k, value in path.entries:
        pairs.setdefault((i, k), []).append((j, value))

    def number(value: float) -> str:
        return f"{value!r}{suffix}"

    def matrix(y: str, i: int, k: int) -> str:
        combination = " + ".join(f"{number(value)}*{body.load(y, j)}" for j, value in pairs[i, k])
        body.matrices[f"{y}_{i}_{k}"] = combination
        return f"{y}_{i}_{k}"

    rows, columns = sorted({i for i, _ in pairs}), sorted({k for _, k in pairs})
    _outputs(body, pairs, columns, terms, wants, matrix)
    if "x" in wants or "y" in wants:
        _weighted_gradients(body, columns, terms)
    if "x" in wants:
        for i in rows:
            products = [
                f"{matrix(term.y, i, k)}*{term.w}g{k}"
                for term in terms
                if term.x == "x"
                for k in columns
                if (i, k) in pairs
            ]
            body.sums.append(("x", i, " + ".join(products)))
    if "y" in wants:
        for i, k in pairs:
            products = [f"{body.load(term.x, i)}*{term.w}g{k}" for term in terms if term.y == "y"]
            body.couplings[f"s_{i}_{k}"] = " + ".join(products)
        for j in sorted({j for _, j, _, _ in path.entries}):
            combination = [f"{number(value)}*s_{i}_{k}" for i, jj, k, value in path.entries if jj == j]
            body.gradient_y[j] = " + ".join(combination)
    return body


def _outputs(body, pairs, columns, terms, wants, matrix) -> None:  # type: ignore[no-untyped-def]
    """Gradients to g and w: both need u = x . m, grouped by the weight that multiplies it."""
    weights = [
        name for name in dict.fromkeys(term.w for term in terms) if "g" in wants or ("w" in wants and name == "w")
    ]
    for name in weights:
        for k in columns:
            products = [
                f"{body.load(term.x, i)}*{matrix(term.y, i, k)}"
                for term in terms
                if term.w == name
                for i, kk in pairs
                if kk == k
            ]
            body.channel[f"{name}u{k}"] = " + ".join(products)
    if "g" in wants:
        for k in columns:
            body.sums.append(("g", k, " + ".join(f"{body.load(name)}*{name}u{k}" for name in weights)))
    if "w" in wants:
        body.sums.append(("w", 0, " + ".join(f"{body.load('g', k)}*wu{k}" for k in columns)))


def _weighted_gradients(body: Body, columns: list[int], terms: tuple[Term, ...]) -> None:
    for name in dict.fromkeys(term.w for term in terms):
        for k in columns:
            body.channel[f"{name}g{k}"] = f"{body.load(name)}*{body.load('g', k)}"
