"""Rank statistics, rejection and the mass window against known values."""

import math

import numpy as np
import pytest

from sciml.domains.hep import metrics


def test_accuracy_skips_absent_labels():
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    assert metrics.accuracy(logits, np.array([0, 0, -1])) == 0.5
    assert math.isnan(metrics.accuracy(logits, np.full(3, -1)))


def test_auc_is_the_share_of_ordered_pairs_with_ties_one_half():
    scores, signal = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert metrics.auc(scores, signal) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert metrics.auc(-scores, signal) == pytest.approx(1 - 3.5 / 4)
    assert metrics.auc(np.zeros(4), signal) == 0.5
    assert math.isnan(metrics.auc(scores, np.ones(4, dtype=bool)))


def test_auc_is_the_area_under_the_roc_curve():
    rng = np.random.default_rng(0)
    signal = rng.random(2000) < 0.4
    scores = np.round(rng.normal(size=2000) + signal, 1)
    curve = metrics.roc(scores, signal)
    assert curve.signal[0] == curve.background[0] == 0.0
    assert curve.signal[-1] == curve.background[-1] == 1.0
    assert np.trapezoid(curve.signal, curve.background) == pytest.approx(metrics.auc(scores, signal), abs=1e-12)


def test_one_vs_one_uses_two_classes_at_a_time():
    labels = np.array([0, 0, 1, 1, 2, -1])
    logits = np.eye(3)[[0, 0, 1, 1, 0, 0]]
    pairs = {pair: metrics.auc(*metrics.one_vs_one(logits, labels, *pair)) for pair in ((0, 1), (0, 2), (1, 2))}
    assert pairs == {(0, 1): 1.0, (0, 2): 0.5, (1, 2): 1.0}


def test_rejection_of_known_distributions():
    # uniform background, signal of density 2 s: efficiencies 1 - t and 1 - t^2
    points = (np.arange(20000) + 0.5) / 20000
    scores = np.concatenate([np.sqrt(points), points])
    signal = np.repeat([True, False], 20000)
    for efficiency in (0.3, 0.5):
        exact = 1 / (1 - math.sqrt(1 - efficiency))
        assert metrics.rejection(scores, signal, efficiency) == pytest.approx(exact, rel=1e-3)
    value, error = metrics.rejection_with_error(scores, signal, 0.5, resamplings=50)
    passed = 20000 / value
    assert 0.5 * value / math.sqrt(passed) < error < 2 * value / math.sqrt(passed)


def test_rejection_of_a_perfect_and_of_a_blind_tagger():
    signal = np.repeat([True, False], 50)
    assert metrics.rejection(signal.astype(float), signal, 0.5) == math.inf
    assert metrics.rejection(np.zeros(100), signal, 0.5) == pytest.approx(2.0)
    value, error = metrics.rejection_with_error(signal.astype(float), signal, 0.5, resamplings=20)
    assert value == math.inf
    assert math.isnan(error)


def test_mass_window_finds_the_resonance():
    rng = np.random.default_rng(0)
    signal = rng.random(4000) < 0.5
    masses = np.where(signal, rng.normal(173.0, 10.0, 4000), rng.exponential(80.0, 4000))
    centre = metrics.fit_mass_window(masses[:2000], signal[:2000])
    assert centre == pytest.approx(173.0, abs=5.0)
    assert metrics.auc(metrics.mass_window_score(masses[2000:], centre), signal[2000:]) > 0.9


def test_jet_masses():
    pair = np.array([[5.0, 3.0, 4.0, 0.0], [5.0, -3.0, -4.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(metrics.jet_masses([pair, pair[:1]]), [10.0, 0.0], atol=1e-9)


def test_momenta_are_measured_by_component_and_jet_by_jet():
    true = np.array([[5.0, 3.0, 4.0, 0.0], [5.0, -3.0, 4.0, 0.0], [2.0, 0.0, 0.0, 2.0]])
    difference = np.array([[0.5, 0.0, 0.0, 0.0], [-0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.4, 0.0]])
    predicted = true + difference
    relative = metrics.relative_errors(predicted, true)
    assert relative["E"] == pytest.approx(math.sqrt(0.5 / 54))
    assert relative["px"] == relative["pz"] == 0.0
    assert relative["py"] == pytest.approx(math.sqrt(0.16 / 32))
    sizes, totals = np.array([2, 2, 1]), np.array([[10.0, 0, 8, 0], [10.0, 0, 8, 0], [2.0, 0, 0, 2]])
    assert metrics.jet_starts(sizes).tolist() == [0, 2]
    np.testing.assert_allclose(metrics.conservation_errors(predicted, totals, sizes), [0.0, 0.2], atol=1e-15)
