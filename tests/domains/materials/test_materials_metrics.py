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


def test_table_has_energies_per_atom_and_leaves_out_what_has_no_label():
    predicted = {"energy": np.array([1.0, 4.0]), "forces": np.ones((6, 3)), "stress": np.zeros((2, 3, 3))}
    reference = {"energy": np.zeros(2), "forces": np.zeros((6, 3)), "stress": np.full((2, 3, 3), np.nan)}
    table = metrics.metrics(predicted, reference, np.array([2, 4]))
    assert set(table) == {"energy", "energy_per_atom", "forces"}
    assert table["energy"]["mae"] == 2.5
    assert table["energy_per_atom"]["mae"] == 0.75
    assert table["energy_per_atom"]["unit"] == "eV/atom"
    assert table["forces"]["count"] == 18


def test_composition_fit_recovers_references_and_survives_one_composition():
    rng = np.random.default_rng(0)
    truth = {1: -13.6, 6: -1030.0, 8: -2041.0}
    types = [rng.choice(list(truth), 10) for _ in range(20)]
    energies = metrics.composition_energies(types, truth)
    assert metrics.composition_fit(types, energies) == pytest.approx(truth, rel=1e-8)
    one = metrics.composition_fit([types[0]] * 3, np.array([-5.0, -6.0, -7.0]))
    np.testing.assert_allclose(metrics.composition_energies([types[0]], one), [-6.0])
    assert metrics.composition_energies([np.array([92])], truth) == 0.0
