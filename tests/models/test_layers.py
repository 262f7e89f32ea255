"""Each layer by itself: equal to e3nn where that has it, equivariant, and differentiable twice in fp64."""

import math

import pytest
import torch
from e3nn import o3
from torch.autograd import gradcheck, gradgradcheck

from sciml.models.block import Block, Convolution, EdgeSet, ManyBodyProduct
from sciml.models.layers import (
    DegreeLinear,
    FeedForward,
    multilayer_perceptron,
    num_components,
    pad_degrees,
)
from sciml_kernels import Edges, edge_embedding
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


def test_a_linear_map_takes_fewer_degrees_than_its_own():
    layer, x = LAYERS["linear"](), features(lmax=1).detach()
    torch.testing.assert_close(layer(x), layer(pad_degrees(x, LMAX))[:, :4])


@pytest.mark.parametrize("norm", [False, True])
def test_a_linear_map_under_autocast_is_that_of_rounded_numbers(norm):
    layer, x = LAYERS["linear"]().float(), features().detach().float()
    residual = torch.randn(NODES, 4, 5, dtype=torch.float32)
    expected = layer(x, residual, norm=norm)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert relative_rms(layer(x, residual, norm=norm), expected) < 1e-2


def small_edges() -> Edges:
    receivers = torch.tensor([0, 0, 1, 3, 3, 3])
    senders = torch.tensor([1, 2, 0, 0, 1, 3])
    return Edges(senders, receivers, NODES)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("correlation", [1, 2, 3])
def test_the_many_body_product_is_equivariant_and_differentiable_twice(backend, correlation):
    layer = ManyBodyProduct(2, 1, 1, correlation, backend)
    x, embedding = features(1, 2, 2), torch.randn(2, 2, requires_grad=True)
    rotation = random_orthogonal()
    assert relative_rms(layer(turned(x, rotation), embedding), turned(layer(x, embedding), rotation)) < 1e-12
    twice_differentiable(layer, x, embedding)


def test_the_many_body_product_reaches_its_correlation_and_no_higher():
    """The k-body part scales with the k-th power: the highest power is the correlation, and there is no constant."""
    layer = ManyBodyProduct(CHANNELS, 1, 0, 3, "reference")
    x, embedding = features(1).detach(), torch.randn(NODES, CHANNELS)
    points = torch.stack([layer(scale * x, embedding) for scale in (-2.0, -1.0, 1.0, 2.0)])
    powers = torch.tensor([[s**k for k in (1, 2, 3)] for s in (-2.0, -1.0, 1.0, 2.0)])
    fitted = torch.linalg.lstsq(powers, points.reshape(4, -1)).solution
    assert relative_rms(powers @ fitted, points.reshape(4, -1)) < 1e-10
    assert float(fitted[2].detach().abs().max()) > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_invariant_inputs_use_the_paths_they_have(backend):
    """A convolution given degree 0 alone equals the full one on zeros of degree 1."""
    layer = Convolution(CHANNELS, 4, 1, 2, 2, backend)
    x, harmonics, hidden, scale = features(0), torch.randn(6, 9), torch.randn(6, 4), torch.tensor(0.7)
    assert 0 < len(layer.paths_0) < layer.weight.shape[1]
    found = layer(x, harmonics, hidden, small_edges(), scale)
    torch.testing.assert_close(found, layer(pad_degrees(x, 1), harmonics, hidden, small_edges(), scale))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_convolution_is_differentiable_twice(backend):
    layer, edges = Convolution(2, 3, 1, 1, 1, backend), small_edges()
    inputs = features(1, channels=2), torch.randn(6, 4, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    twice_differentiable(lambda *given: layer(*given, edges, torch.tensor(0.5)), *inputs)


def test_a_block_is_differentiable_twice():
    block = awake(Block(2, 1, 1, 1, 2, {"basis": 3, "hidden": [4]}, {}, 2, "reference"))
    edges, embedding = small_edges(), torch.randn(NODES, 2)

    def run(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        edge = edge_embedding(positions[edges.senders] - positions[edges.receivers] + 0.1, 1, 3)
        return block(x, embedding, EdgeSet(edges, edge, torch.tensor(2.0)), "atoms")

    twice_differentiable(run, features(1, NODES, 2), 0.3 * torch.randn(NODES, 3).requires_grad_())


def test_the_perceptron_ends_without_an_activation():
    layers = multilayer_perceptron([3, 4, 2])
    assert isinstance(layers[-1], torch.nn.Linear)
    twice_differentiable(layers, torch.randn(2, 3, requires_grad=True))


def test_paths_of_a_narrower_input_move_with_the_model_and_are_no_weights() -> None:
    model = random_model(torch.float32)
    convolution = model.backbone.blocks[1].convolution
    assert convolution.paths_0.dtype == torch.int64
    assert not [name for name in model.state_dict() if "paths_" in name]
    assert model.to("meta").backbone.blocks[1].convolution.paths_0.device.type == "meta"
