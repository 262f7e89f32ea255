"""The error function of row-wise kernels, and the interaction of Gaussian charges against its definition."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from sciml_kernels import Edges, coulomb_pairs
from sciml_kernels.rowwise.expression import erf
from sciml_kernels.rowwise.function import Function, Row
from sciml_kernels.rowwise.library import Family, register
from tests.kernels.interpreted import interpreted

pytestmark = pytest.mark.usefixtures("poisoned")
NODES, PAIRS = 9, 37


def _body(rows: Mapping[str, Row]) -> Mapping[str, Row]:
    return {"y": [erf(rows["x"][0])]}


error_function = register(Family("test_erf", ("x",), ("y",), lambda key: Function({"x": 1}, {"y": 1}, _body)))


def check_erf(backend: str, dtype: torch.dtype) -> None:
    size = torch.cat([torch.logspace(-20, 1, 400), torch.linspace(0, 7, 801), torch.tensor([0.5, 6.0, 40.0])])
    x = torch.cat([-size, size]).to(dtype)[:, None]
    found, epsilon = error_function(x, "", backend), torch.finfo(dtype).eps
    torch.testing.assert_close(found, torch.erf(x.double()).to(dtype), rtol=8 * epsilon, atol=0)
    special = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan], dtype=dtype)[:, None]
    torch.testing.assert_close(error_function(special, "", backend), torch.erf(special), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_erf_is_exact_to_rounding(dtype: torch.dtype) -> None:
    check_erf("cpu", dtype)


@interpreted
def test_erf_is_exact_to_rounding_in_triton() -> None:
    check_erf("triton", torch.float64)


def system(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Edges, Tensor, Tensor]:
    """Positions, pairs (one of them an atom with its own image), offsets and splittings."""
    generator = torch.Generator().manual_seed(0)
    receivers = torch.randint(NODES, (PAIRS,), generator=generator).sort().values
    senders = torch.randint(NODES, (PAIRS,), generator=generator)
    offsets = 4.0 * torch.randint(1, 3, (PAIRS, 3), generator=generator).to(dtype)
    splittings = 0.5 * torch.rand(PAIRS, 1, generator=generator, dtype=torch.float64).to(dtype)
    positions = 3 * torch.rand(NODES, 3, generator=generator, dtype=torch.float64).to(dtype)
    return positions, Edges(senders, receivers, NODES), offsets, splittings


def derivatives(backend: str) -> list[Tensor]:
    """Value, first and second derivatives to positions, offsets and splittings."""
    positions, pairs, offsets, splittings = system()
    leaves = [tensor.clone().requires_grad_() for tensor in (positions, offsets, splittings)]
    value = coulomb_pairs(leaves[0], pairs, leaves[1], leaves[2], 0.8, backend)
    generator = torch.Generator().manual_seed(1)
    seeds = torch.randn(value.shape, generator=generator, dtype=torch.float64).requires_grad_()
    first = torch.autograd.grad(value, leaves, seeds, create_graph=True)
    directions = [torch.randn(d.shape, generator=generator, dtype=torch.float64) for d in first]
    return [value, *first, *torch.autograd.grad(first, [*leaves, seeds], directions)]


def check_against_definition(backend: str) -> None:
    for found, expected in zip(derivatives(backend), derivatives("reference"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_equals_the_definition() -> None:
    check_against_definition("cpu")


@interpreted
def test_triton_equals_the_definition() -> None:
    check_against_definition("triton")


@interpreted
def test_half_precision_is_summed_in_single() -> None:
    """The gradient of an atom is rounded once, after the sum over its pairs."""
    positions, pairs, offsets, splittings = system(torch.bfloat16)
    gradients = []
    for dtype, backend in ((torch.bfloat16, "triton"), (torch.float64, "reference")):
        leaf, *rest = (tensor.to(dtype) for tensor in (positions, offsets, splittings))
        value = coulomb_pairs(leaf.requires_grad_(), pairs, *rest, 0.8, backend)
        assert value.dtype == dtype
        gradients.append(torch.autograd.grad(value.double().sum(), leaf)[0].double())
    torch.testing.assert_close(*gradients, rtol=2**-8, atol=1e-6)


def test_gradgradcheck() -> None:
    positions, pairs, offsets, splittings = system()
    leaves = [tensor.requires_grad_() for tensor in (positions, offsets, splittings)]
    assert torch.autograd.gradgradcheck(lambda p, o, s: coulomb_pairs(p, pairs, o, s, 0.8, "cpu"), leaves)


def test_single_precision_repeats_to_the_bit_and_is_near_the_double_one() -> None:
    positions, pairs, offsets, splittings = system()
    exact = coulomb_pairs(positions, pairs, offsets, splittings, 0.8, "cpu")
    rough = [tensor.float() for tensor in (positions, offsets, splittings)]
    first, second = (coulomb_pairs(rough[0], pairs, rough[1], rough[2], 0.8, "cpu") for _ in range(2))
    torch.testing.assert_close(first.double(), exact, rtol=0, atol=1e-6)
    assert torch.equal(first, second)


def test_charges_in_one_place_and_no_pairs_at_all() -> None:
    here = Edges(torch.tensor([1, 0]), torch.tensor([0, 1]), 2)
    positions = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    nothing = positions.new_zeros(2, 3), positions.new_zeros(2, 1)
    found = coulomb_pairs(positions, here, *nothing, 1.0, "cpu")
    torch.testing.assert_close(found, torch.full((2, 1), torch.pi**-0.5, dtype=torch.float64))  # of width 1
    (slope,) = torch.autograd.grad(found.sum(), positions)
    assert torch.equal(slope, torch.zeros_like(slope))
    empty = Edges(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 2)
    none = coulomb_pairs(positions, empty, positions.new_zeros(0, 3), positions.new_zeros(0, 1), 1.0, "cpu")
    assert none.shape == (0, 1)


def test_opcheck_and_a_width_that_is_none() -> None:
    positions, pairs, offsets, splittings = system()
    leaves = (positions.requires_grad_(), positions.detach(), offsets, splittings)
    arguments = (*leaves, pairs.receivers, pairs.senders, "0.8", "cpu")
    torch.library.opcheck(torch.ops.sciml_kernels.coulomb_pairs.default, arguments)
    with pytest.raises(ValueError, match="smearing: found 0.0, expected a positive width"):
        coulomb_pairs(positions, pairs, offsets, splittings, 0.0)


def test_compiled_gradients_equal_eager_ones() -> None:
    positions, pairs, offsets, splittings = system()
    leaves = [tensor.requires_grad_() for tensor in (positions, offsets, splittings)]

    def loss(positions: Tensor, offsets: Tensor, splittings: Tensor) -> Tensor:
        return coulomb_pairs(positions, pairs, offsets, splittings, 0.8).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    eager = torch.autograd.grad(loss(*leaves), leaves)
    for found, expected in zip(torch.autograd.grad(compiled(*leaves), leaves), eager, strict=True):
        torch.testing.assert_close(found, expected)
