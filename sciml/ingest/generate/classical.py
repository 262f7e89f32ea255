"""Cells of silicon and lithium sampled with classical potentials written out here: energies, forces and stresses.

Silicon: Stillinger and Weber, Phys. Rev. B 31, 5262 (1985). Lithium: a second-moment (Gupta) potential of short
range whose four parameters give the lattice constant, cohesive energy and roughly the elastic constants of bcc
lithium. ``generate`` makes lithium; cells of silicon are sampled here and labelled by GFN1-xTB (``silicon``). Lithium
is not: tblite samples a periodic cell at the Gamma point only, so that its energy of bcc lithium moves by 0.6 eV per
atom between cells of 16 and 27 atoms, and no size-extensive model can follow.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.build import bulk, surface
from ase.calculators.calculator import Calculator, all_changes

from sciml.data.neighbors import neighbors
from sciml.data.records import Record
from sciml.ingest.generate.common import (
    atoms_record,
    deform,
    molecular_dynamics,
    random_strain,
    run_tasks,
    task_seeds,
)

DATASET = "gupta"
MAX_FORCE = 8.0  # eV/Å: cells beyond these limits are squeezed out of any use
MAX_STRESS = 0.3  # eV/Å^3
# name of a structure: element, lattice, lattice constant(s) in Å, repeats
STRUCTURES: dict[str, tuple[str, str, float, tuple[int, int, int]]] = {
    "Si-diamond-8": ("Si", "diamond", 5.431, (1, 1, 1)),
    "Si-diamond-64": ("Si", "diamond", 5.431, (2, 2, 2)),
    "Si-fcc-8": ("Si", "fcc", 4.15, (2, 1, 1)),
    "Li-bcc-8": ("Li", "bcc", 3.49, (2, 2, 1)),
    "Li-bcc-16": ("Li", "bcc", 3.49, (2, 2, 2)),
    "Li-bcc-36": ("Li", "bcc", 3.49, (3, 3, 2)),
    "Li-fcc-16": ("Li", "fcc", 4.39, (2, 2, 1)),
}


class PairSum(Calculator):
    """An ASE calculator of an energy that is a function of edge vectors alone; a subclass gives ``edge_energy``."""

    implemented_properties = ["energy", "forces", "stress"]
    cutoff: float

    def edge_energy(self, vectors: np.ndarray, receivers: np.ndarray, count: int) -> tuple[float, np.ndarray]:
        """Return the energy (eV) of ``count`` atoms and its derivative (E, 3) by the edge vectors (E, 3).

        Edges are directed, all of them occur, sorted by receiver; a vector points from the receiver to the sender.
        """
        raise NotImplementedError

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results`` with the energy (eV), forces (eV/Å) and, in a periodic cell, stress (Voigt, eV/Å^3)."""
        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None
        positions, cell = self.atoms.positions, self.atoms.cell.array
        senders, receivers, shifts = neighbors(positions, cell, self.atoms.pbc, self.cutoff)
        vectors = positions[senders] - positions[receivers] + shifts @ cell
        energy, gradient = self.edge_energy(vectors, receivers, len(positions))
        forces = np.zeros_like(positions)
        np.add.at(forces, receivers, gradient)
        np.add.at(forces, senders, -gradient)
        self.results: dict[str, Any] = {"energy": energy, "free_energy": energy, "forces": forces}
        if self.atoms.pbc.all():
            stress = vectors.T @ gradient / self.atoms.get_volume()
            self.results["stress"] = stress.ravel()[[0, 4, 8, 5, 2, 1]]


class StillingerWeber(PairSum):
    """Silicon by Stillinger and Weber (1985), scaled to 4.3366 eV per atom as in LAMMPS' Si.sw."""

    epsilon, sigma, a = 2.1683, 2.0951, 1.8
    A, B, p = 7.049556277, 0.6022245584, 4.0
    lam, gamma = 21.0, 1.2
    cutoff = sigma * a

    def edge_energy(self, vectors: np.ndarray, receivers: np.ndarray, count: int) -> tuple[float, np.ndarray]:
        """See ``PairSum.edge_energy``."""
        distances = np.linalg.norm(vectors, axis=1)
        inside = distances < self.cutoff - 1e-3  # every term and its derivatives vanish there to 1e-300
        gradient = np.zeros_like(vectors)
        vectors, receivers, distances = vectors[inside], receivers[inside], distances[inside]
        reduced = distances / self.sigma
        units = vectors / distances[:, None]
        tail = np.exp(1 / (reduced - self.a))
        tail_slope = -tail / (reduced - self.a) ** 2
        power = self.B * reduced**-self.p
        pair = 0.5 * self.epsilon * self.A * (power - 1) * tail  # each pair occurs as two edges
        slope = 0.5 * self.epsilon * self.A * (-self.p * power / reduced * tail + (power - 1) * tail_slope)
        inner = (slope / self.sigma)[:, None] * units
        energy = float(pair.sum())
        first, second = _edge_pairs(receivers, count)
        decay = np.exp(self.gamma / (reduced - self.a))
        log_slope = -self.gamma / (reduced - self.a) ** 2 / self.sigma
        cosine = (units[first] * units[second]).sum(1)
        weight = self.epsilon * self.lam * decay[first] * decay[second]
        triple = weight * (cosine + 1 / 3) ** 2
        energy += float(triple.sum())
        by_cosine = 2 * weight * (cosine + 1 / 3)
        for one, other in ((first, second), (second, first)):
            bend = (by_cosine / distances[one])[:, None] * (units[other] - cosine[:, None] * units[one])
            np.add.at(inner, one, (triple * log_slope[one])[:, None] * units[one] + bend)
        gradient[inside] = inner
        return energy, gradient


class GuptaLithium(PairSum):
    """Lithium: sum_i [sum_j A e^(-p(r/r0-1)) f(r) - xi sqrt(sum_j e^(-2q(r/r0-1)) f(r))].

    The form of Cleri and Rosato, Phys. Rev. B 48, 22 (1993).
    f goes from 1 to 0 between 4.2 and 5.8 Å with two continuous derivatives. bcc: a = 3.49 Å, -1.63 eV per atom,
    bulk modulus 15.5 GPa, C44 5.4 GPa, 2 meV per atom below fcc.
    """

    A, xi, p, q, r0 = 0.08357465, 0.71083621, 5.2, 1.5, 3.02
    taper, cutoff = 4.2, 5.8

    def edge_energy(self, vectors: np.ndarray, receivers: np.ndarray, count: int) -> tuple[float, np.ndarray]:
        """See ``PairSum.edge_energy``."""
        distances = np.linalg.norm(vectors, axis=1)
        width = self.cutoff - self.taper
        x = np.clip((self.cutoff - distances) / width, 0, 1)
        smooth = x**3 * (10 - 15 * x + 6 * x**2)
        smooth_slope = -30 * x**2 * (1 - x) ** 2 / width
        stretch = distances / self.r0 - 1
        repulsion, density = self.A * np.exp(-self.p * stretch), np.exp(-2 * self.q * stretch)
        band = np.sqrt(np.bincount(receivers, density * smooth, count))
        energy = float((repulsion * smooth).sum() - self.xi * band.sum())
        slope = repulsion * (smooth_slope - self.p / self.r0 * smooth)
        slope -= self.xi / (2 * band[receivers]) * density * (smooth_slope - 2 * self.q / self.r0 * smooth)
        return energy, (slope / distances)[:, None] * vectors


def calculator(symbol: str) -> PairSum:
    """Return the potential of the element ``symbol``, Si or Li."""
    return {"Si": StillingerWeber, "Li": GuptaLithium}[symbol]()


def _edge_pairs(receivers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of all unordered pairs of different edges with the same receiver; edges sorted by receiver."""
    degree = np.bincount(receivers, minlength=count)
    start = np.concatenate([[0], np.cumsum(degree)[:-1]])
    repeats = degree[receivers]
    first = np.repeat(np.arange(len(receivers)), repeats)
    offset = np.arange(len(first)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    second = start[receivers[first]] + offset
    keep = first < second
    return first[keep], second[keep]


class Task(NamedTuple):
    """One group of cells: a key of STRUCTURES, how it is sampled, a seed and how many frames."""

    name: str
    kind: str
    number: int
    seed: int
    frames: int


KINDS = ("strained", "strained", "rattled", "rattled", "vacancy", "md", "md", "md", "surface", "liquid")


def generate(seed: int, groups: int = 100, frames: int = 6, workers: int = 1) -> Iterator[Record]:
    """Yield ``frames`` cells of lithium of each of ``groups`` groups (a structure sampled in one way).

    They are materials records.
    """
    names = [name for name, (symbol, *_) in STRUCTURES.items() if symbol == "Li"]
    tasks = []
    for number, task_seed in enumerate(task_seeds(seed, groups)):
        # every structure meets every kind once in forty groups
        name, kind = names[number % len(names)], KINDS[(number // len(names) + number) % len(KINDS)]
        tasks.append(Task(name, kind, number, task_seed, frames))
    yield from run_tasks(sample, tasks, workers)


def sample(task: Task) -> list[Record]:
    """Return the records of one group."""
    rng = np.random.default_rng(task.seed)
    group = f"{task.name}-{task.kind}-{task.number}"
    records: list[Record] = []
    for frame in cells(task, rng):
        records.append(atoms_record(frame, f"{group}#{len(records)}", group, task.kind))
    return records


def cells(task: Task, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield the cells of one group, each with the potential of its element as calculator."""
    symbol, lattice, constant, repeat = STRUCTURES[task.name]
    if task.kind in ("md", "liquid"):
        yield from _trajectory(task, rng)
        return
    made = 0
    while made < task.frames:
        if task.kind == "surface":
            atoms = _slab(symbol, lattice, constant, rng)
        else:
            atoms = bulk(symbol, lattice, a=constant, cubic=True).repeat(repeat)
        atoms = deform(atoms, random_strain(rng, 0.06, 0.025))
        if task.kind == "vacancy" and len(atoms) >= 8:
            del atoms[int(rng.integers(len(atoms)))]
        atoms.positions += rng.normal(0.0, _amplitude(task.kind, rng), (len(atoms), 3))
        atoms.calc = calculator(symbol)
        if np.abs(atoms.get_forces()).max() > MAX_FORCE or np.abs(atoms.get_stress()).max() > MAX_STRESS:
            continue
        made += 1
        yield atoms


def _amplitude(kind: str, rng: np.random.Generator) -> float:
    """Return the standard deviation of the displacements, Å."""
    return float(rng.uniform(0.0, 0.06) if kind == "strained" else rng.uniform(0.03, 0.22))


def _slab(symbol: str, lattice: str, constant: float, rng: np.random.Generator) -> Atoms:
    """Return a periodic cell with a slab of a random low-index face and 8 Å of vacuum."""
    face = [(1, 0, 0), (1, 1, 0), (1, 1, 1)][int(rng.integers(3))]
    slab = surface(bulk(symbol, lattice, a=constant, cubic=True), face, 3, vacuum=4.0, periodic=True)
    return slab if len(slab) > 6 else slab.repeat((2, 1, 1))


def _trajectory(task: Task, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield frames of molecular dynamics in a strained cell, of the solid or of a melt."""
    symbol, lattice, constant, repeat = STRUCTURES[task.name]
    atoms = deform(bulk(symbol, lattice, a=constant, cubic=True).repeat(repeat), random_strain(rng, 0.03, 0.01))
    atoms.calc = calculator(symbol)
    melting = 1690.0 if symbol == "Si" else 454.0
    temperature = rng.uniform(0.2, 0.9) * melting
    if task.kind == "liquid":
        temperature = rng.uniform(1.4, 1.8) * melting
        for _ in molecular_dynamics(atoms, 3.5 * melting, 1, 400, 2.0, rng):
            pass
    yield from molecular_dynamics(atoms, temperature, task.frames, 120, 2.0, rng)
