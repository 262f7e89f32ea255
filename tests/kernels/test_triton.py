"""The generated Triton kernels of convolution and product, interpreted, against the plain-torch definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor

from sciml_kernels import Edges, Spec, conv, product
from sciml_kernels.edges import cut_rows
from sciml_kernels.trilinear import gpu
from sciml_kernels.trilinear.emit import FIRST_ORDER, second_order
from sciml_kernels.trilinear.parts import Config, choose_walk
from tests.kernels.interpreted import interpreted
from tests.kernels.problems import PROBLEM_PATHS, SPECS, assert_equal_blocks, derivatives, edges, inputs

NODES, EDGES = 3, 3
SMALL = Spec.summed("3x0e+3x1o", "0e+1o", "0e+1o")
# Few outputs: edges are walked by sender in the backward passes.
BY_SENDER = Spec.summed("3x0e+3x1o", "0e+1o", "0e")
WITH_GAPS = Spec.summed("3x0e+3x2e", "0e+1o+2e", "1o")  # nothing couples to the harmonics 0e and 2e


def compare(spec: Spec, function: Callable[..., Tensor], arguments: tuple[Tensor, ...], tolerance: float) -> None:
    """function(x, y, w, backend) to second order."""
    found = derivatives(lambda *leaves: function(*leaves, "triton"), arguments)
    expected = derivatives(lambda *leaves: function(*leaves, "reference"), arguments)
    assert_equal_blocks(spec, found, expected, tolerance)


def compare_conv(spec: Spec, graph: Edges, dtype: torch.dtype = torch.float64, tolerance: float = 1e-13) -> None:
    arguments = inputs(spec, graph.num_senders, graph.num_edges, dtype)
    compare(spec, lambda x, y, w, backend: conv(x, y, w, graph, spec, backend), arguments, tolerance)


@pytest.mark.parametrize("name", SPECS)
@interpreted
def test_convolution_equals_its_definition(name: str) -> None:
    compare_conv(SPECS[name], edges(NODES, EDGES))


@pytest.mark.parametrize("problem", [2, *(pytest.param(problem, marks=pytest.mark.slow) for problem in (3, 4))])
@interpreted
def test_every_path_of_the_benchmark_problems(problem: int) -> None:
    compare_conv(PROBLEM_PATHS[problem], edges(2, 2))


@interpreted
def test_single_precision() -> None:
    compare_conv(SMALL, edges(NODES, EDGES), torch.float32, 1e-5)


@interpreted
def test_half_precision_is_summed_in_single() -> None:
    """Results are rounded once, to one part in 128 (in the interpreter, which cuts the last bits off)."""
    graph, spec = edges(NODES, 20), Spec.summed("3x0e", "0e", "0e")
    leaves = [tensor.requires_grad_() for tensor in inputs(spec, NODES, 20, torch.bfloat16)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    out, wanted = conv(*leaves, graph, spec, "triton"), conv(*exact, graph, spec, "reference")
    found = (out, *torch.autograd.grad(out.sum(), leaves))
    for tensor, expected in zip(found, (wanted, *torch.autograd.grad(wanted.sum(), exact)), strict=True):
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.double(), expected, rtol=2**-7, atol=1e-6)


@interpreted
def test_half_precision_of_the_product() -> None:
    spec = Spec.summed("3x0e", "3x0e", "0e", y_channels=True)
    leaves = [tensor.requires_grad_() for tensor in inputs(spec, NODES, NODES, torch.bfloat16)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    out, wanted = product(*leaves, spec, "triton"), product(*exact, spec, "reference")
    found = (out, *torch.autograd.grad(out.sum(), leaves))
    for tensor, expected in zip(found, (wanted, *torch.autograd.grad(wanted.sum(), exact)), strict=True):
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.double(), expected, rtol=2**-7, atol=1e-6)


@interpreted
def test_walk_by_sender() -> None:
    assert choose_walk(BY_SENDER, FIRST_ORDER, "xyw", True) == "sender"
    assert choose_walk(BY_SENDER, FIRST_ORDER, "xyw", False) == "receiver"
    assert choose_walk(SPECS["separate"], FIRST_ORDER, "xyw", True) == "receiver"
    compare_conv(BY_SENDER, edges(NODES, EDGES))


@pytest.mark.parametrize("spec", [SMALL, BY_SENDER], ids=["by receiver", "by sender"])
@interpreted
def test_hubs_are_served_by_several_programs(spec: Spec) -> None:
    graph = Edges(torch.tensor([1, 0, 1, 1, 1, 0]), torch.tensor([0, 1, 1, 1, 1, 1]), 3)
    vars(graph)["pieces"] = cut_rows(graph.pointers, 6, longest=2)
    vars(graph)["sender_pieces"] = cut_rows(graph.sender_pointers, 6, longest=3)
    assert graph.pieces[:, :3].tolist() == [[0, 0, 1], [1, 1, 3], [2, 6, 6], [1, 3, 5], [1, 5, 6], [2, 8, 8]]
    assert graph.pieces[:, 3:].tolist() == [[0, 0], [0, 2], [2, 2], [0, 2], [0, 2], [2, 2]]
    compare_conv(spec, graph)


@pytest.mark.parametrize("spec", [SMALL, BY_SENDER], ids=["by receiver", "by sender"])
@pytest.mark.parametrize(("values", "stages"), [(4, 1), (24, 2), (144, 3)])
@interpreted
def test_a_pass_cut_into_many_kernels(spec: Spec, values: int, stages: int) -> None:
    """With few registers: slots, and paths of one slot, in kernels of their own that add to what is there; with rows
    of several edges on their way.
    """
    graph, dtype = edges(NODES, EDGES), torch.float64
    x, y, w = inputs(spec, NODES, EDGES, dtype)
    vx, vy, vw = inputs(spec, NODES, EDGES, dtype, seed=1)
    arrays = {"x": x, "y": y, "w": w, "vx": vx, "vy": vy, "vw": vw, "g": torch.ones(NODES, spec.dim_out, dtype=dtype)}
    tables = graph.tables("triton", True)
    for terms, wants in ((FIRST_ORDER, "g"), (FIRST_ORDER, "xyw"), (second_order("xyw"), "xywg")):
        walk = choose_walk(spec, terms, wants, by_sender=True)
        whole = gpu.build(spec, dtype, walk, terms, wants, Config())
        cut = gpu.build(spec, dtype, walk, terms, wants, Config(values, stages=stages))
        assert (len(cut.kernels) > len(whole.kernels)) == (values < Config().values)
        expected = gpu.execute(whole, arrays, tables, wants)
        found = gpu.execute(cut, arrays, tables, wants)
        for want, tensor in expected.items():
            torch.testing.assert_close(found[want], tensor, rtol=1e-12, atol=1e-12)


@interpreted
def test_many_channels_in_several_blocks() -> None:
    """Partial gradients to y from every block of channels; the last one is not full."""
    compare_conv(Spec.summed("150x0e", "0e+1o", "0e+1o"), edges(NODES, EDGES))


@interpreted
def test_slots_that_no_path_touches() -> None:
    compare_conv(WITH_GAPS, edges(NODES, EDGES))


@pytest.mark.parametrize("size", [(4, 0), (1, 0), (1, 2), (0, 0)], ids=str)
@interpreted
def test_empty_edge_sets_and_single_nodes(size: tuple[int, int]) -> None:
    compare_conv(SMALL, edges(*size))
    compare_conv(BY_SENDER, edges(*size))


@interpreted
def test_bipartite_edges() -> None:
    graph = Edges(torch.tensor([0, 3, 4, 1]), torch.tensor([0, 0, 0, 1]), 2, num_senders=5)
    compare_conv(SMALL, graph)
    compare_conv(BY_SENDER, graph)


@pytest.mark.parametrize("name", ["unequal multiplicities", "y channels"])
@interpreted
def test_product_equals_its_definition(name: str) -> None:
    spec = SPECS[name]
    compare(spec, lambda x, y, w, backend: product(x, y, w, spec, backend), inputs(spec, 3, 3, torch.float64), 1e-13)


@pytest.mark.parametrize("needed", ["x", "y", "w", "xw"])
@interpreted
def test_partial_gradients(needed: str) -> None:
    """Only some inputs need gradients: fewer terms and results, the same numbers."""
    graph = edges(NODES, EDGES)
    results = []
    for backend in ("triton", "reference"):
        named = dict(zip("xyw", inputs(SMALL, NODES, EDGES, torch.float64), strict=True))
        leaves = [named[name].requires_grad_() for name in needed]
        value = conv(named["x"], named["y"], named["w"], graph, SMALL, backend)
        g = value.detach().requires_grad_()
        first = torch.autograd.grad(value, leaves, g, create_graph=True)
        loss = sum((gradient**2).sum() for gradient in first)
        second = torch.autograd.grad(loss, [*leaves, g], allow_unused=True, materialize_grads=True)
        results.append([value, *first, *second])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@interpreted
def test_gradgradcheck() -> None:
    spec, graph = Spec.summed("2x1o", "0e+1o", "1o"), edges(2, 2)
    arguments = tuple(tensor.requires_grad_() for tensor in inputs(spec, 2, 2, torch.float64))

    def function(*leaves: Tensor) -> Tensor:
        return conv(*leaves, graph, spec, "triton")

    assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


@interpreted
def test_repeatable_bit_for_bit() -> None:
    graph, arguments = edges(NODES, 8), inputs(SMALL, NODES, 8, torch.float32)
    first, again = (derivatives(lambda x, y, w: conv(x, y, w, graph, SMALL, "triton"), arguments) for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@interpreted
def test_nan_and_inf_propagate(bad: float) -> None:
    graph = Edges(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]), 3)
    x, y, w = inputs(SMALL, 3, 3, torch.float32)
    x[1, :] = bad
    out = conv(x, y, w, graph, SMALL, "triton")
    assert not out[1].isfinite().any()
    assert out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@interpreted
def test_more_than_two_billion_numbers(backend: str) -> None:
    """Offsets beyond 2^31: the last sender of a table of which only the rows in use are ever touched."""
    spec, senders = Spec.summed("1x0e+1x1o", "0e+1o", "0e+1o"), 2**29 + 2
    x = torch.from_numpy(numpy.empty((senders, spec.dim_x), numpy.float32))  # 8 GB of addresses, a page of memory
    assert x.numel() > 2**31
    _, y, w = inputs(spec, 1, 2, torch.float32)
    rows = torch.tensor([senders - 1, 2**29 - 3])
    x[rows] = torch.randn(2, spec.dim_x, generator=torch.Generator().manual_seed(0))
    receivers = torch.tensor([0, 0])
    leaves = [y.requires_grad_(), w.requires_grad_()]
    results = []
    for table, index, name in ((x, rows, backend), (x[rows], torch.tensor([0, 1]), "reference")):
        out = conv(table, *leaves, Edges(index, receivers, 1, num_senders=len(table)), spec, name)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@interpreted
def test_opcheck() -> None:
    graph = edges(2, 2)
    leaves = [tensor.requires_grad_() for tensor in inputs(BY_SENDER, 2, 2, torch.float64)]
    rest = (*graph.tables("triton", True), BY_SENDER.key, "triton")
    operators = torch.ops.sciml_kernels
    torch.library.opcheck(operators.trilinear.default, (*leaves, *rest))
    g = torch.randn(2, BY_SENDER.dim_out, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(operators.trilinear_backward.default, (g, *leaves, *rest, "xyw"))
    plain = [tensor.detach() for tensor in (g, *leaves)]
    torch.library.opcheck(operators.trilinear_double_backward.default, (*plain[1:], *plain, *rest, "gxyw"))


@interpreted
def test_a_gradient_to_x_needs_the_tables_of_the_senders() -> None:
    graph = edges(2, 2)
    x, y, w = inputs(SMALL, 2, 2, torch.float64)
    g = torch.zeros(2, SMALL.dim_out, dtype=torch.float64)
    with pytest.raises(ValueError, match="tables: found those of the receivers alone"):
        torch.ops.sciml_kernels.trilinear_backward(
            g, x, y, w, *graph.tables("triton", False), SMALL.key, "triton", "xyw"
        )


def test_pieces_cover_every_edge_once() -> None:
    counts = torch.tensor([0, 5, 130, 1, 0, 700, 64])
    pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    pieces = cut_rows(pointers, 900, longest=64)
    assert pieces.shape == (7 + 900 // 64, 5)
    covered = sorted((node, edge) for node, first, end, *_ in pieces.tolist() for edge in range(first, end))
    assert covered == [(node, edge) for node in range(7) for edge in range(*pointers[node : node + 2].tolist())]
    for node in range(7):
        first, end = pieces[node, 3:].tolist()
        owned = pieces[7 + first : 7 + end]
        assert (owned[:, 0] == node).all()
    assert int((pieces[:, 2] - pieces[:, 1]).max()) <= 64
