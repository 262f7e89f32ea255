"""The conditions on the representation of jets, at the numbers that are promised, up to the outputs of a network.

Subjets are those that a store holds: found once, so that neither rounding nor a small change moves a particle.
"""

import numpy as np
import pytest
import torch

from sciml.data.subjets import cluster
from sciml.domains.hep.graphs import SCALARS
from sciml.graph import collate
from sciml.physics import lorentz
from tests.domains.hep.jets import LIGHT, embedded_jets, energy_over_mass
from tests.helpers import lorentz_transform, random_jet, random_orthogonal, read_jets, relative_rms
from tests.small import ALL_SCALES, graph_of, random_model

EPS = torch.finfo(torch.float64).eps
GAMMA = 10.0


def jets_of(source, shared_data):
    """Embedded jets, published ones, or jets of 0.1 GeV at 500 GeV, with their subjets."""
    if source == "embedded":
        return embedded_jets(40)
    if source == "JetClass-II":
        jets = read_jets(shared_data / "jets" / "JetClassII_example.parquet", limit=100)
    else:
        jets = [random_jet(np.random.default_rng(seed), energy=500.0, mass=LIGHT) for seed in range(20)]
    return [{**jet, "parent": cluster(jet["momenta"])} for jet in jets]


def moved_pairs(records):
    """(record, the same in another frame, its spurions): boosts to gamma = 10, turned and reflected."""
    generator = torch.Generator().manual_seed(0)
    for record in records:
        matrix = lorentz.random_boost(GAMMA, generator)
        matrix = matrix @ lorentz.lorentz_of_rotation(random_orthogonal(generator))
        yield record, *lorentz_transform(record, matrix)


def products(graph):
    """Dot products of positions and vectors over the largest: what a common rotation leaves."""
    rows = torch.cat([graph.positions[:, None], graph.vectors], dim=1).reshape(-1, 3)
    return rows @ rows.T / float((rows @ rows.T).abs().max())


@pytest.mark.parametrize("source", ["embedded", "JetClass-II", "light"])
def test_the_geometry_in_fp64_is_that_of_every_frame_to_20_eps_of_e_over_m_squared(source, request):
    shared = request.getfixturevalue("shared_data") if source == "JetClass-II" else None
    for record, moved, spurions in moved_pairs(jets_of(source, shared)):
        ratio = energy_over_mass(record, moved)
        first, second = graph_of(record, "jets"), graph_of(moved, "jets", spurions=spurions)
        error = float((products(second) - products(first)).abs().max())
        assert error <= 20 * EPS * ratio**2
        total = record["momenta"].sum(axis=0)
        if float(lorentz.mass_squared(torch.from_numpy(total))) >= 30.0**2 and total[0] <= 1000.0:
            assert error <= 1e-9
        energy = 2 * GAMMA * float(record["momenta"][:, 0].max())  # in the frame that is hardest
        bound = 20 * EPS * max((energy / lorentz.MASS_FLOOR) ** 2, ratio**2)  # of the smallest scale, a pair's floor
        for name in ("scalars", "edge_scalars"):
            assert float((second[name] - first[name]).abs().max()) <= bound


@pytest.mark.parametrize("scales", [{}, ALL_SCALES], ids=["fine", "all scales"])
@pytest.mark.parametrize("source", ["embedded", "JetClass-II", "light"])
def test_outputs_of_a_network_in_fp32_are_those_of_every_frame_to_1e_4(source, scales, request):
    shared = request.getfixturevalue("shared_data") if source == "JetClass-II" else None
    model = random_model(torch.float32, kinds=("jets",), **scales)
    records = jets_of(source, shared)[:20]
    before = [graph_of(record, "jets", torch.float32) for record in records]
    after = [graph_of(moved, "jets", torch.float32, spurions=s) for _, moved, s in moved_pairs(records)]
    first, second = (model(collate(graphs), "jets")["label"].detach() for graphs in (before, after))
    assert first.isfinite().all()
    for one, other in zip(first, second, strict=True):
        assert relative_rms(other, one) < 1e-4


def test_masses_and_energies_of_the_jet_are_inputs():
    names = [name for name, _, _ in SCALARS]
    record = random_jet(np.random.default_rng(0))
    total = torch.from_numpy(record["momenta"]).sum(dim=0)
    mass = lorentz.mass_squared(lorentz.regulated(total, lorentz.lab_spurions()[0])).sqrt()
    for name, value in (("log M", mass.log()), ("log(P.t)", total[0].log())):
        _, shift, scale = SCALARS[names.index(name)]
        column = graph_of(record, "jets").scalars[:, names.index(name)]
        torch.testing.assert_close(column, ((value - shift) / scale).expand(len(column)))


def logits(model, record):
    return model(collate([graph_of(record, "jets", model.dtype)]), "jets")["label"].detach()


def test_outputs_are_smooth_where_a_particle_comes_to_rest():
    """A pion that passes the origin of the rest frame of a jet in flight, p* = -h, 0, h: the second difference falls
    as h^2."""
    model = random_model(kinds=("jets",), **ALL_SCALES)
    others = np.array([[50.0, 30.0, 40.0, 0.0], [50.0, -30.0, -40.0, 0.0]])
    flight = lorentz.boost_matrix(torch.tensor([1.0, 0.0, 0.5]), 5.0).numpy()

    def at(momentum):
        pion = np.array([[np.hypot(0.14, momentum), momentum, 0.0, 0.0]])
        momenta = np.concatenate([pion, others]) @ flight.T
        return logits(model, {"types": np.array([1, 3, 3]), "momenta": momenta, "parent": np.array([0, 0, 1])})

    steps = np.array([1e-3, 1e-4, 1e-5])  # GeV; a position leaves the centre at SHRINK M = 0.1 GeV
    second = [float((at(h) + at(-h) - 2 * at(0.0)).abs().max()) for h in steps]
    first = [float((at(h) - at(-h)).abs().max()) for h in steps]
    assert second[1] < 2e-2 * second[0]
    assert first[1] < 0.2 * first[0]
    assert first[2] < 1e-4


def test_outputs_do_not_jump_where_two_particles_become_parallel():
    """The output of a jet with two nearly parallel photons goes to that with parallel ones, from every side."""
    model = random_model(kinds=("jets",), **ALL_SCALES)
    record = random_jet(np.random.default_rng(1), particles=10, massless=1.0)
    momenta = record["momenta"]
    parent = cluster(momenta)
    axis = momenta[0, 1:] / momenta[0, 0]
    kick = np.cross(axis, [0.3, -0.2, 0.9])

    def at(angle):
        direction = axis + angle * kick
        direction /= np.linalg.norm(direction)
        pair = 0.4 * momenta[0, 0] * np.append(1.0, direction)
        every = np.concatenate([momenta, pair[None]])
        return logits(model, {"types": np.full(11, 3), "momenta": every, "parent": np.append(parent, parent[0])})

    limit = at(0.0)
    for side in (-1.0, 1.0):
        errors = [relative_rms(at(side * angle), limit) for angle in (1e-3, 1e-4, 1e-5, 1e-6)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-4
