"""Neighbour lists against brute force over images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.neighbors import neighbors, pair_counts
from sciml.errors import UserError


def brute_force(positions, cell, pbc, cutoff):
    steps = [range(-4, 5) if flag else (0,) for flag in pbc]
    shifts = np.array(np.meshgrid(*steps)).reshape(3, -1).T
    found = set()
    for shift in shifts:
        vectors = positions[:, None] - positions[None] + shift @ cell  # [sender, receiver]
        close = np.linalg.norm(vectors, axis=-1) < cutoff
        if not shift.any():
            np.fill_diagonal(close, False)
        found |= {(int(s), int(r), *map(int, shift)) for s, r in np.argwhere(close)}
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.tuples(*[st.booleans()] * 3), st.floats(1.0, 6.0))
def test_same_pairs_as_brute_force(seed, atoms, pbc, cutoff):
    generator = np.random.default_rng(seed)
    cell = np.eye(3) * 4.5 + generator.normal(size=(3, 3)) * 0.5
    positions = (generator.random((atoms, 3)) * 1.4 - 0.2) @ cell  # some atoms outside the cell
    senders, receivers, shifts = neighbors(positions, cell, np.array(pbc), cutoff)
    box = np.where(np.array(pbc)[:, None], cell, 0)
    assert {(int(s), int(r), *map(int, S)) for s, r, S in zip(senders, receivers, shifts)} == brute_force(
        positions, box, pbc, cutoff
    )
    assert len(senders) == pair_counts(positions, box, np.array(pbc), (0.5, cutoff))[-1]
    assert (np.diff(receivers) >= 0).all()
    vectors = positions[senders] - positions[receivers] + shifts @ box
    assert (np.linalg.norm(vectors, axis=1) <= cutoff).all()
    assert all(array.dtype == np.int64 for array in (senders, receivers, shifts))


def test_far_from_the_origin():
    positions = np.array([[0.0, 0, 0], [1.0, 0, 0], [0, 5.0, 0]])
    for offset in (0.0, 1e6, -1e9):
        senders, receivers, _ = neighbors(positions + offset, np.zeros((3, 3)), np.zeros(3, bool), 2.0)
        assert set(zip(senders.tolist(), receivers.tolist())) == {(0, 1), (1, 0)}


def test_single_atom_and_its_images():
    assert len(neighbors(np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool), 5.0)[0]) == 0
    assert len(neighbors(np.zeros((1, 3)), np.eye(3) * 3, np.ones(3, bool), 3.1)[0]) == 6


@pytest.mark.parametrize("cutoff", [0.0, -1.0, np.nan, np.inf])
def test_wrong_cutoff(cutoff):
    with pytest.raises(UserError, match=r"cutoff: .* expected a positive length"):
        neighbors(np.zeros((2, 3)), np.zeros((3, 3)), np.zeros(3, bool), cutoff)


def test_nan_positions():
    with pytest.raises(UserError, match="positions: NaN"):
        neighbors(np.full((2, 3), np.nan), np.zeros((3, 3)), np.zeros(3, bool), 3.0)


def test_parts_of_an_open_system_may_be_very_far_from_each_other():
    rng = np.random.default_rng(0)
    near = 6.0 * rng.random((20, 3))
    expected = neighbors(near, np.zeros((3, 3)), np.zeros(3, bool), 3.0)
    spread = np.concatenate([near, near + np.array([2e4, -8e3, 3e5])])
    found = neighbors(spread, np.zeros((3, 3)), np.zeros(3, bool), 3.0)
    pairs = {(s, r) for s, r in zip(*expected[:2])}
    assert set(zip(*found[:2])) == pairs | {(s + 20, r + 20) for s, r in pairs}
    assert (np.diff(found[1]) >= 0).all()
    assert not found[2].any()
    assert len(found[2]) == 2 * len(expected[2])
    counts = [pair_counts(x, np.zeros((3, 3)), np.zeros(3, bool), (1.0, 3.0)) for x in (near, spread)]
    assert (counts[1] == 2 * counts[0]).all()
    assert counts[1][1] == len(found[2])
