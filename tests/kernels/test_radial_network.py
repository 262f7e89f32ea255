"""The network of distances: generated C++ against its definition, whatever tangents arrive and gradients are wanted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sciml_kernels import radial_network
from sciml_kernels.radial_network import cpu, library

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
NAMES = ("basis", "shift", "envelope", "parameters")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """One thread, and two for small problems too."""
    monkeypatch.setattr(cpu, "PARALLEL_PRODUCTS", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def inputs(edges: int, basis: int, hidden: list[int], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Random arguments."""
    size = sum(a * b + b for a, b in zip([basis, *hidden], hidden, strict=False))
    shapes = ((edges, basis), (edges, hidden[0]), (edges, 1), (size,))
    generator = torch.Generator().manual_seed(0)
    return {
        name: 0.5 * torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
        for name, shape in zip(NAMES, shapes, strict=True)
    }


def derivatives(
    arguments: dict[str, Tensor], hidden: list[int], backend: str, tangents: tuple[str, ...] = NAMES
) -> dict[str, Tensor]:
    """Value, gradients to the `tangents`, and what these differentiate to along random directions."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in arguments.items()}
    value = radial_network(**leaves, hidden=hidden, backend=backend)
    generator = torch.Generator().manual_seed(1)

    def random(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=torch.float64, generator=generator).to(like.dtype)

    g = random(value).requires_grad_()
    first = torch.autograd.grad(value, [leaves[name] for name in tangents], g, create_graph=True)
    second = torch.autograd.grad(first, [g, *leaves.values()], [random(one) for one in first], allow_unused=True,
                                 materialize_grads=True)  # fmt: skip
    names = ["value", *tangents, "second g", *(f"second {name}" for name in NAMES)]
    return {name: tensor.detach() for name, tensor in zip(names, (value, *first, *second), strict=True)}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, want in expected.items():
        scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
        torch.testing.assert_close(found[name], want, rtol=0, atol=TOLERANCE[want.dtype] * scale, msg=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize(
    ("edges", "basis", "hidden"),
    [(0, 3, [5]), (1, 3, [5]), (33, 8, [16, 16, 16]), (70, 5, [19, 7]), (131, 1, [3, 40, 2, 9])],
    ids=["no edges", "one layer", "whole vectors", "ragged", "deep"],
)
def test_it_equals_its_definition(
    edges: int, basis: int, hidden: list[int], dtype: torch.dtype, threads: int, poisoned: None
) -> None:
    arguments = inputs(edges, basis, hidden, dtype)
    assert_equal(derivatives(arguments, hidden, "cpu"), derivatives(arguments, hidden, "reference"))


@pytest.mark.parametrize(
    "tangents", [chosen for count in (1, 2, 3) for chosen in itertools.combinations(NAMES, count)], ids="-".join
)
def test_absent_tangents_drop_their_terms(tangents: tuple[str, ...], poisoned: None) -> None:
    arguments = inputs(40, 4, [6, 5])
    found, expected = (derivatives(arguments, [6, 5], backend, tangents) for backend in ("cpu", "reference"))
    assert_equal(found, expected)


@pytest.mark.parametrize("wanted", [*NAMES, "nothing"])
def test_only_what_is_wanted_is_computed(wanted: str, poisoned: None) -> None:
    arguments = inputs(20, 4, [6, 5])
    found = []
    for backend in ("cpu", "reference"):
        leaves = {name: tensor.clone().requires_grad_(name == wanted) for name, tensor in arguments.items()}
        value = radial_network(**leaves, hidden=[6, 5], backend=backend)
        assert value.requires_grad == (wanted != "nothing")
        found.append(torch.autograd.grad(value.square().sum(), leaves[wanted])[0] if value.requires_grad else value)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_gradgradcheck() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(5, 2, [4, 3]).values()]

    def function(*leaves: Tensor) -> Tensor:
        return radial_network(*leaves, hidden=[4, 3], backend="cpu")

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_results_repeat_bit_for_bit(threads: int) -> None:
    arguments = inputs(300, 8, [16, 16], torch.float32)
    first, second = (derivatives(arguments, [16, 16], "cpu") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_numbers_that_are_none_stay_so() -> None:
    arguments = inputs(4, 3, [5, 5])
    arguments["basis"][1, 0] = torch.nan
    arguments["shift"][2, 4] = torch.inf
    found, expected = (radial_network(**arguments, hidden=[5, 5], backend=backend) for backend in ("cpu", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert found[1].isnan().all()
    assert found[[0, 3]].isfinite().all()


def test_wrong_sizes_are_refused_by_name() -> None:
    arguments = inputs(4, 3, [5])
    with pytest.raises(ValueError, match=r"hidden: found \[\], expected one number or more"):
        radial_network(**arguments, hidden=[])
    with pytest.raises(ValueError, match=r"parameters: found shape \(20,\), expected \(44\)"):
        radial_network(**arguments, hidden=[5, 4])


def test_opcheck() -> None:
    basis, shift, envelope, parameters = (tensor.requires_grad_() for tensor in inputs(6, 3, [5, 4]).values())
    leaves, sizes = (basis, shift, envelope, parameters), [3, 5, 4]
    g = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(library.radial_network._registered, (*leaves, sizes))
    torch.library.opcheck(library.radial_network_backward._registered, (g, *leaves, sizes, "bsep"))
    plain = [tensor.detach() for tensor in (*leaves, g, *leaves)]
    torch.library.opcheck(library.radial_network_double_backward._registered, (*plain, sizes, "gbsep"))
    some = (plain[0], None, None, plain[3], *plain[4:], sizes, "gp")
    torch.library.opcheck(library.radial_network_double_backward._registered, some)


def test_compiled_gradients_equal_eager_ones() -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(6, 3, [5, 4]).values()]

    def loss(*leaves: Tensor) -> Tensor:
        return radial_network(*leaves, hidden=[5, 4]).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    eager = torch.autograd.grad(loss(*leaves), leaves)
    for found, expected in zip(torch.autograd.grad(compiled(*leaves), leaves), eager, strict=True):
        torch.testing.assert_close(found, expected)
