"""Norm, linear map per degree, gate and SiLU: compiled kernels against their definitions, and the torch operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from sciml_kernels import degree_linear, degree_norm, gate, silu

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
Function = Callable[..., Tensor]


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, for small problems too."""
    from sciml_kernels.layers import cpu

    monkeypatch.setattr(cpu, "PARALLEL_PRODUCTS", 0)
    monkeypatch.setattr(cpu, "PARALLEL_ELEMENTS", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def derivatives(function: Function, arguments: Sequence[Tensor], wanted: Sequence[int]) -> dict[str, Tensor]:
    """Value, gradients to the `wanted` arguments, and what these differentiate to, against fixed directions."""
    leaves = [argument.detach().clone().requires_grad_(i in wanted) for i, argument in enumerate(arguments)]
    inputs = [leaves[i] for i in wanted]
    value = function(*leaves)
    g = random(*value.shape, seed=1).to(value.dtype).requires_grad_()
    first = torch.autograd.grad(value, inputs, g, create_graph=True)
    directions = [random(*gradient.shape, seed=2 + i).to(value.dtype) for i, gradient in enumerate(first)]
    second = torch.autograd.grad(first, [*inputs, g], directions, allow_unused=True, materialize_grads=True)
    names = ["out", *(f"d{i}" for i in wanted), *(f"dd{i}" for i in wanted), "ddg"]
    return {name: tensor.detach() for name, tensor in zip(names, (value, *first, *second), strict=True)}


def assert_equal(function: Function, arguments: Sequence[Tensor], wanted: Sequence[int] | None = None) -> None:
    """The C++ backend equals the reference in everything to second order, each component on its own scale."""
    wanted = range(len(arguments)) if wanted is None else wanted
    expected = derivatives(lambda *leaves: function(*leaves, backend="reference"), arguments, wanted)
    for name, tensor in derivatives(lambda *leaves: function(*leaves, backend="cpu"), arguments, wanted).items():
        assert tensor.shape == expected[name].shape, name
        slots = range(tensor.shape[1]) if tensor.dim() == 3 else [slice(None)]
        for slot in slots if tensor.dim() > 1 and tensor.numel() else []:
            want = expected[name][:, slot]
            scale = max(1.0, float(want.abs().max()))
            error = float((tensor[:, slot] - want).abs().max())
            assert error <= TOLERANCE[tensor.dtype] * scale, f"{name}, slot {slot}: off by {error} of {scale}"
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-4)


def linear_inputs(nodes: int, lmax: int, sizes: tuple[int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, weights, bias, residual."""
    shapes = ((nodes, (lmax + 1) ** 2, sizes[0]), (lmax + 1, *sizes), (sizes[1],), (nodes, (lmax + 1) ** 2, sizes[1]))
    return [random(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(
    ("nodes", "lmax", "sizes", "dtype", "norm"),
    [  # each compiles a library: ragged channels, whole vectors, more than one panel, invariants alone
        (37, 2, (20, 35), torch.float64, False),
        (37, 2, (20, 35), torch.float32, True),
        (5, 3, (32, 16), torch.float64, True),
        (5, 3, (32, 16), torch.float32, False),
        (40, 0, (3, 40), torch.float64, False),
    ],
)
def test_linear_equals_its_definition(
    nodes: int, lmax: int, sizes: tuple[int, int], dtype: torch.dtype, norm: bool, poisoned: None
) -> None:
    def function(*arguments: Tensor, backend: str) -> Tensor:
        return degree_linear(*arguments, norm=norm, backend=backend)

    assert_equal(function, linear_inputs(nodes, lmax, sizes, dtype))


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 1), (1, 2), (0, 2, 3)])
def test_linear_with_partial_gradients(wanted: tuple[int, ...], norm: bool, poisoned: None) -> None:
    """Only some inputs need gradients: fewer terms and results, the same numbers."""

    def function(*arguments: Tensor, backend: str) -> Tensor:
        return degree_linear(*arguments, norm=norm, backend=backend)

    assert_equal(function, linear_inputs(9, 1, (4, 4)), wanted)


@pytest.mark.parametrize("residual_lmax", [0, 2])
def test_linear_with_other_degrees(residual_lmax: int, poisoned: None) -> None:
    """Weights of more degrees than x; a residual of fewer or more."""
    x, _, bias, _ = linear_inputs(7, 1, (4, 4))
    arguments = [x, random(4, 4, 4), bias, random(7, (residual_lmax + 1) ** 2, 4)]
    assert_equal(degree_linear, arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize(("lmax", "channels"), [(0, 3), (2, 20), (3, 32)])
def test_norm_and_gate_equal_their_definitions(lmax: int, channels: int, dtype: torch.dtype, poisoned: None) -> None:
    x = random(6, (lmax + 1) ** 2, channels).to(dtype)
    assert_equal(degree_norm, [x])
    assert_equal(silu, [x])
    if lmax:
        gates = random(6, lmax, channels, seed=5).to(dtype)
        for wanted in ((0, 1), (0,), (1,)):
            assert_equal(gate, [x, gates], wanted)
    else:
        assert torch.equal(gate(x), silu(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_silu_over_the_whole_range(dtype: torch.dtype) -> None:
    x = torch.linspace(-1000.0, 1000.0, 4001, dtype=dtype)
    x = torch.cat([x, torch.linspace(-20.0, 20.0, 4001, dtype=dtype)])
    tolerance = 4 * torch.finfo(dtype).eps
    expected = (x.double() * x.double().sigmoid()).to(dtype)
    torch.testing.assert_close(silu(x, "cpu"), expected, rtol=tolerance, atol=1e-36)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_propagate(bad: float) -> None:
    """To the node that they are in, and no other."""
    x, weights, bias, _ = linear_inputs(3, 1, (4, 4))
    x[1] = bad
    for out in (degree_norm(x), degree_linear(x, weights, bias), degree_linear(x, weights, norm=True)):
        assert not out[1].isfinite().any()
        assert out[[0, 2]].isfinite().all()
    assert silu(torch.tensor([bad, -float("inf"), 1.0]))[:2].isfinite().logical_not().all()
    gates = random(3, 1, 4)
    gates[2] = float("nan")
    assert gate(x, gates)[2, 1:].isnan().all()
    weights[0, 3, 2] = float("nan")
    assert degree_linear(x, weights, bias)[0, 0].isnan().nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("nodes", [0, 1])
def test_empty_inputs_and_single_nodes(nodes: int, poisoned: None) -> None:
    assert_equal(degree_linear, linear_inputs(nodes, 1, (4, 4)))
    x = random(nodes, 4, 5)
    assert_equal(degree_norm, [x])
    assert_equal(gate, [x, random(nodes, 1, 5)])


def test_repeatable_bit_for_bit(two_threads: None) -> None:
    arguments = linear_inputs(50, 2, (20, 35), torch.float32)
    runs = [derivatives(lambda *leaves: degree_linear(*leaves, norm=True), arguments, range(4)) for _ in range(3)]
    for name, tensor in runs[0].items():
        assert all(torch.equal(tensor, run[name]) for run in runs[1:]), name


def test_two_threads_equal_the_definition(two_threads: None, poisoned: None) -> None:
    assert_equal(degree_linear, linear_inputs(40, 2, (20, 35)))
    assert_equal(degree_linear, linear_inputs(1, 1, (4, 4)))
    assert_equal(gate, [random(40, 9, 20), random(40, 2, 20)])


def test_strided_input() -> None:
    x, weights, bias, residual = linear_inputs(6, 1, (4, 4))
    strided = [tensor.mT.contiguous().mT for tensor in (x, weights, residual)]
    found = degree_linear(strided[0], strided[1], bias, strided[2])
    torch.testing.assert_close(found, degree_linear(x, weights, bias, residual))
    torch.testing.assert_close(gate(strided[0], x[:, ::3].contiguous()[:, :1]), gate(x, x[:, :1]))


def test_gradgradcheck() -> None:
    arguments = [tensor.requires_grad_() for tensor in linear_inputs(2, 1, (4, 4))]
    for norm in (False, True):

        def function(*leaves: Tensor, norm: bool = norm) -> Tensor:
            return degree_linear(*leaves, norm=norm)

        assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)
    x, gates = random(2, 4, 3).requires_grad_(), random(2, 1, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(gate, (x, gates))
    assert torch.autograd.gradgradcheck(degree_norm, (x,))
    assert torch.autograd.gradgradcheck(silu, (x,))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_equivariance(backend: str) -> None:
    """Turning degree 1 of the input turns degree 1 of the output."""
    rotation, _ = torch.linalg.qr(random(3, 3))

    def turned(x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], torch.einsum("ij,njc->nic", rotation, x[:, 1:])], 1)

    x, weights, bias, residual = linear_inputs(4, 1, (4, 4))
    functions: list[Function] = [
        lambda x: degree_norm(x, backend=backend),
        lambda x: degree_linear(x, weights, bias, x, norm=True, backend=backend),
        lambda x: gate(x, residual[:, :1], backend=backend),
    ]
    for function in functions:
        torch.testing.assert_close(function(turned(x)), turned(function(x)), rtol=0, atol=1e-12)


def test_third_derivatives_are_refused() -> None:
    x, weights, *_ = (tensor.requires_grad_() for tensor in linear_inputs(3, 1, (4, 4)))
    for out in (degree_linear(x, weights), degree_norm(x), gate(x, x[:, :1]), silu(x)):
        first = torch.autograd.grad(out.square().sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first.square().sum(), x, create_graph=True)[0]
        with pytest.raises(NotImplementedError, match="third derivatives"):
            torch.autograd.grad(second.square().sum(), x)


def test_forces_do_not_pay_for_gradients_to_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is asked which gradients it will use."""
    from sciml_kernels.layers import library_linear

    asked = []
    inner = library_linear.linear_backward
    monkeypatch.setattr(library_linear, "linear_backward", lambda *args: (asked.append(args[-1]), inner(*args))[1])
    x, weights, bias, _ = (tensor.requires_grad_() for tensor in linear_inputs(3, 1, (4, 4)))
    energy = degree_linear(2.0 * x, weights, bias).square().sum()
    forces = torch.autograd.grad(energy, x, create_graph=True)[0]
    forces.square().sum().backward()
    assert asked[0] == "x"
    assert asked[1:] == ["xwb"]
    assert weights.grad is not None
    torch.autograd.grad(degree_linear(2.0 * x, weights, bias).sum(), weights)
    assert asked[-1] == "w"


def test_opcheck() -> None:
    x, w, bias, residual = (tensor.requires_grad_() for tensor in linear_inputs(3, 1, (4, 4)))
    g, operators = random(3, 4, 4).requires_grad_(), torch.ops.sciml_kernels
    v = [random(*tensor.shape, seed=9) for tensor in (x, w, bias)]
    plain = [tensor.detach() for tensor in (g, x, w)]
    check = torch.library.opcheck
    check(operators.degree_linear.default, (x, w, bias, residual, True, 1e-5, "cpu"))
    check(operators.degree_linear_backward.default, (g, x, w, True, 1e-5, "cpu", "xwb"))
    check(operators.degree_linear_double_backward.default, (*v, *plain, True, 1e-5, "cpu", "gxw"))
    gates, g = random(3, 1, 4).requires_grad_(), random(3, 4, 4).requires_grad_()
    check(operators.gate.default, (x, gates, "cpu"))
    check(operators.gate_backward.default, (g, x, gates, "cpu", "xt"))
    check(operators.degree_norm.default, (x, 1e-5, "cpu"))
    check(operators.degree_norm_backward.default, (g, x, 1e-5, "cpu"))
    check(operators.silu.default, (x, "cpu"))
    check(operators.silu_backward.default, (g, x, "cpu"))
    g, x, gates = g.detach(), x.detach(), gates.detach()
    check(operators.gate_double_backward.default, (x, None, g, x, gates, "cpu", "gxt"))
    check(operators.degree_norm_double_backward.default, (x, g, x, 1e-5, "cpu", "gx"))
    check(operators.silu_double_backward.default, (x, g, x, "cpu", "gx"))


def test_compiled_gradients_equal_eager_ones() -> None:
    leaves = [tensor.requires_grad_() for tensor in linear_inputs(5, 1, (4, 4))]

    def loss(x: Tensor, w: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        hidden = degree_linear(x, w, bias, residual, norm=True)
        return gate(hidden, hidden[:, 1:2]).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    eager = torch.autograd.grad(loss(*leaves), leaves)
    for found, expected in zip(torch.autograd.grad(compiled(*leaves), leaves), eager, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: degree_norm(x[:, :3]), r"x: found shape \(2, 3, 5\), expected \(nodes, components, channels\)"),
        (lambda x: degree_norm(x.long()), "x: found torch.int64, expected a floating point dtype"),
        (lambda x: degree_linear(x, random(2, 4, 5)), r"weights: found shape \(2, 4, 5\), expected \(any, 5, any\)"),
        (lambda x: degree_linear(x, random(1, 5, 5)), "weights: found 1 degrees, expected at least 2 as x"),
        (lambda x: degree_linear(x, random(2, 5, 5), random(4)), r"bias: found shape \(4,\), expected \(5\)"),
        (lambda x: degree_linear(x, random(2, 5, 5), residual=x[:1]), r"residual: found shape \(1, 4, 5\)"),
        (lambda x: degree_linear(x, random(2, 5, 5).float()), "weights: found torch.float32, expected torch.float64"),
        (lambda x: gate(x), r"gates: found None, expected \(2, 1, 5\)"),
        (lambda x: gate(x, x), r"gates: found shape \(2, 4, 5\), expected \(2, 1, 5\)"),
        (lambda x: silu(x, "triton"), "backend: 'triton' is not possible"),
    ],
)
def test_bad_arguments(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(random(2, 4, 5))
