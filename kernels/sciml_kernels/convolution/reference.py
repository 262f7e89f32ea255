"""The definition of the convolution in plain torch: any dtype, any order of derivative by autograd."""

from __future__ import annotations

from torch import Tensor

from sciml_kernels.edges import Edges
from sciml_kernels.half import in_single
from sciml_kernels.trilinear.reference import contract
from sciml_kernels.trilinear.spec import Spec


@in_single
def conv(x: Tensor, y: Tensor, w: Tensor, edges: Edges, spec: Spec) -> Tensor:
    """Gather flat x at the senders, contract with flat y and w of every edge, sum at the receivers."""
    messages = contract(x[edges.senders], y, w, spec)
    return messages.new_zeros(edges.num_nodes, spec.dim_out).index_add(0, edges.receivers, messages)
