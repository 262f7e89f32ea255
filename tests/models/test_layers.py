"""Each layer by itself: equal to e3nn where that has it, equivariant, and differentiable twice in fp64."""

import math

import pytest
import torch
from e3nn import o3
from torch.autograd import gradcheck, gradgradcheck

from sciml.models.block import Block, Convolution, ManyBodyProduct
from sciml.models.layers import (
    DegreeLinear,
    DegreeNorm,
    FeedForward,
    multilayer_perceptron,
    num_components,
    pad_degrees,
)
from sciml.models.radial import BesselBasis, EdgeEmbedding, SphericalHarmonics, polynomial_envelope
from sciml_kernels import Edges, Spec, conv, product
from sciml_kernels.backends import no_compiler
from tests.helpers import random_orthogonal, relative_rms
from tests.small import random_model

LMAX, CHANNELS, NODES = 2, 3, 4
BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(bool(no_compiler()), reason="no compiler"))]


@pytest.fixture(autouse=True)
def _double():
    """Parameters of the layers in float64."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def features(lmax: int = LMAX, nodes: int = NODES, channels: int = CHANNELS) -> torch.Tensor:
    return torch.randn(nodes, num_components(lmax), channels, requires_grad=True)


def turned(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Features of natural parity after a rotation or reflection."""
    lmax = math.isqrt(x.shape[1]) - 1
    return torch.einsum("ij,njc->nic", o3.Irreps.spherical_harmonics(lmax).D_from_matrix(rotation).to(x), x)


def awake(layer: torch.nn.Module) -> torch.nn.Module:
    """Draw the weights that begin at zero."""
    with torch.no_grad():
        for parameter in layer.parameters():
            if float(parameter.abs().max()) == 0.0:
                parameter.normal_()
    return layer


def twice_differentiable(function, *inputs: torch.Tensor) -> None:
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


LAYERS = {
    "norm": lambda: DegreeNorm(CHANNELS, LMAX),
    "linear": lambda: awake(DegreeLinear(CHANNELS, 5, LMAX)),
    "feed-forward": lambda: awake(FeedForward(CHANNELS, LMAX, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_commute_with_rotations_and_reflections(name):
    layer = LAYERS[name]()
    x = features().detach()
    for rotation in (random_orthogonal(), -torch.eye(3)):
        assert relative_rms(layer(turned(x, rotation)), turned(layer(x), rotation)) < 1e-12


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_differentiable_twice(name):
    layer = LAYERS[name]()
    twice_differentiable(layer, features(nodes=2))


@pytest.mark.parametrize("name", ["norm", "linear"])
def test_layers_take_fewer_degrees_than_their_own(name):
    layer, x = LAYERS[name](), features(lmax=1).detach()
    found = layer(x)
    assert found.shape[1] == 4
    if name == "linear":
        torch.testing.assert_close(found, layer(pad_degrees(x, LMAX))[:, :4])


def test_the_norm_gives_every_degree_the_same_say():
    """Features of any size come out with mean square one; a degree of unit components has the weight of any other."""
    norm = DegreeNorm(CHANNELS, LMAX, eps=0.0)
    x = norm(1e3 * features().detach())
    per_degree = torch.stack([part.square().mean(dim=(1, 2)) for part in x.split([1, 3, 5], dim=1)], dim=1)
    torch.testing.assert_close(per_degree.mean(dim=1), torch.ones(NODES))


def test_the_norm_of_nothing_is_nothing():
    x = torch.zeros(2, 9, CHANNELS, requires_grad=True)
    y = DegreeNorm(CHANNELS, LMAX)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert (y == 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("lmax", range(7))
def test_solid_harmonics_equal_those_of_e3nn(lmax):
    vectors = torch.randn(50, 3)
    expected = o3.spherical_harmonics(list(range(lmax + 1)), vectors, normalize=False, normalization="component")
    assert relative_rms(SphericalHarmonics(lmax)(vectors), expected) < 1e-12
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    expected = o3.spherical_harmonics(list(range(lmax + 1)), vectors, normalize=True, normalization="component")
    assert relative_rms(SphericalHarmonics(lmax)(unit), expected) < 1e-12


def test_solid_harmonics_are_differentiable_twice_and_finite_at_the_origin():
    harmonics = SphericalHarmonics(3)
    twice_differentiable(harmonics, torch.randn(3, 3, requires_grad=True))
    twice_differentiable(harmonics, torch.zeros(1, 3, requires_grad=True))


@pytest.mark.parametrize("function", [BesselBasis(4), polynomial_envelope], ids=["bessel", "envelope"])
def test_radial_functions_are_differentiable_twice(function):
    function = function.double() if isinstance(function, torch.nn.Module) else function
    twice_differentiable(function, torch.tensor([[0.2], [0.55], [0.97]], requires_grad=True))


def test_the_bessel_basis_is_the_published_one_and_finite_at_zero():
    x = torch.tensor([[0.0], [0.3], [1.0]])
    basis = BesselBasis(3)(x)
    n = torch.arange(1.0, 4.0)
    torch.testing.assert_close(basis[1], math.sqrt(2) * torch.sin(n * math.pi * 0.3) / 0.3)
    torch.testing.assert_close(basis[0], math.sqrt(2) * math.pi * n)
    torch.testing.assert_close(basis[2], torch.zeros(3), atol=1e-14, rtol=0)


def test_the_envelope_ends_with_zero_value_slope_and_curvature():
    x = torch.tensor([[1.0 - 1e-9]], requires_grad=True)
    value = polynomial_envelope(x)
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, x)
    assert float(value.detach().abs()) < 1e-12
    assert float(slope.detach().abs()) < 1e-12
    assert float(curvature.abs()) < 1e-6
    assert (polynomial_envelope(torch.tensor([[1.0], [1.5]])) == 0).all()
    assert float(polynomial_envelope(torch.zeros(1, 1))) == 1.0


def test_the_edge_embedding_is_differentiable_twice():
    embedding = EdgeEmbedding(2, 3).double()
    twice_differentiable(lambda v: torch.cat(tuple(embedding(v)), dim=1), 0.5 * torch.randn(2, 3).requires_grad_())


def small_edges() -> Edges:
    receivers = torch.tensor([0, 0, 1, 3, 3, 3])
    senders = torch.tensor([1, 2, 0, 0, 1, 3])
    return Edges(senders, receivers, NODES)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_convolution_is_differentiable_twice(backend):
    edges, channels = small_edges(), 2
    irreps = o3.Irreps([(channels, ir) for _, ir in o3.Irreps.spherical_harmonics(1)])
    spec = Spec.summed(irreps, o3.Irreps.spherical_harmonics(1), irreps)
    x, y = features(1, channels=channels), torch.randn(6, 4, requires_grad=True)
    w = torch.randn(6, len(spec.paths), channels, requires_grad=True)
    twice_differentiable(lambda *inputs: conv(*inputs, edges, spec, backend=backend), x, y, w)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_product_is_differentiable_twice(backend):
    channels = 2
    irreps = o3.Irreps([(channels, ir) for _, ir in o3.Irreps.spherical_harmonics(1)])
    spec = Spec.summed(irreps, irreps, irreps, y_channels=True)
    x, y = features(1, 2, channels), features(1, 2, channels)
    w = torch.randn(2, len(spec.paths), channels, requires_grad=True)
    twice_differentiable(lambda *inputs: product(*inputs, spec, backend=backend), x, y, w)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("correlation", [1, 2, 3])
def test_the_many_body_product_is_equivariant_and_differentiable_twice(backend, correlation):
    layer = ManyBodyProduct(2, 1, 1, correlation, backend)
    x, embedding = features(1, 2, 2), torch.randn(2, 2, requires_grad=True)
    rotation = random_orthogonal()
    assert relative_rms(layer(turned(x, rotation), embedding), turned(layer(x, embedding), rotation)) < 1e-12
    twice_differentiable(layer, x, embedding)


def test_the_many_body_product_reaches_its_correlation_and_no_higher():
    """With no bias the k-body part scales with the k-th power: the highest power is the correlation."""
    layer = ManyBodyProduct(CHANNELS, 1, 0, 3, "reference")
    x, embedding = features(1).detach(), torch.randn(NODES, CHANNELS)
    points = torch.stack([layer(scale * x, embedding) for scale in (-2.0, -1.0, 1.0, 2.0)])
    powers = torch.tensor([[s**k for k in (1, 2, 3)] for s in (-2.0, -1.0, 1.0, 2.0)])
    fitted = torch.linalg.lstsq(powers, points.reshape(4, -1)).solution
    assert relative_rms(powers @ fitted, points.reshape(4, -1)) < 1e-10
    assert float(fitted[2].detach().abs().max()) > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_invariant_inputs_use_the_paths_they_have(backend):
    """A convolution given degree 0 alone equals the full one on zeros of degree 1, with the weights of those paths."""
    layer = Convolution(CHANNELS, 1, 2, 2, backend)
    edges = small_edges()
    harmonics, x = torch.randn(6, 9), features(0)
    weights = torch.randn(6, layer.num_paths, CHANNELS)
    rows = layer.paths(x)
    assert 0 < len(rows) < layer.num_paths
    found = layer(x, harmonics, weights[:, rows].contiguous(), edges)
    expected = layer(pad_degrees(x, 1), harmonics, weights, edges)
    assert layer.paths(pad_degrees(x, 1)) is None
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_block_is_differentiable_twice():
    block = awake(Block(2, 1, 1, 1, 2, 3, [4], {}, 2, "reference"))
    embed = EdgeEmbedding(1, 3).double()
    edges, embedding = small_edges(), torch.randn(NODES, 2)

    def run(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        geometry = embed(positions[edges.senders] - positions[edges.receivers] + 0.1)
        return block(x, embedding, geometry, edges, torch.tensor(2.0), "atoms", None)

    twice_differentiable(run, features(1, NODES, 2), 0.3 * torch.randn(NODES, 3).requires_grad_())


def test_the_perceptron_ends_without_an_activation():
    layers = multilayer_perceptron([3, 4, 2])
    assert isinstance(layers[-1], torch.nn.Linear)
    twice_differentiable(layers, torch.randn(2, 3, requires_grad=True))


def test_rows_of_a_narrower_input_move_with_the_model_and_are_no_weights() -> None:
    model = random_model(torch.float32)
    convolution = model.backbone.blocks[1].convolution
    assert convolution.rows_0.dtype == torch.int64
    assert convolution.paths(torch.zeros(2, 4, 4)) is None
    assert not [name for name in model.state_dict() if "rows_" in name]
    assert model.to("meta").backbone.blocks[1].convolution.rows_0.device.type == "meta"
