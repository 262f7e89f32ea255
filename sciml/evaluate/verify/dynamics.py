"""Drift of the energy in NVE runs by velocity Verlet through the ASE calculator."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ase.build
import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from sciml.data.records import ATOM_NAMES, Record, base_of
from sciml.errors import UserError
from sciml.evaluate.verify.certificate import Row, judged, not_applicable
from sciml.evaluate.verify.derivatives import conservative, direct
from sciml.evaluate.verify.probe import Probe
from sciml.evaluate.verify.systems import Level, levels_of_atoms
from sciml.export.ase import RESIDUE_ARRAYS, SciMLCalculator
from sciml.graph import RESIDUE_NAMES

TOLERANCE, UNIT = 0.1, "meV/atom/ps"
SILICON = 14, 5.431  # atomic number, lattice constant in Å
RELAXATION = 60  # steps, so that the run is not fed by a bad start
LIGHT, TIMESTEPS = 2.0, (0.5, 2.0)  # u; fs with and without atoms as light as hydrogen
EQUILIBRATION = 0.2  # share of the run before the drift is measured
CURVE = 400  # points of a plotted curve


@dataclass(frozen=True)
class Dynamics:
    """Settings of the NVE runs: length in ps, temperature in K, repeats of the cubic silicon cell along each axis, time
    step in fs (None for one by the lightest atom).
    """

    ps: float
    temperature: float
    cells: int
    timestep: float | None = None


def energy_conservation(
    probe: Probe, options: Dynamics, seed: int, curves: dict[str, list[dict[str, Any]]]
) -> Iterator[Row]:
    """A row per run: ethanol, and silicon, where the model knows the elements; else the first real molecule or
    crystal. Curves are added to ``curves["nve"]``.
    """
    law = "energy conservation"
    if not conservative(probe):
        why = "direct forces are not the derivative of an energy, so none is conserved" if direct(probe) else ""
        yield not_applicable(law, why or "no head predicts forces")
        return
    runs = _runs(probe, options.cells)
    if not runs:
        yield not_applicable(law, "the model knows neither ethanol nor silicon, and no real system was given")
    for name, atoms, level in runs:
        where = f"{name}, {level.name}"
        try:
            curve = _run(probe, atoms, level, options, seed)
        except UserError as error:  # atoms that flew apart have no neighbours
            yield judged(law, name, "fp32", math.inf, TOLERANCE, unit=UNIT, worst=where, note=f"it blew up: {error}")
            continue
        curves.setdefault("nve", []).append({"name": where, **curve})
        note = f"{options.ps:g} ps of {curve['timestep']:g} fs; swing of the total energy {curve['swing']:.2g} meV/atom"
        value = abs(curve["drift"])
        inputs = f"{len(atoms)} atoms at {options.temperature:g} K"
        facts = {"unit": UNIT, "inputs": inputs, "worst": where, "note": note}
        yield judged(law, name, "fp32", value, TOLERANCE, **facts)


def _runs(probe: Probe, cells: int) -> list[tuple[str, Atoms, Level]]:
    levels = [level for level in levels_of_atoms(probe.package) if base_of(level.domain) == "materials"]
    runs = []
    ethanol = ase.build.molecule("CH3CH2OH")
    silicon = ase.build.bulk("Si", "diamond", SILICON[1], cubic=True).repeat(cells)
    for name, atoms in (("ethanol", ethanol), (f"silicon, {len(silicon)} atoms", silicon)):
        knows = [level for level in levels if set(atoms.numbers.tolist()) <= set(level.elements)]
        if knows:
            runs.append((name, atoms, knows[0]))
    if not runs:
        runs = [(system.name, _atoms(system.record), system.level) for system in probe.systems("atoms", real=True)[:1]]
    return runs


def _atoms(record: Record) -> Atoms:
    """A record for ASE, with the arrays that tell its residues."""
    atoms = Atoms(record["types"], record["positions"], cell=record.get("cell"), pbc=record.get("pbc", False))
    atoms.info = {name: float(record[name]) for name in ("charge", "spin") if name in record}
    if "parent" in record:
        names = np.array([*RESIDUE_NAMES, "UNK"])[record["residue_types"]]
        residues = np.asarray(record["parent"])
        arrays = (residues, names[residues], np.array(ATOM_NAMES)[record["atom_names"]])
        for name, values in zip(RESIDUE_ARRAYS, arrays, strict=True):
            atoms.set_array(name, values)
    return atoms


def _run(probe: Probe, atoms: Atoms, level: Level, options: Dynamics, seed: int) -> dict[str, Any]:
    """Relax, heat to twice the temperature, of which half becomes potential energy, and run; energies in meV/atom."""
    atoms = atoms.copy()
    atoms.calc = SciMLCalculator(probe.package, level.name)
    FIRE(atoms, logfile=None).run(fmax=0.05, steps=RELAXATION)
    spread = np.sqrt(2 * options.temperature * units.kB * atoms.get_masses())[:, None]
    atoms.set_momenta(spread * np.random.default_rng(seed).normal(size=(len(atoms), 3)))
    Stationary(atoms)
    if not atoms.pbc.any():
        ZeroRotation(atoms)
    timestep = options.timestep or TIMESTEPS[0 if atoms.get_masses().min() < LIGHT else 1]
    steps = max(round(1e3 * options.ps / timestep), 8)
    energies: list[float] = []
    velocities: list[np.ndarray] = []
    forces: list[np.ndarray] = []

    def observe() -> None:
        energies.append(atoms.get_total_energy())
        velocities.append(atoms.get_velocities())
        forces.append(atoms.get_forces())

    dynamics = VelocityVerlet(atoms, timestep=timestep * units.fs)
    dynamics.attach(observe)
    dynamics.run(steps)
    total = np.array(energies)[1:-1]
    shadow = total + shadow_terms(np.array(velocities), np.array(forces), atoms.get_masses(), timestep * units.fs)
    total, shadow = (1e3 * (values - values[0]) / len(atoms) for values in (total, shadow))
    times = 1e-3 * timestep * np.arange(len(total))
    kept = times >= EQUILIBRATION * times[-1]
    shown = np.unique(np.linspace(0, len(times) - 1, CURVE).astype(int))
    return {
        "drift": drift(times[kept], shadow[kept]),
        "swing": float(total[kept].std()),
        "timestep": timestep,
        "time": times[shown].tolist(),
        "energy": total[shown].tolist(),
        "shadow": shadow[shown].tolist(),
    }


def shadow_terms(velocities: np.ndarray, forces: np.ndarray, masses: np.ndarray, timestep: float) -> np.ndarray:
    """What the energy that velocity Verlet conserves has beside the total energy, (T - 2,) from (T, n, 3) each.

    H + dt^2 (v V'' v / 12 - F F / 24 m) is conserved to the fourth order of the time step, where the total energy
    swings with the second (Hairer, Lubich, Wanner, Acta Numerica 2003, 399). V'' v = -dF/dt comes from differences in
    time. Forces that belong to no energy drift in both alike.
    """
    change = (forces[2:] - forces[:-2]) / (2 * timestep)
    curvature = -(change * velocities[1:-1]).sum(axis=(1, 2))
    squares = (forces[1:-1] ** 2 / masses[:, None]).sum(axis=(1, 2))
    return timestep**2 * (curvature / 12 - squares / 24)


def drift(times: np.ndarray, energies: np.ndarray) -> float:
    """Slope of ``energies`` against ``times``, by least squares with weights that fall smoothly to zero at both ends.

    The weights (a Hann window) keep a swing that does not end where it began out of the slope.
    """
    x = (times - times[0]) / (times[-1] - times[0])
    weights = np.sin(np.pi * x) ** 2
    centred = x - 0.5
    slope = (weights * centred * (energies - energies.mean())).sum() / (weights * centred**2).sum()
    return float(slope / (times[-1] - times[0]))
