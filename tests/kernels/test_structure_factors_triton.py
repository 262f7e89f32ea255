"""The Triton kernels of structure factors: interpreted against their definition, and compiled ahead of time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sciml_kernels import aot, ewald_reciprocal_energy, half_space, structure_factors
from tests.kernels.interpreted import interpreted
from tests.kernels.test_layers import random
from tests.kernels.test_layers_triton import compare

# A ragged second block, no atoms, no waves, one of each.
ATOMS, WAVES = torch.tensor([0, 34, 34, 36, 37]), torch.tensor([0, 3, 4, 4, 5])


def function(*leaves: Tensor, backend: str) -> Tensor:
    return structure_factors(*leaves, ATOMS, WAVES, backend)


def arguments(channels: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = ((37, 3), (37, channels), (5, 3))
    return [random(*shape, seed=seed).to(dtype) for seed, shape in enumerate(shapes)]


@interpreted
def test_everything_equals_the_definition() -> None:
    compare(function, arguments(2))
    compare(function, arguments(33), (0, 1))
    compare(function, arguments(2, torch.float32), tolerance=1e-4)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2)])
@interpreted
def test_partial_gradients(wanted: tuple[int, ...]) -> None:
    compare(function, arguments(1), wanted)


@interpreted
def test_the_reciprocal_energy() -> None:
    """Of two systems, with its derivatives to positions, charges and cells."""
    cell = 4.0 * torch.eye(3, dtype=torch.float64) + 0.2 * random(2, 3, 3, seed=7)
    ends, waves = torch.tensor([0, 2, 5]), half_space(cell, 2.0)

    def energy(*leaves: Tensor, backend: str) -> Tensor:
        return ewald_reciprocal_energy(*leaves, ends, waves, 0.5, backend)

    compare(energy, [random(5, 3), random(5, 2, seed=1), cell], tolerance=1e-10)


@interpreted
def test_half_precision_is_computed_in_single() -> None:
    given = arguments(2, torch.bfloat16)
    found = function(*given, backend="triton")
    exact = function(*(tensor.double() for tensor in given), backend="reference")
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-4)  # rounded once, after the sum


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@interpreted
def test_nan_and_inf_stay_in_their_system(bad: float) -> None:
    positions, *rest = arguments(1)
    positions[36] = bad  # the last system has this atom and the last wave
    out = function(positions, *rest, backend="triton").flatten(1)
    assert not out[4].isfinite().any()
    assert out[:4].isfinite().all()


@interpreted
def test_opcheck() -> None:
    given, ends = [tensor.requires_grad_() for tensor in arguments(1)], (ATOMS, WAVES, "triton")
    operators, g = torch.ops.sciml_kernels, random(5, 2, 1).requires_grad_()
    torch.library.opcheck(operators.structure_factors.default, (*given, *ends))
    torch.library.opcheck(operators.structure_factors_backward.default, (g, *given, *ends, "rqk"))


@interpreted
def test_empty() -> None:
    ends = torch.zeros(3, dtype=torch.int64)

    def nothing(*leaves: Tensor, backend: str) -> Tensor:
        return structure_factors(*leaves, ends, ends, backend)

    compare(nothing, [random(0, 3), random(0, 2), random(0, 3)])


def kernels(channels: int, dtype: torch.dtype) -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """Every kernel with its signature and constants: forward and backward, and all that a second order can need."""
    from sciml_kernels.structure_factors import gpu, triton_pairs

    sizes, kind = gpu.constants(channels, dtype), {torch.float32: "*fp32", torch.float64: "*fp64"}[dtype]
    still, moved = {"MOVED": False, "OTHER_MOVED": False}, {"MOVED": True, "OTHER_MOVED": True}
    parts = {"ROW_PARTS": 1, "OTHER_PARTS": 2}
    found = [
        (triton_pairs.waves, {"PLAIN": True, "TURNED": False, **still}),
        (triton_pairs.waves, {"PLAIN": True, "TURNED": True, **moved}),
        (triton_pairs.charges, still),
        (triton_pairs.charges, moved),
        (triton_pairs.points, {"PLAIN": True, "TURNED": False, **still, **parts}),
        (triton_pairs.points, {"PLAIN": True, "TURNED": True, **moved, **parts}),
    ]
    return [
        (
            kernel,
            {
                name: "*i64" if name == "table" else kind
                for name, parameter in zip(kernel.arg_names, kernel.params, strict=True)
                if not parameter.is_constexpr
            },
            {**flags, **sizes},
        )
        for kernel, flags in found
    ]


def assert_compiles(channels: int, dtype: torch.dtype, target: str) -> None:
    for kernel, types, constants in kernels(channels, dtype):
        found = aot.report(kernel, types, constants, target)
        assert found.spills == 0, (kernel.__name__, found)
        assert found.seconds < 10.0, (kernel.__name__, found)


@pytest.mark.parametrize("target", aot.TARGETS)
def test_kernels_compile_ahead_of_time(target: str) -> None:
    assert_compiles(1, torch.float32, target)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize("channels", [1, 16, 40])
def test_all_sizes_compile_ahead_of_time(channels: int, target: str, dtype: torch.dtype) -> None:
    assert_compiles(channels, dtype, target)
