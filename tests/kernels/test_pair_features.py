"""The compiled pair features against their definition, that of sciml, and a boost."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from sciml.physics import lorentz
from sciml_kernels import Edges, all_pairs, pair_features
from tests.kernels.interpreted import interpreted

pytestmark = pytest.mark.usefixtures("poisoned")
SPURIONS = lorentz.lab_spurions()
COUNTS = (5, 0, 1, 9)


def jets(counts: tuple[int, ...] = COUNTS, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Momenta with masses up to 0.3 GeV and energies up to about 100 GeV, and the pointers of the jets."""
    generator = torch.Generator().manual_seed(0)
    number = sum(counts)
    masses = 0.3 * torch.rand(number, 1, generator=generator, dtype=torch.float64)
    scale = 60 * torch.rand(number, 1, generator=generator, dtype=torch.float64)
    momentum = scale * torch.randn(number, 3, generator=generator, dtype=torch.float64)
    energy = (masses**2 + momentum.square().sum(1, keepdim=True)).sqrt()
    return torch.cat([energy, momentum], 1).to(dtype), torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()])


def derivatives(momenta: Tensor, pairs: Edges, spurions: Tensor, backend: str) -> dict[str, Tensor]:
    """Value, first and second derivatives to momenta and spurions."""
    generator = torch.Generator().manual_seed(1)
    leaves = [momenta.detach().clone().requires_grad_(), spurions.detach().clone().requires_grad_()]
    value = pair_features(leaves[0], pairs, leaves[1], backend=backend)
    g = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype).requires_grad_()
    first = torch.autograd.grad(value, leaves, g, create_graph=True)
    directions = [torch.randn(d.shape, generator=generator, dtype=torch.float64).to(d.dtype) for d in first]
    second = torch.autograd.grad(first, [*leaves, g], directions)
    names = ("features", "dp", "ds", "ddp", "dds", "ddg")
    return {name: t.detach() for name, t in zip(names, (value, *first, *second), strict=True)}


def check_against_definition(backend: str) -> None:
    momenta, pointers = jets()
    pairs = all_pairs(pointers)
    found, expected = (derivatives(momenta, pairs, SPURIONS, name) for name in (backend, "reference"))
    for name, wanted in expected.items():
        scale = wanted.abs().amax(0).clamp(min=1.0)
        assert ((found[name] - wanted).abs() / scale <= 1e-8).all(), name


def test_equals_the_definition() -> None:
    check_against_definition("cpu")


@interpreted
def test_triton_equals_the_definition() -> None:
    check_against_definition("triton")


@interpreted
def test_triton_takes_half_precision_and_passes_opcheck() -> None:
    """Computed in float64, rounded once."""
    momenta, pointers = jets((3,))
    pairs, rough = all_pairs(pointers), momenta.bfloat16()
    found = pair_features(rough, pairs, SPURIONS.bfloat16(), backend="triton")
    exact = pair_features(rough.double(), pairs, SPURIONS, backend="reference")
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=1e-6)
    table = torch.rand(3, 10, dtype=torch.float64, requires_grad=True)
    index = (pairs.receivers, pairs.senders)
    torch.library.opcheck(torch.ops.sciml_kernels.pair_features.default, (table, table.detach(), *index, "", "triton"))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_definition_is_that_of_the_model(backend: str) -> None:
    momenta, pointers = jets()
    found = pair_features(momenta, all_pairs(pointers), SPURIONS, backend=backend)
    parts = [momenta[a:b] for a, b in itertools.pairwise(pointers)]
    expected = torch.cat([lorentz.pair_features(part, SPURIONS).flatten(0, 1) for part in parts])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_unchanged_by_a_boost_of_everything() -> None:
    momenta, pointers = jets((6, 7))
    boost = lorentz.boost_matrix(torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64), 3.0)
    graphs = torch.tensor([0] * 6 + [1] * 7)
    both = torch.stack([SPURIONS, SPURIONS @ boost.T])
    moved = torch.cat([momenta[:6], momenta[6:] @ boost.T])
    still = pair_features(momenta, all_pairs(pointers), SPURIONS, backend="cpu")
    found = pair_features(moved, all_pairs(pointers), both, graphs, backend="cpu")
    torch.testing.assert_close(found, still, rtol=0, atol=1e-6)
    assert torch.equal(found[:36], still[:36])


def test_soft_collinear_and_resting_particles() -> None:
    """Massless and parallel, at rest, along a beam, of zero momentum: values and gradients stay finite."""
    rows = [[5.0, 3.0, 0.0, 4.0], [2.5, 1.5, 0.0, 2.0], [0.2, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 9.0], [0.0] * 4]
    momenta = torch.tensor(rows, dtype=torch.float64)
    pairs = all_pairs(torch.tensor([0, 5]))
    found, expected = (derivatives(momenta, pairs, SPURIONS, backend) for backend in ("cpu", "reference"))
    assert all(tensor.isfinite().all() for tensor in found.values())
    torch.testing.assert_close(found["features"], expected["features"], rtol=0, atol=1e-7)
    collinear = found["features"].view(5, 5, 4)[0, 1]
    assert math.log(1e-3) <= float(collinear[2]) < math.log(1e-2)  # the regulators
    assert float(collinear[1]) == pytest.approx(math.log(1 / 3), abs=1e-4)


def test_gradgradcheck() -> None:
    momenta, _ = jets((3,))
    pairs = Edges(torch.tensor([1, 2, 0, 1]), torch.tensor([0, 0, 1, 2]), 3)

    def function(p: Tensor) -> Tensor:
        return pair_features(10 * p, pairs, SPURIONS, backend="cpu")

    leaf = (momenta / 10).requires_grad_()
    assert torch.autograd.gradcheck(function, leaf)
    assert torch.autograd.gradgradcheck(function, leaf)


def test_compiled_gradients_equal_eager_ones() -> None:
    momenta, pointers = jets((4,))
    pairs, leaf = all_pairs(pointers), momenta.requires_grad_()

    def loss(p: Tensor) -> Tensor:
        return pair_features(p, pairs, SPURIONS).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf), leaf), torch.autograd.grad(loss(leaf), leaf))


def test_float32_is_cast_last() -> None:
    momenta, pointers = jets(dtype=torch.float32)
    found = pair_features(momenta, all_pairs(pointers), SPURIONS.float(), backend="cpu")
    exact = pair_features(momenta.double(), all_pairs(pointers), SPURIONS, backend="cpu")
    assert torch.equal(found, exact.float())


def test_all_pairs() -> None:
    pairs = all_pairs(torch.tensor([0, 2, 2, 3, 5]))
    assert pairs.receivers.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert pairs.senders.tolist() == [0, 1, 0, 1, 2, 3, 4, 3, 4]
    assert all_pairs(torch.tensor([0])).num_edges == 0
    with pytest.raises(ValueError, match="pointers: found in no ascending order from 0"):
        all_pairs(torch.tensor([0, 3, 2]))


@pytest.mark.parametrize("counts", [(), (0,), (1,), (0, 4)])
def test_few_particles(counts: tuple[int, ...]) -> None:
    momenta, pointers = jets(counts)
    found = derivatives(momenta, all_pairs(pointers), SPURIONS, "cpu")
    assert found["features"].shape == (sum(n * n for n in counts), 4)
    assert found["dp"].shape == momenta.shape
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_nan_stays_with_its_pairs_and_results_repeat() -> None:
    momenta, pointers = jets((8,))
    pairs = all_pairs(pointers)
    runs = [derivatives(momenta, pairs, SPURIONS, "cpu") for _ in range(2)]
    assert all(torch.equal(tensor, runs[1][name]) for name, tensor in runs[0].items())
    momenta[2, 1] = float("nan")
    features = pair_features(momenta, pairs, SPURIONS, backend="cpu").view(8, 8, 4)
    assert features[2].isnan().all()
    assert features[:, 2].isnan().all()
    others = [n for n in range(8) if n != 2]
    assert features[others][:, others].isfinite().all()


def test_opcheck() -> None:
    operators = torch.ops.sciml_kernels
    momenta, pointers = jets((3, 2))
    pairs = all_pairs(pointers)
    table = torch.rand(5, 10, dtype=torch.float64, requires_grad=True)
    g = torch.randn(13, 4, dtype=torch.float64, requires_grad=True)
    index = (pairs.receivers, pairs.senders)
    spurions, graphs = SPURIONS.reshape(1, 12), torch.zeros(5, dtype=torch.int64)
    torch.library.opcheck(operators.pair_particles.default, (momenta.requires_grad_(), spurions, graphs, "", "cpu"))
    torch.library.opcheck(operators.pair_features.default, (table, table.detach(), *index, "", "cpu"))
    arguments = (g, table, table.detach(), *index, "", "cpu", "first,second")
    torch.library.opcheck(operators.pair_features_backward.default, arguments)
    along, still = torch.rand(5, 10, dtype=torch.float64), (g.detach(), table.detach(), table.detach())
    arguments = (along, None, *still, *index, "", "cpu", "first,second,features")
    torch.library.opcheck(operators.pair_features_double_backward.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"momenta": torch.zeros(4, 3)}, r"momenta: found shape \(4, 3\), expected \(any, 4\)"),
        ({"momenta": torch.zeros(3, 4)}, "pairs: found among 4 particles, expected 3 as momenta"),
        ({"pairs": torch.zeros(2)}, "pairs: found Tensor, expected Edges"),
        ({"spurions": torch.zeros(2, 4)}, r"spurions: found shape \(2, 4\), expected \(3, 4\)"),
        ({"spurions": torch.zeros(2, 3, 4)}, r"graphs: found None, expected \(4,\) int64 with spurions \(2, 3, 4\)"),
        (
            {"spurions": torch.zeros(2, 3, 4), "graphs": torch.tensor([0, 0, 1, 2])},
            r"graphs: found 0\.\.2, expected within 0\.\.1",
        ),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    pairs = all_pairs(torch.tensor([0, 4]))
    arguments: dict[str, object] = {"momenta": torch.zeros(4, 4), "pairs": pairs, "spurions": SPURIONS.float()}
    with pytest.raises(ValueError, match=message):
        pair_features(**{**arguments, **change})  # type: ignore[arg-type]
