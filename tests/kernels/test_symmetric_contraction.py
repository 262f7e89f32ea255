"""The symmetric contraction against MACE's published definition, written out with dense generalised couplings."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3
from torch import Tensor

from sciml_kernels import SymmetricSpec, symmetric_contraction
from sciml_kernels.product import symmetric_cpu, symmetric_library
from tests.kernels.interpreted import interpreted

pytestmark = pytest.mark.usefixtures("poisoned")
CASES = {
    "0e+1o to itself, order 3": ("0e+1o", "0e+1o", 3),
    "lmax 2 to 0e, order 3": ("0e+1o+2e", "0e", 3),
    "both parities, unsorted, order 2": ("1o+0e+1e", "1o+0e", 2),
    "order 1": ("0e+1o", "1o", 1),
}


def generalised_couplings(irreps: o3.Irreps, order: int) -> list[tuple[o3.Irrep, Tensor]]:
    """All chains of `order` factors by nested loops: (L, tensor (2L+1, dim, ..., dim)), irreps ascending."""
    eye = torch.eye(irreps.dim, dtype=torch.float64)
    places = [(ir, eye[part]) for (_, ir), part in zip(irreps, irreps.slices(), strict=True)]
    if order == 1:
        return places
    found = []
    for left, below in generalised_couplings(irreps, order - 1):
        for right, place in places:
            for out in left * right:
                coupling = o3.wigner_3j(out.l, left.l, right.l, dtype=torch.float64) * (2 * out.l + 1) ** 0.5
                tensor = torch.tensordot(torch.tensordot(coupling, below, ([1], [0])), place, ([1], [0]))
                found.append((out, tensor))
    return sorted(found, key=lambda pair: pair[0])


def definition(x: Tensor, weights: Tensor, species: Tensor, irreps: str, keep: str, correlation: int) -> Tensor:
    """sum of W U x ... x, one coupling and one factor after the other."""
    parts, row = [], 0
    for _, wanted in o3.Irreps(keep):
        total = x.new_zeros(x.shape[0], wanted.dim, x.shape[2])
        for order in range(1, correlation + 1):
            for out, tensor in generalised_couplings(o3.Irreps(irreps), order):
                if out != wanted:
                    continue
                value = torch.einsum("k...m,nmc->nck...", tensor, x)
                for _ in range(order - 1):
                    value = torch.einsum("nc...m,nmc->nc...", value, x)
                total = total + weights[species, row, None, :] * value.transpose(1, 2)
                row += 1
        parts.append(total)
    assert row == weights.shape[1]
    return torch.cat(parts, dim=1)


def problem(case: str, channels: int = 5, nodes: int = 7) -> tuple[SymmetricSpec, Tensor, Tensor, Tensor]:
    irreps, keep, correlation = CASES[case]
    spec = SymmetricSpec(o3.Irreps([(channels, ir) for _, ir in o3.Irreps(irreps)]), keep, correlation)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(nodes, o3.Irreps(irreps).dim, channels, dtype=torch.float64, generator=generator)
    weights = torch.randn(3, len(spec.couplings), channels, dtype=torch.float64, generator=generator)
    return spec, x, weights, torch.randint(3, (nodes,), generator=generator)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_published_definition(case: str, backend: str) -> None:
    """Value, first and second derivatives to features and weights."""
    spec, x, weights, species = problem(case)
    results = []
    for function in (
        lambda a, b: symmetric_contraction(a, b, species, spec, backend),
        lambda a, b: definition(a, b, species, *CASES[case]),
    ):
        leaves = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
        value = function(*leaves)
        first = torch.autograd.grad(value.sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), leaves)
        results.append([value, *first, *second])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_only_independent_chains_are_computed() -> None:
    """x (x) x of 0e+1o has no 1e and one 1o; the weights of all chains are kept for who has trained them."""
    spec = SymmetricSpec("128x0e+128x1o", "0e+1o", 3)
    assert str(spec.steps[0].irreps_out) == "128x0e+128x1o+128x0e+128x2e"
    assert len(spec.couplings) == 16
    assert len(spec.steps[-1].paths) == 9


def test_the_way_that_is_taken() -> None:
    """One kernel where it is small; the full third order of lmax 2 takes the chain of products."""
    large = SymmetricSpec("5x0e+5x1o+5x2e", "0e+1o+2e", 3)
    assert [symmetric_cpu.fits(problem(case)[0]) for case in CASES] == [True] * len(CASES)
    assert not symmetric_cpu.fits(large)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 9, 5, dtype=torch.float64, generator=generator)
    weights = torch.randn(2, len(large.couplings), 5, dtype=torch.float64, generator=generator)
    species = torch.tensor([0, 1, 1, 0])
    expected = definition(x, weights, species, "0e+1o+2e", "0e+1o+2e", 3)
    torch.testing.assert_close(symmetric_contraction(x, weights, species, large), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_any_number_of_channels_and_threads(dtype: torch.dtype) -> None:
    """Vectors of channels and a ragged rest; the number of threads changes nothing, not even rounding."""
    spec, x, weights, species = problem("0e+1o to itself, order 3", channels=37, nodes=300)
    leaves = [x.to(dtype).requires_grad_(), weights.to(dtype).requires_grad_()]
    before, results = torch.get_num_threads(), []
    for threads, backend in ((1, "cpu"), (2, "cpu"), (1, "reference")):
        torch.set_num_threads(threads)
        value = symmetric_contraction(*leaves, species, spec, backend)
        results.append([value, *torch.autograd.grad(value.square().sum(), leaves)])
    torch.set_num_threads(before)
    for one, two, reference in zip(*results, strict=True):
        assert torch.equal(one, two)
        scale = float(reference.detach().abs().max())
        torch.testing.assert_close(one, reference, rtol=0, atol=(1e-5 if dtype == torch.float32 else 1e-13) * scale)


def test_operators_pass_opcheck_and_gradgradcheck() -> None:
    spec, x, weights, species = problem("order 1")
    reduced = torch.matmul(spec.reduction_like(x), weights).flatten(1)
    leaves = [x.flatten(1).requires_grad_(), reduced.requires_grad_()]
    torch.library.opcheck(symmetric_library.contraction._registered, (*leaves, species, spec.key))
    g = torch.randn(7, 15, dtype=torch.float64, requires_grad=True)
    backward, double = symmetric_library.contraction_backward, symmetric_library.contraction_double_backward
    torch.library.opcheck(backward._registered, (g, *leaves, species, spec.key, "xw"))
    rest = [tensor.detach() for tensor in (g, *leaves)]
    torch.library.opcheck(double._registered, (rest[1], None, *rest, species, spec.key, "gw"))
    spec, x, weights, species = problem("0e+1o to itself, order 3", channels=1, nodes=2)
    both = (x.requires_grad_(), weights.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda a, b: symmetric_contraction(a, b, species, spec, "cpu"), both)


@interpreted
def test_triton_equals_the_definition() -> None:
    """On a GPU the contraction is a chain of products."""
    spec, x, weights, species = problem("0e+1o to itself, order 3", channels=3, nodes=2)
    results = []
    for backend in ("triton", "reference"):
        leaves = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
        value = symmetric_contraction(*leaves, species, spec, backend)
        first = torch.autograd.grad(value.sin().sum(), leaves, create_graph=True)
        results.append([value, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_equivariance(backend: str) -> None:
    """Turned and mirrored features give turned and mirrored ones."""
    spec, x, weights, species = problem("0e+1o to itself, order 3")
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))

    def turned(features: Tensor) -> Tensor:
        return torch.cat([features[:, :1], turn @ features[:, 1:]], dim=1)

    found = symmetric_contraction(turned(x), weights, species, spec, backend)
    expected = turned(symmetric_contraction(x, weights, species, spec, backend))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_stay_with_their_node(bad: float) -> None:
    spec, x, weights, species = problem("0e+1o to itself, order 3")
    x[2] = bad
    out = symmetric_contraction(x, weights, species, spec, "cpu")
    assert not out[2].isfinite().any()
    assert out[[0, 1, 3, 4, 5, 6]].isfinite().all()


def test_compiled_gradients_equal_eager_ones() -> None:
    spec, x, weights, species = problem("0e+1o to itself, order 3")
    leaves = [x.requires_grad_(), weights.requires_grad_()]

    def loss(x: Tensor, weights: Tensor) -> Tensor:
        return symmetric_contraction(x, weights, species, spec).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    eager = torch.autograd.grad(loss(*leaves), leaves)
    for found, expected in zip(torch.autograd.grad(compiled(*leaves), leaves), eager, strict=True):
        torch.testing.assert_close(found, expected)


def test_no_nodes_and_one_species() -> None:
    spec, x, weights, species = problem("0e+1o to itself, order 3")
    assert symmetric_contraction(x[:0], weights, species[:0], spec).shape == (0, 4, 5)
    flat = symmetric_contraction(x.flatten(1), weights[:1], torch.zeros_like(species), spec)
    assert flat.shape == (7, 20)


def test_bad_arguments() -> None:
    spec, x, weights, species = problem("0e+1o to itself, order 3")
    with pytest.raises(ValueError, match=r"weights: found shape \(3, 15, 5\), expected \(any, 16, 5\)"):
        symmetric_contraction(x, weights[:, 1:], species, spec)
    with pytest.raises(ValueError, match=r"species: found torch.int32"):
        symmetric_contraction(x, weights, species.int(), spec)
    with pytest.raises(ValueError, match=r"species: found .*, expected within 0\.\.1"):
        symmetric_contraction(x, weights[:2], torch.full_like(species, 2), spec)
    with pytest.raises(ValueError, match="irreps_x: found 2x0e\\+3x1o, expected irreps of one multiplicity"):
        SymmetricSpec("2x0e+3x1o", "0e", 2)
    with pytest.raises(ValueError, match="keep: found 2o, expected irreps that"):
        SymmetricSpec("2x0e+2x1o", "2o", 2)
    with pytest.raises(ValueError, match="correlation: found 0"):
        SymmetricSpec("2x0e", "0e", 0)
