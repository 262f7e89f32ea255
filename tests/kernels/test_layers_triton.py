"""The Triton kernels of layers and segments: interpreted against their definitions, and compiled ahead of time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sciml_kernels import (
    aot,
    degree_linear,
    degree_norm,
    gate,
    project_charge,
    remove_net_force,
    remove_net_force_and_torque,
    segment_sum,
    silu,
)
from tests.kernels.interpreted import interpreted
from tests.kernels.test_layers import Function, derivatives, linear_inputs, random
from tests.kernels.test_segments import ATOMS, POINTERS, molecules


def compare(
    function: Function, arguments: Sequence[Tensor], wanted: Sequence[int] | None = None, tolerance: float = 1e-12
) -> None:
    """Everything to second order."""
    wanted = range(len(arguments)) if wanted is None else wanted
    found = derivatives(lambda *leaves: function(*leaves, backend="triton"), arguments, wanted)
    expected = derivatives(lambda *leaves: function(*leaves, backend="reference"), arguments, wanted)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "normed"])
@interpreted
def test_linear_equals_its_definition(norm: bool) -> None:
    def function(*arguments: Tensor, backend: str) -> Tensor:
        return degree_linear(*arguments, norm=norm, backend=backend)

    compare(function, linear_inputs(3, 1, (5, 18)))
    compare(function, linear_inputs(2, 1, (3, 4), torch.float32), tolerance=1e-5)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2)])
@interpreted
def test_linear_with_partial_gradients(wanted: tuple[int, ...]) -> None:
    def function(*arguments: Tensor, backend: str) -> Tensor:
        return degree_linear(*arguments, norm=True, backend=backend)

    compare(function, linear_inputs(2, 1, (3, 4)), wanted)


@interpreted
def test_linear_with_other_degrees_and_many_rows() -> None:
    x, _, bias, _ = linear_inputs(3, 1, (2, 3))
    compare(degree_linear, [x, random(3, 2, 3), bias, random(3, 1, 3)])
    compare(degree_linear, linear_inputs(300, 0, (2, 2)))


@interpreted
def test_norm_gate_and_silu_equal_their_definitions() -> None:
    x, gates = random(2, 9, 5), random(2, 2, 5, seed=1)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        compare(degree_norm, [x.to(dtype)], tolerance=tolerance)
        compare(gate, [x.to(dtype), gates.to(dtype)], tolerance=tolerance)
        compare(silu, [x.to(dtype)], tolerance=tolerance)
    compare(gate, [x, gates], (0,))
    compare(gate, [x, gates], (1,))


@interpreted
def test_half_precision_is_computed_in_single() -> None:
    """To one unit in the last place: the interpreter cuts off where a GPU rounds."""
    arguments = linear_inputs(2, 1, (4, 5), torch.bfloat16)
    found = degree_linear(*arguments, backend="triton")
    exact = degree_linear(*(tensor.double() for tensor in arguments), backend="reference")
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=1e-6)
    x, gates = random(2, 4, 5, dtype=torch.bfloat16), random(2, 1, 5, seed=1, dtype=torch.bfloat16)
    pairs = [
        (silu(x, "triton"), silu(x.double(), "reference")),
        (degree_norm(x, backend="triton"), degree_norm(x.double(), backend="reference")),
        (gate(x, gates, "triton"), gate(x.double(), gates.double(), "reference")),
    ]
    many = random(300, 5, dtype=torch.bfloat16)  # summed in bfloat16 they would lose most of their digits
    pointers = torch.tensor([0, 300])
    pairs.append((segment_sum(many, pointers, "triton"), segment_sum(many.double(), pointers, "reference")))
    for found, exact in pairs:
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=1e-6)
    alike, ends = torch.full((257,), 3.0, dtype=torch.bfloat16), torch.tensor([0, 257])  # in bfloat16 256 of them
    assert not remove_net_force(alike, ends, "triton").any()
    charges = project_charge(alike, torch.tensor([256.0], dtype=torch.bfloat16), ends, "triton")
    torch.testing.assert_close(charges.double(), torch.full((257,), 256 / 257).double(), rtol=2**-9, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@interpreted
def test_nan_and_inf_propagate(bad: float) -> None:
    """In every layer, to the whole node and to no other; the sum of a segment, and no other segment."""
    x, weights = random(3, 4, 5), random(2, 5, 4, seed=1)
    x[1] = bad
    results = (
        degree_norm(x, backend="triton"),
        degree_linear(x, weights, backend="triton"),
        degree_linear(x, weights, norm=True, backend="triton"),
        segment_sum(x, torch.tensor([0, 1, 2, 3]), "triton"),
        gate(x, random(3, 1, 5, seed=2), "triton"),
        silu(x, "triton"),
    )
    for out in results:
        assert not out[1].isfinite().any()
        assert out[[0, 2]].isfinite().all()


@interpreted
def test_segments_equal_their_definitions() -> None:
    def sums(values: Tensor, backend: str) -> Tensor:
        return segment_sum(values, POINTERS, backend)

    def centered(forces: Tensor, backend: str) -> Tensor:
        return remove_net_force(forces, POINTERS, backend)

    def charged(charges: Tensor, totals: Tensor, backend: str) -> Tensor:
        return project_charge(charges, totals, POINTERS, backend)

    def still(forces: Tensor, positions: Tensor, backend: str) -> Tensor:
        return remove_net_force_and_torque(forces, positions, torch.tensor([0, 7]), backend)

    compare(sums, [random(ATOMS, 2, 3)])
    compare(centered, [random(ATOMS, 3)])
    compare(charged, [random(ATOMS), random(len(POINTERS) - 1)])
    compare(still, [random(7, 3), molecules()[:7]], tolerance=1e-10)


@pytest.mark.parametrize("nodes", [0, 1])
@interpreted
def test_empty_inputs_and_single_nodes(nodes: int) -> None:
    compare(degree_linear, linear_inputs(nodes, 1, (2, 3)))
    x = random(nodes, 4, 5)
    compare(degree_norm, [x])
    compare(gate, [x, random(nodes, 1, 5)])


@interpreted
def test_opcheck() -> None:
    """What the compiled operators of the other backend pass, these pass as well."""
    x, w, bias, residual = (tensor.requires_grad_() for tensor in linear_inputs(2, 1, (3, 3)))
    g, gates, operators = random(2, 4, 3).requires_grad_(), random(2, 1, 3).requires_grad_(), torch.ops.sciml_kernels
    check = torch.library.opcheck
    check(operators.degree_linear.default, (x, w, bias, residual, True, 1e-5, "triton"))
    check(operators.degree_linear_backward.default, (g, x, w, True, 1e-5, "triton", "xwb"))
    check(operators.gate.default, (x, gates, "triton"))
    check(operators.gate_backward.default, (g, x, gates, "triton", "xt"))
    check(operators.degree_norm_backward.default, (g, x, 1e-5, "triton"))
    check(operators.silu_backward.default, (g, x, "triton"))
    check(operators.segment_sum.default, (random(ATOMS, 3).requires_grad_(), POINTERS, "triton"))
    check(operators.remove_mean.default, (random(ATOMS, 3).requires_grad_(), POINTERS, "triton"))
    vectors = random(3, 3).requires_grad_()
    seeds = [random(3, size, seed=size).requires_grad_() for size in (4, 2, 1)]
    check(operators.edge_embedding.default, (vectors, "1 2 0 6", "triton"))
    check(operators.edge_embedding_backward.default, (*seeds, vectors, "1 2 0 6", "triton", "vectors"))


def signature(function: Any, dtype: str, *numbers: str) -> dict[str, str]:
    """Pointers of this dtype, int64 for `numbers`, for all arguments that are no constant."""
    names = [
        name for name, parameter in zip(function.arg_names, function.params, strict=True) if not parameter.is_constexpr
    ]
    return {name: "i64" if name in numbers else "*i64" if name == "pointers" else f"*{dtype}" for name in names}


def kernels(
    channels: int,
    lmax: int,
    dtype: torch.dtype,
) -> dict[str, tuple[Any, dict[str, str], dict[str, Any]]]:
    """Every kernel with its signature and constants, as `gpu` launches it."""
    import triton.language as tl

    from sciml_kernels.layers import gpu, triton_linear, triton_rows
    from sciml_kernels.segments import gpu as segments
    from sciml_kernels.segments import triton_sums

    name = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}[dtype]
    real = tl.float64 if dtype == torch.float64 else tl.float32
    components = (lmax + 1) ** 2
    x = torch.empty(1, components, channels, dtype=dtype)
    sizes = {
        "COMPONENTS": components,
        "FROM": channels,
        "TO": channels,
        "REAL": real,
        "PRECISION": gpu.precision(dtype),
    }
    flags = {"TURNED": True, "FIRST": True, "SECOND": True, "BIAS": True, "START": True}
    row, gate_sizes, flat = gpu.row_sizes(x, 1e-5), gpu.gate_launch(x)[1], gpu.flat_launch(x)[1]
    product = {**sizes, **flags, **gpu.blocks(channels, channels, dtype)}
    outer = {**sizes, "SIZE": components * channels, **gpu.outer_blocks(channels, channels)}
    rows, columns = segments.tile(channels)
    found = {
        "product": (triton_linear.product, product, ("nodes", "start_components")),
        "outer": (triton_linear.outer, outer, ("nodes", "tiles")),
        "norm": (triton_rows.norm, row, ()),
        "norm_gradient": (triton_rows.norm_gradient, row, ()),
        "norm_second": (triton_rows.norm_second, {**row, "WANT_G": True, "WANT_X": True, "ADD": True}, ()),
        "gate": (triton_rows.gate, gate_sizes, ()),
        "gate_gradient": (triton_rows.gate_gradient, gate_sizes, ()),
        "gate_second": (triton_rows.gate_second, gate_sizes, ()),
        "silu": (triton_rows.silu, flat, ("count",)),
        "silu_gradient": (triton_rows.silu_gradient, flat, ("count",)),
        "silu_second": (triton_rows.silu_second, flat, ("count",)),
        "segment_sum": (triton_sums.segment_sum, {"REAL": real, "TILE": rows, "BLOCK": columns}, ("width",)),
    }
    return {key: (kernel, signature(kernel, name, *numbers), made) for key, (kernel, made, numbers) in found.items()}


def assert_compiles(channels: int, lmax: int, dtype: torch.dtype, target: str) -> None:
    """Without spills, in less than ten seconds a kernel."""
    for name, (kernel, types, constants) in kernels(channels, lmax, dtype).items():
        found = aot.report(kernel, types, constants, target)
        assert found.spills == 0, (name, found)
        assert found.seconds < 10.0, (name, found)


@pytest.mark.parametrize("target", aot.TARGETS)
def test_kernels_compile_ahead_of_time(target: str) -> None:
    assert_compiles(128, 3, torch.float32, target)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize(("channels", "lmax"), [(32, 1), (128, 2), (20, 0), (256, 3)])
def test_all_sizes_compile_ahead_of_time(channels: int, lmax: int, target: str, dtype: torch.dtype) -> None:
    assert_compiles(channels, lmax, dtype, target)
