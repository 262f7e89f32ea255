"""Rank statistics, rejection and the mass window against known values."""

import math

import numpy as np
import pytest

from sciml.domains.hep import metrics


def test_accuracy_skips_absent_labels():
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    assert metrics.accuracy(logits, np.array([0, 0, -1])) == 0.5
    assert math.isnan(metrics.accuracy(logits, np.full(3, -1)))


def test_the_error_of_an_accuracy_is_the_spread_of_resampled_ones():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=200)
    logits = np.eye(2)[labels] + rng.normal(scale=0.6, size=(200, 2))
    draws = rng.integers(200, size=(4000, 200))
    spread = np.std([metrics.accuracy(logits[draw], labels[draw]) for draw in draws])
    assert metrics.accuracy_error(logits, labels) == pytest.approx(spread, rel=0.05)
    assert math.isnan(metrics.accuracy_error(logits, np.full(200, -1)))


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


def overlapping(rng, number=600):
    """Scores of a tagger that is right more often than not, some of them equal, with masses that follow the scores."""
    signal = np.arange(number) % 3 == 0
    scores = np.round(rng.normal(size=number) + signal, 1)
    return scores, signal, np.exp(rng.normal(size=number)) * 80


def test_resampled_curves_are_those_of_resampled_jets():
    """Counting jets of a sorted sample gives the curve of the same jets drawn and sorted anew."""
    scores, signal, _ = overlapping(np.random.default_rng(1))
    (curve,) = metrics.resampled_rocs(scores, signal, 1, seed=5)
    draw = np.random.default_rng(5)
    ordered = np.argsort(-scores, kind="stable")
    positives, negatives = ordered[signal[ordered]], ordered[~signal[ordered]]
    drawn = np.concatenate(
        [positives[draw.integers(len(positives), size=len(positives))],
         negatives[draw.integers(len(negatives), size=len(negatives))]]
    )  # fmt: skip
    again = metrics.roc(scores[drawn], signal[drawn])
    grid = np.unique(scores)[:-1]
    for threshold in grid:
        passing = scores[drawn] > threshold
        point = (passing & ~signal[drawn]).sum() / len(negatives), (passing & signal[drawn]).sum() / len(positives)
        assert np.abs(np.stack(curve, axis=1) - point).sum(axis=1).min() < 1e-12
    assert np.trapezoid(curve.signal, curve.background) == pytest.approx(np.trapezoid(again.signal, again.background))


def test_bootstrap_errors_are_the_spread_of_new_samples():
    values, errors = [], []
    for seed in range(60):
        found = metrics.tagging(*overlapping(np.random.default_rng(seed))[:2], (0.3, 0.5), resamplings=40)
        values.append([found["auc"], found["rejection_30%"], found["rejection_50%"]])
        errors.append([found["auc_error"], found["rejection_30%_error"], found["rejection_50%_error"]])
    ratio = np.mean(errors, axis=0) / np.std(values, axis=0)
    assert ((ratio > 0.7) & (ratio < 1.5)).all(), ratio


def test_band_of_a_curve_covers_it():
    scores, signal, _ = overlapping(np.random.default_rng(0), 3000)
    grid = np.linspace(0.1, 0.9, 9)
    low, high = metrics.roc_band(scores, signal, grid, resamplings=60)
    curve = metrics.roc(scores, signal)
    value = np.interp(grid, curve.signal, curve.background)
    assert ((low <= value * 1.02) & (value <= high * 1.02)).all()
    passed = value * (~signal).sum()
    assert np.allclose((high - low) / 2 / value, 1 / np.sqrt(passed), rtol=0.8)


def test_mean_auc_is_the_mean_of_ordered_pairs():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 3, 90), rng.normal(size=(90, 3))
    logits[np.arange(90), labels] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    areas = []
    for i in range(3):
        for j in range(3):
            if i != j:
                one, other = probabilities[labels == i, i], probabilities[labels == j, i]
                areas.append(np.mean([(a > b) + 0.5 * (a == b) for a in one for b in other]))
    assert metrics.mean_auc(logits, labels) == pytest.approx(np.mean(areas))
    assert math.isnan(metrics.mean_auc(logits[:5], np.zeros(5, int)))


def test_calibration_of_an_honest_and_of_a_boastful_tagger():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20000, 3)) * 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((20000, 1)) < probabilities.cumsum(axis=1)).argmax(axis=1)
    honest, boastful = metrics.reliability(logits, labels), metrics.reliability(3 * logits, labels)
    assert honest.error < 0.015
    confidence = metrics.softmax(3 * logits).max(axis=1)
    gap = confidence.mean() - metrics.accuracy(logits, labels)
    assert boastful.error == pytest.approx(gap, abs=0.01)  # boastful in every bin
    assert boastful.error > 0.15
    assert honest.jets.sum() == 20000
    by_hand = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            right = (logits.argmax(axis=1) == labels)[inside].mean()
            by_hand += inside.mean() * abs(right - confidence[inside].mean())
    assert boastful.error == pytest.approx(by_hand, abs=1e-9)


def test_divergence_against_scipy():
    from scipy.spatial.distance import jensenshannon

    first, second = np.array([1, 4, 0, 5]), np.array([2, 2, 3, 3])
    assert metrics.jensen_shannon(first, second) == pytest.approx(jensenshannon(first, second, base=2) ** 2)
    assert metrics.jensen_shannon(first, first * 7) == pytest.approx(0.0, abs=1e-15)
    assert metrics.jensen_shannon(np.array([1, 0]), np.array([0, 1])) == pytest.approx(1.0)


def test_a_tagger_that_looks_at_the_mass_sculpts_it():
    rng = np.random.default_rng(0)
    signal = np.arange(30000) % 2 == 0
    masses = np.where(signal, rng.normal(173, 15, 30000), rng.exponential(100, 30000))
    blind = rng.normal(size=30000) + signal
    window = -np.abs(masses - 173)
    for efficiency in (0.3, 0.5):
        assert metrics.mass_sculpting(blind, signal, masses, efficiency) < 0.005
        assert metrics.mass_sculpting(window, signal, masses, efficiency) > 0.5
    assert math.isnan(metrics.mass_sculpting(blind[:20], signal[:20], masses[:20], 0.5))


def test_response_and_resolution_of_a_known_smearing():
    rng = np.random.default_rng(0)
    true = rng.uniform(50, 500, 50000)
    found = metrics.response(true * 1.1 * np.exp(rng.normal(scale=0.1, size=50000)), true)
    assert found["response"] == pytest.approx(1.1, abs=0.005)
    assert found["resolution"] == pytest.approx(0.0995, rel=0.02)
