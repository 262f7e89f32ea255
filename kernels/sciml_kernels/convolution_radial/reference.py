"""The definition in plain torch: any dtype, any order of derivative by autograd."""

from __future__ import annotations

from torch import Tensor

from sciml_kernels.convolution import reference
from sciml_kernels.edges import Edges
from sciml_kernels.half import in_single
from sciml_kernels.trilinear.spec import Spec


@in_single
def conv_radial(x: Tensor, y: Tensor, h: Tensor, weight: Tensor, edges: Edges, spec: Spec) -> Tensor:
    """The convolution of flat x and y with the weights h @ weight of every edge."""
    return reference.conv(x, y, h @ weight, edges, spec)
