"""Errors of energies, forces and stress against known values."""

import math

import numpy as np
import pytest

from sciml.domains.materials import metrics


def test_errors_skip_absent_labels():
    reference = np.array([1.0, np.nan, 3.0])
    row = metrics.errors(np.array([2.0, 100.0, 6.0]), reference, "eV")
    assert row == {"mae": 2.0, "rmse": pytest.approx(math.sqrt(5.0)), "count": 2, "unit": "eV"}
    assert math.isnan(metrics.mae(np.zeros(1), np.array([np.nan])))


def test_a_prediction_that_is_nan_is_not_hidden():
    assert math.isnan(metrics.rmse(np.array([np.nan, 0.0]), np.zeros(2)))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shape"):
        metrics.mae(np.zeros(3), np.zeros((3, 1)))


def test_energies_of_a_composition_count_unknown_elements_as_zero():
    references = {1: -13.6, 6: -1030.0}
    types = [np.array([6, 1, 1, 1, 1], dtype=np.uint8), np.array([92, 1], dtype=np.uint8)]
    np.testing.assert_allclose(metrics.composition_energies(types, references), [-1084.4, -13.6])
    assert metrics.composition_energies(types, {}).tolist() == [0.0, 0.0]
