"""Every operation on a real GPU against its definition in double precision on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import sciml_kernels
from sciml_kernels import Edges, Waves, conv
from tests.kernels.operations import GRAPH, OPERATIONS, random_tensors
from tests.kernels.problems import PROBLEM_PATHS, SPECS, edges, inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 4e-2}


def everything(function: Callable[..., Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Value, first and second derivatives, in the same random directions on every device."""
    generator = torch.Generator().manual_seed(1)

    def direction(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    value = function(*leaves)
    g = direction(value).requires_grad_()
    first = torch.autograd.grad(value, leaves, g, create_graph=True, materialize_grads=True)
    directions = [direction(gradient) for gradient in first]
    second = torch.autograd.grad(first, [*leaves, g], directions, materialize_grads=True)
    return [tensor.detach() for tensor in (value, *first, *second)]


def moved(value: Any, device: str) -> Any:
    if isinstance(value, Waves):
        return Waves(*(tensor.to(device) for tensor in value))
    if isinstance(value, Edges):
        return Edges(value.senders.to(device), value.receivers.to(device), value.num_nodes, value.num_senders)
    return value.to(device) if isinstance(value, Tensor) else value


def run(operation: str, device: str, dtype: torch.dtype, backend: str) -> list[Tensor]:
    tensors, others = random_tensors(operation), OPERATIONS[operation][1]
    leaves = {name: t.to(device, dtype) for name, t in tensors.items() if t.is_floating_point()}
    rest = {name: moved(t, device) for name, t in {**tensors, **others}.items() if name not in leaves}

    def function(*arguments: Tensor) -> Tensor:
        named = dict(zip(leaves, arguments, strict=True))
        found = getattr(sciml_kernels, operation)(**named, **rest, backend=backend)
        return found if isinstance(found, Tensor) else torch.cat([part.reshape(-1) for part in found])

    return everything(function, list(leaves.values()))


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
        error = float((one.double().cpu() - other).abs().max()) if other.numel() else 0.0
        assert error <= tolerance * scale, f"result {index}: off by {error} of {scale}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_equals_its_definition(operation: str, dtype: torch.dtype) -> None:
    expected = run(operation, "cpu", torch.float64, "reference")
    found = run(operation, "cuda", dtype, "triton")
    assert all(tensor.is_cuda for tensor in found)
    assert_close(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_results_repeat_bit_for_bit(operation: str) -> None:
    first, second = (run(operation, "cuda", torch.float32, "auto") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*SPECS, *PROBLEM_PATHS])
def test_convolution_of_many_edges(name: str | int, dtype: torch.dtype) -> None:
    spec, graph = {**SPECS, **PROBLEM_PATHS}[name], edges(40, 3000)
    arguments = [tensor.bfloat16().double() for tensor in inputs(spec, 40, 3000, torch.float64)]
    expected = everything(lambda x, y, w: conv(x, y, w, graph, spec, "reference"), arguments)
    there, on_gpu = moved(graph, "cuda"), [tensor.to("cuda", dtype) for tensor in arguments]
    runs = [everything(lambda x, y, w: conv(x, y, w, there, spec), on_gpu) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    assert_close(runs[0], expected, TOLERANCE[dtype])


def test_no_edges() -> None:
    spec = SPECS["separate"]
    none = torch.zeros(0, dtype=torch.int64, device="cuda")
    arguments = [tensor.cuda() for tensor in inputs(spec, 3, 0, torch.float32)]
    assert not everything(lambda x, y, w: conv(x, y, w, Edges(none, none, 3), spec), arguments)[0].any()


def test_mixed_devices_are_refused_by_name() -> None:
    spec = OPERATIONS["conv"][1]["spec"]
    x, y, w = (OPERATIONS["conv"][0][name].cuda() for name in "xyw")
    with pytest.raises(ValueError, match=r"^edges: found on cpu, expected on cuda"):
        conv(x, y, w, GRAPH, spec)
    with pytest.raises(ValueError, match=r"^y: found on cpu, expected on cuda"):
        conv(x, y.cpu(), w, moved(GRAPH, "cuda"), spec)


def test_compiled_gradients_equal_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "trace_autograd_ops", True)
    spec, graph = SPECS["separate"], moved(edges(40, 900), "cuda")
    x, y, w = (tensor.cuda().requires_grad_() for tensor in inputs(spec, 40, 900, torch.float32))

    def gradients(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        (force,) = torch.autograd.grad(conv(x, y, w, graph, spec).square().sum(), y, create_graph=True)
        return torch.autograd.grad(force.square().mean(), [x, w])

    eager, compiled = gradients(x, y, w), torch.compile(gradients, fullgraph=True)(x, y, w)
    for one, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
