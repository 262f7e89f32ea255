"""A small force model made of the kernels learns the same with compiled kernels as with the definitions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sciml_kernels import Edges, Spec, conv_radial, degree_linear, edge_embedding, gate, product

CHANNELS, HIDDEN, BASIS, CUTOFF = 8, 16, 4, 3.0
FEATURES = f"{CHANNELS}x0e+{CHANNELS}x1o"
STEPS = 50


class Model(nn.Module):
    """Energy, and forces at positions that require gradients: two layers of convolution, product, linear map, gate."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.convolution = Spec.summed(FEATURES, "0e+1o", "0e+1o")
        self.square = Spec.summed(FEATURES, FEATURES, "0e+1o", y_channels=True, ordered=True)
        self.embedding = nn.Parameter(torch.randn(3, CHANNELS))
        self.readout = nn.Parameter(torch.randn(CHANNELS) / CHANNELS)
        sizes = {
            "first": (BASIS, HIDDEN),
            "last": (HIDDEN, self.convolution.dim_w),
            "pairs": (3, len(self.square.paths), CHANNELS),
            "mix": (2, CHANNELS, CHANNELS),
            "gates": (1, CHANNELS, CHANNELS),
        }
        for layer in range(2):
            for name, size in sizes.items():
                weight = torch.randn(size) / math.sqrt(size[-2])
                self.register_parameter(f"{name}_{layer}", nn.Parameter(weight))

    def forward(self, positions: Tensor, species: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        energy = self.energy(positions, species, edges)
        (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
        return energy, -gradient

    def energy(self, positions: Tensor, species: Tensor, edges: Edges) -> Tensor:
        """The sum over atoms."""
        vectors = (positions[edges.senders] - positions[edges.receivers]) / CUTOFF
        embedded = edge_embedding(vectors, 1, BASIS, backend=self.backend)
        scalars = self.embedding[species].unsqueeze(1)
        x = nn.functional.pad(scalars, (0, 0, 0, 3))
        for layer in range(2):
            x = x + self.layer(layer, x, embedded.harmonics, embedded.basis, embedded.envelope, species, edges)
        return (x[:, 0] @ self.readout).sum()

    def layer(
        self, layer: int, x: Tensor, harmonics: Tensor, basis: Tensor, envelope: Tensor, species: Tensor, edges: Edges
    ) -> Tensor:
        """What a layer adds to the features."""
        first, last, pairs, mix, gates = (
            self.get_parameter(f"{name}_{layer}") for name in ("first", "last", "pairs", "mix", "gates")
        )
        hidden = torch.tanh(basis @ first) * envelope
        message = conv_radial(x, harmonics, hidden, last, edges, self.convolution, self.backend)
        message = message + 0.1 * product(message, message, pairs[species], self.square, self.backend)
        opening = degree_linear(message[:, :1], gates, backend=self.backend)
        return gate(degree_linear(message, mix, backend=self.backend), opening, self.backend)


def problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Edges, Tensor, Tensor]:
    """Positions, species, edges, and an energy and forces to learn."""
    generator = torch.Generator().manual_seed(0)
    sites = torch.cartesian_prod(*[torch.arange(2.0)] * 3) * 1.4
    positions = sites.double() + 0.2 * torch.randn(8, 3, dtype=torch.float64, generator=generator)
    near = (torch.cdist(positions, positions) < CUTOFF).fill_diagonal_(False)
    receivers, senders = near.nonzero().T.contiguous()
    species = torch.randint(3, (8,), generator=generator)
    forces = torch.randn(8, 3, dtype=torch.float64, generator=generator)
    positions = positions.to(dtype).requires_grad_()
    return positions, species, Edges(senders, receivers, 8), torch.tensor(-2.0, dtype=dtype), forces.to(dtype)


def seeded(backend: str, dtype: torch.dtype) -> Model:
    torch.manual_seed(0)
    return Model(backend).to(dtype)


def loss_of(model: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> Tensor:
    positions, species, edges, wanted_energy, wanted_forces = problem(dtype)
    energy, forces = model(positions, species, edges)
    return (energy - wanted_energy).square() / 8 + (forces - wanted_forces).square().mean()


def train(backend: str, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The loss of every step, and the parameters after them."""
    model = seeded(backend, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-3, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, dtype)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-2)], ids=["fp64", "fp32"])
def test_fifty_steps_equal_those_of_the_definitions(dtype: torch.dtype, tolerance: float) -> None:
    found, parameters = train("cpu", dtype)
    expected, wanted = train("reference", dtype)
    assert expected[-1] < 0.5 * expected[0]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    for parameter, want in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(parameter, want, rtol=tolerance, atol=tolerance)


def test_forces_are_the_slope_of_the_energy() -> None:
    model = seeded("cpu", torch.float64)
    positions, species, edges, *_ = problem(torch.float64)
    _, forces = model(positions, species, edges)
    direction = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ahead, behind = (model.energy(positions + step * direction, species, edges) for step in (1e-5, -1e-5))
    torch.testing.assert_close((behind - ahead) / 2e-5, (forces * direction).sum(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_parameter_gradients_equal_eager_ones(compiler: str) -> None:
    model = seeded("cpu", torch.float64)
    positions, species, edges, wanted_energy, wanted_forces = problem(torch.float64)
    edges.tables("cpu", True)

    def loss(positions: Tensor) -> Tensor:
        energy, forces = model(positions, species, edges)
        return (energy - wanted_energy).square() / 8 + (forces - wanted_forces).square().mean()

    gradients = []
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        for function in (loss, torch.compile(loss, backend=compiler, fullgraph=True)):
            model.zero_grad()
            function(positions).backward()
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-10)
