"""The convolution with the radial layer inside against its definition, conv(x, y, h @ weight)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from sciml_kernels import Edges, Spec, conv, conv_radial
from sciml_kernels.convolution_radial import library
from tests.kernels.interpreted import interpreted
from tests.kernels.problems import PROBLEM_PATHS, SPECS, blocks, edges

SHARED = {name: spec for name, spec in SPECS.items() if not spec.y_channels}
# Two panels of weights, one of them filled by several paths; three blocks of edges, the last one ragged.
WIDE = Spec.summed("48x0e+48x1o", "0e+1o+2e", "0e+1o")
SMALL = Spec.summed("2x0e+2x1o", "0e+1o", "0e+1o")
NAMES = ("out", "dx", "dy", "dh", "dW", "ddx", "ddy", "ddh", "ddW", "ddg")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def inputs(spec: Spec, graph: Edges, hidden: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Random flat x, y, h and weight."""
    generator = torch.Generator().manual_seed(seed)
    rows = graph.num_edges
    sizes = ((graph.num_senders, spec.dim_x), (rows, spec.dim_y), (rows, hidden), (hidden, spec.dim_w))
    return [torch.randn(size, dtype=dtype, generator=generator) for size in sizes]


def derivatives(function: Callable[..., Tensor], arguments: Sequence[Tensor]) -> dict[str, Tensor]:
    """Value, first and second derivatives against fixed random directions."""
    generator = torch.Generator().manual_seed(1)

    def direction(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    leaves = [argument.detach().clone().requires_grad_() for argument in arguments]
    value = function(*leaves)
    g = direction(value).requires_grad_()
    first = torch.autograd.grad(value, leaves, g, create_graph=True)
    second = torch.autograd.grad(first, [*leaves, g], [direction(gradient) for gradient in first])
    return {name: tensor.detach() for name, tensor in zip(NAMES, (value, *first, *second), strict=True)}


def both(
    spec: Spec, graph: Edges, arguments: Sequence[Tensor], compiled: str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By the compiled kernels and by the definition."""

    def by(backend: str) -> dict[str, Tensor]:
        return derivatives(lambda *leaves: conv_radial(*leaves, graph, spec, backend), arguments)

    return by(compiled), by("reference")


def assert_equal(spec: Spec, found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every slot, every path's columns of the weight, all of h, within `tolerance` of the largest entry."""
    for name, tensor in expected.items():
        side = name.replace("W", "w")  # the columns of the weight are those of conv's w
        wanted = {"h": tensor} if name.endswith("h") else blocks(spec, side, tensor)
        parts = {"h": found[name]} if name.endswith("h") else blocks(spec, side, found[name])
        for block, part in wanted.items():
            scale = max(1.0, float(part.abs().max())) if part.numel() else 1.0
            error = float((parts[block] - part).abs().max()) if part.numel() else 0.0
            assert error <= tolerance * scale, f"{name}, {block}: off by {error} of {scale}"


@pytest.mark.parametrize("name", SHARED)
def test_equals_its_definition(name: str, poisoned: None) -> None:
    spec, graph = SHARED[name], edges(6, 25)
    assert_equal(spec, *both(spec, graph, inputs(spec, graph, 4, torch.float64)), 1e-13)


@pytest.mark.parametrize("problem", [2, *(pytest.param(problem, marks=pytest.mark.slow) for problem in (3, 4))])
def test_every_path_of_the_benchmark_problems(problem: int, poisoned: None) -> None:
    spec, graph = PROBLEM_PATHS[problem], edges(3, 5)
    assert_equal(spec, *both(spec, graph, inputs(spec, graph, 4, torch.float64)), 1e-13)


@pytest.mark.parametrize("hidden", [16, 33])
def test_single_precision_in_several_blocks_of_edges_and_panels_of_weights(hidden: int, poisoned: None) -> None:
    graph = edges(9, 150)
    assert_equal(WIDE, *both(WIDE, graph, inputs(WIDE, graph, hidden, torch.float32)), 1e-5)


@pytest.mark.parametrize("needed", ["x", "y", "h", "W", "xy", "hW", "xyh"])
def test_partial_gradients(needed: str, poisoned: None) -> None:
    """First gradients to some inputs, all tangents of them, second gradients to all inputs, as force training does."""
    spec, graph = SMALL, edges(5, 12)
    results = []
    for backend in ("cpu", "reference"):
        leaves = [tensor.requires_grad_() for tensor in inputs(spec, graph, 4, torch.float64)]
        chosen = [leaf for name, leaf in zip("xyhW", leaves, strict=True) if name in needed]
        value = conv_radial(*leaves, graph, spec, backend)
        g = torch.ones_like(value).requires_grad_()
        first = torch.autograd.grad(value, chosen, g, create_graph=True)
        loss = sum((gradient**2).sum() for gradient in first)
        second = torch.autograd.grad(loss, [*leaves, g], allow_unused=True, materialize_grads=True)
        results.append([value, *first, *second])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@interpreted
def test_triton_backend() -> None:
    """All tangents at once; and those of force training, which take other products."""
    graph = edges(3, 3)
    arguments = inputs(SMALL, graph, 4, torch.float64)
    assert_equal(SMALL, *both(SMALL, graph, arguments, "triton"), 1e-13)
    results = []
    for backend in ("triton", "reference"):
        leaves = [tensor.clone().requires_grad_() for tensor in arguments]
        value = conv_radial(*leaves, graph, SMALL, backend)
        first = torch.autograd.grad(value.square().sum(), leaves[:3], create_graph=True)
        results.append(torch.autograd.grad(sum((gradient**2).sum() for gradient in first), leaves))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradgradcheck() -> None:
    spec, graph = SMALL, edges(3, 4)
    arguments = tuple(tensor.requires_grad_() for tensor in inputs(spec, graph, 4, torch.float64))
    assert torch.autograd.gradcheck(lambda *leaves: conv_radial(*leaves, graph, spec, "cpu"), arguments)
    assert torch.autograd.gradgradcheck(lambda *leaves: conv_radial(*leaves, graph, spec, "cpu"), arguments)


def test_third_derivatives_are_refused() -> None:
    spec, graph = SMALL, edges(3, 4)
    arguments = [tensor.requires_grad_() for tensor in inputs(spec, graph, 4, torch.float64)]
    value = conv_radial(*arguments, graph, spec, "cpu").square().sum()
    gradients = torch.autograd.grad(value, arguments, create_graph=True)
    again = torch.autograd.grad(sum(g.square().sum() for g in gradients), arguments, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        torch.autograd.grad(again[0].square().sum(), arguments)


def test_repeatable_bit_for_bit_and_threads_change_rounding_only(two_threads: None) -> None:
    graph = edges(40, 700)
    arguments = inputs(WIDE, graph, 16, torch.float32)
    runs = [derivatives(lambda *leaves: conv_radial(*leaves, graph, WIDE, "cpu"), arguments) for _ in range(3)]
    for name, tensor in runs[0].items():
        assert all(torch.equal(tensor, run[name]) for run in runs[1:]), name
    torch.set_num_threads(1)
    one = derivatives(lambda *leaves: conv_radial(*leaves, graph, WIDE, "cpu"), arguments)
    assert_equal(WIDE, runs[0], one, 1e-5)


@pytest.mark.parametrize(("nodes", "num_edges"), [(4, 0), (1, 0), (1, 3), (0, 0)])
def test_empty_edge_sets_and_single_nodes(nodes: int, num_edges: int, poisoned: None) -> None:
    spec, graph = SHARED["separate"], edges(nodes, num_edges)
    assert_equal(spec, *both(spec, graph, inputs(spec, graph, 4, torch.float64)), 1e-13)


def test_bipartite_edges_and_no_hidden_features(poisoned: None) -> None:
    spec = SHARED["separate"]
    graph = Edges(torch.tensor([0, 3, 4, 1, 2]), torch.tensor([0, 0, 0, 1, 1]), 2, num_senders=5)
    for hidden in (4, 0):
        found, expected = both(spec, graph, inputs(spec, graph, hidden, torch.float64))
        assert found["out"].shape[0] == 2
        assert_equal(spec, found, expected, 1e-13)


def test_equals_the_convolution_with_explicit_weights() -> None:
    """Also with three-dimensional x, and a weight that is the transpose of a linear layer's."""
    spec, graph = SHARED["separate"], edges(6, 25)
    x, y, h, weight = inputs(spec, graph, 4, torch.float64)
    found = conv_radial(x.view(6, 4, 20), y, h, weight.T.contiguous().T, graph, spec)
    torch.testing.assert_close(found, conv(x.view(6, 4, 20), y, h @ weight, graph, spec))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_propagate(bad: float) -> None:
    """A bad hidden feature reaches the receiver of its edge, and no other."""
    graph = edges(40, 200)
    x, y, h, weight = inputs(WIDE, graph, 16, torch.float32)
    clean = conv_radial(x, y, h, weight, graph, WIDE, "cpu")
    h[77, 3] = bad
    found = conv_radial(x, y, h, weight, graph, WIDE, "cpu")
    hit = torch.zeros(40, dtype=torch.bool).index_fill(0, graph.receivers[77:78], True)
    assert torch.equal(found[~hit], clean[~hit])
    assert not found[hit].isfinite().any()


def test_operators_pass_opcheck() -> None:
    spec, graph = SHARED["separate"], edges(4, 6)
    arguments = [tensor.requires_grad_() for tensor in inputs(spec, graph, 4, torch.float64)]
    tables = graph.tables("cpu", True)
    torch.library.opcheck(library.conv_radial._registered, (*arguments, *tables, spec.key, "cpu"))
    g = torch.randn(4, spec.dim_out, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(library.conv_radial_backward._registered, (g, *arguments, *tables, spec.key, "cpu", "xyh"))
    tangents = [torch.randn_like(argument) for argument in arguments]
    rest = (g.detach(), *(argument.detach() for argument in arguments), *tables, spec.key, "cpu", "gxyhW")
    torch.library.opcheck(library.conv_radial_double_backward._registered, (*tangents[:3], None, *rest))


def test_compiled_gradients_equal_eager_ones() -> None:
    spec, graph = SHARED["separate"], edges(6, 25)
    leaves = [tensor.requires_grad_() for tensor in inputs(spec, graph, 4, torch.float64)]

    def loss(*leaves: Tensor) -> Tensor:
        return conv_radial(*leaves, graph, spec).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    eager = torch.autograd.grad(loss(*leaves), leaves)
    for found, expected in zip(torch.autograd.grad(compiled(*leaves), leaves), eager, strict=True):
        torch.testing.assert_close(found, expected)


def test_saves_no_weights_for_the_backward_pass() -> None:
    graph = edges(20, 300)
    leaves = [tensor.requires_grad_() for tensor in inputs(WIDE, graph, 16, torch.float32)]

    def saved(function: Callable[[], Tensor]) -> int:
        seen: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            function()
        return sum(seen.values())

    x, y, h, weight = leaves
    fused = saved(lambda: conv_radial(x, y, h, weight, graph, WIDE, "cpu"))
    plain = saved(lambda: conv(x, y, h @ weight, graph, WIDE, "cpu"))
    assert plain - fused >= 4 * graph.num_edges * WIDE.dim_w


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h": torch.zeros(25, 4)}, r"h: found shape \(25, 4\), expected \(25, 5\)"),
        ({"h": torch.zeros(24, 5)}, r"h: found shape \(24, 5\), expected \(25, 5\)"),
        ({"weight": torch.zeros(5, 141)}, r"weight: found shape \(5, 141\), expected \(any, 140\)"),
        ({"y": torch.zeros(25, 4)}, r"y: found shape \(25, 4\), expected \(25, 9\)"),
        ({"weight": torch.zeros(5, 140, dtype=torch.float64)}, "weight: found torch.float64, expected torch.float32"),
        ({"spec": SPECS["y channels"]}, "spec: found y with channels"),
        ({"edges": torch.zeros(2, 25)}, "edges: found Tensor, expected Edges"),
        ({"backend": "cuda"}, "backend: found 'cuda', expected"),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    spec, graph = SPECS["separate"], edges(6, 25)
    names = ("x", "y", "h", "weight")
    arguments = dict(zip(names, inputs(spec, graph, 5, torch.float32), strict=True))
    with pytest.raises(ValueError, match=message):
        conv_radial(**{**arguments, "edges": graph, "spec": spec, **change})  # type: ignore[arg-type]
