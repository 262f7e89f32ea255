"""The compiled edge embedding against its definition and e3nn, down to the second derivative."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from e3nn import o3
from torch import Tensor

from sciml_kernels import edge_embedding, spherical_harmonics
from tests.kernels.interpreted import interpreted

SHAPES = {"direction": (3, 8, False, 6), "solid": (2, 5, True, 6), "large": (6, 12, False, 5), "small": (1, 1, True, 4)}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
Shape = tuple[int, int, bool, int]


def vectors(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Lengths from 1e-2 to beyond the cutoff, on either side of every branch."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64))
    return (directions * torch.linspace(1e-2, 1.7, count, dtype=torch.float64)[:, None]).to(dtype)


def derivatives(shape: Shape, at: Tensor, backend: str) -> dict[str, Tensor]:
    """Values, gradient, and the second derivatives to vectors and the three incoming gradients."""
    generator = torch.Generator().manual_seed(1)
    leaf = at.detach().clone().requires_grad_()
    values = edge_embedding(leaf, *shape, backend=backend)
    g = [torch.randn(v.shape, generator=generator).to(v.dtype).requires_grad_() for v in values]
    (first,) = torch.autograd.grad(values, leaf, g, create_graph=True)
    second = torch.autograd.grad(first, [leaf, *g], torch.randn(at.shape, generator=generator).to(at.dtype))
    names = ("harmonics", "basis", "envelope", "d", "dd", "d harmonics", "d basis", "d envelope")
    return {name: t.detach() for name, t in zip(names, (*values, first, *second), strict=True)}


def check_against_definition(shape: Shape, dtype: torch.dtype, backend: str, tolerance: float) -> None:
    at = vectors(37, dtype)
    found, expected = derivatives(shape, at, backend), derivatives(shape, at.double(), "reference")
    for key, wanted in expected.items():
        assert found[key].dtype == dtype
        scale = wanted.abs().amax(dim=0).clamp(min=1.0)
        error = ((found[key] - wanted).abs() / scale).amax(dim=0)
        assert (error <= tolerance).all(), f"{key}: column {int(error.argmax())} off by {float(error.max())}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_definition(name: str, dtype: torch.dtype, poisoned: None) -> None:
    check_against_definition(SHAPES[name], dtype, "cpu", TOLERANCE[dtype])


@interpreted
def test_triton_equals_the_definition() -> None:
    for name in ("direction", "solid"):
        check_against_definition(SHAPES[name], torch.float64, "triton", TOLERANCE[torch.float64])
    check_against_definition(SHAPES["small"], torch.float32, "triton", TOLERANCE[torch.float32])
    check_against_definition(SHAPES["small"], torch.bfloat16, "triton", 0.02)


@interpreted
def test_triton_without_edges_and_at_length_zero() -> None:
    assert edge_embedding(vectors(0), 2, 3, backend="triton").basis.shape == (0, 3)
    assert all(t.isfinite().all() for t in derivatives((2, 3, True, 6), torch.zeros(2, 3), "triton").values())
    assert spherical_harmonics(torch.full((2, 3), math.nan), 1, backend="triton")[:, 1:].isnan().all()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("solid", [False, True])
def test_harmonics_are_those_of_e3nn(backend: str, solid: bool) -> None:
    at = vectors(20)
    expected = o3.spherical_harmonics(list(range(7)), at, normalize=not solid, normalization="component")
    torch.testing.assert_close(spherical_harmonics(at, 6, solid, backend), expected.double(), rtol=0, atol=1e-6)
    alone, whole = spherical_harmonics(at, 3, solid, backend), edge_embedding(at, 3, 1, solid, backend=backend)
    torch.testing.assert_close(alone, whole.harmonics, rtol=0, atol=1e-14)


def test_basis_and_envelope_are_the_published_ones() -> None:
    at = vectors(20)
    found = edge_embedding(at, 1, 4, power=5, backend="cpu")
    r = at.norm(dim=1)
    for n in range(1, 5):
        torch.testing.assert_close(found.basis[:, n - 1], math.sqrt(2) * torch.sin(n * math.pi * r) / r)
    inside = (1 - 21 * r**5 + 35 * r**6 - 15 * r**7) * (r < 1)
    torch.testing.assert_close(found.envelope[:, 0], inside, rtol=0, atol=1e-13)


def test_equivariance() -> None:
    """Turned vectors give turned harmonics, r and so the radial parts stay."""
    at, (turn, _) = vectors(30), torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    still, moved = (edge_embedding(points, 4, 3, backend="cpu") for points in (at, at @ turn.T))
    torch.testing.assert_close(moved.basis, still.basis)
    for degree in range(5):
        part = slice(degree**2, (degree + 1) ** 2)
        matrix = torch.linalg.lstsq(still.harmonics[:, part], moved.harmonics[:, part]).solution
        torch.testing.assert_close(still.harmonics[:, part] @ matrix, moved.harmonics[:, part], rtol=0, atol=1e-9)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(2 * degree + 1).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_vectors_of_length_zero(dtype: torch.dtype) -> None:
    """The derivatives at zero are the limits: those nearby, and the known Hessian of the basis."""
    shape = (3, 4, True, 6)
    zero = derivatives(shape, torch.zeros(3, 3, dtype=dtype), "cpu")
    near = derivatives(shape, torch.full((3, 3), 1e-9, dtype=dtype), "cpu")
    for name, tensor in zero.items():
        torch.testing.assert_close(tensor, near[name], rtol=1e-5, atol=1e-4, msg=name)
    leaf = torch.zeros(1, 3, dtype=dtype, requires_grad=True)
    basis = edge_embedding(leaf, 1, 4, True, backend="cpu").basis
    for n in range(1, 5):
        (first,) = torch.autograd.grad(basis[0, n - 1], leaf, create_graph=True)
        (second,) = torch.autograd.grad(first[0, 0], leaf, retain_graph=True)
        expected = torch.tensor([[-math.sqrt(2) / 3 * (n * math.pi) ** 3, 0.0, 0.0]], dtype=dtype)
        torch.testing.assert_close(second, expected, rtol=1e-5, atol=0)
    direction = edge_embedding(torch.zeros(1, 3, dtype=dtype), 2, 4, backend="cpu")
    assert direction.harmonics[0, 1:].isnan().all()
    assert direction.basis.isfinite().all()


def test_small_lengths_lose_nothing() -> None:
    """Second derivatives of the basis in fp32, where sin and cos alone would cancel."""
    at = vectors(1) * torch.logspace(-6, 0, 40, dtype=torch.float64)[:, None] * 50
    found, expected = (derivatives((1, 8, True, 6), at.to(t), "cpu") for t in (torch.float32, torch.float64))
    for name in ("d basis", "dd", "d"):
        error = (found[name] - expected[name]).abs().amax(dim=1)
        assert (error <= 2e-5 * expected[name].abs().amax(dim=1).clamp(min=1e-3)).all(), name


def test_gradgradcheck() -> None:
    at = vectors(5).requires_grad_()

    def function(v: Tensor) -> Sequence[Tensor]:
        return edge_embedding(v, 2, 3, backend="cpu")

    assert torch.autograd.gradcheck(function, at)
    assert torch.autograd.gradgradcheck(function, at)


@pytest.mark.parametrize("used", ["harmonics", "basis", "envelope"])
def test_one_output_alone(used: str) -> None:
    """Gradients that do not arrive drop out of the kernel, not out of the sum."""
    results = []
    for backend in ("cpu", "reference"):
        at = vectors(19).requires_grad_()
        value = getattr(edge_embedding(at, 2, 3, backend=backend), used)
        (first,) = torch.autograd.grad(value.square().sum(), at, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), at)
        results.append((first.detach(), second))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


def test_third_derivatives_are_refused() -> None:
    at = vectors(3).requires_grad_()
    (first,) = torch.autograd.grad(spherical_harmonics(at, 2, backend="cpu").square().sum(), at, create_graph=True)
    (second,) = torch.autograd.grad(spherical_harmonics(at, 2, backend="cpu").sum(), at, create_graph=True)
    (again,) = torch.autograd.grad((first * second).sum(), at, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        torch.autograd.grad(again.sum(), at)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17])
def test_any_number_of_edges(count: int, poisoned: None) -> None:
    at = vectors(20, torch.float32)
    whole, part = derivatives(SHAPES["direction"], at, "cpu"), edge_embedding(at[:count], 3, 8, backend="cpu")
    assert [t.shape for t in part] == [(count, 16), (count, 8), (count, 1)]
    for name, tensor in part._asdict().items():
        assert torch.equal(tensor, whole[name][:count])
    gradients = derivatives(SHAPES["direction"], at[:count], "cpu")
    assert all(t.shape[0] == count and t.isfinite().all() for t in gradients.values())


def test_repeatable_bit_for_bit_at_any_number_of_threads() -> None:
    at, before = vectors(60_000, torch.float32), torch.get_num_threads()
    runs = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        runs.append(derivatives(SHAPES["direction"], at, "cpu"))
    torch.set_num_threads(before)
    for name, tensor in runs[0].items():
        assert all(torch.equal(tensor, run[name]) for run in runs[1:]), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_propagate(bad: float) -> None:
    """A bad component spoils its own row and no other."""
    at = vectors(20, torch.float32)
    at[3, 1] = bad
    found = derivatives(SHAPES["direction"], at, "cpu")
    others = torch.arange(20) != 3
    assert all(tensor[others].isfinite().all() for tensor in found.values())
    assert found["harmonics"][3, 1:].isnan().any()
    assert found["basis"][3].isnan().all()
    assert not found["d"][3].isfinite().any()


def test_strided_and_other_dtypes() -> None:
    at = vectors(9)
    strided = at.T.contiguous().T
    assert torch.equal(spherical_harmonics(strided, 3, backend="cpu"), spherical_harmonics(at, 3, backend="cpu"))
    assert edge_embedding(at.bfloat16(), 2, 4).basis.dtype == torch.bfloat16


def test_opcheck() -> None:
    operators = torch.ops.sciml_kernels
    at, key = vectors(5).requires_grad_(), "2 3 0 6"
    values = edge_embedding(at, 2, 3, backend="cpu")
    g = [torch.randn_like(value).requires_grad_() for value in values]
    torch.library.opcheck(operators.edge_embedding.default, (at, key, "cpu"))
    torch.library.opcheck(operators.spherical_harmonics.default, (at, "2 0 1 0", "cpu"))
    torch.library.opcheck(operators.edge_embedding_backward.default, (*g, at, key, "cpu", "vectors"))
    still = [tensor.detach() for tensor in (*g, at)]
    wants = "vectors,harmonics,basis,envelope"
    torch.library.opcheck(
        operators.edge_embedding_double_backward.default, (torch.randn_like(at), *still, key, "cpu", wants)
    )


def test_compiled_gradients_equal_eager_ones() -> None:
    at = vectors(12).requires_grad_()

    def loss(v: Tensor) -> Tensor:
        values = edge_embedding(v, 2, 3)
        return values.harmonics.square().sum() + (values.basis * values.envelope).sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(at), at), torch.autograd.grad(loss(at), at))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": torch.zeros(5, 4)}, r"vectors: found shape \(5, 4\), expected \(any, 3\)"),
        ({"vectors": torch.zeros(5, 3, dtype=torch.int64)}, "vectors: found torch.int64, expected a floating point"),
        ({"lmax": 7}, r"lmax: found 7, expected an integer within 0\.\.6"),
        ({"basis": 0}, r"basis: found 0, expected an integer within 1\.\.256"),
        ({"power": 1}, r"power: found 1, expected an integer within 2\.\.64"),
        ({"backend": "cuda"}, "backend: found 'cuda', expected"),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"vectors": torch.zeros(5, 3), "lmax": 2, "basis": 4, **change}
    with pytest.raises(ValueError, match=message):
        edge_embedding(**arguments)  # type: ignore[arg-type]
