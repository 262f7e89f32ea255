"""Rows, verdicts and estimates that certificates are made of."""

import json
import math

import numpy as np
import pytest

from sciml.evaluate.verify.certificate import Certificate, Row, condensed, judged, not_applicable
from sciml.evaluate.verify.cutoff import _at_the_cutoff
from sciml.evaluate.verify.dynamics import drift, shadow_terms
from sciml.evaluate.verify.probe import Worst


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0.0, "pass"), (1e-9, "pass"), (1.1e-9, "fail"), (math.inf, "fail"), (math.nan, "fail")],
)
def test_a_value_passes_up_to_its_tolerance(value, verdict):
    assert judged("rotation", "energy", "fp64", value, 1e-9).verdict == verdict


def test_what_is_no_number_is_the_worst_and_stays_it():
    worst = Worst()
    for value, where in ((1.0, "a"), (math.nan, "b"), (math.inf, "c"), (2.0, "d")):
        worst.add("energy", value, where)
    ((name, value, where, inputs),) = worst.items()
    assert (name, where, inputs) == ("energy", "b", "4 inputs")
    assert math.isnan(value)


def test_the_table_shows_the_worst_of_those_that_pass_and_every_failure(tmp_path):
    rows = [judged("rotation", f"output {i}", "fp64", 10.0**-i, 1e-2) for i in range(5)]
    rows.append(not_applicable("total charge", "no head predicts charges"))
    shown = [(row.subject, others) for row, others in condensed(rows)]
    assert shown == [("output 0", 0), ("output 1", 0), ("output 2", 2), ("", 0)]
    certificate = Certificate({"package": "p"}, rows)
    assert certificate.failed == ["rotation"]
    assert "rows: 3 pass, 2 fail, 0 information, 1 not applicable" in certificate.table
    certificate.rows.append(judged("forces", "forces", "fp64", math.nan, 1e-7))
    certificate.write(tmp_path / "certificate.json")
    found = json.loads((tmp_path / "certificate.json").read_text())
    assert found["failed"] == ["rotation", "forces"]
    assert found["rows"][-2]["value"] == "nan"
    assert Row(**{**found["rows"][0]}) in rows


def oscillator(timestep: float, steps: int, friction: float = 0.0) -> tuple[np.ndarray, ...]:
    """Velocity Verlet of two springs, one stiff: total energies, velocities (T, 1, 3), forces (T, 1, 3)."""
    constants, x, v = np.array([1.0, 9.0, 0.0]), np.array([1.0, 0.5, 0.0]), np.array([0.0, 1.0, 0.0])
    energies, velocities, forces = [], [], []
    force = -constants * x - friction * v
    for _ in range(steps):
        energies.append(0.5 * (v @ v) + 0.5 * constants @ (x * x))
        velocities.append([v])
        forces.append([force])
        half = v + 0.5 * timestep * force
        x = x + timestep * half
        force = -constants * x - friction * half
        v = half + 0.5 * timestep * force
    return np.array(energies), np.array(velocities), np.array(forces)


def test_the_energy_that_velocity_verlet_conserves_swings_with_the_fourth_order():
    swings = []
    for timestep in (0.1, 0.05):
        energies, velocities, forces = oscillator(timestep, 2000)
        shadow = energies[1:-1] + shadow_terms(velocities, forces, np.ones(1), timestep)
        swings.append(np.ptp(shadow))
        assert np.ptp(shadow) < 0.05 * np.ptp(energies)
    assert 12 < swings[0] / swings[1] < 20


def test_a_drift_is_found_below_the_swing():
    timestep, steps = 0.05, 2000
    times = timestep * np.arange(steps - 2)
    for friction in (0.0, 1e-6):
        energies, velocities, forces = oscillator(timestep, steps, friction)
        shadow = energies[1:-1] + shadow_terms(velocities, forces, np.ones(1), timestep)
        lost = drift(times, shadow)
        expected = -friction * float((velocities[1:-1] ** 2).sum(axis=(1, 2)).mean())
        assert lost == pytest.approx(expected, rel=0.1, abs=2e-8)


def test_slopes_at_the_cutoff_are_those_of_either_side():
    offsets = 1e-3 * np.arange(1, 6)
    inside, outside = (lambda x: x**2 - 3 * x + np.sin(x)), (lambda x: 1.0 + 5.0 * x)
    value, slope = _at_the_cutoff(inside(-offsets)[:, None], -offsets)
    assert value[0] == pytest.approx(0.0, abs=1e-12)
    assert slope[0] == pytest.approx(-2.0, abs=1e-8)
    value, slope = _at_the_cutoff(outside(offsets)[:, None], offsets)
    assert (value[0], slope[0]) == (pytest.approx(1.0), pytest.approx(5.0))
