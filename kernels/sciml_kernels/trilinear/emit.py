"""From one path of a spec to the arithmetic of any derivative, in expressions that are valid C++ and Python alike.

    F(x, y, w, g) = sum of C[i, j, k] w[c] x[i, c] y[j] g[k, c]

Every order is a gradient of a sum of such terms: the forward pass is dF/dg; the backward pass dF/d{x, y, w}; the double
backward pass the gradient of F(vx, y, w, g) + F(x, vy, w, g) + F(x, y, vw, g), where vx, vy, vw are the gradients that
arrive at dF/dx, dF/dy, dF/dw (a term whose tangent is absent is left out). Where weights are themselves computed, the
gradient to vw is wanted too: it is asked for as "v".

The contraction is factored as m[i, k] = sum_j C[i, j, k] y[j]: where y has no channels, this is done once per row.

Steps are ordered by output component k, so that few values are alive at a time. Names in the expressions: x0, vx1, g2,
w0 are read from memory; y_0_2 is the matrix m[0, 2] of y; wu2 = (x . m)[2], which w multiplies; wg2 = w * g[2]; s_0_2
is the gradient of m[0, 2]; dx1, dw0 and dvw0 collect gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal, NamedTuple

from sciml_kernels.trilinear.spec import Path


class Term(NamedTuple):
    """One F(x, y, w, g): the arrays that stand at its first three places."""

    x: str = "x"
    y: str = "y"
    w: str = "w"


FIRST_ORDER = (Term(),)

# The weights that a letter of `wants` asks the gradient to.
WEIGHTS = {"w": "w", "v": "vw"}


def second_order(tangents: str) -> tuple[Term, ...]:
    """The terms of the double backward pass for the tangents present, a subset of "xyw"."""
    terms = {"x": Term(x="vx"), "y": Term(y="vy"), "w": Term(w="vw")}
    return tuple(terms[name] for name in tangents)


# The three passes in full: their terms, and the gradients that are wanted.
PASSES = {
    "forward": (FIRST_ORDER, "g"),
    "backward": (FIRST_ORDER, "xyw"),
    "double": (second_order("xyw"), "xywg"),
}


def reachable(terms: Iterable[Term], wants: str) -> str:
    """The gradients among `wants` that are not zero, since some term has the variable itself, in the order "xywg".

    One order for all: the kernels of a pass, and its measured configuration, are found by these letters.
    """
    terms = tuple(terms)
    there = (want for want in "xywg" if want in wants)
    return "".join(want for want in there if terms and (want == "g" or any(getattr(t, want) == want for t in terms)))


@dataclasses.dataclass(frozen=True)
class Step:
    """One statement.

    Kinds: "load", name = array[component]; "matrix", name = expression in y; "let", name = expression; "sum",
    name += expression within one channel; "couple", the same for the gradient of a matrix, over all channels that share
    it; "add" and "put", array[component] += or = expression.
    """

    kind: Literal["load", "matrix", "let", "sum", "couple", "add", "put"]
    name: str
    expression: str = ""
    component: int = 0


def emit(path: Path, terms: tuple[Term, ...], wants: str, suffix: str = "") -> list[Step]:
    """The arithmetic of `path` for the gradients `wants` of the sum of `terms`; `suffix` ends a number ("f" in C++)."""
    return _Emitter(path, terms, wants, suffix).steps


class _Emitter:
    def __init__(self, path: Path, terms: tuple[Term, ...], wants: str, suffix: str) -> None:
        self.steps: list[Step] = []
        self.defined: set[str] = set()
        self.terms, self.wants, self.suffix = terms, wants, suffix
        self.weights = list(dict.fromkeys(term.w for term in terms))
        self.weight_wants = {want: weight for want, weight in WEIGHTS.items() if want in wants}
        self.pairs: dict[tuple[int, int], list[tuple[int, float]]] = {}
        for i, j, k, value in path.entries:
            self.pairs.setdefault((i, k), []).append((j, value))
        for k in sorted({k for _, k in self.pairs}):
            self._component([i for i, kk in self.pairs if kk == k], k)
        if "x" in wants:
            self.steps += [Step("add", "out_x", f"dx{i}", i) for i in sorted({i for i, _ in self.pairs})]
        self.steps += [Step("put", f"out_{want}", f"d{weight}0") for want, weight in self.weight_wants.items()]
        if "y" in wants:
            self._gradient_y(path)

    def _component(self, rows: list[int], k: int) -> None:
        """Everything that output component k contributes."""
        outputs = {}
        for weight in self.weights:
            if "g" in self.wants or weight in self.weight_wants.values():
                outputs[weight] = self._define("let", f"{weight}u{k}", self._output(weight, rows, k))
        if "g" in self.wants:
            total = " + ".join(f"{self._load(weight)}*{name}" for weight, name in outputs.items())
            self.steps.append(Step("add", "out_g", total, k))
        for weight in self.weight_wants.values():
            self.steps.append(Step("sum", f"d{weight}0", f"{self._load('g', k)}*{outputs[weight]}"))
        if "x" not in self.wants and "y" not in self.wants:
            return
        weighted = {
            weight: self._define("let", f"{weight}g{k}", f"{self._load(weight)}*{self._load('g', k)}")
            for weight in self.weights
        }
        for i in rows:
            if "x" in self.wants:
                products = [f"{self._matrix(t.y, i, k)}*{weighted[t.w]}" for t in self.terms if t.x == "x"]
                self.steps.append(Step("sum", f"dx{i}", " + ".join(products)))
            if "y" in self.wants:
                products = [f"{self._load(t.x, i)}*{weighted[t.w]}" for t in self.terms if t.y == "y"]
                self.steps.append(Step("couple", f"s_{i}_{k}", " + ".join(products)))

    def _output(self, weight: str, rows: list[int], k: int) -> str:
        terms = [term for term in self.terms if term.w == weight]
        return " + ".join(f"{self._load(t.x, i)}*{self._matrix(t.y, i, k)}" for t in terms for i in rows)

    def _gradient_y(self, path: Path) -> None:
        for component in sorted({j for _, j, _, _ in path.entries}):
            parts = [f"{self._number(value)}*s_{i}_{k}" for i, j, k, value in path.entries if j == component]
            self.steps.append(Step("add", "out_y", " + ".join(parts), component))

    def _matrix(self, y: str, i: int, k: int) -> str:
        parts = [f"{self._number(value)}*{self._load(y, j)}" for j, value in self.pairs[i, k]]
        return self._define("matrix", f"{y}_{i}_{k}", " + ".join(parts))

    def _load(self, array: str, component: int = 0) -> str:
        name = f"{array}{component}"
        if name not in self.defined:
            self.defined.add(name)
            self.steps.append(Step("load", name, array, component))
        return name

    def _define(self, kind: Literal["let", "matrix"], name: str, expression: str) -> str:
        """The name of this expression, defined at its first use."""
        if name not in self.defined:
            self.defined.add(name)
            self.steps.append(Step(kind, name, expression))
        return name

    def _number(self, value: float) -> str:
        return f"{value!r}{self.suffix}"
