"""The Triton backend: kernels with the radial layer inside where they serve, else the weights of edges for one pass.

The other way computes w = h W by a matrix product in each pass, hands it to the Triton kernels of the convolution, and
drops it. Nothing of its size is kept from one pass to the next.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sciml_kernels.convolution_radial import fused
from sciml_kernels.convolution_radial.passes import Pass
from sciml_kernels.edges import Tables
from sciml_kernels.trilinear import gpu, tuned
from sciml_kernels.trilinear.emit import FIRST_ORDER


def launch(key: str, arrays: Mapping[str, Tensor], tables: Tables, tangents: str, wants: str) -> dict[str, Tensor]:
    """The gradients `wants` of a pass (see `passes.Pass`); arguments as of `cpu.launch`."""
    h, matrix, pointers = arrays["h"], arrays["W"], tables.pointers
    nodes = 0 if pointers is None else pointers.shape[0] - 1
    gpu_name = tuned.name_of(h.device if h.is_cuda else None)
    served = fused.serves(gpu_name, h.dtype, matrix.shape[0], nodes, h.shape[0], Pass(tangents, wants))
    return (fused.launch if served else unfused)(key, arrays, tables, tangents, wants)


def unfused(key: str, arrays: Mapping[str, Tensor], tables: Tables, tangents: str, wants: str) -> dict[str, Tensor]:
    """The same with the weights in memory."""
    plan = Pass(tangents, wants)
    dense = {name: arrays[name] for name in ("x", "y", "g", "vx", "vy") if name in arrays}
    dense["w"] = arrays["h"] @ arrays["W"]
    if any(term.w == "vw" for term in plan.terms):
        dense["vw"] = _sum([arrays[rows] @ arrays[matrix] for rows, matrix in plan.products_of_tangent])
    direct = plan.trilinear_wants.replace("v", "")
    found = gpu.launch(key, dense, tables, plan.terms, direct) if direct else {}
    if "v" in plan.trilinear_wants:  # the gradient to vw is the first-order one to w
        found["v"] = gpu.launch(key, dense, tables, FIRST_ORDER, "w")["w"]
    if "h" in wants:
        found["h"] = _sum([found[gradient] @ arrays[matrix].T for gradient, matrix in plan.products_of_h])
    if "W" in wants:
        found["W"] = _sum([arrays[rows].T @ found[gradient] for gradient, rows in plan.products_of_matrix])
    return {want: found[want] for want in wants}


def _sum(products: list[Tensor]) -> Tensor:
    total = products[0]
    for product in products[1:]:
        total = total + product
    return total
