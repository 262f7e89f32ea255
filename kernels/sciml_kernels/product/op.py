"""The public product: checks the arguments, chooses a backend, restores the caller's shape."""

from __future__ import annotations

from torch import Tensor

from sciml_kernels.backends import choose
from sciml_kernels.checks import check_alike, check_type
from sciml_kernels.edges import Tables
from sciml_kernels.trilinear.library import trilinear
from sciml_kernels.trilinear.reference import contract
from sciml_kernels.trilinear.spec import Spec, flat_rows, rows_of, shaped_rows


def product(x: Tensor, y: Tensor, w: Tensor, spec: Spec, backend: str = "auto") -> Tensor:
    """Node-wise product of x and y with weights per node: out[n] = C w[n] x[n] y[n], differentiable twice.

    Two chained calls give a many-body product of correlation 3. Arguments, shapes and errors as for `conv`, with one
    row per node everywhere; the definition is `sciml_kernels.trilinear.reference.contract`.
    """
    check_type("spec", spec, Spec)
    rows = rows_of("x", x)
    flat_x = flat_rows("x", x, rows, spec.dim_x, spec.channels)
    flat_y = flat_rows("y", y, rows, spec.dim_y, spec.channels if spec.y_channels else None)
    flat_w = flat_rows("w", w, rows, spec.dim_w, spec.channels)
    check_alike("x", x, y=y, w=w)
    chosen = choose(backend, x)
    if chosen == "reference":
        out = contract(flat_x, flat_y, flat_w, spec)
    else:
        out = trilinear(flat_x, flat_y, flat_w, *Tables(), spec.key, chosen)
    return shaped_rows(out, x, spec.dim_out)
