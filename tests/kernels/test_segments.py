"""Segment sums and the projections on conserved totals: definitions, derivatives, and what they promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sciml_kernels import (
    project_charge,
    remove_net_force,
    remove_net_force_and_torque,
    segment_expand,
    segment_pointers,
    segment_sum,
)

pytestmark = pytest.mark.usefixtures("poisoned")

# A solid body, nothing, one atom, two atoms, a line of three, a flat molecule, two atoms at one place.
SIZES = [7, 0, 1, 2, 3, 4, 2]
POINTERS = torch.tensor([0, *torch.tensor(SIZES).cumsum(0).tolist()])
ATOMS = int(POINTERS[-1])
BACKENDS = pytest.mark.parametrize("backend", ["reference", "cpu"])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def molecules(dtype: torch.dtype = torch.float64) -> Tensor:
    """Positions of the graphs of `SIZES`, far from the origin."""
    positions = random(ATOMS, 3, seed=1)
    axis = random(3, seed=2)
    positions[10:13] = torch.tensor([-1.0, 0.3, 1.2], dtype=torch.float64)[:, None] * axis
    positions[13:17, 2] = 0.0
    positions[17:] = 0.5
    return (positions + 3.0).to(dtype)


def totals(values: Tensor) -> Tensor:
    return torch.stack([part.sum(0) for part in values.split(SIZES)])


def derivatives(function: Callable[..., Tensor], arguments: Sequence[Tensor]) -> list[Tensor]:
    """Value, first and second derivatives, against fixed directions."""
    leaves = [argument.detach().clone().requires_grad_() for argument in arguments]
    value = function(*leaves)
    g = random(*value.shape, seed=5).to(value.dtype).requires_grad_()
    first = torch.autograd.grad(value, leaves, g, create_graph=True)
    directions = [random(*gradient.shape, seed=6).to(value.dtype) for gradient in first]
    second = torch.autograd.grad(first, [*leaves, g], directions, allow_unused=True, materialize_grads=True)
    return [value, *first, *second]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_every_operation_equals_its_definition(dtype: torch.dtype) -> None:
    forces, charges = random(ATOMS, 3, dtype=dtype), random(ATOMS, dtype=dtype)
    solid = slice(0, 7)  # near a line or a point the second derivatives of both ways are rounding noise
    cases: list[tuple[Callable[..., Tensor], list[Tensor]]] = [
        (lambda v, b: segment_sum(v, POINTERS, b), [random(ATOMS, 2, 17, dtype=dtype)]),
        (lambda v, b: segment_sum(v, POINTERS, b), [charges]),
        (lambda f, b: remove_net_force(f, POINTERS, b), [forces]),
        (lambda q, t, b: project_charge(q, t, POINTERS, b), [charges, random(len(SIZES), dtype=dtype)]),
        (lambda f, r, b: remove_net_force_and_torque(f, r, torch.tensor([0, 0, 7]), b),
         [forces[solid], molecules(dtype)[solid]]),
    ]  # fmt: skip
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    for function, arguments in cases:
        found, expected = (derivatives(lambda *a, f=function, b=b: f(*a, b), arguments) for b in ("cpu", "reference"))
        for tensor, want in zip(found, expected, strict=True):
            torch.testing.assert_close(tensor, want, rtol=tolerance, atol=tolerance)


def test_gradgradcheck() -> None:
    forces, positions = random(5, 3).requires_grad_(), random(5, 3, seed=1).requires_grad_()
    pointers = torch.tensor([0, 5])
    for backend in ("cpu", "reference"):

        def function(f: Tensor, r: Tensor, backend: str = backend) -> Tensor:
            return remove_net_force_and_torque(f, r, pointers, backend)

        assert torch.autograd.gradcheck(function, (forces, positions))
        assert torch.autograd.gradgradcheck(function, (forces, positions))


@BACKENDS
def test_gradgradcheck_of_the_linear_ones(backend: str) -> None:
    """Second derivatives of sums, means and charges, whose own are zero, through a square."""
    pointers = torch.tensor([0, 2, 5])

    def function(values: Tensor, totals: Tensor) -> Tensor:
        sums = segment_sum(values, pointers, backend)
        left = remove_net_force(values, pointers, backend)
        charges = project_charge(values[:, 0], totals, pointers, backend)
        return sums.square().sum() + left.square().sum() + charges.square().sum()

    leaves = (random(5, 3).requires_grad_(), random(2, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_projections_are_repeatable() -> None:
    forces, positions, before = random(4000, 3), random(4000, 3, seed=1), torch.get_num_threads()
    pointers = torch.arange(0, 4001, 40)
    runs = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        runs.append(derivatives(lambda f, r: remove_net_force_and_torque(f, r, pointers, "cpu"), [forces, positions]))
    torch.set_num_threads(before)
    for first, *others in zip(*runs, strict=True):
        assert all(torch.equal(first, other) for other in others)


@BACKENDS
def test_singular_bodies_have_the_same_projection(backend: str) -> None:
    """Against least squares by a pseudo-inverse of all conditions, graph by graph."""
    forces, positions = random(ATOMS, 3), molecules()
    found = remove_net_force_and_torque(forces, positions, POINTERS, backend)
    for part, arm, force in zip(found.split(SIZES), positions.split(SIZES), forces.split(SIZES), strict=True):
        if not len(force):
            continue
        rows = torch.eye(3, dtype=torch.float64).repeat(1, len(force))
        turns = torch.cat(
            [torch.linalg.cross(r.expand(3, 3), torch.eye(3, dtype=torch.float64)).T for r in arm - arm.mean(0)], 1
        )
        conditions = torch.cat([rows, turns])
        expected = force.flatten() - torch.linalg.pinv(conditions, rtol=1e-9) @ (conditions @ force.flatten())
        torch.testing.assert_close(part.flatten(), expected, rtol=0, atol=1e-10)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_momentum_and_angular_momentum_are_conserved(dtype: torch.dtype, backend: str) -> None:
    forces, positions = random(ATOMS, 3, dtype=dtype), molecules(dtype)
    left = remove_net_force_and_torque(forces, positions, POINTERS, backend)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert left.dtype == dtype
    assert totals(left).abs().max() < tolerance
    assert totals(torch.linalg.cross(positions, left)).abs().max() < tolerance
    again = remove_net_force_and_torque(left, positions, POINTERS, backend)
    torch.testing.assert_close(again, left, rtol=0, atol=tolerance)
    assert totals(remove_net_force(forces, POINTERS, backend)).abs().max() < tolerance


@BACKENDS
def test_the_gradients_of_singular_bodies_are_finite(backend: str) -> None:
    forces, positions = random(ATOMS, 3), molecules()
    for tensor in derivatives(lambda f, r: remove_net_force_and_torque(f, r, POINTERS, backend), [forces, positions]):
        assert tensor.isfinite().all()


@BACKENDS
def test_equivariance(backend: str) -> None:
    """Turned, mirrored and shifted bodies have turned forces."""
    forces, positions = random(ATOMS, 3), molecules()
    rotation, _ = torch.linalg.qr(random(3, 3, seed=3))
    expected = remove_net_force_and_torque(forces, positions, POINTERS, backend) @ rotation.T
    found = remove_net_force_and_torque(forces @ rotation.T, positions @ rotation.T - 2.0, POINTERS, backend)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@BACKENDS
def test_charges_sum_to_their_total(backend: str) -> None:
    charges, wanted = random(ATOMS), random(len(SIZES), seed=1)
    found = project_charge(charges, wanted, POINTERS, backend)
    filled = torch.tensor(SIZES) > 0
    torch.testing.assert_close(totals(found)[filled], wanted[filled], rtol=0, atol=1e-13)
    torch.testing.assert_close(project_charge(found, wanted, POINTERS, backend), found, rtol=0, atol=1e-13)


def test_sums_are_repeatable_and_propagate_nan() -> None:
    index = torch.randint(30, (5000,), generator=torch.Generator().manual_seed(0)).sort().values
    values, pointers = random(5000, 33, dtype=torch.float32), segment_pointers(index, 31)
    before = torch.get_num_threads()
    sums = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        sums.append(segment_sum(values, pointers))
    torch.set_num_threads(before)
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[1], sums[2])
    values[0] = float("nan")
    bad = segment_sum(values, pointers).isnan().all(1)
    assert bad.nonzero().flatten().tolist() == [int(index[0])]


@pytest.mark.parametrize("pointers", [torch.zeros(1, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)])
def test_empty(pointers: Tensor) -> None:
    assert segment_sum(random(0, 4), pointers).tolist() == [[0.0] * 4] * (len(pointers) - 1)
    assert remove_net_force_and_torque(random(0, 3), random(0, 3), pointers).shape == (0, 3)
    assert project_charge(random(0), random(len(pointers) - 1), pointers).shape == (0,)


def test_opcheck() -> None:
    f, r = random(ATOMS, 3).requires_grad_(), molecules().requires_grad_()
    g, operators, check = random(ATOMS, 3, seed=3).requires_grad_(), torch.ops.sciml_kernels, torch.library.opcheck
    check(operators.segment_sum.default, (f, POINTERS, "cpu"))
    check(operators.segment_expand.default, (random(len(SIZES), 3).requires_grad_(), POINTERS, ATOMS, "cpu"))
    check(operators.remove_mean.default, (f, POINTERS, "cpu"))
    check(operators.momentum.default, (f, r, POINTERS, "cpu"))
    check(operators.momentum_backward.default, (g, f, r, POINTERS, "cpu", "fr"))
    plain = [tensor.detach() for tensor in (f, r, g, f, r)]
    check(operators.momentum_double_backward.default, (*plain, POINTERS, "cpu", "gfr"))


def test_compiled_gradients_equal_eager_ones() -> None:
    leaves = [tensor.requires_grad_() for tensor in (random(ATOMS, 3), random(ATOMS), random(len(SIZES)))]

    def loss(forces: Tensor, charges: Tensor, totals: Tensor) -> Tensor:
        sums = segment_sum(forces.square(), POINTERS)
        left = remove_net_force(forces, POINTERS) * segment_expand(totals, POINTERS, ATOMS)[:, None]
        charged = project_charge(charges, totals, POINTERS)
        return sums.square().sum() + left.square().sum() + charged.square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    eager = torch.autograd.grad(loss(*leaves), leaves)
    for found, expected in zip(torch.autograd.grad(compiled(*leaves), leaves), eager, strict=True):
        torch.testing.assert_close(found, expected)


def test_tensors_without_numbers_are_not_looked_into() -> None:
    with FakeTensorMode():
        values, pointers = torch.randn(5, 3), torch.tensor([0, 2, 5])
        assert segment_sum(values, pointers).shape == (2, 3)
        assert segment_expand(values[:2], pointers, 5).shape == (5, 3)


def test_third_derivatives_are_refused() -> None:
    forces, positions = random(7, 3).requires_grad_(), molecules()[:7].requires_grad_()
    out = remove_net_force_and_torque(forces, positions, torch.tensor([0, 7])).square().sum()
    first = torch.autograd.grad(out, positions, create_graph=True)[0].square().sum()
    second = torch.autograd.grad(first, positions, create_graph=True)[0].square().sum()
    with pytest.raises(NotImplementedError, match="third derivatives"):
        torch.autograd.grad(second, positions)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: segment_sum(random(3), torch.tensor([0, 2])), r"pointers: found \[0, 2\], expected ascending from 0"),
        (lambda: segment_sum(random(3), torch.tensor([0, 4, 3])), r"pointers: found \[0, 4, 3\], expected ascending"),
        (lambda: segment_sum(random(3), torch.tensor([0.0, 3.0])), "pointers: found torch.float32 of shape"),
        (lambda: segment_sum(torch.arange(3), torch.tensor([0, 3])), "values: found torch.int64, expected a floating"),
        (lambda: segment_pointers(torch.tensor([1, 0]), 2), "index: found in no ascending order"),
        (lambda: segment_pointers(torch.tensor([0, 2]), 2), r"index: found 0\.\.2, expected within 0\.\.1"),
        (lambda: remove_net_force_and_torque(random(3, 3), random(2, 3), POINTERS), "positions: found shape"),
        (lambda: project_charge(random(3), random(2), torch.tensor([0, 3])), r"totals: found shape \(2,\), expected"),
    ],
)  # fmt: skip
def test_bad_arguments(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
