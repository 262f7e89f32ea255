"""The Triton kernels with the radial layer inside, interpreted against the definition and compiled ahead of time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor

from sciml_kernels import Edges, Spec, aot, conv_radial
from sciml_kernels.convolution_radial import fused, gpu, library, tiles
from sciml_kernels.convolution_radial.passes import PASSES, Pass
from sciml_kernels.edges import cut_rows
from sciml_kernels.trilinear import tuned
from sciml_kernels.trilinear.parts import choose_walk
from tests.kernels.interpreted import interpreted
from tests.kernels.problems import PROBLEM_PATHS, edges
from tests.kernels.test_compile import MOST_LINES, MOST_SECONDS, PROBLEMS
from tests.kernels.test_convolution_radial import SHARED, SMALL, assert_equal, derivatives, inputs

BY_SENDER = Spec.summed("3x0e+3x1o", "0e+1o", "0e")  # few outputs: the backward passes walk edges by sender
WITH_GAPS = Spec.summed("3x0e+3x2e", "0e+1o+2e", "1o")  # nothing couples to the harmonics 0e and 2e


def always() -> AbstractContextManager[mock.MagicMock]:
    """The fused kernels also where the rule prefers the others."""
    return mock.patch.object(fused, "serves", return_value=True)


def compare(
    spec: Spec, graph: Edges, hidden: int = 4, dtype: torch.dtype = torch.float64, tolerance: float = 1e-13
) -> None:
    """Value, first and second derivatives, per path and per slot."""
    arguments = inputs(spec, graph, hidden, dtype)
    with always():
        found = derivatives(lambda *leaves: conv_radial(*leaves, graph, spec, "triton"), arguments)
    expected = derivatives(lambda *leaves: conv_radial(*leaves, graph, spec, "reference"), arguments)
    assert_equal(spec, found, expected, tolerance)


@pytest.mark.parametrize("name", SHARED)
@interpreted
def test_equals_its_definition(name: str) -> None:
    compare(SHARED[name], edges(3, 3))


@pytest.mark.slow
@pytest.mark.parametrize("problem", [2, 4])
@interpreted
def test_every_path_of_the_benchmark_problems(problem: int) -> None:
    compare(PROBLEM_PATHS[problem], edges(2, 2))


@interpreted
def test_several_tiles_of_a_node_and_several_nodes_of_a_program() -> None:
    """Also pieces of nodes, and hidden features that fill no matrix product."""
    graph = edges(3, 60)
    vars(graph)["pieces"] = cut_rows(graph.pointers, 60, longest=20)
    assert graph.pieces.shape[0] > 3
    with mock.patch.object(fused, "MOST_PROGRAMS", 2):
        compare(SMALL, graph, hidden=5)


@interpreted
def test_walk_by_sender() -> None:
    for graph in (edges(3, 4), edges(2, 40)):
        compare(BY_SENDER, graph)


@interpreted
def test_single_precision() -> None:
    compare(SMALL, edges(3, 40), 20, torch.float32, 1e-5)


@interpreted
def test_slots_that_no_path_touches() -> None:
    compare(WITH_GAPS, edges(3, 3))


@interpreted
def test_many_channels_in_several_blocks() -> None:
    """Partial gradients to y and h from every block of channels; the last one is not full."""
    compare(Spec.summed("40x0e", "0e+1o", "0e+1o"), edges(2, 3))


@pytest.mark.parametrize("size", [(4, 0), (1, 0), (1, 2), (0, 0)], ids=str)
@interpreted
def test_empty_edge_sets_and_single_nodes(size: tuple[int, int]) -> None:
    compare(SMALL, edges(*size))


@interpreted
def test_bipartite_edges() -> None:
    compare(SMALL, Edges(torch.tensor([0, 3, 4, 1]), torch.tensor([0, 0, 0, 1]), 2, num_senders=5))


@pytest.mark.parametrize("spec", [SMALL, BY_SENDER], ids=["by receiver", "by sender"])
@interpreted
def test_a_pass_cut_into_many_kernels(spec: Spec) -> None:
    """With few registers: slots, and paths of one slot, in kernels of their own that add to what is there."""
    graph, dtype, hidden = edges(3, 20), torch.float64, 4
    arrays = dict(zip("xyhW", inputs(spec, graph, hidden, dtype), strict=True))
    tangents = zip(("vx", "vy", "vh", "vW"), inputs(spec, graph, hidden, dtype, seed=1), strict=True)
    arrays |= {**dict(tangents), "g": torch.ones(3, spec.dim_out, dtype=dtype)}
    tables = graph.tables("triton", True)
    passes = (Pass("", "g"), Pass("", "xyhW"), Pass("xyhW", "xyhWg"))
    for todo in (part for whole in passes for part in fused.split(whole)):
        walk = choose_walk(spec, todo.terms, todo.trilinear_wants, by_sender=True)
        whole = fused.build(spec, hidden, dtype, "ieee", walk, todo, tiles.Config(values=999))
        cut = fused.build(spec, hidden, dtype, "ieee", walk, todo, tiles.Config(values=1))
        assert len(cut.kernels) > len(whole.kernels)
        expected = fused.execute(whole, arrays, tables, todo.wants)
        with always():
            found = fused.execute(cut, arrays, tables, todo.wants)
        for want, tensor in expected.items():
            torch.testing.assert_close(found[want], tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("needed", ["x", "h", "W", "xyh"])
@interpreted
def test_partial_gradients(needed: str) -> None:
    """First gradients to some inputs, second ones to all, as force training does."""
    graph, results = edges(3, 6), []
    for backend in ("triton", "reference"):
        leaves = [tensor.requires_grad_() for tensor in inputs(SMALL, graph, 4, torch.float64)]
        chosen = [leaf for name, leaf in zip("xyhW", leaves, strict=True) if name in needed]
        with always():
            value = conv_radial(*leaves, graph, SMALL, backend)
            g = torch.ones_like(value).requires_grad_()
            first = torch.autograd.grad(value, chosen, g, create_graph=True)
            loss = sum((gradient**2).sum() for gradient in first)
            second = torch.autograd.grad(loss, [*leaves, g], allow_unused=True, materialize_grads=True)
        results.append([value, *first, *second])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@interpreted
def test_half_precision_is_summed_in_single() -> None:
    """Results are rounded once, to one part in 128 (in the interpreter, which cuts the last bits off)."""
    graph, spec = edges(3, 20), Spec.summed("3x0e", "0e", "0e")
    leaves = [tensor.requires_grad_() for tensor in inputs(spec, graph, 4, torch.bfloat16)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    with always():
        out = conv_radial(*leaves, graph, spec, "triton")
        found = (out, *torch.autograd.grad(out.sum(), leaves))
    wanted = conv_radial(*exact, graph, spec, "reference")
    for tensor, expected in zip(found, (wanted, *torch.autograd.grad(wanted.sum(), exact)), strict=True):
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.double(), expected, rtol=2**-7, atol=1e-5)


@interpreted
def test_repeatable_bit_for_bit() -> None:
    graph = edges(3, 40)
    arguments = inputs(SMALL, graph, 4, torch.float32)
    with always():
        first, again = (
            derivatives(lambda *leaves: conv_radial(*leaves, graph, SMALL, "triton"), arguments) for _ in range(2)
        )
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@interpreted
def test_nan_and_inf_propagate(bad: float) -> None:
    """A bad hidden feature reaches the receiver and the gradients of its own edge, and no other."""
    graph = edges(4, 40)
    arguments = inputs(SMALL, graph, 4, torch.float32)
    clean = _value_and_gradient_to_y(arguments, graph)
    arguments[2][17, 3] = bad
    found = _value_and_gradient_to_y(arguments, graph)
    for tensor, before, hit in zip(found, clean, (graph.receivers[17:18], torch.tensor([17])), strict=True):
        others = torch.ones(tensor.shape[0], dtype=torch.bool).index_fill(0, hit, False)
        assert torch.equal(tensor[others], before[others])
        assert not tensor[~others].isfinite().any()


def _value_and_gradient_to_y(arguments: Sequence[Tensor], graph: Edges) -> tuple[Tensor, Tensor]:
    x, y, h, weight = arguments
    y = y.clone().requires_grad_()
    with always():
        out = conv_radial(x, y, h, weight, graph, SMALL, "triton")
        return out.detach(), torch.autograd.grad(out.sum(), y)[0]


@interpreted
def test_opcheck() -> None:
    graph, spec = edges(2, 2), Spec.summed("2x0e", "0e+1o", "0e+1o")
    leaves = [tensor.requires_grad_() for tensor in inputs(spec, graph, 2, torch.float64)]
    g = torch.ones(2, spec.dim_out, dtype=torch.float64).requires_grad_()
    rest = (*graph.tables("triton", True), spec.key, "triton")
    plain = [tensor.detach() for tensor in (*leaves[:3], g, *leaves)]
    with always():
        torch.library.opcheck(library.conv_radial._registered, (*leaves, *rest))
        torch.library.opcheck(library.conv_radial_backward._registered, (g, *leaves, *rest, "xyh"))
        double = library.conv_radial_double_backward._registered
        torch.library.opcheck(double, (*plain[:3], None, *plain[3:], *rest, "gxyhW"))


def test_which_kernels_serve(tuned_gpu: str) -> None:
    backward = Pass("", "xyh")
    assert fused.serves(tuned_gpu, torch.float32, 64, 100, 5000, backward)
    assert fused.serves(tuned_gpu, torch.bfloat16, 128, 100, 5000, Pass("", "yh"))
    assert not fused.serves("another_gpu", torch.float32, 64, 100, 5000, backward)
    assert not fused.serves(tuned_gpu, torch.float64, 64, 100, 5000, backward)
    assert not fused.serves(tuned_gpu, torch.float32, 256, 100, 5000, backward)
    assert not fused.serves(tuned_gpu, torch.float32, 64, 1000, 5000, backward)
    for other in (Pass("", "g"), Pass("xyh", "xyhWg")):  # not measured, or slower than the other way
        assert not fused.serves(tuned_gpu, torch.float32, 64, 100, 5000, other)


@interpreted
def test_the_rule_is_followed() -> None:
    graph = edges(3, 30)
    for dtype, measured in ((torch.float32, True), (torch.float64, True), (torch.float32, False)):
        called = measured and dtype == torch.float32
        arrays = dict(zip("xyhW", inputs(SMALL, graph, 4, dtype), strict=True))
        with (
            mock.patch.object(tiles, "measured", return_value=measured),
            mock.patch.object(fused, "launch", wraps=fused.launch) as launch,
        ):
            gpu.launch(SMALL.key, arrays, graph.tables("triton", False), "", "g")
        assert launch.called == called


@pytest.mark.parametrize("setting", ["fp32_precision", "allow_tf32"])
def test_products_are_as_precise_as_torch_allows(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the newer name of torch's setting where there is one, else by the older."""
    for values, expected in ((("ieee", False), "tf32x3"), (("tf32", True), "tf32")):
        matmul = SimpleNamespace(**{setting: values[setting == "allow_tf32"]})
        monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
        assert fused.precision(torch.float32) == expected
        assert fused.precision(torch.bfloat16) == "tf32"
        assert fused.precision(torch.float64) == "ieee"


def test_the_setting_of_torch_is_followed() -> None:
    """In a process of its own: torch keeps in mind which of its names were used."""
    check = (
        "import torch; from sciml_kernels.convolution_radial.fused import precision; before = precision(torch.float32);"
        "torch.set_float32_matmul_precision('high'); print(before, precision(torch.float32))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["tf32x3", "tf32"]


MEASURED = {"tile": 32, "block": 16, "threads": 64, "values": 80}


@pytest.fixture
def tuned_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a GPU with one measured configuration of fused kernels."""
    name = tiles.entry(SMALL.key, 64, torch.float32, "receiver", Pass("", "xyh"))
    (tmp_path / "some_gpu.json").write_text(json.dumps({"configurations": {name: MEASURED}}))
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    tuned.measured.cache_clear()
    yield "some_gpu"
    tuned.measured.cache_clear()


def test_measured_configurations_are_data(tuned_gpu: str) -> None:
    todo = Pass("", "xyh")
    assert tiles.config(tuned_gpu, SMALL.key, 64, torch.float32, "receiver", todo) == tiles.Config(**MEASURED)
    assert tiles.config(tuned_gpu, SMALL.key, 32, torch.float32, "receiver", todo) == tiles.default(todo)


def check(spec: Spec, name: str, target: str, exact: str, dtype: torch.dtype = torch.float32, hidden: int = 64) -> None:
    """All kernels of a pass: no spill, short source, short compilation."""
    for todo in fused.split(Pass(*PASSES[name])):
        walk = choose_walk(spec, todo.terms, todo.trilinear_wants, by_sender=True)
        exact, warp = ("ieee", 64) if target.startswith("gfx") else (exact, 32)
        for kernel in fused.build(spec, hidden, dtype, exact, walk, todo, tiles.default(todo), warp).kernels:
            types = fused.signature(kernel.text, dtype)
            found = aot.report(kernel.function, types, {}, target, kernel.warps, maxnreg=kernel.maxnreg)
            assert found.spills == 0, found
            assert found.seconds < MOST_SECONDS, found
            assert len(kernel.text.source.splitlines()) <= MOST_LINES


def test_problem_1_compiles() -> None:
    check(Spec.separate(*PROBLEMS[1]), "forward", "sm_90", "tf32")


@pytest.mark.parametrize("target", aot.TARGETS)
def test_small_problems_compile(target: str) -> None:
    for name in PASSES:
        check(Spec.summed("32x0e+32x1o", "0e+1o", "0e+1o"), name, target, "tf32x3", hidden=32)


@pytest.mark.slow
@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_kernel_compiles(problem: int, name: str, target: str) -> None:
    for exact in ("tf32", "tf32x3"):
        check(Spec.separate(*PROBLEMS[problem]), name, target, exact)


def test_offsets_have_64_bits() -> None:
    """Numbers of nodes, edges, pieces and programs have 64 bits, and nothing computed of them is cut to fewer."""
    from triton import compile as triton_compile
    from triton.compiler import ASTSource

    spec = Spec.summed("32x0e+32x1o", "0e+1o", "0e+1o")
    for todo in (part for name in PASSES for part in fused.split(Pass(*PASSES[name]))):
        walk = choose_walk(spec, todo.terms, todo.trilinear_wants, by_sender=True)
        for kernel in fused.build(spec, 16, torch.float32, "tf32", walk, todo, tiles.default(todo)).kernels:
            types = fused.signature(kernel.text, torch.float32)
            assert set(types.values()) <= {"*fp32", "*i64", "i64"}
            text = triton_compile(ASTSource(kernel.function, types, {}, {}), target=aot._target("sm_90")).asm["ttir"]
            programs = re.findall(r"(%\w+) = tt.get_program_id x", text)
            widened = re.findall(r"arith.extsi (%\w+) : i32 to i64", text)
            uses = sum(len(re.findall(rf"{program}\b", text)) - 1 for program in programs)
            assert programs, todo
            assert uses == sum(widened.count(program) for program in programs), todo
            assert "arith.trunci" not in text, todo
