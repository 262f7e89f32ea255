"""Jets: the same graph, up to one rotation, in every Lorentz frame; finite and smooth where jets are singular."""

import math

import numpy as np
import pytest
import torch

from sciml.data.subjets import cluster
from sciml.domains.hep.graphs import COARSE_SCALARS, EDGE_SCALARS, SCALARS, VECTORS, counts, graph
from sciml.graph import ELEMENTS, INPUTS, PARTICLE_KINDS, collate
from sciml.physics import lorentz
from tests.helpers import Rows, boost, lorentz_transform, permute, random_jet, random_orthogonal, read_jets

EPS = torch.finfo(torch.float64).eps


def jet(record, **keywords):
    return graph(record, "jets", 2.5, torch.float64, **keywords)


def tolerance(record, gamma=1.0):
    """20 eps (E / M_eff)^2, E the energy in the frame that is hardest: inputs are rounded at that scale already."""
    total = torch.from_numpy(np.asarray(record["momenta"], dtype=np.float64)).sum(dim=0)
    mass_squared = lorentz.mass_squared(lorentz.regulated(total, lorentz.lab_spurions()[0]))
    return 20 * EPS * float((2 * gamma * total[0]) ** 2 / mass_squared)


def geometry(g):
    """All dot products of positions and vectors of a jet: what a common rotation leaves."""
    rows = torch.cat([g.positions[:, None], g.vectors], dim=1).reshape(-1, 3)
    return rows @ rows.T


def assert_same_physics(first, second, within, pairs_within):
    torch.testing.assert_close(geometry(second), geometry(first), rtol=0, atol=within * VECTOR_SIZE)
    torch.testing.assert_close(second.scalars, first.scalars, rtol=0, atol=pairs_within)
    torch.testing.assert_close(second.edge_scalars, first.edge_scalars, rtol=0, atol=pairs_within)
    assert torch.equal(first.senders, second.senders)


VECTOR_SIZE = 25.0  # the largest square of a vector: (10 p* / M)^2 with p* < M / 2


def pair_tolerance(record, gamma):
    """Rounding of Minkowski products, (gamma E)^2 eps, against the smallest scale they are added to."""
    energy = float(np.asarray(record["momenta"], dtype=np.float64)[:, 0].max())
    return max(20 * EPS * (2 * gamma * energy) ** 2 / lorentz.MASS_FLOOR**2, 1e-9)


def test_widths_are_the_declared_ones():
    g = jet(random_jet(np.random.default_rng(0)))
    inputs = INPUTS["jets"]
    assert g.scalars.shape[1] == inputs.scalars == len(SCALARS)
    assert g.vectors.shape[1] == inputs.vectors == len(VECTORS)
    assert g.edge_scalars.shape[1] == inputs.edge_scalars == len(EDGE_SCALARS)
    assert tuple(name for name, _, _ in EDGE_SCALARS) == lorentz.PAIR_FEATURES


def test_what_depends_on_the_spurions_is_declared():
    """The momenta turn and the beams do not: what is not declared to depend on them stays."""
    record = random_jet(np.random.default_rng(0))
    rotation = random_orthogonal(torch.Generator().manual_seed(1))
    turned, _ = lorentz_transform(record, lorentz.lorentz_of_rotation(rotation))
    first, second = jet(record, coarse_cutoff=2.5), jet(turned, coarse_cutoff=2.5)
    declared = INPUTS["jets"].of_spurions
    for name in ("scalars", "edge_scalars", "coarse_scalars", "coarse_edge_scalars"):
        change = (second[name] - first[name]).abs().amax(dim=0)
        kept = [column for column in range(len(change)) if column not in declared[name]]
        assert float(change[kept].max()) < max(1e-6, pair_tolerance(record, 1.0)), name
        assert float(change.max()) > 0.1, name
    assert {SCALARS[column][0] for column in declared["scalars"]} == {
        "log pT",
        "log(pT / jet pT)",
        "pT / jet pT",
        "y - jet y",
        "log Delta(particle, jet)",
        "log(P.t)",  # energy needs the direction of time
    }
    assert {EDGE_SCALARS[column][0] for column in declared["edge_scalars"]} == {"log kT", "log z", "log Delta"}
    assert all(declared[f"coarse_{name}"] == declared[name] for name in ("scalars", "edge_scalars"))
    assert {VECTORS[column] for column in declared["vectors"]} == {"time", "beam +", "beam -"}


@pytest.mark.parametrize("gamma", [1.5, 10.0])
@pytest.mark.parametrize("mass", [0.1, 80.0, 250.0])
def test_boosts_and_rotations_leave_the_physics(gamma, mass):
    generator = torch.Generator().manual_seed(0)
    for seed in range(5):
        record = random_jet(np.random.default_rng(seed), mass=mass)
        rotation = lorentz.lorentz_of_rotation(random_orthogonal(generator))
        matrix = lorentz.random_boost(gamma, generator) @ rotation
        moved, spurions = lorentz_transform(record, matrix)
        within = tolerance(record, gamma)
        assert_same_physics(jet(record), jet(moved, spurions=spurions), within, pair_tolerance(record, gamma))


def test_boosts_leave_the_physics_of_real_jets(shared_data):
    generator = torch.Generator().manual_seed(1)
    for record in read_jets(shared_data / "jets" / "JetClassII_example.parquet", limit=100):
        moved, spurions = boost(record, 10.0, generator)
        within = tolerance(record, 10.0)
        assert_same_physics(jet(record), jet(moved, spurions=spurions), within, pair_tolerance(record, 10.0))


def test_without_their_spurions_boosted_jets_differ():
    record = random_jet(np.random.default_rng(1))
    moved, _ = boost(record, 2.0, torch.Generator().manual_seed(0))
    assert (jet(moved).scalars - jet(record).scalars).abs().max() > 0.1


def test_rotations_turn_positions_and_vectors():
    record = random_jet(np.random.default_rng(2))
    rotation = random_orthogonal(torch.Generator().manual_seed(0))
    moved, spurions = lorentz_transform(record, lorentz.lorentz_of_rotation(rotation))
    first, second = jet(record), jet(moved, spurions=spurions)
    torch.testing.assert_close(second.positions, first.positions @ rotation.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(second.vectors, first.vectors @ rotation.T, rtol=0, atol=1e-9)


def test_real_jets_are_finite_and_of_order_one(shared_data):
    graphs = [jet(r) for r in read_jets(shared_data / "jets" / "JetClassII_example.parquet", limit=100)]
    for name in ("scalars", "edge_scalars"):
        values = torch.cat([g[name] for g in graphs])
        assert values.isfinite().all()
        assert (values.square().mean(dim=0).sqrt() < 2.0).all(), name
        assert (values.square().mean(dim=0).sqrt() > 0.3).all(), name
    assert (torch.cat([g.positions for g in graphs]).norm(dim=1) <= 1.0 + 1e-12).all()
    # spurions are light-like (beams), or slower than light (time): unit and sub-unit vectors in every frame
    spurions = torch.cat([g.vectors for g in graphs])[:, 1:].norm(dim=2)
    torch.testing.assert_close(spurions[:, 1:], torch.ones_like(spurions[:, 1:]), rtol=0, atol=1e-9)
    assert (spurions[:, 0] < 1.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_nearly_massless_jet_is_finite(dtype):
    for seed in range(5):
        record = random_jet(np.random.default_rng(seed), energy=500.0, mass=0.1)
        record["momenta"] = record["momenta"].astype(np.float32)  # as a store holds it
        g = graph(record, "jets", 2.5, dtype)
        for name in ("positions", "vectors", "scalars", "edge_scalars"):
            assert g[name].isfinite().all(), name
            assert g[name].dtype == dtype


@pytest.mark.parametrize("momenta", [[[5.0, 3.0, 4.0, 0.0]], [[5.0, 0.0, 0.0, 5.0]], [[0.14, 0.0, 0.0, 0.0]]])
def test_a_single_particle_has_no_edges(momenta):
    g = jet({"types": np.array([3]), "momenta": np.array(momenta)})
    assert len(g.senders) == 0
    assert g.edge_scalars.shape == (0, 4)
    assert g.scalars.isfinite().all()
    assert g.positions.isfinite().all()
    assert int(g.label) == -1


def massless(momentum):
    """(n, 3) or (3,) -> rows of massless four-momenta."""
    momentum = np.atleast_2d(momentum)
    return np.concatenate([np.linalg.norm(momentum, axis=1, keepdims=True), momentum], axis=1)


def test_a_collinear_splitting_keeps_directions_and_the_other_particles():
    record = random_jet(np.random.default_rng(3))
    first, rest = record["momenta"][0, 1:], record["momenta"][1:]
    whole = jet({**record, "momenta": np.concatenate([massless(first), rest])})
    errors = []
    for angle in (1e-3, 1e-5, 1e-7):
        kick = angle * np.cross(first, [0.3, -0.2, 0.9])
        split = {
            "types": np.append(record["types"], 3),
            "particle_charge": np.append(record["particle_charge"], 0),
            "momenta": np.concatenate([massless(0.3 * first + kick), rest, massless(0.7 * first - kick)]),
        }
        g = jet(split)
        assert g.edge_scalars.isfinite().all()
        direction = whole.positions[0] / whole.positions[0].norm()
        difference = [g.positions[i] / g.positions[i].norm() - direction for i in (0, -1)]
        difference += [g.positions[1:-1] - whole.positions[1:], g.scalars[1:-1] - whole.scalars[1:]]
        difference += [g.vectors[0, 0] + g.vectors[-1, 0] - whole.vectors[0, 0]]
        errors.append(max(float(x.abs().max()) for x in difference))
    assert errors[-1] < 1e-5
    assert errors == sorted(errors, reverse=True)


def test_a_soft_particle_moves_nothing_else_and_sits_in_the_centre():
    record = random_jet(np.random.default_rng(4))
    first = jet(record)
    for energy in (1e-4, 1e-6, 1e-8):
        soft = energy * np.array([[1.0, 0.6, 0.0, 0.8]])
        more = {
            "types": np.append(record["types"], 3),
            "momenta": np.concatenate([record["momenta"], soft]),
            "particle_charge": np.append(record["particle_charge"], 0),
        }
        g = jet(more)
        torch.testing.assert_close(g.positions[:-1], first.positions, rtol=0, atol=energy)
        torch.testing.assert_close(g.scalars[:-1], first.scalars, rtol=0, atol=energy)
        assert g.positions[-1].norm() < 1e3 * energy
        assert g.vectors[-1, 0].norm() < 10 * energy


def test_a_particle_at_rest_in_the_frame_is_a_smooth_point():
    momenta = np.array([[0.14, 0.0, 0.0, 0.0], [50.0, 30.0, 40.0, 0.0], [50.0, -30.0, -40.0, 0.0]])
    places = []
    for step in (-1e-4, 0.0, 1e-4):
        momenta[0, 1] = step
        momenta[0, 0] = math.hypot(0.14, step)
        places.append(jet({"types": np.array([1, 3, 3]), "momenta": momenta}).positions[0])
    torch.testing.assert_close(places[0] + places[2], 2 * places[1], rtol=0, atol=1e-6)


def test_fields_and_permutation():
    record = random_jet(np.random.default_rng(5), particles=12)
    g = jet(record)
    assert (g.types - ELEMENTS).tolist() == record["types"].tolist()
    assert int(g.types.max()) <= ELEMENTS + len(PARTICLE_KINDS)
    assert len(g.senders) == 12 * 11
    assert (g.senders != g.receivers).all()
    assert (g.receivers.diff() >= 0).all()
    assert int(g.label) == record["label"]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = jet(permute(record, order)[0])
    for name in ("types", "positions", "vectors", "scalars"):
        torch.testing.assert_close(shuffled[name], g[name][order])
    matrix, other = torch.zeros(12, 12, 4, dtype=torch.float64), torch.zeros(12, 12, 4, dtype=torch.float64)
    matrix[g.receivers, g.senders] = g.edge_scalars
    other[shuffled.receivers, shuffled.senders] = shuffled.edge_scalars
    torch.testing.assert_close(other, matrix[order][:, order])


def test_subjets_have_the_features_of_their_momenta():
    """As a jet of subjets would have; their places are the energy-weighted means of their particles'."""
    record = random_jet(np.random.default_rng(8))
    record["parent"] = cluster(record["momenta"])
    g = graph(record, "jets", 2.5, torch.float64, 2.5)
    number = record["parent"].max() + 1
    summed = np.zeros((number, 4))
    np.add.at(summed, record["parent"], record["momenta"])
    charge = np.bincount(record["parent"], record["particle_charge"])
    jets = jet({"types": np.ones(number), "momenta": summed, "particle_charge": charge})
    torch.testing.assert_close(g.coarse_scalars[:, :-1], jets.scalars)
    assert g.coarse_scalars.shape[1] == INPUTS["jets"].coarse_scalars == len(COARSE_SCALARS)
    matrices = torch.zeros(2, number, number, 4, dtype=torch.float64)
    matrices[0, g.coarse_receivers, g.coarse_senders] = g.coarse_edge_scalars
    matrices[1, jets.receivers, jets.senders] = jets.edge_scalars
    torch.testing.assert_close(matrices[0], matrices[1])
    assert (g.coarse_receivers.diff() >= 0).all()
    energies = torch.zeros(number, dtype=torch.float64).index_add(0, g.parents, g.child_weights)
    assert float(energies.sum()) == pytest.approx(1.0, abs=1e-2)  # the regulator adds a little to the mass
    assert (energies.diff() <= 0).all()


@pytest.mark.parametrize("gamma", [1.5, 10.0])
def test_boosts_leave_the_coarse_level(gamma):
    generator = torch.Generator().manual_seed(0)
    for seed in range(5):
        record = random_jet(np.random.default_rng(seed), mass=80.0)
        moved, spurions = boost(record, gamma, generator)
        first = graph(record, "jets", 2.5, torch.float64, 2.5)
        second = graph(moved, "jets", 2.5, torch.float64, 2.5, spurions)
        for name in ("children", "parents", "coarse_senders", "coarse_receivers", "coarse_types"):
            assert torch.equal(first[name], second[name]), name
        for name in ("child_weights", "coarse_scalars", "coarse_edge_scalars"):
            error = (first[name] - second[name]).abs().max()
            assert error <= max(tolerance(record, gamma), pair_tolerance(record, gamma)), name


def test_a_short_cutoff_keeps_the_near_pairs():
    record = random_jet(np.random.default_rng(6))
    g = graph(record, "jets", 0.5, torch.float64)
    chord = (g.positions[g.senders] - g.positions[g.receivers]).norm(dim=1)
    assert 0 < len(chord) < 30 * 29
    assert (chord < 0.5).all()
    assert graph(record, "atoms", 2.5) is None


def test_batches_and_counts():
    records = [random_jet(np.random.default_rng(seed), particles=10 + seed) for seed in range(3)]
    records[1].pop("label")
    batch = collate([jet(r) for r in records])
    assert batch.label.tolist() == [records[0]["label"], -1, records[2]["label"]]
    assert torch.equal(batch.batch[batch.senders], batch.batch[batch.receivers])
    data = Rows(records)
    regressed = {"true_momenta": 0.0, "true_mass": 0.0, "true_pt": 0.0}
    assert counts(data, "jets", np.array([0, 1, 2])) == {"label": 2.0, **regressed}
    assert counts(data, "atoms", np.array([0])) == {}


def test_features_are_differentiable():
    from sciml.domains.hep.graphs import jet_features

    record = random_jet(np.random.default_rng(7), particles=5)
    momenta = torch.from_numpy(record["momenta"])[[0, 0, 1, 2, 3]].clone().requires_grad_()
    outputs = jet_features(momenta, lorentz.lab_spurions(), torch.zeros(5, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(sum(x.square().sum() for x in outputs), momenta)
    assert gradient.isfinite().all()
