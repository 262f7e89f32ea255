"""Cross-entropies and the bootstrap by sequence against known values."""

import math

import numpy as np
import pytest

from sciml.domains.biology import metrics


def test_uniform_logits_have_the_entropy_of_twenty_types():
    labels = np.array([0, 5, 19, -1])
    logits = np.full((4, 20), 7.0)
    values = metrics.cross_entropies(logits, labels)
    assert values[:3] == pytest.approx(math.log(20))
    assert math.isnan(values[3])


def test_confident_logits_do_not_overflow():
    logits = np.zeros((2, 20))
    logits[:, 3] = 1e4
    assert metrics.cross_entropies(logits, np.array([3, 4])).tolist() == [0.0, 1e4]
    assert metrics.recovery(logits, np.array([3, 4])) == 0.5
    assert math.isnan(metrics.recovery(logits, np.array([-1, -1])))


def test_bootstrap_resamples_sequences():
    rng = np.random.default_rng(0)
    of_group = rng.normal(-0.2, 0.1, 30)
    groups = np.repeat([f"sequence {i}" for i in range(30)], 40)
    values = np.repeat(of_group, 40)
    result = metrics.bootstrap_difference(values, np.zeros(1200), groups)
    error = of_group.std() / math.sqrt(30)
    assert result["difference"] == pytest.approx(of_group.mean())
    assert result["low"] == pytest.approx(of_group.mean() - 1.96 * error, abs=0.25 * error)
    assert result["high"] == pytest.approx(of_group.mean() + 1.96 * error, abs=0.25 * error)
    assert result["high"] < 0
    by_residue = metrics.bootstrap_difference(values, np.zeros(1200), np.arange(1200))
    assert by_residue["high"] - by_residue["low"] < 0.3 * (result["high"] - result["low"])


def test_one_sequence_has_no_interval():
    result = metrics.bootstrap_difference(np.array([1.0, np.nan]), np.zeros(2), np.array(["a", "b"]))
    assert result["difference"] == 1.0
    assert math.isnan(result["low"])


def test_correlations_against_scipy():
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.default_rng(0)
    reference = np.round(rng.normal(size=200), 1)  # with ties
    predicted = np.round(reference**3 + rng.normal(size=200), 1)
    reference[::17] = np.nan
    known = np.isfinite(reference)
    found = metrics.correlations(predicted[:, None], reference[:, None])
    assert found["pearson"] == pytest.approx(pearsonr(predicted[known], reference[known]).statistic)
    assert found["spearman"] == pytest.approx(spearmanr(predicted[known], reference[known]).statistic)
    assert np.isnan(metrics.correlations(np.ones(5), np.arange(5.0))["pearson"])
    assert np.isnan(metrics.correlations(np.zeros(0), np.zeros(0))["spearman"])
