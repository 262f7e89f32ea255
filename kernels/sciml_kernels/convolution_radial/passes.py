"""What a pass computes: its arrays, the terms of the trilinear generator, and the matrix products around them.

With w = h W the convolution is F(x, y, w, g) of `sciml_kernels.trilinear.emit`. Letters name the sides: x, y, h, W, g.
The first order adds gh = gw W^T and gW = h^T gw to the gradients of F. The second order has the tangent
vw = vh W + h vW; with gw the gradient of all terms to w, and gv that to vw,

    gh = gw W^T + gv vW^T,    gW = h^T gw + vh^T gv.
"""

from __future__ import annotations

import dataclasses

from sciml_kernels.trilinear.emit import FIRST_ORDER, Step, Term, emit, second_order
from sciml_kernels.trilinear.spec import Path

# The passes of a loss on forces: the tangents that arrive, and the gradients that are wanted.
PASSES = {"forward": ("", "g"), "backward": ("", "xyh"), "double": ("xyh", "xyhWg")}

# The tangents of which a gradient of the second order is a function.
_SOURCES = {"x": "yhW", "y": "xhW", "h": "xyW", "W": "xyh", "g": "xyhW"}


def reachable(tangents: str, wants: str) -> str:
    """The gradients among `wants` that the tangents present do not leave zero, in the order "xyhWg", as `PASSES`."""
    return "".join(want for want in "xyhWg" if want in wants and set(tangents) & set(_SOURCES[want]))


@dataclasses.dataclass(frozen=True)
class Pass:
    """One compiled call: gradients of F (no tangents: forward and backward), or of the second order.

    Attributes:
        tangents: those present, a subset of "xyhW".
        wants: the gradients computed, a subset of "xyhWg", each one reachable.
    """

    tangents: str
    wants: str

    @property
    def order(self) -> str:
        """Which of the three passes of a loss on forces this is like."""
        return "double" if self.tangents else "forward" if self.wants == "g" else "backward"

    @property
    def terms(self) -> tuple[Term, ...]:
        """Of the trilinear generator."""
        if not self.tangents:
            return FIRST_ORDER
        of_weights = "h" in self.tangents or "W" in self.tangents
        return second_order("".join(name for name in "xy" if name in self.tangents) + "w" * of_weights)

    @property
    def trilinear_wants(self) -> str:
        """What the trilinear generator is asked for: x, y, g as they are, w and v where a matrix product follows."""
        followed = {gradient for gradient, _ in (*self.products_of_h, *self.products_of_matrix)}
        return "".join(name for name in "xyg" if name in self.wants) + "".join(sorted(followed, reverse=True))

    def steps(self, path: Path) -> list[Step]:
        """The coupling of a path in a fused kernel."""
        return _spread(emit(path, self.terms, self.trilinear_wants))

    @property
    def reads(self) -> list[str]:
        """The arrays read, in the order of the compiled function's arguments."""
        forward = self.wants == "g" and not self.tangents
        return ["x", "y", "h", "W", *([] if forward else ["g"]), *("v" + name for name in self.tangents)]

    @property
    def writes(self) -> list[str]:
        """The arrays written, in the order of the arguments."""
        return [f"out_{want}" for want in self.wants]

    @property
    def products_of_tangent(self) -> list[tuple[str, str]]:
        """The rows and matrices whose products sum to vw."""
        return [("vh", "W")] * ("h" in self.tangents) + [("h", "vW")] * ("W" in self.tangents)

    @property
    def products_of_weights(self) -> dict[str, list[tuple[str, str]]]:
        """What sums to w and to vw, where those are read."""
        if not set(self.wants) & set("xyg"):
            return {}
        sums = {"w": [("h", "W")], "vw": self.products_of_tangent}
        used = {term.w for term in self.terms}
        return {name: products for name, products in sums.items() if name in used}

    @property
    def products_of_h(self) -> list[tuple[str, str]]:
        """What sums to the gradient to h: a gradient of weights ("w" or "v") and the matrix that is transposed."""
        if "h" not in self.wants:
            return []
        return [("w", "W")] * self._of_w + [("v", "vW")] * ("W" in self.tangents)

    @property
    def products_of_matrix(self) -> list[tuple[str, str]]:
        """What sums to the gradient to W: a gradient of weights and the rows that are transposed."""
        if "W" not in self.wants:
            return []
        return [("w", "h")] * self._of_w + [("v", "vh")] * ("h" in self.tangents)

    @property
    def _of_w(self) -> bool:
        return any(term.w == "w" for term in self.terms)


def _spread(steps: list[Step]) -> list[Step]:
    """The same with the gradient to y added to as soon as an entry of the gradient of its matrix is known.

    Where edges lie along an axis of the values, a sum over channels comes after the path: nothing is gained by keeping
    that matrix, which is as many values as it has entries.
    """
    uses: dict[str, list[Step]] = {}
    kept = []
    for step in steps:
        if (step.kind, step.name) == ("add", "out_y"):
            for product in step.expression.split(" + "):
                uses.setdefault(product.partition("*")[2], []).append(dataclasses.replace(step, expression=product))
        else:
            kept.append(step)
    return [later for step in kept for later in (step, *(uses.get(step.name, []) if step.kind == "couple" else []))]
