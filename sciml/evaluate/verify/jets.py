"""Lorentz invariance of the geometry and the outputs of jets, and their infrared and collinear safety."""

import inspect
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciml import registry
from sciml.data.records import Record
from sciml.evaluate.verify.certificate import Row, informed, judged, not_applicable
from sciml.evaluate.verify.probe import NAMES, Probe, Worst, typical
from sciml.evaluate.verify.systems import System
from sciml.graph import FOUR_MOMENTA, Graph
from sciml.physics import lorentz
from sciml.physics.symmetry import lengths, lorentz_transform, random_orthogonal, relative_rms

EPS = torch.finfo(torch.float64).eps
ROUNDING = 20.0
"""Errors up to ROUNDING eps (E / M)^2 are rounding: momenta are rounded at that scale already."""
NETWORK_TOLERANCE = {torch.float32: 1e-4}
GAMMAS = (1.1, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
SAFETY_TOLERANCE = 1e-4
"""Of the relative change of an output at the last of SOFT and ANGLES."""
SOFT = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8)  # energy of the added particle over that of the jet
ANGLES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
SHARE = 0.3  # of the momentum that the first piece of a splitting takes
PHOTON = 3

Curves = dict[str, list[dict[str, Any]]]


def lorentz_invariance(probe: Probe, generator: torch.Generator, curves: Curves) -> Iterator[Row]:
    """Rows of the geometry, in units of its bound, and of every output; errors by gamma go to ``curves["boost"]``.

    Momenta are boosted up to gamma = 10 and turned or reflected, and the spurions with them.
    """
    systems = [system for system in probe.systems("jets") if _takes_spurions(system)] if "jets" in probe.kinds else []
    if not systems:
        for law in ("Lorentz geometry", "Lorentz invariance"):
            yield not_applicable(law, "the model does not read jets, or their graphs take no spurions")
        return
    geometry, network = Worst(), Worst()
    wide = [probe.graph(system, wider=2.0) for system in systems]
    first = {dtype: probe.predict("jets", [probe.graph(s, dtype) for s in systems], dtype) for dtype in NAMES}
    ranks = probe.ranks("jets")
    floors = typical(first[torch.float64])
    for gamma in GAMMAS:
        moved = [_boosted(system.record, gamma, generator) for system in systems]
        for system, graph, (record, spurions, _) in zip(systems, wide, moved, strict=True):
            after = probe.graph(system, record=record, wider=2.0, spurions=spurions)
            for name, error, bound in _geometry_errors(graph, after, system.record, record):
                geometry.add(name, error / bound, f"{system.name}, gamma {gamma:g}")
                _point(curves, system, f"{name}, fp64", gamma, error)
        for dtype in NAMES:
            graphs = [probe.graph(s, dtype, r, spurions=u) for s, (r, u, _) in zip(systems, moved, strict=True)]
            found = probe.predict("jets", graphs, dtype)
            for system, before, after_boost, (_, _, matrix) in zip(systems, first[dtype], found, moved, strict=True):
                for name, output in before.items():
                    expected = output @ matrix.T if name in FOUR_MOMENTA else lengths(output, ranks.get(name, 0))
                    reached = lengths(after_boost[name], ranks.get(name, 0))
                    error = relative_rms(reached, expected, floors.get(name, 0.0))
                    _point(curves, system, f"{name}, {NAMES[dtype]}", gamma, error)
                    if dtype in NETWORK_TOLERANCE:
                        network.add(name, error, f"{system.name}, gamma {gamma:g}")
    note = f"in units of the bound {ROUNDING:g} eps (E / M)^2; of features, M is the floor of the mass of a pair"
    for name, value, where, inputs in geometry.items():
        yield judged("Lorentz geometry", name, "fp64", value, 1.0, inputs=inputs, worst=where, note=note)
    for name, value, where, inputs in network.items():
        tolerance = NETWORK_TOLERANCE[torch.float32]
        yield judged("Lorentz invariance", name, "fp32", value, tolerance, inputs=inputs, worst=where)


def _takes_spurions(system: System) -> bool:
    domain = registry.resolve("domains", system.level.domain)
    return "spurions" in inspect.signature(domain.graph).parameters


def _boosted(record: Record, gamma: float, generator: torch.Generator) -> tuple[Record, Tensor, Tensor]:
    """The record in another frame, turned or reflected too, its spurions, and the transformation (4, 4)."""
    matrix = lorentz.lorentz_of_rotation(random_orthogonal(generator))
    matrix = lorentz.random_boost(gamma, generator) @ matrix
    return *lorentz_transform(record, matrix), matrix


def _geometry_errors(before: Graph, after: Graph, first: Record, moved: Record) -> list[tuple[str, float, float]]:
    """(name, largest error, its bound): dot products of positions and vectors over the largest one; features."""
    energy, mass, hardest = _scales(first, moved)
    products, expected = _products(after), _products(before)
    size = float(expected.abs().max().clamp_min(1.0))
    found = [("frame", float((products - expected).abs().max()) / size, ROUNDING * EPS * (energy / mass) ** 2)]
    bound = ROUNDING * EPS * max((hardest / lorentz.MASS_FLOOR) ** 2, (energy / mass) ** 2)
    for name in ("scalars", "edge_scalars"):
        if name in before and before[name].numel():
            found.append((name, float((after[name] - before[name]).abs().max()), bound))
    return found


def _scales(*records: Record) -> tuple[float, float, float]:
    """Largest energy of the jet over the frames, its regulated mass, largest energy of a particle; all in GeV."""
    momenta = [torch.from_numpy(np.array(record["momenta"], dtype=np.float64)) for record in records]
    frame = lorentz.regulated(momenta[0].sum(dim=0), lorentz.lab_spurions()[0])
    energy = max(float(p[:, 0].sum()) for p in momenta)
    return energy, float(lorentz.mass_squared(frame).sqrt()), max(float(p[:, 0].max()) for p in momenta)


def _products(graph: Graph) -> Tensor:
    """Dot products of all positions and vectors: what a common rotation leaves."""
    rows = [graph.positions] + ([graph.vectors.flatten(0, 1)] if "vectors" in graph else [])
    stacked = torch.cat(rows)
    return stacked @ stacked.T


def _point(curves: Curves, system: System, name: str, gamma: float, error: float) -> None:
    """Keep the largest error of ``name`` at ``gamma``, light jets apart."""
    label = f"{name}, light jet" if "light" in system.name else name
    lines = curves.setdefault("boost", [])
    line = next((line for line in lines if line["name"] == label), None)
    if line is None:
        line = {"name": label, "gamma": [], "error": []}
        lines.append(line)
    if line["gamma"] and line["gamma"][-1] == gamma:
        line["error"][-1] = max(line["error"][-1], error)
    else:
        line["gamma"].append(gamma)
        line["error"].append(error)


def safety(probe: Probe, generator: torch.Generator, curves: Curves) -> Iterator[Row]:
    """Rows of soft emissions and collinear splittings: pass or fail for outputs of heads that claim ``irc_safe``,
    information for the others. Changes by energy and angle go to ``curves["safety"]``. Outputs per particle have no
    counterpart where there is a particle more, and no row here.
    """
    systems = probe.systems("jets") if "jets" in probe.kinds else []
    if not systems:
        for law in ("infrared safety", "collinear safety"):
            yield not_applicable(law, "the model does not read jets")
        return
    claims = {name for head in probe.heads("jets") if head.irc_safe for name in head.targets}
    # Particles come and go, so what a record says of single ones is left out; subjets are found anew.
    dropped = ("parent", "true_momenta")
    records = [{name: value for name, value in system.record.items() if name not in dropped} for system in systems]
    first = probe.predict("jets", [probe.graph(s, record=r) for s, r in zip(systems, records, strict=True)])
    floors = typical(first)
    for law, parameters, change in (("infrared safety", SOFT, _softened), ("collinear safety", ANGLES, _split)):
        worst = Worst()
        for parameter in parameters:
            worst = Worst()  # the last parameter is the limit
            changed = [change(record, parameter, generator) for record in records]
            graphs = [probe.graph(s, record=r) for s, r in zip(systems, changed, strict=True)]
            for system, before, after in zip(systems, first, probe.predict("jets", graphs), strict=True):
                for name, output in before.items():
                    if output.shape == after[name].shape:
                        worst.add(name, relative_rms(after[name], output, floors.get(name, 0.0)), system.name)
            for name, value, _, _ in worst.items():
                _safety_point(curves, f"{law}: {name}", parameter, value)
        for name, value, where, inputs in worst.items():
            verdict = judged if name in claims else informed
            note = f"change at {parameters[-1]:g} of the {'energy' if law == 'infrared safety' else 'angle'}"
            if name not in claims:
                note += "; the head does not claim it (irc_safe), so it is no failure"
            yield verdict(law, name, "fp64", value, SAFETY_TOLERANCE, inputs=inputs, worst=where, note=note)
        if not worst.values:
            yield not_applicable(law, "every output belongs to a particle, none to the jet as a whole")


def _safety_point(curves: Curves, name: str, parameter: float, value: float) -> None:
    lines = curves.setdefault("safety", [])
    line = next((line for line in lines if line["name"] == name), None)
    if line is None:
        line = {"name": name, "parameter": [], "change": []}
        lines.append(line)
    line["parameter"].append(parameter)
    line["change"].append(value)


def _softened(record: Record, fraction: float, generator: torch.Generator) -> Record:
    """The jet with one more photon of a fraction of its energy, at about 0.3 from its axis."""
    momenta = np.array(record["momenta"], dtype=np.float64)
    total = momenta.sum(axis=0)
    axis = total[1:] / np.linalg.norm(total[1:])
    direction = axis + 0.3 * torch.randn(3, generator=generator, dtype=torch.float64).numpy()
    momentum = fraction * total[0] * direction / np.linalg.norm(direction)
    return _with(record, momenta, _on_shell(momentum[None], np.zeros(1)), PHOTON, 0)


def _split(record: Record, angle: float, generator: torch.Generator) -> Record:
    """The jet with its hardest particle split into two of its kind at ``angle``."""
    momenta = np.array(record["momenta"], dtype=np.float64)
    hardest = int(momenta[:, 0].argmax())
    momentum, energy = momenta[hardest, 1:], momenta[hardest, 0]
    mass = math.sqrt(max(energy**2 - float(momentum @ momentum), 0.0))
    kick = np.cross(momentum, torch.randn(3, generator=generator, dtype=torch.float64).numpy())
    kick *= SHARE * (1 - SHARE) * angle * np.linalg.norm(momentum) / np.linalg.norm(kick)
    pieces = np.stack([SHARE * momentum + kick, (1 - SHARE) * momentum - kick])
    both = _on_shell(pieces, mass * np.array([SHARE, 1 - SHARE]))
    momenta[hardest] = both[0]
    charge = record.get("particle_charge", np.zeros(len(momenta), dtype=np.int8))[hardest]
    return _with(record, momenta, both[1:], int(record["types"][hardest]), int(charge))


def _on_shell(momenta: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Four-momenta (n, 4) of momenta (n, 3) and masses (n,)."""
    energies = np.sqrt((momenta**2).sum(axis=1) + masses**2)
    return np.concatenate([energies[:, None], momenta], axis=1)


def _with(record: Record, momenta: np.ndarray, more: np.ndarray, kind: int, charge: int) -> Record:
    """The record with other momenta and one particle more at the end."""
    charges = record.get("particle_charge", np.zeros(len(momenta), dtype=np.int8))
    return {
        **record,
        "types": np.append(record["types"], kind),
        "momenta": np.concatenate([momenta, more]),
        "particle_charge": np.append(charges, charge),
    }
