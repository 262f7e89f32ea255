"""Subjets are the same in every frame and order, and soft or collinear particles leave them as they are."""

import numpy as np
import pytest
import torch

from sciml.data.checks import prepare
from sciml.data.store import Store
from sciml.data.subjets import cluster
from sciml.physics import lorentz
from sciml.schema import SAMPLES
from tests.helpers import boost, lorentz_transform, permute, random_jet, random_orthogonal, read_jets


def jets(count: int = 20) -> list[dict]:
    """Jets of several masses and sizes."""
    rng = np.random.default_rng(0)
    return [random_jet(rng, particles=5 + 3 * i, mass=[1.0, 80.0, 250.0][i % 3]) for i in range(count)]


def partition(parent: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(parent == label).tolist()) for label in np.unique(parent)}


@pytest.mark.parametrize("gamma", [1.5, 10.0])
def test_boosts_and_rotations_leave_the_subjets_and_their_order(gamma):
    generator = torch.Generator().manual_seed(0)
    for record in jets():
        rotation = lorentz.lorentz_of_rotation(random_orthogonal(generator))
        moved, spurions = lorentz_transform(record, lorentz.random_boost(gamma, generator) @ rotation)
        expected = cluster(record["momenta"])
        assert np.array_equal(cluster(moved["momenta"], spurions[0].numpy()), expected)
        assert expected.max() > 0


def test_boosts_leave_the_subjets_of_real_jets(shared_data):
    generator = torch.Generator().manual_seed(1)
    for record in read_jets(shared_data / "jets" / "JetClassII_example.parquet", limit=30):
        moved, spurions = boost(record, 10.0, generator)
        assert np.array_equal(cluster(moved["momenta"], spurions[0].numpy()), cluster(record["momenta"]))


def test_the_order_of_particles_and_the_unit_of_energy_do_not_matter():
    for record in jets():
        parent = cluster(record["momenta"])
        order = torch.randperm(len(parent), generator=torch.Generator().manual_seed(0))
        assert np.array_equal(cluster(permute(record, order)[0]["momenta"]), parent[order.numpy()])
        assert np.array_equal(cluster(1000.0 * record["momenta"]), parent)


def test_subjets_are_resolved_hard_and_numbered_by_their_energy():
    counts = []
    for record in jets():
        parent, momenta = cluster(record["momenta"]), record["momenta"]
        summed = np.stack([momenta[parent == label].sum(axis=0) for label in range(parent.max() + 1)])
        frame = lorentz.regulated(torch.from_numpy(momenta.sum(axis=0)), lorentz.lab_spurions()[0])
        energies = lorentz.minkowski(torch.from_numpy(summed), frame).numpy()
        assert (np.diff(energies) <= 0).all()
        counts.append(len(summed))
    assert 4 < np.mean(counts) < 12


def test_a_soft_particle_leaves_the_subjets_of_the_others():
    rng = np.random.default_rng(1)
    for record in jets():
        expected = partition(cluster(record["momenta"]))
        for energy in (1e-7, 1e-9):
            direction = rng.normal(size=3)
            soft = energy * np.array([1.0, *(direction / np.linalg.norm(direction))])
            assert partition(cluster(np.concatenate([record["momenta"], soft[None]]))[:-1]) == expected


def test_a_collinear_splitting_leaves_the_subjets_of_the_others_and_shares_its_own():
    for record in jets():
        momenta = record["momenta"].copy()
        momenta[0, 0] = np.linalg.norm(momenta[0, 1:])
        parent = cluster(momenta)
        first = momenta[0, 1:]
        for angle in (1e-6, 1e-8, 0.0):
            kick = angle * np.cross(first, [0.3, -0.2, 0.9])
            pieces = np.stack([0.3 * first + kick, 0.7 * first - kick])
            pieces = np.concatenate([np.linalg.norm(pieces, axis=1, keepdims=True), pieces], axis=1)
            split = np.concatenate([pieces[:1], momenta[1:], pieces[1:]])
            found = cluster(split)
            assert partition(found[:-1]) == partition(parent)
            assert found[-1] == found[0]


@pytest.mark.parametrize("momenta", [[[5.0, 3.0, 4.0, 0.0]], [[0.14, 0.0, 0.0, 0.0]], [[5.0, 3.0, 4.0, 0.0]] * 3])
def test_one_direction_is_one_subjet(momenta):
    assert cluster(np.array(momenta)).tolist() == [0] * len(momenta)


def test_a_record_is_clustered_once_and_keeps_what_it_brings():
    record = random_jet(np.random.default_rng(2))
    prepared = prepare(record, "hep")
    assert np.array_equal(prepared["parent"], cluster(prepared["momenta"]))
    brought = np.arange(30) % 3
    assert np.array_equal(prepare({**record, "parent": brought}, "hep")["parent"], brought)


def test_the_embedded_jets_hold_their_subjets():
    store = Store(SAMPLES / "jets")
    assert store.has("parent").all()
    for index in range(0, len(store), 97):
        record = store[index]
        assert np.array_equal(record["parent"], cluster(record["momenta"]))
