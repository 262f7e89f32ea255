"""The dense couplings of the reference are kept, and serve a backward pass whoever asked for them first."""

import torch

from sciml_kernels import Spec
from sciml_kernels.trilinear import reference


def test_a_coupling_is_built_once_for_each_dtype() -> None:
    path = Spec.summed("2x1o", "1o", "2x2e").paths[0]
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    with torch.inference_mode():
        first = reference.coupling(path, single)
    assert reference.coupling(path, single) is first
    assert not first.is_inference()
    other = reference.coupling(path, double)
    assert (first.dtype, other.dtype) == (torch.float32, torch.float64)
    assert torch.equal(other.float(), first)
