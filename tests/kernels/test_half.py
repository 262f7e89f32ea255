"""Half precision of the definitions, and on Triton: as in single precision on the same numbers, rounded once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sciml_kernels
from tests.kernels.interpreted import interpreted
from tests.kernels.operations import OPERATIONS, random_tensors

# Of these Triton's kernels are only a part.
IN_PARTS = (
    "symmetric_contraction", "coulomb_pairs", "remove_net_force", "remove_net_force_and_torque", "project_charge",
    "ewald_reciprocal_energy",
)  # fmt: skip


def value_and_gradients(operation: str, dtype: torch.dtype, backend: str = "reference") -> list[Tensor]:
    """Outputs, and the gradients of their sum in single precision."""
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in random_tensors(operation).items()}
    leaves = [tensor.requires_grad_() for tensor in tensors.values() if tensor.is_floating_point()]
    found = getattr(sciml_kernels, operation)(**tensors, **OPERATIONS[operation][1], backend=backend)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    total = torch.stack([output.float().sum() for output in outputs]).sum()
    return [*outputs, *torch.autograd.grad(total, leaves, materialize_grads=True)]


def check(operation: str, dtype: torch.dtype, backend: str) -> None:
    half, single = value_and_gradients(operation, dtype, backend), value_and_gradients(operation, torch.float32)
    for rough, exact in zip(half, single, strict=True):
        assert rough.dtype == dtype
        assert exact.isfinite().all()
        torch.testing.assert_close(rough, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_rounded_once(operation: str, dtype: torch.dtype) -> None:
    check(operation, dtype, "reference")


@pytest.mark.parametrize("operation", IN_PARTS)
@interpreted
def test_rounded_once_in_triton(operation: str) -> None:
    check(operation, torch.bfloat16, "triton")
