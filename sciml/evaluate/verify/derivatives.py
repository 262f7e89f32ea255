"""Forces and stress against differences of the energy, and forces in fp32 against fp64."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sciml.errors import UserError
from sciml.evaluate.verify.certificate import Row, judged, not_applicable
from sciml.evaluate.verify.probe import Probe, Worst, energy_of, typical
from sciml.graph import Graph
from sciml.physics.symmetry import relative_rms

STEP = 5e-4
"""Å: truncation, of fourth order, and rounding, 1e-16 E / step, are both below the tolerance."""
STRAIN_STEP = 2e-4
"""A strain moves a neighbour by up to 5 Å times itself."""
COEFFICIENTS = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
"""Of the first derivative, fourth order."""
WIDER = 8 * STEP
"""Å added to the cutoff, so that no pair is moved past the neighbour list: jumps have a law of their own."""
TOLERANCE, PRECISION_TOLERANCE = 1e-7, 1e-4
DIRECTIONS = 8
MOST_ATOMS = 80  # of a system that is displaced: more tell nothing new and take long

Move = Callable[[Graph, float], Graph]


def conservative(probe: Probe, kind: str = "atoms") -> bool:
    """Whether forces are derivatives by the claim of the head that predicts them."""
    return any("forces" in head.targets and head.differentiates for head in probe.heads(kind))


def direct(probe: Probe, kind: str = "atoms") -> bool:
    """Whether a head predicts forces without differentiating an energy."""
    return any("forces" in head.targets and not head.differentiates for head in probe.heads(kind))


def derivatives(probe: Probe, generator: torch.Generator) -> Iterator[Row]:
    """Rows of forces and stress, from random displacements of all atoms and the six strains."""
    if not conservative(probe):
        reason = "no head differentiates an energy" if "atoms" in probe.kinds else "the model does not read atoms"
        yield not_applicable("forces", reason)
        yield not_applicable("stress", reason)
        return
    systems = [s for s in probe.systems("atoms") if len(s.record["types"]) <= MOST_ATOMS]
    graphs = [probe.graph(system, wider=WIDER) for system in systems]
    outputs = probe.predict("atoms", graphs)
    floors = typical(outputs)
    forces, stress = Worst(), Worst()
    for system, graph, found in zip(systems, graphs, outputs, strict=True):
        forces.add("forces", _force_error(probe, graph, found["forces"], generator, floors), system.name)
        if system.periodic and "stress" in found:
            stress.add("stress", _stress_error(probe, graph, found["stress"][0], floors), system.name)
    moves = {"forces": f"{DIRECTIONS} random displacements of all atoms", "stress": "six strains"}
    for law, worst in (("forces", forces), ("stress", stress)):
        for name, value, where, inputs in worst.items():
            note = f"differences of fourth order, {moves[law]}"
            yield judged(law, name, "fp64", value, TOLERANCE, inputs=inputs, worst=where, note=note)
    if not stress.values:
        yield not_applicable("stress", "no system is periodic, or the model has no stress", "stress")


def _force_error(
    probe: Probe, graph: Graph, forces: Tensor, generator: torch.Generator, floors: dict[str, float]
) -> float:
    """RMS difference of the force along random displacements, over what the RMS of the forces gives along them."""
    displacements = torch.randn(DIRECTIONS, *forces.shape, generator=generator, dtype=torch.float64)
    displacements /= displacements.norm(dim=2).amax(dim=1)[:, None, None]
    moves = [_displaced(displacement) for displacement in displacements]
    expected = -_differences(probe, graph, moves, STEP)
    along = (forces * displacements).sum(dim=(1, 2))
    scale = max(float(forces.square().mean().sqrt()), floors.get("forces", 0.0))
    lengths = displacements.square().sum(dim=(1, 2))
    return float(((along - expected).square().sum() / lengths.sum()).sqrt() / scale) if scale else 0.0


def _stress_error(probe: Probe, graph: Graph, stress: Tensor, floors: dict[str, float]) -> float:
    """Relative RMS error of the stress."""
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    volume = torch.linalg.det(graph.cell[0]).abs()
    values = _differences(probe, graph, [_strained(i, j) for i, j in pairs], STRAIN_STEP) / volume
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for (i, j), value in zip(pairs, values, strict=True):
        expected[i, j] = expected[j, i] = value
    return relative_rms(stress, expected, floors.get("stress", 0.0))


def _differences(probe: Probe, graph: Graph, moves: list[Move], step: float) -> Tensor:
    """Derivatives of the energy along ``moves``, functions (graph, step) -> changed graph."""
    graphs = [move(graph.clone(), factor * step) for move in moves for factor, _ in COEFFICIENTS]
    found = probe.predict("atoms", graphs)
    name = energy_of(found[0])
    if name is None:
        raise UserError("the head of the forces returns no 'energy' beside them, so they cannot be certified.")
    energies = torch.cat([one[name] for one in found]).view(len(moves), -1)
    return energies @ torch.tensor([c for _, c in COEFFICIENTS], dtype=torch.float64) / step


def _displaced(displacement: Tensor) -> Move:
    def move(graph: Graph, step: float) -> Graph:
        graph.positions = graph.positions + step * displacement
        return graph

    return move


def _strained(i: int, j: int) -> Move:
    def move(graph: Graph, step: float) -> Graph:
        deformation = torch.eye(3, dtype=torch.float64)
        deformation[i, j] += 0.5 * step
        deformation[j, i] += 0.5 * step
        graph.positions, graph.cell = graph.positions @ deformation, graph.cell @ deformation
        return graph

    return move


def precision(probe: Probe) -> Iterator[Row]:
    """Forces in fp32 against those in fp64 on every system."""
    systems = probe.systems("atoms") if "atoms" in probe.kinds else []
    found = {
        dtype: probe.predict("atoms", [probe.graph(system, dtype) for system in systems], dtype)
        for dtype in probe.models
    }
    wide, narrow = found[torch.float64], found[torch.float32]
    floors, worst = typical(wide), Worst()
    for system, one, other in zip(systems, wide, narrow, strict=True):
        if "forces" in one:
            error = relative_rms(other["forces"], one["forces"], floors.get("forces", 0.0))
            worst.add("forces", error, system.name)
    for name, value, where, inputs in worst.items():
        yield judged("precision", name, "fp32", value, PRECISION_TOLERANCE, inputs=inputs, worst=where)
    if not worst.values:
        yield not_applicable("precision", "no head predicts forces")
