"""torch.export: every operation in a program of its own, for other numbers of nodes and edges than it was made with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from sciml_kernels import (
    Edges,
    Spec,
    SymmetricSpec,
    Waves,
    conv,
    conv_radial,
    coulomb_pairs,
    degree_linear,
    degree_norm,
    edge_embedding,
    ewald_reciprocal_energy,
    gate,
    pair_features,
    product,
    project_charge,
    radial_network,
    remove_net_force,
    remove_net_force_and_torque,
    segment_expand,
    segment_sum,
    silu,
    spherical_harmonics,
    structure_factors,
    symmetric_contraction,
)

SPEC = Spec.summed("4x0e+4x1o", "0e+1o", "0e+1o")
SQUARE = Spec.summed("4x0e+4x1o", "4x0e+4x1o", "0e+1o", y_channels=True)
CUBE = SymmetricSpec("4x0e+4x1o", "0e+1o", 3)
NODES, EDGES = Dim("nodes"), Dim("edges")
Kinds = tuple[str | int, ...]  # of an input: the name of a size that varies, or a fixed one
OPERATIONS: dict[str, tuple[Callable[..., Tensor], list[Kinds]]] = {
    "conv": (
        lambda x, y, w, s, r: conv(x, y, w, Edges(s, r, x.shape[0], validate=False), SPEC),
        [("nodes", 4, 4), ("edges", 4), ("edges", len(SPEC.paths), 4), ("senders",), ("receivers",)],
    ),
    "conv_radial": (
        lambda x, y, h, w, s, r: conv_radial(x, y, h, w, Edges(s, r, x.shape[0], validate=False), SPEC),
        [("nodes", 4, 4), ("edges", 4), ("edges", 8), (8, SPEC.dim_w), ("senders",), ("receivers",)],
    ),
    "radial_network": (
        lambda b, s, e, p: radial_network(b, s, e, p, [6, 5]),
        [("edges", 3), ("edges", 6), ("edges", 1), (59,)],
    ),
    "product": (
        lambda x, w: product(x, x, w, SQUARE),
        [("nodes", 4, 4), ("nodes", len(SQUARE.paths), 4)],
    ),
    "symmetric_contraction": (
        lambda x, w, s: symmetric_contraction(x, w, s, CUBE),
        [("nodes", 4, 4), (3, len(CUBE.couplings), 4), ("species",)],
    ),
    "edge_embedding": (lambda vectors: torch.cat(edge_embedding(vectors, 2, 4), 1), [("edges", 3)]),
    "coulomb_pairs": (
        lambda x, d, a, s, r: coulomb_pairs(x, Edges(s, r, x.shape[0], validate=False), d, a, 1.0),
        [("nodes", 3), ("edges", 3), ("edges", 1), ("senders",), ("receivers",)],
    ),
    "layers": (
        lambda x, w, g: gate(degree_linear(degree_norm(x), w, norm=True), g),
        [("nodes", 4, 4), (2, 4, 4), ("nodes", 1, 4)],
    ),
    "segment_sum": (lambda x, p: segment_sum(x, p), [("nodes", 3), ("pointers",)]),
    "projections": (
        lambda f, q, t, p: (
            remove_net_force(f, p)
            + project_charge(q, t, p).unsqueeze(1)
            + segment_expand(t, p, q.shape[0]).unsqueeze(1)
        ),
        [("nodes", 3), ("nodes",), (2,), ("pointers",)],
    ),
    "harmonics and silu": (lambda vectors: silu(spherical_harmonics(vectors, 2)), [("edges", 3)]),
    "ewald_reciprocal_energy": (
        lambda r, q, c, a, k, w: ewald_reciprocal_energy(r, q, c, a, Waves(k, w), 0.5),
        [("nodes", 3), ("nodes", 1), (2, 3, 3), ("pointers",), ("indices",), ("wave_pointers",)],
    ),
    "momentum": (lambda f, x, p: remove_net_force_and_torque(f, x, p), [("nodes", 3), ("nodes", 3), ("pointers",)]),
    "structure_factors": (
        lambda x, q, k, a, w: structure_factors(x, q, k, a, w),
        [("nodes", 3), ("nodes", 1), ("edges", 3), ("pointers",), ("wave_pointers",)],
    ),
}


def made(kinds: list[Kinds], nodes: int, edges: int) -> tuple[Tensor, ...]:
    """Inputs of some size."""
    generator = torch.Generator().manual_seed(nodes)
    sizes = {"nodes": nodes, "edges": edges}

    def one(shape: Kinds) -> Tensor:
        if shape == ("senders",) or shape == ("receivers",):
            found = torch.randint(nodes, (edges,), generator=generator)
            return found.sort().values if shape == ("receivers",) else found
        if shape == ("indices",):
            return torch.randint(1, 4, (edges, 3), generator=generator)
        if shape == ("species",):
            return torch.randint(3, (nodes,), generator=generator)
        if shape in (("pointers",), ("wave_pointers",)):
            return torch.tensor([0, 2, nodes if shape == ("pointers",) else edges])
        return torch.randn([sizes.get(str(size), size) for size in shape], dtype=torch.float64, generator=generator)

    return tuple(one(shape) for shape in kinds)


def varying(shape: Kinds) -> dict[int, Dim]:
    """The sizes that an exported program leaves open."""
    names = {"nodes": NODES, "edges": EDGES, "senders": EDGES, "receivers": EDGES, "species": NODES}
    names["indices"] = EDGES
    return {place: names[name] for place, name in enumerate(shape) if name in names}


@pytest.mark.parametrize("name", OPERATIONS)
def test_exported_programs_take_other_sizes(name: str) -> None:
    function, kinds = OPERATIONS[name]

    class Program(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return function(*inputs)

    program = export(Program(), made(kinds, 5, 11), dynamic_shapes=(tuple(varying(shape) for shape in kinds),))
    targets = [str(node.target) for node in program.graph.nodes]
    assert any(target.startswith("sciml_kernels.") for target in targets), targets
    for nodes, edges in ((5, 11), (7, 20)):
        inputs = made(kinds, nodes, edges)
        torch.testing.assert_close(program.module()(*inputs), function(*inputs))


def test_pair_features_are_exported() -> None:
    """Their pairs and graphs are inputs like the others."""

    class Program(nn.Module):
        def forward(self, momenta: Tensor, senders: Tensor, receivers: Tensor, spurions: Tensor, *of: Tensor) -> Tensor:
            return pair_features(momenta, Edges(senders, receivers, 4, validate=False), spurions, *of)

    directions = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    momenta = torch.cat([directions.norm(dim=1, keepdim=True) + 0.1, directions], dim=1)
    spurions = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 1.0], [1.0, 0, 0, -1.0]], dtype=torch.float64)
    pairs = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3])
    for of_graphs in ((spurions,), (torch.stack([spurions, 2 * spurions]), torch.tensor([0, 0, 1, 1]))):
        inputs = (momenta, *pairs, *of_graphs)
        torch.testing.assert_close(export(Program(), inputs).module()(*inputs), Program()(*inputs))
