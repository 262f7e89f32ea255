"""Smoothness at the cutoffs: outputs of a dimer, of a cluster that an atom leaves, of two residues on the coarse level,
and their first derivatives.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from sciml.data.records import Record, kinds
from sciml.evaluate.verify.certificate import Row, judged, not_applicable
from sciml.evaluate.verify.probe import Outputs, Probe, Worst, energy_of
from sciml.evaluate.verify.systems import Level, System, levels_of, levels_of_atoms

STEP = 1e-3  # in units of the cutoff, between the points on either side of it
POINTS = 5  # on either side: a polynomial of degree 4 through them meets the cutoff with an error of order STEP^5
VALUE_TOLERANCE, SLOPE_TOLERANCE = 1e-6, 1e-3
"""Of jumps of a value, and of a slope times the cutoff, over the spread of the output well within the cutoff."""
BOND = 0.25  # in units of the cutoff, of the two atoms that the third leaves
SPREAD = (0.4, 0.95)
CURVE = 120  # points of a plotted curve
MOST_PAIRS = 4
DIRECTION = np.array([0.48, -0.6, 0.64])
BACKBONE = (7, 6, 6, 8)  # N, CA, C, O


@dataclass(frozen=True)
class Crossing:
    """What is at a distance [Å] of each other, ``make(distance)``, crosses a ``cutoff``."""

    name: str
    kind: str
    level: Level
    cutoff: float
    make: Callable[[float], Record]


def smoothness(probe: Probe, curves: dict[str, list[dict[str, Any]]]) -> Iterator[Row]:
    """Rows of value and slope per output; curves of dimers are added to ``curves["dimer"]``."""
    crossings = list(_crossings(probe))
    if not crossings:
        for law in ("cutoff: value", "cutoff: slope"):
            yield not_applicable(law, "the model reads neither atoms nor residues")
        return
    worst = {law: Worst() for law in ("cutoff: value", "cutoff: slope")}
    for crossing in crossings:
        for output, (value, slope) in _jumps(probe, crossing).items():
            worst["cutoff: value"].add(output, value, crossing.name)
            worst["cutoff: slope"].add(output, slope, crossing.name)
    if "atoms" in probe.kinds:
        curves.setdefault("dimer", []).extend(_curve(probe, level, elements) for level, elements in _pairs(probe))
    for law, tolerance in (("cutoff: value", VALUE_TOLERANCE), ("cutoff: slope", SLOPE_TOLERANCE)):
        for output, value, where, inputs in worst[law].items():
            yield judged(law, output, "fp64", value, tolerance, inputs=inputs, worst=where)


def _crossings(probe: Probe) -> Iterator[Crossing]:
    """Atoms at their cutoff, a pair at the end of the dispersion, residues at the cutoff of the coarse level."""
    for level, elements in _pairs(probe) if "atoms" in probe.kinds else ():
        cutoff, radius = probe.cutoff("atoms"), probe.far_field.radius
        label = f"{elements[0]}-{elements[1]}, {level.name}"
        yield Crossing(f"dimer {label}", "atoms", level, cutoff, partial(_dimer, elements))
        leaving = partial(_leaving, elements, cutoff)
        yield Crossing(f"atom leaving a pair {label}", "atoms", level, cutoff, leaving)
        if radius > cutoff:
            yield Crossing(f"dimer {label}, far pairs", "atoms", level, radius, partial(_dimer, elements))
    for kind in probe.kinds:
        if (reach := probe.coarse_cutoff(kind)) is None:
            continue
        for level in _levels_of_residues(probe, kind):
            yield Crossing(f"two residues, {level.name}, {kind}", kind, level, reach, _residues)


def _pairs(probe: Probe) -> list[tuple[Level, tuple[int, int]]]:
    """The lightest and the heaviest element of every level of theory with energies."""
    levels = levels_of_atoms(probe.package)[:MOST_PAIRS]
    return [(level, (level.elements[-1], level.elements[0])) for level in levels]


def _levels_of_residues(probe: Probe, kind: str) -> list[Level]:
    """Levels of theory of records with residues, whose atoms the model knows where it looks at elements."""
    levels = levels_of_atoms(probe.package) if kind == "atoms" else levels_of(probe.package)
    found = [level for level in levels if {kind, "residues"} <= set(kinds(level.domain))]
    return [level for level in found if kind != "atoms" or set(BACKBONE) <= set(level.elements)][:MOST_PAIRS]


def _dimer(elements: tuple[int, int], distance: float) -> Record:
    """Two atoms; not along an axis, where components of harmonics vanish."""
    return _record(elements, np.outer([0.0, distance], DIRECTION))


def _leaving(elements: tuple[int, int], cutoff: float, distance: float) -> Record:
    """A third atom crosses the cutoff of the first while it is well within that of the second."""
    positions = np.outer([0.0, BOND * cutoff, distance], DIRECTION)
    positions[1] += 0.1 * cutoff * np.array([0.8, 0.64, 0.0])  # the three are not in a line
    return _record((*elements, elements[0]), positions)


def _residues(distance: float) -> Record:
    """Two residues without side chains, the second one moved and turned about its own centre."""
    frame = np.array([[0.0, 1.2, 0.6], [0.0, 0.0, 0.0], [1.3, -0.5, 0.4], [1.4, -1.2, 1.4]])
    frame -= frame.mean(axis=0)
    positions = np.concatenate([frame, frame[:, [1, 2, 0]] + distance * DIRECTION])
    names = np.array([1, 2, 3, 4] * 2, dtype=np.uint8)
    parent, chain = np.repeat(np.arange(2, dtype=np.int32), 4), np.arange(2, dtype=np.int16)
    residues = {"atom_names": names, "parent": parent, "chain": chain, "residue_types": np.array([5, 0], dtype=np.int8)}
    return {**_record(BACKBONE * 2, positions), **residues}


def _record(types: tuple[int, ...], positions: np.ndarray) -> Record:
    return {"types": np.array(types), "positions": positions, "charge": 0.0, "spin": 1.0, "energy": 0.0}


def _at(probe: Probe, crossing: Crossing, distances: np.ndarray) -> list[Outputs]:
    template = System(crossing.name, crossing.kind, crossing.level, crossing.make(crossing.cutoff))
    graphs = [probe.graph(template, record=crossing.make(distance)) for distance in distances]
    return probe.predict(crossing.kind, graphs)


def _jumps(probe: Probe, crossing: Crossing) -> dict[str, tuple[float, float]]:
    """{output: (jump of the value, jump of the slope)} at the cutoff, over the spread of the output."""
    cutoff = crossing.cutoff
    steps = STEP * cutoff * np.arange(1, POINTS + 1)
    spread = np.linspace(*SPREAD, 12) * cutoff
    found = _at(probe, crossing, np.concatenate([cutoff - steps, cutoff + steps, spread]))
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
    distances = np.linspace(SPREAD[0], 1.15, CURVE) * cutoff
    found = _at(probe, Crossing("dimer", "atoms", level, cutoff, partial(_dimer, elements)), distances)
    curve: dict[str, Any] = {"name": level.name, "elements": list(elements), "cutoff": cutoff}
    curve["distance"] = distances.tolist()
    energy = energy_of(found[0])
    if energy is not None:
        values = [float(one[energy]) for one in found]
        curve["energy"] = [value - values[-1] for value in values]
    if "forces" in found[0]:
        direction = torch.from_numpy(DIRECTION)
        curve["force"] = [float(one["forces"][1].double() @ direction) for one in found]
    return curve
