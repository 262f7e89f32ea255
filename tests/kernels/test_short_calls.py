"""Operators called in eager mode skip the dispatcher; whatever watches tensors still sees the registered operator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from sciml_kernels import degree_norm, remove_net_force_and_torque, silu


def test_eager_calls_make_one_node() -> None:
    x = torch.randn(3, 4, 5, requires_grad=True)
    assert type(degree_norm(x).grad_fn).__name__ == "normBackward"
    with torch.no_grad():
        assert degree_norm(x).grad_fn is None
    assert degree_norm(x.detach()).grad_fn is None
    assert degree_norm(torch.nn.Parameter(x)).requires_grad


def test_fake_tensors_use_the_registered_shape() -> None:
    with FakeTensorMode() as mode:
        out = degree_norm(mode.from_tensor(torch.randn(3, 4, 5)))
    assert out.shape == (3, 4, 5)
    assert type(out).__name__ == "FakeTensor"


def test_tracers_see_the_operator() -> None:
    graph = make_fx(lambda x: silu(x), tracing_mode="fake")(torch.randn(4)).graph
    assert "sciml_kernels.silu.default" in [str(node.target) for node in graph.nodes]


def test_compiled_gradients_equal_eager_ones() -> None:
    forces, positions = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    pointers = torch.tensor([0, 2, 5])

    def loss(forces: Tensor, positions: Tensor) -> Tensor:
        return remove_net_force_and_torque(forces, positions, pointers).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    eager = torch.autograd.grad(loss(forces, positions), (forces, positions))
    found = torch.autograd.grad(compiled(forces, positions), (forces, positions))
    for tensor, expected in zip(found, eager, strict=True):
        torch.testing.assert_close(tensor, expected)
