"""Smoothness at the cutoff: outputs of a dimer, and of a cluster that an atom leaves, and their first derivatives."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from sciml.evaluate.verify.certificate import Row, judged, not_applicable
from sciml.evaluate.verify.probe import Outputs, Probe, Worst, energy_of
from sciml.evaluate.verify.systems import Level, System, levels_of_atoms

STEP = 1e-3  # in units of the cutoff, between the points on either side of it
POINTS = 5  # on either side: a polynomial of degree 4 through them meets the cutoff with an error of order STEP^5
VALUE_TOLERANCE, SLOPE_TOLERANCE = 1e-6, 1e-3
"""Of jumps of a value, and of a slope times the cutoff, over the spread of the output well within the cutoff."""
BOND = 0.25  # in units of the cutoff, of the two atoms that the third leaves
SPREAD = (0.4, 0.95)
CURVE = 120  # points of a plotted curve
MOST_PAIRS = 4


def smoothness(probe: Probe, curves: dict[str, list[dict[str, Any]]]) -> Iterator[Row]:
    """Rows of value and slope per output; curves of dimers are added to ``curves["dimer"]``."""
    if "atoms" not in probe.kinds:
        for law in ("cutoff: value", "cutoff: slope"):
            yield not_applicable(law, "the model does not read atoms")
        return
    worst = {law: Worst() for law in ("cutoff: value", "cutoff: slope")}
    for level, elements in _pairs(probe):
        for name, make in (("dimer", _dimer), ("atom leaving a pair", _leaving)):
            label = f"{name} {elements[0]}-{elements[1]}, {level.name}"
            template = System(label, "atoms", level, make(elements, 1.0, probe.cutoff("atoms")))
            for output, (value, slope) in _jumps(probe, template, elements, make).items():
                worst["cutoff: value"].add(output, value, label)
                worst["cutoff: slope"].add(output, slope, label)
        curves.setdefault("dimer", []).append(_curve(probe, level, elements))
    for law, tolerance in (("cutoff: value", VALUE_TOLERANCE), ("cutoff: slope", SLOPE_TOLERANCE)):
        for output, value, where, inputs in worst[law].items():
            yield judged(law, output, "fp64", value, tolerance, inputs=inputs, worst=where)


def _pairs(probe: Probe) -> list[tuple[Level, tuple[int, int]]]:
    """The lightest and the heaviest element of every level of theory with energies."""
    levels = levels_of_atoms(probe.package)[:MOST_PAIRS]
    return [(level, (level.elements[-1], level.elements[0])) for level in levels]


def _dimer(elements: tuple[int, int], distance: float, cutoff: float) -> dict[str, Any]:
    """Two atoms at ``distance`` [Å]; not along an axis, where components of harmonics vanish."""
    return _record(elements, np.array([0.0, distance]), cutoff)


def _leaving(elements: tuple[int, int], distance: float, cutoff: float) -> dict[str, Any]:
    """A third atom crosses the cutoff of the first while it is well within that of the second."""
    return _record((*elements, elements[0]), np.array([0.0, BOND * cutoff, distance]), cutoff)


def _record(types: tuple[int, ...], places: np.ndarray, cutoff: float) -> dict[str, Any]:
    direction = np.array([0.48, -0.6, 0.64])
    positions = places[:, None] * direction
    positions[1:2] += (len(types) > 2) * 0.1 * cutoff * np.array([0.8, 0.64, 0.0])  # the three are not in a line
    return {"types": np.array(types), "positions": positions, "charge": 0.0, "spin": 1.0, "energy": 0.0}


def _at(probe: Probe, template: System, elements: tuple[int, int], make: Any, distances: np.ndarray) -> list[Outputs]:
    cutoff = probe.cutoff("atoms")
    graphs = [probe.graph(template, record=make(elements, distance, cutoff)) for distance in distances]
    return probe.predict("atoms", graphs)


def _jumps(probe: Probe, template: System, elements: tuple[int, int], make: Any) -> dict[str, tuple[float, float]]:
    """{output: (jump of the value, jump of the slope)} at the cutoff, over the spread of the output."""
    cutoff = probe.cutoff("atoms")
    steps = STEP * cutoff * np.arange(1, POINTS + 1)
    spread = np.linspace(*SPREAD, 12) * cutoff
    found = _at(probe, template, elements, make, np.concatenate([cutoff - steps, cutoff + steps, spread]))
    result = {}
    for name in found[0]:
        values = torch.stack([one[name].double() for one in found]).flatten(1).numpy()
        if np.isnan(values).all():
            continue
        scale = values[2 * POINTS :].std(axis=0).max()
        sides = [_at_the_cutoff(values[:POINTS], -steps), _at_the_cutoff(values[POINTS : 2 * POINTS], steps)]
        jumps = [float(np.abs(left - right).max()) for left, right in zip(*sides, strict=True)]
        result[name] = (_over(jumps[0], scale), _over(cutoff * jumps[1], scale))
    return result


def _at_the_cutoff(values: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and slope (k,) at the cutoff of the polynomial through ``values`` (points, k) at ``offsets``."""
    unit = np.abs(offsets).max()
    coefficients = np.linalg.solve(np.vander(offsets / unit, increasing=True), values)
    return coefficients[0], coefficients[1] / unit


def _over(jump: float, scale: float) -> float:
    return jump / scale if scale > 0 else (0.0 if jump == 0 else float("inf"))


def _curve(probe: Probe, level: Level, elements: tuple[int, int]) -> dict[str, Any]:
    """Energy [eV], from its last value, and the force on the second atom along the bond [eV/Å] of a dimer."""
    cutoff = probe.cutoff("atoms")
    template = System("dimer", "atoms", level, _dimer(elements, 1.0, cutoff))
    distances = np.linspace(SPREAD[0], 1.15, CURVE) * cutoff
    found = _at(probe, template, elements, _dimer, distances)
    curve: dict[str, Any] = {"name": level.name, "elements": list(elements), "cutoff": cutoff}
    curve["distance"] = distances.tolist()
    energy = energy_of(found[0])
    if energy is not None:
        values = [float(one[energy]) for one in found]
        curve["energy"] = [value - values[-1] for value in values]
    if "forces" in found[0]:
        direction = torch.tensor([0.48, -0.6, 0.64], dtype=torch.float64)
        curve["force"] = [float(one["forces"][1].double() @ direction) for one in found]
    return curve
