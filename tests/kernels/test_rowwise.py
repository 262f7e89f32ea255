"""The generator of row-wise functions: what it derives, its elementary functions, and both emitters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from sciml_kernels import aot, triton_source
from sciml_kernels.edge_embedding.function import from_key
from sciml_kernels.rowwise import cpu, gpu, triton
from sciml_kernels.rowwise.expression import (
    Graph,
    absolute,
    bessel,
    exp,
    floor,
    gradient,
    log,
    maximum,
    minimum,
    power,
    reachable,
    sqrt,
    tangent,
)
from sciml_kernels.rowwise.function import Function, Pass, Row, backward, double_backward, forward
from tests.kernels.interpreted import interpreted

EDGE_OUTPUTS = ("harmonics", "basis", "envelope")


def all_operations(rows: Mapping[str, Row]) -> Mapping[str, Row]:
    """Each operation at least once, of x and y of any sign."""
    x, y = rows["point"]
    square = x * x + y * y
    radial = [power(square, 3) / (1 + power(square, 1)), bessel(square, 0), bessel(square, -1) * power(square, -1)]
    kinks = [minimum(x, y) * y, maximum(x * y, 0.5), absolute(x - y), floor(3 * x) * y]
    smooth = [sqrt(1 + square) - 2.0, log(1 + square) * exp(-x), -(x - y) / (2 + exp(y)), 3.0 / (4 + x * y)]
    return {"all": [*radial, *kinks, *smooth]}


def all_operations_in_torch(point: Tensor) -> Tensor:
    x, y = point.unbind(1)
    square = x * x + y * y
    r = square.sqrt()
    radial = [r**3 / (1 + r), torch.sinc(r), torch.cos(math.pi * r) / r]
    kinks = [torch.minimum(x, y) * y, (x * y).clamp(min=0.5), (x - y).abs(), (3 * x).floor() * y]
    smooth = [(1 + square).sqrt() - 2, (1 + square).log() * (-x).exp(), -(x - y) / (2 + y.exp()), 3 / (4 + x * y)]
    return torch.stack([*radial, *kinks, *smooth], 1)


FUNCTION = Function({"point": 2}, {"all": 11}, all_operations)
Run = Callable[[Pass, dict[str, Tensor]], dict[str, Tensor]]


def on_cpu(work: Pass, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    return cpu.launch(cpu.compiled("test", work, arrays["point"].dtype), arrays)


def on_gpu(work: Pass, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    return gpu.launch(gpu.compiled("test", work, arrays["point"].dtype), arrays)


def check_every_order(run: Run, dtype: torch.dtype, tolerance: float) -> None:
    """The three passes against autograd in fp64."""
    generator = torch.Generator().manual_seed(0)
    point, g, u = (torch.randn(37, n, generator=generator, dtype=torch.float64) for n in (2, 11, 2))
    arrays = {name: t.to(dtype) for name, t in (("point", point), ("g_all", g), ("u_point", u))}
    point, g, u = (arrays[name].double().requires_grad_() for name in ("point", "g_all", "u_point"))
    value = all_operations_in_torch(point)
    (first,) = torch.autograd.grad(value, point, g, create_graph=True)
    second = torch.autograd.grad(first, (point, g), u)
    found = [
        run(forward(FUNCTION), arrays)["all"],
        run(backward(FUNCTION, ("all",), ("point",)), arrays)["point"],
        *run(double_backward(FUNCTION, ("point",), ("all",), ("point", "all")), arrays).values(),
    ]
    for order, (ours, wanted) in enumerate(zip(found, (value, first, *second), strict=True)):
        error = ((ours - wanted).abs() / wanted.abs().clamp(min=1.0)).detach()
        assert float(error.max()) <= tolerance, f"result {order}: {error.amax(0)}"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_every_order_of_every_operation(dtype: torch.dtype, tolerance: float) -> None:
    check_every_order(on_cpu, dtype, tolerance)


@interpreted
def test_every_order_of_every_operation_in_triton() -> None:
    check_every_order(on_gpu, torch.float64, 1e-12)
    check_every_order(on_gpu, torch.float32, 2e-5)


def test_equal_expressions_are_one_node() -> None:
    graph = Graph()
    x, y = graph.inputs("v", 2)
    assert x * y is y * x
    assert x + 0 is x
    assert 1 * x is x
    assert (-x) * -1 is x
    assert 2 * (3 * x) is 6 * x
    assert (x * 0).value == 0.0
    assert (-x) * y is -(x * y)


def test_a_derivative_shares_the_value() -> None:
    """d exp(x) is exp(x) itself, and both accumulations agree on it."""
    graph = Graph()
    (x,) = graph.inputs("v", 1)
    value = exp(x)
    (reverse,) = gradient([value], [graph.constant(1)], [x])
    (along,) = tangent([value], {x: graph.constant(1)})
    assert reverse is value
    assert along is value
    assert len(reachable([value, reverse, along])) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", ["log", "exp", "sqrt"])
def test_elementary_functions(name: str, dtype: torch.dtype) -> None:
    """Over the whole range, denormal numbers and special values included."""
    operation = {"log": log, "exp": exp, "sqrt": sqrt}[name]
    work = forward(Function({"point": 1}, {"value": 1}, lambda rows: {"value": [operation(rows["point"][0])]}))
    limit = torch.finfo(dtype)
    exact = torch.logspace(math.log2(limit.tiny), math.log2(limit.max) - 1, 3000, 2.0, dtype=torch.float64)
    points = {"exp": torch.linspace(-80, 80, 3000), "log": exact, "sqrt": exact}[name].to(dtype)
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, limit.smallest_normal / 8])
    points = torch.cat([points, torch.linspace(0.5, 2, 999).to(dtype), special.to(dtype)])[:, None]
    found = on_cpu(work, {"point": points})["value"]
    expected = getattr(torch, name)(points.double())
    assert torch.equal(found.isnan(), expected.isnan())
    inside = expected.isfinite()
    error = ((found - expected).abs() / expected.abs().clamp(min=limit.tiny))[inside]
    assert float(error.max()) <= 4 * limit.eps
    assert torch.equal(found[~inside & ~expected.isnan()].double(), expected[~inside & ~expected.isnan()])


def test_passes_without_some_gradients() -> None:
    work = double_backward(from_key("2 3 0 6"), ("vectors",), ("basis",), ("vectors",))
    assert list(work.reads) == ["vectors", "g_basis", "u_vectors"]
    assert list(work.writes) == ["vectors"]


def edge_passes(key: str) -> dict[str, Pass]:
    function = from_key(key)
    given = tuple(function.outputs)
    return {
        "forward": forward(function),
        "backward": backward(function, given, ("vectors",)),
        "double": double_backward(function, ("vectors",), given, ("vectors", *given)),
    }


def compile_report(work: Pass, dtype: torch.dtype, target: str) -> aot.Report:
    function = triton_source.load(triton.source("test", work, dtype), triton.NAME)
    kind = {torch.float32: "*fp32", torch.float64: "*fp64"}[dtype]
    signature = dict.fromkeys(work.indices, "*i64") | dict.fromkeys(work.reads, kind)
    signature |= {f"out_{name}": kind for name in work.writes} | {"rows": "i64"}
    return aot.report(
        function, signature, {"BLOCK": gpu.BLOCK}, target, gpu.warps(32 if target.startswith("sm") else 64)
    )


@pytest.mark.parametrize("order", ["forward", "backward", "double"])
def test_compiles_ahead_of_time_without_spills(order: str) -> None:
    report = compile_report(edge_passes("3 8 0 6")[order], torch.float32, "sm_90")
    assert report.spills == 0
    assert report.registers <= 128
    assert report.seconds < 10


@pytest.mark.slow
@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize("key", ["3 8 0 6", "3 0 0 0", "2 8 1 6", "6 8 0 6"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_every_edge_embedding_compiles(dtype: torch.dtype, key: str, target: str) -> None:
    for order, work in edge_passes(key).items():
        report = compile_report(work, dtype, target)
        assert report.seconds < 10, order
        if dtype == torch.float32 or key != "6 8 0 6":  # which spills up to 656 bytes in fp64
            assert report.spills == 0, order
