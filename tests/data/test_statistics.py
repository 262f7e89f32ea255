"""Reference energies from compositions that do not tell elements apart, and from energies some of which are wrong."""

import numpy as np
import pytest

from sciml.data.statistics import _fit, fit_reference_energies

TRUE = np.array([-13.6, -2040.0, -1030.0])


def mixture(seed: int = 0, records: int = 200) -> np.ndarray:
    """Compositions of three elements."""
    counts = np.random.default_rng(seed).integers(0, 5, (records, 3))
    counts[:, 0] += 1
    return counts.astype(float)


def energies_of(counts: np.ndarray, noise: float, wrong: float, seed: int = 1) -> np.ndarray:
    """True sums with ``noise`` eV per atom; a part ``wrong`` of them, all on one side, is off by 10,000 eV per atom."""
    rng = np.random.default_rng(seed)
    atoms = counts.sum(axis=1)
    energies = counts @ TRUE + noise * atoms * rng.normal(size=len(atoms))
    energies[: int(wrong * len(atoms))] += 1e4 * atoms[: int(wrong * len(atoms))]
    return energies


@pytest.mark.parametrize("wrong", [0.0, 0.005, 0.1, 0.3])
def test_wrong_energies_do_not_move_the_references(wrong):
    counts = mixture()
    found = fit_reference_energies(counts, energies_of(counts, 0.01, wrong))
    np.testing.assert_allclose(found, TRUE, atol=0.02)
    exact = fit_reference_energies(counts, energies_of(counts, 0.0, wrong))
    np.testing.assert_allclose(exact, TRUE, atol=1e-6)


@pytest.mark.parametrize("wrong", [0.0, 0.1])
def test_one_composition_gets_the_smallest_references_that_sum_to_its_energy(wrong):
    """All water: H and O are not told apart, and wrong energies take no part."""
    counts = np.tile([2.0, 1.0, 0.0], (200, 1))
    found = fit_reference_energies(counts[:, :2], energies_of(counts, 0.01, wrong))
    assert 2 * found[0] + found[1] == pytest.approx(2 * TRUE[0] + TRUE[1], abs=0.01)
    assert found[0] == pytest.approx(2 * found[1])  # along the composition: nothing is added that no record sees


def test_elements_that_always_come_together_share_what_is_left():
    counts = mixture()
    counts[:, 2] = counts[:, 1]
    energies = energies_of(counts, 0.001, 0.1)
    found = fit_reference_energies(counts, energies)
    assert found[0] == pytest.approx(TRUE[0], abs=0.01)
    assert found[1] == pytest.approx(found[2])
    assert found[1] + found[2] == pytest.approx(TRUE[1] + TRUE[2], abs=0.01)


def test_known_elements_stay_and_decide_for_the_others():
    """Water with a known hydrogen tells oxygen; the deviation does not count wrong energies."""
    counts = np.zeros((200, 119))
    counts[:, 1], counts[:, 8] = 2, 1
    energies = energies_of(np.tile([2.0, 1.0, 0.0], (200, 1)), 0.01, 0.1)
    references, deviation = _fit(counts, energies, {"1": TRUE[0]})
    assert references["1"] == TRUE[0]
    assert references["8"] == pytest.approx(TRUE[1], abs=0.02)
    assert deviation == pytest.approx(0.01, rel=0.2)


def test_exact_records_do_not_make_the_others_outliers():
    """Single atoms, which fit exactly, beside as many molecules that bind."""
    atoms = np.repeat(np.eye(3), 20, axis=0)
    molecules = mixture(records=50)
    counts = np.concatenate([atoms, molecules])
    energies = counts @ TRUE
    energies[60:] -= 2.0 * molecules.sum(axis=1) * np.random.default_rng(2).random(50)
    padded = np.zeros((len(counts), 119))
    padded[:, [1, 8, 6]] = counts
    _, deviation = _fit(padded, energies, {})
    assert deviation > 0.2
