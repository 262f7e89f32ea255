"""Every operation with small arguments, by name: what tests of all operations share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciml_kernels import Edges, Spec, SymmetricSpec, Waves

SPEC = Spec.summed("4x0e+4x1o", "0e+1o", "0e+1o")
SQUARE = Spec.summed("4x0e+4x1o", "4x0e+4x1o", "0e+1o", y_channels=True)
CUBE = SymmetricSpec("4x0e+4x1o", "0e+1o", 3)
NODES, EDGES = 5, 7
GRAPH = Edges(torch.arange(EDGES) % NODES, torch.arange(EDGES) * NODES // EDGES, NODES)
ENDS = torch.tensor([0, 2, NODES])
WAVES = torch.tensor([0, 3, EDGES])
LATTICE = torch.eye(3).expand(2, 3, 3)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


# The tensors of an operation by name, and its other arguments.
OPERATIONS: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {
    "conv": (
        {"x": zeros(NODES, 4, 4), "y": zeros(EDGES, 4), "w": zeros(EDGES, len(SPEC.paths), 4)},
        {"edges": GRAPH, "spec": SPEC},
    ),
    "conv_radial": (
        {"x": zeros(NODES, 4, 4), "y": zeros(EDGES, 4), "h": zeros(EDGES, 8), "weight": zeros(8, SPEC.dim_w)},
        {"edges": GRAPH, "spec": SPEC},
    ),
    "radial_network": (
        {"basis": zeros(EDGES, 3), "shift": zeros(EDGES, 6), "envelope": zeros(EDGES, 1), "parameters": zeros(59)},
        {"hidden": [6, 5]},
    ),
    "product": (
        {"x": zeros(NODES, 4, 4), "y": zeros(NODES, 4, 4), "w": zeros(NODES, len(SQUARE.paths), 4)},
        {"spec": SQUARE},
    ),
    "symmetric_contraction": (
        {"x": zeros(NODES, 4, 4), "weights": zeros(2, len(CUBE.couplings), 4),
         "species": torch.zeros(NODES, dtype=torch.int64)},
        {"spec": CUBE},
    ),
    "edge_embedding": ({"vectors": zeros(EDGES, 3)}, {"lmax": 2, "basis": 4}),
    "spherical_harmonics": ({"vectors": zeros(EDGES, 3)}, {"lmax": 2}),
    "pair_features": (
        {"momenta": zeros(NODES, 4), "spurions": zeros(2, 3, 4), "graphs": torch.zeros(NODES, dtype=torch.int64)},
        {"pairs": GRAPH},
    ),
    "coulomb_pairs": (
        {"positions": zeros(NODES, 3), "offsets": zeros(EDGES, 3), "splittings": zeros(EDGES, 1)},
        {"pairs": GRAPH, "smearing": 1.0},
    ),
    "degree_norm": ({"x": zeros(NODES, 4, 4)}, {}),
    "degree_linear": (
        {"x": zeros(NODES, 4, 4), "weights": zeros(2, 4, 6), "bias": zeros(6), "residual": zeros(NODES, 4, 6)},
        {},
    ),
    "gate": ({"x": zeros(NODES, 4, 4), "gates": zeros(NODES, 1, 4)}, {}),
    "silu": ({"x": zeros(NODES, 4, 4)}, {}),
    "segment_sum": ({"values": zeros(NODES, 3), "pointers": ENDS}, {}),
    "segment_expand": ({"values": zeros(2, 3), "pointers": ENDS}, {"rows": NODES}),
    "remove_net_force": ({"forces": zeros(NODES, 3), "pointers": ENDS}, {}),
    "remove_net_force_and_torque": (
        {"forces": zeros(NODES, 3), "positions": zeros(NODES, 3), "pointers": ENDS}, {},
    ),
    "project_charge": ({"charges": zeros(NODES), "totals": zeros(2), "pointers": ENDS}, {}),
    "structure_factors": (
        {"positions": zeros(NODES, 3), "charges": zeros(NODES, 1), "wave_vectors": zeros(EDGES, 3),
         "atom_pointers": ENDS, "wave_pointers": WAVES},
        {},
    ),
    "ewald_reciprocal_energy": (
        {"positions": zeros(NODES, 3), "charges": zeros(NODES, 1), "cell": LATTICE, "pointers": ENDS},
        {"waves": Waves(1 + torch.arange(3 * EDGES).reshape(EDGES, 3) % 2, WAVES), "splitting": 2.0},
    ),
}  # fmt: skip


def random_tensors(operation: str) -> dict[str, Tensor]:
    """Numbers that the operation has a meaning for, in double precision, rounded so that every dtype holds them."""
    generator = torch.Generator().manual_seed(0)

    def random(name: str, like: Tensor) -> Tensor:
        numbers = torch.randn(like.shape, generator=generator).bfloat16().double()
        if name in ("momenta", "spurions"):  # real particles: more energy than momentum
            numbers[..., 0] = (1.0 + numbers[..., 1:].square().sum(-1).sqrt()).bfloat16().double()
        if name == "cell":  # far from flat
            numbers = (numbers + 4.0 * like).bfloat16().double()
        return 0.25 * numbers if name == "vectors" else numbers

    tensors = OPERATIONS[operation][0]
    return {name: random(name, t) if t.is_floating_point() else t for name, t in tensors.items()}
