"""The definition of the pair interaction in plain torch: any dtype, any order of derivative by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from sciml_kernels.half import in_single

TINY = 1e-12
"""Added to squared distances: charges in one place have derivatives."""


@in_single
def coulomb_pairs(
    positions: Tensor, receivers: Tensor, senders: Tensor, offsets: Tensor, splittings: Tensor, smearing: float
) -> Tensor:
    """[erf(r / 2 smearing) - erf(splitting r)] / r, (P, 1), with r = |position of sender - of receiver + offset|."""
    vectors = positions[senders] - positions[receivers] + offsets
    distance = (vectors.square().sum(dim=1, keepdim=True) + TINY).sqrt()
    return (torch.erf(distance / (2 * smearing)) - torch.erf(splittings * distance)) / distance
