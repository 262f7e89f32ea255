"""The public operation: checks the arguments, chooses a backend, restores the caller's shape."""

from __future__ import annotations

from torch import Tensor

from sciml_kernels.backends import choose
from sciml_kernels.checks import check_alike, check_device, check_shape, check_type
from sciml_kernels.convolution_radial import library, reference
from sciml_kernels.edges import Edges
from sciml_kernels.trilinear.spec import Spec, flat_rows, shaped_rows


def conv_radial(
    x: Tensor, y: Tensor, h: Tensor, weight: Tensor, edges: Edges, spec: Spec, backend: str = "auto"
) -> Tensor:
    """The convolution with weights h @ weight: conv(x, y, h @ weight, edges, spec), the weights of edges never kept.

    `h` is the last hidden layer of the network of distances, cutoff envelope included, `weight` its last linear map
    (no bias: every weight then vanishes with the envelope). Differentiable twice in x, y, h and weight. On a GPU
    without measured configurations the weights are in memory for one pass: see the README of this folder.

    Args:
        x: node features, (num_senders, components, channels) with equal multiplicities, or flat (num_senders, dim_x).
        y: edge features shared by all channels, (edges, spec.dim_y).
        h: (edges, hidden).
        weight: (hidden, spec.dim_w); its columns are the weights of an edge, path by path. Contiguous is best: another
            layout, such as the transpose of a linear layer's weight, is copied in every pass.
        edges: the edge list, sorted by receiver.
        spec: the operation; y without channels.
        backend: "auto" (compiled where possible), "reference" (plain torch), "cpu" (generated C++), "triton".

    Returns:
        (num_nodes, out components, channels), or flat (num_nodes, spec.dim_out) where x was flat.

    Raises:
        ValueError: an argument of wrong shape, dtype or device, or a backend that is not possible here.
    """
    check_type("spec", spec, Spec)
    check_type("edges", edges, Edges)
    if spec.y_channels:
        raise ValueError("spec: found y with channels, expected edge features that all channels share")
    flat_x = flat_rows("x", x, edges.num_senders, spec.dim_x, spec.channels)
    check_shape("y", y, (edges.num_edges, spec.dim_y))
    check_shape("weight", weight, (None, spec.dim_w))
    check_shape("h", h, (edges.num_edges, weight.shape[0]))
    check_alike("x", x, y=y, h=h, weight=weight)
    check_device("edges", edges.senders, "x", x)
    chosen = choose(backend, x)
    if chosen == "reference" or weight.shape[0] == 0:
        out = reference.conv_radial(flat_x, y, h, weight, edges, spec)
    else:
        tables = edges.tables(chosen, x.requires_grad)
        out = library.conv_radial(flat_x, y, h, weight, *tables, spec.key, chosen)
    return shaped_rows(out, x, spec.dim_out)
