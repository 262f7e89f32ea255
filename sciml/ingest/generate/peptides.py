"""Peptides with energies and forces of Amber ff14SB with GBn2 implicit water, by OpenMM and PeptideBuilder.

Each snapshot starts from its own backbone angles, is relaxed and runs through a short molecular dynamics. The angles
are drawn per residue: helix, strand or turn with the conformational preferences of Chou and Fasman (1978), sharpened by
a power, and basins of their own for Gly, Pro, Asn and Asp. So what the backbone tells about the residues is mostly put
in at the start, stronger than in nature; picoseconds of dynamics could not show it. The dynamics runs on amber14 with
charges screened by a constant dielectric (25 times cheaper than GBn2); energies and forces are those of amber14 with
GBn2, no bond constrained. Chains are zwitterions at pH 7. The group of a record is its sequence.
"""

import io
import random
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from sciml.data.records import ATOM_NAMES, Record
from sciml.ingest.generate.common import require, run_tasks, task_seeds
from sciml.units import KJ_PER_MOL, factor

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
DATASET = "amber14"
DIELECTRIC = 8.0  # of the sampling only

# Chou and Fasman, Adv. Enzymol. 47, 45 (1978): preferences for helix, strand and turn
PREFERENCES: dict[str, tuple[float, float, float]] = {
    "A": (1.42, 0.83, 0.66),
    "C": (0.70, 1.19, 1.19),
    "D": (1.01, 0.54, 1.46),
    "E": (1.51, 0.37, 0.74),
    "F": (1.13, 1.38, 0.60),
    "G": (0.57, 0.75, 1.56),
    "H": (1.00, 0.87, 0.95),
    "I": (1.08, 1.60, 0.47),
    "K": (1.14, 0.74, 1.01),
    "L": (1.21, 1.30, 0.59),
    "M": (1.45, 1.05, 0.60),
    "N": (0.67, 0.89, 1.56),
    "P": (0.57, 0.55, 1.52),
    "Q": (1.11, 1.10, 0.98),
    "R": (0.98, 0.93, 0.95),
    "S": (0.77, 0.75, 1.43),
    "T": (0.83, 1.19, 0.96),
    "V": (1.06, 1.70, 0.50),
    "W": (1.08, 1.37, 0.96),
    "Y": (0.69, 1.47, 1.14),
}
# centres (phi, psi) in degrees of helix, strand and turn (the last two of a turn are taken with equal odds)
BASINS: dict[str, tuple[tuple[float, float], ...]] = {
    "other": ((-63.0, -43.0), (-120.0, 135.0), (-90.0, 0.0), (-70.0, 150.0)),
    "G": ((-63.0, -43.0), (180.0, 180.0), (85.0, 5.0), (80.0, -170.0)),
    "N": ((-63.0, -43.0), (-120.0, 135.0), (57.0, 40.0), (-90.0, 0.0)),
    "D": ((-63.0, -43.0), (-120.0, 135.0), (57.0, 40.0), (-90.0, 0.0)),
    "P": ((-65.0, -30.0), (-68.0, 150.0), (-65.0, -30.0), (-68.0, 150.0)),
}
SPREAD = 10.0  # degrees
SHARPNESS = 4.0  # power of the preferences: bare ones tell 0.05 nats of a residue, these 0.4


class Task(NamedTuple):
    """One sequence to sample."""

    sequence: str
    seed: int
    snapshots: int


def generate(
    seed: int, sequences: int = 170, snapshots: int = 3, length: tuple[int, int] = (5, 12), workers: int = 1
) -> Iterator[Record]:
    """Yield ``snapshots`` conformations of each of ``sequences`` random sequences, biology records.

    Residue types are dealt evenly. Raises UserError when OpenMM or PeptideBuilder is not installed.
    """
    require("openmm", "OpenMM")
    require("PeptideBuilder", "PeptideBuilder")
    drawn = random_sequences(np.random.default_rng(seed), sequences, length)
    tasks = [Task(sequence, s, snapshots) for sequence, s in zip(drawn, task_seeds(seed, sequences))]
    yield from run_tasks(sample, tasks, workers)


def random_sequences(rng: np.random.Generator, count: int, length: tuple[int, int]) -> list[str]:
    """Return ``count`` distinct sequences whose residues are dealt from shuffled decks of the 20 types."""
    deck: list[str] = []
    chosen: list[str] = []
    while len(chosen) < count:
        size = int(rng.integers(length[0], length[1] + 1))
        while len(deck) < size:
            deck += [RESIDUES[i] for i in rng.permutation(len(RESIDUES))]
        sequence, deck = "".join(deck[:size]), deck[size:]
        if sequence not in chosen:
            chosen.append(sequence)
    return chosen


def backbone_angles(sequence: str, rng: np.random.Generator) -> np.ndarray:
    """Return phi and psi in degrees, (residues, 2), drawn from each residue's basins."""
    angles = []
    for residue in sequence:
        weights = np.array(PREFERENCES[residue]) ** SHARPNESS * (0.4, 0.35, 0.25)
        basin = int(rng.choice(3, p=weights / weights.sum()))
        if basin == 2 and rng.random() < 0.5:
            basin = 3
        centre = BASINS.get(residue, BASINS["other"])[basin]
        angles.append(rng.normal(centre, 5.0 if residue == "P" else SPREAD))
    return np.array(angles)


def sample(task: Task) -> list[Record]:
    """Return the snapshots of one sequence; starts whose chains run into each other are drawn again."""
    rng = np.random.default_rng(task.seed)
    records: list[Record] = []
    for _ in range(10 * task.snapshots):
        if len(records) == task.snapshots:
            break
        topology, start = _build(task.sequence, backbone_angles(task.sequence, rng), rng)
        if not np.isfinite(np.array([tuple(position) for position in start.value_in_unit(start.unit)])).all():
            continue
        systems = Systems(topology)
        positions = systems.dynamics(start, temperature=float(rng.uniform(300, 500)), seed=int(rng.integers(2**31)))
        energy, forces = systems.label(positions)
        if not np.isfinite(forces).all() or longest_bond(topology, positions) > 1.2:
            continue
        charge = round(float(systems.charges.sum()))
        identifier = f"{task.sequence}#{len(records)}"
        records.append(_record(topology, positions, energy, forces, charge, identifier, task.sequence))
    return records


def longest_bond(topology: Any, positions: np.ndarray) -> float:
    """Return the length of the most stretched bond over the sum of its covalent radii; positions (n, 3) in Å.

    Relaxing cannot part two chains that go through each other, for instance a bond through a ring: its bonds stay long.
    """
    from ase.data import covalent_radii

    pairs = np.array([(bond[0].index, bond[1].index) for bond in topology.bonds()])
    radii = covalent_radii[[atom.element.atomic_number for atom in topology.atoms()]]
    lengths = np.linalg.norm(positions[pairs[:, 0]] - positions[pairs[:, 1]], axis=1)
    return float((lengths / radii[pairs].sum(axis=1)).max())


class Systems:
    """The potentials of one peptide: the one that labels (GBn2) and the cheap one that samples. Å, eV outside."""

    def __init__(self, topology: Any) -> None:
        import openmm
        from openmm import app

        options = {"nonbondedMethod": app.NoCutoff, "constraints": None, "rigidWater": False}
        self._labelling = _force_field(True).createSystem(topology, **options)
        self._sampling = _force_field(False).createSystem(topology, **options)
        self._context: Any = None
        for force in self._sampling.getForces():
            if isinstance(force, openmm.NonbondedForce):
                self.charges = _screen(force, DIELECTRIC)

    def dynamics(self, positions: Any, temperature: float, seed: int, steps: int = 1200) -> np.ndarray:
        """Return the positions in Å after relaxation and ``steps`` steps of 1 fs at ``temperature`` K."""
        import openmm
        from openmm import unit

        integrator = openmm.LangevinMiddleIntegrator(temperature, 5.0, 0.001)
        integrator.setRandomNumberSeed(seed % (2**31 - 1) + 1)  # 0 would mean a seed of OpenMM's choice
        context = _context(self._sampling, integrator)
        context.setPositions(positions)
        openmm.LocalEnergyMinimizer.minimize(context, 5.0, 300)
        context.setVelocitiesToTemperature(temperature, seed % (2**31 - 1) + 1)
        integrator.step(steps)
        return context.getState(getPositions=True).getPositions(asNumpy=True).value_in_unit(unit.angstrom)

    def label(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the energy (eV) and forces (eV/Å) at ``positions`` (n, 3) in Å."""
        import openmm
        from openmm import unit

        if self._context is None:
            self._context = _context(self._labelling, openmm.VerletIntegrator(0.001))
        self._context.setPositions(positions * unit.angstrom)
        state = self._context.getState(getEnergy=True, getForces=True)
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * KJ_PER_MOL
        forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        return energy, np.asarray(forces) * factor("kJ/mol/nm")


@cache
def _force_field(solvent: bool) -> Any:
    from openmm import app

    return app.ForceField("amber14-all.xml", *(("implicit/gbn2.xml",) if solvent else ()))


def _context(system: Any, integrator: Any) -> Any:
    """Return a context on one CPU thread whose forces repeat bit by bit."""
    import openmm

    platform = openmm.Platform.getPlatformByName("CPU")
    return openmm.Context(system, integrator, platform, {"Threads": "1", "DeterministicForces": "true"})


def _screen(force: Any, dielectric: float) -> np.ndarray:
    """Divide the electrostatics of an OpenMM NonbondedForce by ``dielectric``; return the original charges (e)."""
    charges = []
    for i in range(force.getNumParticles()):
        charge, sigma, epsilon = force.getParticleParameters(i)
        charges.append(charge._value)
        force.setParticleParameters(i, charge / dielectric**0.5, sigma, epsilon)
    for i in range(force.getNumExceptions()):
        one, two, product, sigma, epsilon = force.getExceptionParameters(i)
        force.setExceptionParameters(i, one, two, product / dielectric, sigma, epsilon)
    return np.array(charges)


def _build(sequence: str, angles: np.ndarray, rng: np.random.Generator) -> tuple[Any, Any]:
    """Return the OpenMM topology and positions of a chain with hydrogens at pH 7 and charged ends."""
    import openmm
    import PeptideBuilder
    from Bio.PDB.PDBIO import PDBIO
    from openmm import app

    structure = PeptideBuilder.make_structure(sequence, angles[1:, 0].tolist(), angles[:-1, 1].tolist())
    PeptideBuilder.add_terminal_OXT(structure)
    text = io.StringIO()
    writer = PDBIO()
    writer.set_structure(structure)
    writer.save(text)
    text.seek(0)
    pdb = app.PDBFile(text)
    modeller = app.Modeller(pdb.topology, pdb.positions)
    state = random.getstate()
    random.seed(int(rng.integers(2**31)))  # OpenMM places hydrogens with Python's global generator
    try:
        modeller.addHydrogens(_force_field(False), pH=7.0, platform=openmm.Platform.getPlatformByName("Reference"))
    finally:
        random.setstate(state)
    return modeller.topology, modeller.positions


def _record(
    topology: Any, positions: np.ndarray, energy: float, forces: np.ndarray, charge: int, identifier: str, group: str
) -> Record:
    """Return the biology record of one snapshot, centred at its mean position."""
    atoms = list(topology.atoms())
    code = {name: i for i, name in enumerate(ATOM_NAMES)}
    return {
        "id": identifier,
        "group": group,
        "types": np.array([atom.element.atomic_number for atom in atoms], np.uint8),
        "positions": (positions - positions.mean(axis=0)).astype(np.float32),
        "forces": forces.astype(np.float32),
        "energy": np.float64(energy),
        "charge": np.float32(charge),
        "spin": np.float32(1),
        "atom_names": np.array([code.get(atom.name, 0) for atom in atoms], np.uint8),
        "parent": np.array([atom.residue.index for atom in atoms], np.int32),
        "residue_types": np.array([RESIDUES.index(letter) for letter in group], np.int8),
        "chain": np.zeros(len(group), np.int16),
    }
