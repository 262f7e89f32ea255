"""The generated C++ kernels against the plain-torch definition."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sciml_kernels import Edges, Spec, conv, product
from tests.kernels.problems import PROBLEM_PATHS, SPECS, assert_equal_blocks, derivatives, edges, inputs

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", SPECS)
def test_convolution_equals_its_definition(name: str, dtype: torch.dtype, poisoned: None) -> None:
    spec, graph = SPECS[name], edges(6, 25)
    arguments = inputs(spec, 6, 25, dtype)
    found = derivatives(lambda x, y, w: conv(x, y, w, graph, spec, backend="cpu"), arguments)
    expected = derivatives(lambda x, y, w: conv(x, y, w, graph, spec, backend="reference"), arguments)
    assert_equal_blocks(spec, found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("problem", [2, *(pytest.param(problem, marks=pytest.mark.slow) for problem in (3, 4))])
def test_every_path_of_the_benchmark_problems(problem: int, poisoned: None) -> None:
    spec, graph = PROBLEM_PATHS[problem], edges(3, 5)
    arguments = inputs(spec, 3, 5, torch.float64)
    found = derivatives(lambda x, y, w: conv(x, y, w, graph, spec, backend="cpu"), arguments)
    expected = derivatives(lambda x, y, w: conv(x, y, w, graph, spec, backend="reference"), arguments)
    assert_equal_blocks(spec, found, expected, 1e-13)


@pytest.mark.parametrize("name", ["separate", "y channels"])
def test_product_equals_its_definition(name: str, poisoned: None) -> None:
    spec = SPECS[name]
    arguments = inputs(spec, 7, 7, torch.float64)
    found = derivatives(lambda x, y, w: product(x, y, w, spec, backend="cpu"), arguments)
    expected = derivatives(lambda x, y, w: product(x, y, w, spec, backend="reference"), arguments)
    assert_equal_blocks(spec, found, expected, 1e-13)


def test_product_of_features_with_themselves_is_a_many_body_product() -> None:
    """Correlation 3 by two chained calls, x (x) (x (x) x); three-dimensional tensors."""
    square = Spec.summed("4x0e+4x1o", "4x0e+4x1o", "0e+1o", y_channels=True, ordered=True)
    cube = Spec.summed("4x0e+4x1o", "4x0e+4x1o", "0e+1o", y_channels=True)
    x = torch.randn(5, 4, 4, dtype=torch.float64)
    weights = [torch.randn(5, len(spec.paths), 4, dtype=torch.float64) for spec in (square, cube)]

    def many_body(backend: str) -> dict[str, torch.Tensor]:
        def function(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return product(x, product(x, x, first, square, backend), second, cube, backend)

        return derivatives(function, (x, *weights))

    found, expected = many_body("cpu"), many_body("reference")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("needed", ["x", "y", "w", "xw"])
def test_partial_gradients(needed: str, poisoned: None) -> None:
    """Only some inputs need gradients: fewer terms and results, the same numbers."""
    spec, graph = SPECS["summed, both parities"], edges(5, 12)
    results = []
    for backend in ("cpu", "reference"):
        named = dict(zip("xyw", inputs(spec, 5, 12, torch.float64), strict=True))
        leaves = [named[name].requires_grad_() for name in needed]
        value = conv(named["x"], named["y"], named["w"], graph, spec, backend)
        g = value.detach().requires_grad_()
        first = torch.autograd.grad(value, leaves, g, create_graph=True)
        loss = sum((gradient**2).sum() for gradient in first)
        second = torch.autograd.grad(loss, [*leaves, g], allow_unused=True, materialize_grads=True)
        results.append([value, *first, *second])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradgradcheck() -> None:
    spec, graph = Spec.summed("2x0e+2x1o", "0e+1o", "0e+1o"), edges(3, 4)
    arguments = tuple(tensor.requires_grad_() for tensor in inputs(spec, 3, 4, torch.float64))
    assert torch.autograd.gradcheck(lambda x, y, w: conv(x, y, w, graph, spec, "cpu"), arguments)
    assert torch.autograd.gradgradcheck(lambda x, y, w: conv(x, y, w, graph, spec, "cpu"), arguments)


def test_gradgradcheck_of_the_product() -> None:
    spec = Spec.summed("2x0e+2x1o", "2x0e+2x1o", "0e+1o", y_channels=True)
    arguments = tuple(tensor.requires_grad_() for tensor in inputs(spec, 2, 2, torch.float64))
    assert torch.autograd.gradcheck(lambda x, y, w: product(x, y, w, spec, "cpu"), arguments)
    assert torch.autograd.gradgradcheck(lambda x, y, w: product(x, y, w, spec, "cpu"), arguments)


def test_third_derivatives_are_refused() -> None:
    spec, graph = SPECS["summed, both parities"], edges(3, 4)
    arguments = [tensor.requires_grad_() for tensor in inputs(spec, 3, 4, torch.float64)]
    gradients = torch.autograd.grad(conv(*arguments, graph, spec, "cpu").square().sum(), arguments, create_graph=True)
    again = torch.autograd.grad(sum(g.square().sum() for g in gradients), arguments, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        torch.autograd.grad(again[0].square().sum(), arguments)


def test_repeatable_bit_for_bit(two_threads: None) -> None:
    spec, graph = SPECS["separate"], edges(40, 700)
    arguments = inputs(spec, 40, 700, torch.float32)
    runs = [derivatives(lambda x, y, w: conv(x, y, w, graph, spec, "cpu"), arguments) for _ in range(3)]
    for name, tensor in runs[0].items():
        assert all(torch.equal(tensor, run[name]) for run in runs[1:]), name


def test_the_product_is_repeatable_at_any_number_of_threads(two_threads: None) -> None:
    spec = SPECS["y channels"]
    arguments = inputs(spec, 900, 900, torch.float32)
    runs = []
    for threads in (2, 2, 1):
        torch.set_num_threads(threads)
        runs.append(derivatives(lambda x, y, w: product(x, y, w, spec, "cpu"), arguments))
    for name, tensor in runs[0].items():
        assert all(torch.equal(tensor, run[name]) for run in runs[1:]), name


def test_threads_change_rounding_only(two_threads: None) -> None:
    spec, graph = SPECS["separate"], edges(40, 700)
    arguments = inputs(spec, 40, 700, torch.float64)
    two = derivatives(lambda x, y, w: conv(x, y, w, graph, spec, "cpu"), arguments)
    torch.set_num_threads(1)
    one = derivatives(lambda x, y, w: conv(x, y, w, graph, spec, "cpu"), arguments)
    assert_equal_blocks(spec, two, one, 1e-13)


@pytest.mark.parametrize(("nodes", "num_edges"), [(4, 0), (1, 0), (1, 3), (0, 0)])
def test_empty_edge_sets_and_single_nodes(nodes: int, num_edges: int, poisoned: None) -> None:
    spec, graph = SPECS["separate"], edges(nodes, num_edges)
    arguments = inputs(spec, nodes, num_edges, torch.float64)
    found = derivatives(lambda x, y, w: conv(x, y, w, graph, spec, "cpu"), arguments)
    expected = derivatives(lambda x, y, w: conv(x, y, w, graph, spec, "reference"), arguments)
    assert_equal_blocks(spec, found, expected, 1e-13)


def test_bipartite_edges(poisoned: None) -> None:
    """Five children send to two parents."""
    spec = SPECS["separate"]
    graph = Edges(torch.tensor([0, 3, 4, 1, 2]), torch.tensor([0, 0, 0, 1, 1]), 2, num_senders=5)
    arguments = inputs(spec, 5, 5, torch.float64)
    found = derivatives(lambda x, y, w: conv(x, y, w, graph, spec, "cpu"), arguments)
    expected = derivatives(lambda x, y, w: conv(x, y, w, graph, spec, "reference"), arguments)
    assert found["out"].shape[0] == 2
    assert_equal_blocks(spec, found, expected, 1e-13)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_propagate(bad: float) -> None:
    """A bad feature reaches every node that its edges reach, and no other."""
    spec = SPECS["separate"]
    graph = Edges(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]), 3)
    x, y, w = inputs(spec, 3, 3, torch.float32)
    x[1, :] = bad
    out = conv(x, y, w, graph, spec, "cpu")
    assert not out[1].isfinite().any()
    assert out[[0, 2]].isfinite().all()
    w[0, 0] = float("nan")
    assert conv(x, y, w, graph, spec, "cpu")[0].isnan().any()


def test_no_flag_of_the_process_changes() -> None:
    """Denormal numbers survive after a kernel was loaded (-ffast-math would flush them to zero)."""
    spec = SPECS["separate"]
    conv(*inputs(spec, 6, 25, torch.float32), edges(6, 25), spec, "cpu")
    assert float(torch.tensor(1e-40) * torch.tensor(1.0)) != 0.0
    assert 5e-324 * 1.0 != 0.0
