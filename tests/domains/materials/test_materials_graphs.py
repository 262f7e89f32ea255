"""Graphs of molecules and crystals: the right edges whatever cell describes them, and labels that stay absent."""

import warnings

import numpy as np
import pytest
import torch

from sciml.domains.materials.graphs import counts, graph
from sciml.graph import DOMAINS, collate
from tests.helpers import Rows, random_crystal, random_molecule

PBC = [(True, True, True), (True, True, False), (False, False, False)]


def edge_vectors(g):
    return g.positions[g.senders] - g.positions[g.receivers] + g.shifts @ g.cell[0]


def neighbour_distances(g):
    """Sorted distances of each node's neighbours: equal for every description of the same crystal."""
    distances = edge_vectors(g).norm(dim=1)
    return [distances[g.receivers == node].sort().values for node in range(len(g.types))]


def test_fields_shapes_and_dtypes():
    record = random_crystal(np.random.default_rng(0))
    g = graph(record, "atoms", 4.0)
    n, edges = len(record["types"]), len(g.senders)
    shapes = {name: tuple(value.shape) for name, value in g.to_dict().items() if isinstance(value, torch.Tensor)}
    assert shapes == {
        "types": (n,),
        "positions": (n, 3),
        "senders": (edges,),
        "receivers": (edges,),
        "shifts": (edges, 3),
        "cell": (1, 3, 3),
        "pbc": (1, 3),
        "charge": (1,),
        "spin": (1,),
        "domain": (1,),
        "energy": (1,),
        "forces": (n, 3),
        "stress": (1, 3, 3),
    }
    assert g.positions.dtype == g.shifts.dtype == g.cell.dtype == g.forces.dtype == torch.float32
    assert g.types.dtype == g.senders.dtype == torch.int64
    assert DOMAINS[int(g.domain)] == "materials"
    assert graph(record, "jets", 4.0) is None


def test_a_large_total_energy_keeps_its_digits():
    record = {**random_molecule(np.random.default_rng(0)), "energy": -123456.789012345}
    assert float(graph(record, "atoms", 4.0).energy) == -123456.789012345


def test_absent_labels_are_nan_and_present_ones_are_copied():
    record = random_molecule(np.random.default_rng(1))
    for name in ("energy", "forces"):
        record.pop(name)
    g = graph(record, "atoms", 4.0)
    for name in ("energy", "forces", "stress"):
        assert g[name].isnan().all()
    assert float(g.charge) == 0.0
    assert float(g.spin) == 1.0
    ion = graph({**record, "charge": -1.0, "spin": 2.0}, "atoms", 4.0)
    assert (float(ion.charge), float(ion.spin)) == (-1.0, 2.0)


def test_read_only_views_are_copied_without_a_warning():
    record = random_crystal(np.random.default_rng(2))
    record["positions"] = record["positions"].astype(np.float32)
    for value in record.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        g = graph(record, "atoms", 4.0)
    g.positions += 1.0
    assert not np.allclose(g.positions.numpy(), record["positions"])


@pytest.mark.parametrize("pbc", PBC)
def test_edges_are_the_pairs_within_the_cutoff(pbc):
    record = random_crystal(np.random.default_rng(3), atoms=3, pbc=pbc)
    cutoff = 5.0
    g = graph(record, "atoms", cutoff, torch.float64)
    assert (edge_vectors(g).norm(dim=1) < cutoff).all()
    assert (g.receivers.diff() >= 0).all()
    reach = np.arange(-6, 7)
    shifts = np.stack(np.meshgrid(*[reach if p else [0] for p in pbc], indexing="ij"), axis=-1).reshape(-1, 3)
    every = record["positions"][:, None, None] - record["positions"][None, :, None] + shifts @ record["cell"]
    distances = np.linalg.norm(every, axis=-1)
    assert len(g.senders) == ((distances < cutoff) & (distances > 1e-9)).sum()
    forward = {(int(s), int(r), *(int(x) for x in k)) for s, r, k in zip(g.senders, g.receivers, g.shifts, strict=True)}
    assert forward == {(r, s, -a, -b, -c) for s, r, a, b, c in forward}


@pytest.mark.parametrize("pbc", PBC[:2])
def test_wrapping_atoms_changes_nothing(pbc):
    rng = np.random.default_rng(4)
    for seed in range(3):
        record = random_crystal(np.random.default_rng(seed), pbc=pbc)
        moved = {**record, "positions": record["positions"] + rng.integers(-3, 4, size=(8, 3)) @ record["cell"]}
        first, second = (neighbour_distances(graph(r, "atoms", 5.0, torch.float64)) for r in (record, moved))
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("repeat", [(2, 1, 1), (1, 3, 2)])
def test_a_supercell_has_the_same_neighbours(repeat):
    for seed in range(3):
        record = random_crystal(np.random.default_rng(seed), atoms=4)
        steps = np.stack(np.meshgrid(*[range(k) for k in repeat], indexing="ij"), axis=-1).reshape(-1, 3)
        positions = (record["positions"] + (steps @ record["cell"])[:, None]).reshape(-1, 3)
        larger = {
            "types": np.tile(record["types"], len(steps)),
            "positions": positions,
            "cell": record["cell"] * np.array(repeat)[:, None],
            "pbc": record["pbc"],
        }
        first, second = (neighbour_distances(graph(r, "atoms", 5.0, torch.float64)) for r in (record, larger))
        for node, distances in enumerate(second):
            torch.testing.assert_close(distances, first[node % 4])


def test_another_choice_of_lattice_vectors_has_the_same_neighbours():
    record = random_crystal(np.random.default_rng(5))
    unimodular = np.array([[1, 1, 0], [0, 1, -1], [0, 0, 1]])
    skewed = {**record, "cell": unimodular @ record["cell"]}
    first, second = (neighbour_distances(graph(r, "atoms", 5.0, torch.float64)) for r in (record, skewed))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


def test_batches_offset_edges_and_keep_cells():
    graphs = [graph(random_crystal(np.random.default_rng(seed), atoms=4 + seed), "atoms", 4.0) for seed in range(3)]
    batch = collate(graphs)
    offsets = [0, 4, 9]
    torch.testing.assert_close(batch.senders, torch.cat([g.senders + o for g, o in zip(graphs, offsets, strict=True)]))
    torch.testing.assert_close(
        batch.receivers, torch.cat([g.receivers + o for g, o in zip(graphs, offsets, strict=True)])
    )
    assert (batch.receivers.diff() >= 0).all()
    assert batch.cell.shape == batch.stress.shape == (3, 3, 3)
    assert batch.ptr.tolist() == [0, 4, 9, 15]
    assert batch.num_nodes == 15
    assert batch.batch.bincount().tolist() == [4, 5, 6]


def test_counts():
    rng = np.random.default_rng(6)
    molecule, crystal, bare = random_molecule(rng, 5), random_crystal(rng, 7), random_molecule(rng, 3)
    bare.pop("energy"), bare.pop("forces")
    data = Rows([molecule, crystal, bare])
    assert counts(data, "atoms", np.array([0, 1, 2])) == {"energy": 2.0, "forces": 36.0, "stress": 9.0}
    assert counts(data, "atoms", np.array([2, 0])) == {"energy": 1.0, "forces": 15.0, "stress": 0.0}
    assert counts(data, "jets", np.array([0])) == {}
