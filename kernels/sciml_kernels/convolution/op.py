"""The public convolution: checks the arguments, chooses a backend, restores the caller's shape."""

from __future__ import annotations

from torch import Tensor

from sciml_kernels.backends import choose
from sciml_kernels.checks import check_alike, check_device, check_type
from sciml_kernels.convolution import reference
from sciml_kernels.edges import Edges
from sciml_kernels.trilinear.library import trilinear
from sciml_kernels.trilinear.spec import Spec, flat_rows, shaped_rows


def conv(x: Tensor, y: Tensor, w: Tensor, edges: Edges, spec: Spec, backend: str = "auto") -> Tensor:
    """Equivariant convolution: out[n] = sum over edges e into n of  C w[e] x[sender(e)] y[e], differentiable twice.

    Args:
        x: node features, (num_senders, components, channels) with equal multiplicities, or flat (num_senders, dim_x).
        y: edge features, (edges, spec.dim_y); with y channels also (edges, components, channels).
        w: edge weights, (edges, paths, channels) or flat (edges, spec.dim_w).
        edges: the edge list, sorted by receiver.
        spec: the operation.
        backend: "auto" (compiled where possible), "reference" (plain torch), "cpu" (generated C++), "triton".

    Returns:
        (num_nodes, out components, channels), or flat (num_nodes, spec.dim_out) where x was flat.

    Raises:
        ValueError: an argument of wrong shape, dtype or device, or a backend that is not possible here.
    """
    check_type("spec", spec, Spec)
    check_type("edges", edges, Edges)
    rows = edges.num_edges
    flat_x = flat_rows("x", x, edges.num_senders, spec.dim_x, spec.channels)
    flat_y = flat_rows("y", y, rows, spec.dim_y, spec.channels if spec.y_channels else None)
    flat_w = flat_rows("w", w, rows, spec.dim_w, spec.channels)
    check_alike("x", x, y=y, w=w)
    check_device("edges", edges.senders, "x", x)
    chosen = choose(backend, x)
    if chosen == "reference":
        out = reference.conv(flat_x, flat_y, flat_w, edges, spec)
    else:
        out = trilinear(flat_x, flat_y, flat_w, *edges.tables(chosen, x.requires_grad), spec.key, chosen)
    return shaped_rows(out, x, spec.dim_out)
