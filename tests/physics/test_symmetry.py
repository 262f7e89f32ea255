"""The helpers of symmetry tests, tested on functions whose symmetry is known."""

import math

import numpy as np
import pytest
import torch

from sciml.domains.biology.graphs import graph as biology_graph
from sciml.domains.materials.graphs import graph as materials_graph
from sciml.graph import Graph, collate
from sciml.physics import symmetry
from tests import helpers


def pair_model(graph: Graph) -> dict[str, torch.Tensor]:
    """Energy, forces and an unnormalised stress of a pair potential that knows the two elements."""
    vectors = graph.positions[graph.senders] - graph.positions[graph.receivers] + graph.shifts @ graph.cell[0]
    strength = (graph.types[graph.senders] * graph.types[graph.receivers]).to(vectors.dtype)
    lengths = vectors.norm(dim=1)
    pull = (strength * torch.exp(-lengths) / lengths)[:, None] * vectors
    forces = torch.zeros_like(graph.positions).index_add(0, graph.receivers, pull)
    stress = torch.einsum("ei,ej->ij", vectors, pull)[None]
    return {"energy": (strength * torch.exp(-lengths)).sum()[None], "forces": forces, "stress": stress}


def crystal_graph(seed: int, dtype: torch.dtype = torch.float64) -> Graph:
    graph = materials_graph(helpers.random_crystal(np.random.default_rng(seed)), "atoms", 4.0, dtype)
    assert graph is not None
    return graph


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_an_equivariant_function_passes(dtype, tolerance):
    for seed in range(3):
        helpers.check_equivariance(pair_model, crystal_graph(seed, dtype), tolerance)


def twisted(forces: torch.Tensor) -> torch.Tensor:
    return forces + 0.01 * torch.linalg.cross(forces, forces.roll(1, 0))


BROKEN = {
    "axis": lambda out, graph: {**out, "forces": out["forces"] * torch.tensor([1.0, 1.0, 1.01])},
    "origin": lambda out, graph: {**out, "forces": out["forces"] + 0.01 * graph.positions},
    "order and parity": lambda out, graph: {**out, "forces": twisted(out["forces"])},
    "parity": lambda out, graph: {**out, "energy": out["energy"] * (1 + 0.01 * torch.linalg.det(graph.cell).sign())},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_symmetry_is_found(name):
    with pytest.raises(AssertionError, match="relative RMS"):
        helpers.check_equivariance(lambda graph: BROKEN[name](pair_model(graph), graph), crystal_graph(0), 1e-6)


def test_random_orthogonal_is_uniform():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.stack([symmetry.random_orthogonal(generator) for _ in range(4000)])
    torch.testing.assert_close(
        matrices @ matrices.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand(4000, 3, 3)
    )
    determinants = torch.linalg.det(matrices)
    assert abs(float(determinants.mean())) < 5 / math.sqrt(4000)
    # Haar measure: zero mean, second moment 1/3 and fourth moment 1/5 of every entry
    assert matrices.mean(dim=0).abs().max() < 5 / math.sqrt(3 * 4000)
    assert (matrices.square().mean(dim=0) - 1 / 3).abs().max() < 0.025
    assert (matrices.pow(4).mean(dim=0) - 1 / 5).abs().max() < 0.025
    assert float(torch.linalg.det(symmetry.random_rotation(generator))) == pytest.approx(1.0)


def test_records_and_graphs_transform_alike():
    record = helpers.random_crystal(np.random.default_rng(5))
    rotation = symmetry.random_orthogonal(torch.Generator().manual_seed(0))
    turned_record, _ = symmetry.rotate(record, rotation)
    turned_graph, _ = symmetry.rotate(materials_graph(record, "atoms", 4.0, torch.float64), rotation)
    from_record = materials_graph(turned_record, "atoms", 4.0, torch.float64)
    for name in ("positions", "cell", "forces", "stress", "energy"):
        torch.testing.assert_close(from_record[name], turned_graph[name])
    assert len(from_record.senders) == len(turned_graph.senders)


def test_permuted_records_and_graphs_agree_with_two_levels():
    record = helpers.random_peptide(np.random.default_rng(6))
    graph = biology_graph(record, "residues", 8.0, torch.float64)
    order = torch.randperm(len(graph.types), generator=torch.Generator().manual_seed(0))
    permuted, action = symmetry.permute(graph, order)
    assert (permuted.receivers.diff() >= 0).all()
    torch.testing.assert_close(order[permuted.children], graph.children)
    torch.testing.assert_close(permuted.parents, graph.parents)
    torch.testing.assert_close(action({"forces": graph.positions})["forces"], permuted.positions)

    def lengths(g):
        return (g.positions[g.senders] - g.positions[g.receivers]).norm(dim=1).sort().values

    torch.testing.assert_close(lengths(permuted), lengths(graph))
    shuffled, _ = symmetry.permute(record, torch.randperm(len(record["types"])))
    again = biology_graph(shuffled, "residues", 8.0, torch.float64)
    torch.testing.assert_close(again.positions, graph.positions)


def test_what_cannot_be_transformed_is_refused():
    with pytest.raises(ValueError, match="lorentz_transform"):
        symmetry.rotate(helpers.random_jet(np.random.default_rng(0)), torch.eye(3))
    with pytest.raises(ValueError, match="Batch"):
        symmetry.permute(collate([crystal_graph(0), crystal_graph(1)]), torch.arange(16))


def test_relative_rms():
    reference = torch.tensor([3.0, 4.0, float("nan")])
    assert symmetry.relative_rms(torch.tensor([3.0, 4.0, float("nan")]), reference) == 0.0
    assert symmetry.relative_rms(torch.tensor([3.0, 5.0, float("nan")]), reference) == pytest.approx(0.2)
    assert symmetry.relative_rms(np.ones(2), np.zeros(2)) == math.inf
    assert math.isnan(symmetry.relative_rms(torch.tensor([3.0, 4.0, 0.0]), reference))
    with pytest.raises(ValueError, match="shapes"):
        symmetry.relative_rms(torch.zeros(2), torch.zeros(1))
