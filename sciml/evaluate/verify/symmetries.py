"""Equivariance of every output under O(3), translations and permutations, and bitwise repeatability."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sciml.evaluate.verify.certificate import Row, judged
from sciml.evaluate.verify.probe import NAMES, Outputs, Probe, Worst, fine_outputs, typical
from sciml.evaluate.verify.systems import System
from sciml.graph import FOUR_MOMENTA, Graph
from sciml.physics import lorentz, symmetry
from sciml.physics.symmetry import Action

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Of the error relative to the RMS of the output, or to its median RMS over all systems where that is larger."""
SHIFT = 3.0  # typical length of a translation, in the unit of the positions
MOVES = ("rotation", "rotation", "inversion", "translation", "permutation")
REPEATS = 3
ROUNDED = "where 20 eps (E / M)^2 is above the tolerance, the error is scaled by their ratio"


def equivariance(probe: Probe, generator: torch.Generator) -> Iterator[Row]:
    """A row per law, output and precision: the worst relative error over all systems."""
    for kind in probe.kinds:
        for dtype, tolerance in TOLERANCES.items():
            systems = probe.systems(kind)
            graphs = [probe.graph(system, dtype) for system in systems]
            first = probe.predict(kind, graphs, dtype)
            floors, ranks = typical(first), probe.ranks(kind)
            worst = {law: Worst() for law in MOVES}
            for law in MOVES:
                moved = [_moved(law, probe, s, g, generator) for s, g in zip(systems, graphs, strict=True)]
                found = probe.predict(kind, [graph for graph, _ in moved], dtype)
                for system, graph, before, after, (_, action) in zip(systems, graphs, first, found, moved, strict=True):
                    expected = action(before, fine_outputs(before, graph), ranks)
                    for name, error in _errors(after, expected, floors).items():
                        allowed = max(1.0, _rounding(graph, name) / tolerance)
                        worst[law].add(name, error / allowed, system.name)
            for law, found_worst in worst.items():
                for name, value, where, inputs in found_worst.items():
                    note = ROUNDED if name in FOUR_MOMENTA else ""
                    yield judged(law, name, NAMES[dtype], value, tolerance, inputs=inputs, worst=where, note=note)


def _rounding(graph: Graph, name: str) -> float:
    """What an error of ``name`` cannot be held below: four-momenta that are turned are rounded, and so know the mass of
    their jet to 20 eps (E / M)^2 only, which is 1e-9 at E = 500 M.
    """
    if name not in FOUR_MOMENTA:
        return 0.0
    total = graph.momenta.sum(dim=0)
    return 20 * torch.finfo(torch.float64).eps * float(total[0] ** 2 / lorentz.mass_squared(total).clamp_min(1e-12))


def _moved(law: str, probe: Probe, system: System, graph: Graph, generator: torch.Generator) -> tuple[Graph, Action]:
    """The moved graph and how outputs follow.

    Records are moved, so that the making of the graph is part of what is certified; a permutation, which a reader of
    proteins undoes, and jets, whose positions are made from momenta, are moved as graphs.
    """
    if law == "permutation":
        return symmetry.permute(graph, torch.randperm(len(graph.types), generator=generator))
    move, matrix = _move(law, generator)
    if system.kind == "jets":
        return move(graph, matrix)
    record, action = move(system.record, matrix)
    return probe.graph(system, graph.positions.dtype, record), action


def _move(law: str, generator: torch.Generator) -> tuple:
    if law == "translation":
        return symmetry.translate, SHIFT * torch.randn(3, generator=generator, dtype=torch.float64)
    if law == "inversion":
        return symmetry.rotate, -torch.eye(3, dtype=torch.float64)
    return symmetry.rotate, symmetry.random_rotation(generator)


def _errors(found: Outputs, expected: Outputs, floors: dict[str, float]) -> dict[str, float]:
    """Relative error of every output; infinite where one is missing."""
    return {
        name: symmetry.relative_rms(found[name], value, floors.get(name, 0.0)) if name in found else float("inf")
        for name, value in expected.items()
    }


def repeatability(probe: Probe) -> Iterator[Row]:
    """A row per kind and precision: the largest difference between runs on the same batch, which must be none."""
    for kind in probe.kinds:
        for dtype, precision in NAMES.items():
            systems = probe.systems(kind)
            graphs = [probe.graph(system, dtype) for system in systems]
            first = probe.predict(kind, graphs, dtype)
            worst = Worst()
            for _ in range(REPEATS - 1):
                for system, before, after in zip(systems, first, probe.predict(kind, graphs, dtype), strict=True):
                    for name, output in before.items():
                        worst.add(name, _difference(after[name], output), system.name)
            for name, value, where, inputs in worst.items():
                yield judged("repeatability", name, precision, value, 0.0, inputs=inputs, worst=where)


def _difference(found: Tensor, first: Tensor) -> float:
    """The largest absolute difference, NaN where only one is NaN."""
    same = (found == first) | (found.isnan() & first.isnan())
    return 0.0 if bool(same.all()) else float((found - first).double().abs()[~same].max())
