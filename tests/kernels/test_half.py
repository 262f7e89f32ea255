"""Half precision of the definitions: as in single precision on the same numbers, rounded once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sciml_kernels
from tests.kernels.operations import OPERATIONS, random_tensors


def value_and_gradients(operation: str, dtype: torch.dtype) -> list[Tensor]:
    """Outputs of the definition, and the gradients of their sum in single precision."""
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in random_tensors(operation).items()}
    leaves = [tensor.requires_grad_() for tensor in tensors.values() if tensor.is_floating_point()]
    found = getattr(sciml_kernels, operation)(**tensors, **OPERATIONS[operation][1], backend="reference")
    outputs = [found] if isinstance(found, Tensor) else list(found)
    total = torch.stack([output.float().sum() for output in outputs]).sum()
    return [*outputs, *torch.autograd.grad(total, leaves, materialize_grads=True)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_rounded_once(operation: str, dtype: torch.dtype) -> None:
    half, single = (value_and_gradients(operation, number) for number in (dtype, torch.float32))
    for rough, exact in zip(half, single, strict=True):
        assert rough.dtype == dtype
        assert exact.isfinite().all()
        torch.testing.assert_close(rough, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
