"""Metals and alloys of Al, Cu, Ag, Au, Ni, Pd and Pt with ASE's effective-medium theory (Jacobsen et al. 1996).

Periodic cells of 4 to 32 atoms: elements and random alloys, on fcc, bcc and hcp lattices, strained, rattled, some with
a vacancy. The group of a record is its structure (lattice and arrangement of the elements). ASE's implementation takes
one cutoff for a structure, from the largest of its elements.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.build import bulk

from sciml.data.records import Record
from sciml.ingest.generate.common import atoms_record, deform, random_strain, run_tasks, task_seeds

ELEMENTS = ("Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt")
# equilibrium fcc lattice constants of the potential, Å
LATTICE = {"Al": 3.99, "Cu": 3.59, "Ag": 4.06, "Au": 4.06, "Ni": 3.49, "Pd": 3.88, "Pt": 3.92}
REPEATS = ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2))
DATASET = "emt"
MAX_FORCE = 10.0  # eV/Å: beyond it two atoms have been pushed into each other


class Task(NamedTuple):
    """One structure: its number, the elements that it is made of and a seed."""

    number: int
    elements: tuple[str, ...]
    seed: int
    frames: int


def generate(seed: int, structures: int = 100, frames: int = 8, workers: int = 1) -> Iterator[Record]:
    """Yield ``frames`` deformed and rattled cells of each of ``structures`` structures, materials records."""
    rng = np.random.default_rng(seed)
    tasks = []
    for number, task_seed in enumerate(task_seeds(seed, structures)):
        # every fourth structure is an element, so that pure metals are well covered
        size = 1 if number % 4 == 0 else int(rng.integers(2, 4))
        chosen = (ELEMENTS[(number // 4) % len(ELEMENTS)],) if size == 1 else rng.choice(ELEMENTS, size, replace=False)
        tasks.append(Task(number, tuple(str(e) for e in chosen), task_seed, frames))
    yield from run_tasks(sample, tasks, workers)


def structure(elements: tuple[str, ...], rng: np.random.Generator) -> Atoms:
    """Return a perfect crystal with ``elements`` placed at random, at the mean volume of its elements."""
    lattice = str(rng.choice(["fcc", "fcc", "fcc", "bcc", "hcp"]))
    repeat = REPEATS[int(rng.integers(1, len(REPEATS)))]
    if lattice == "hcp":
        cell = bulk("Cu", "hcp", a=1.0, c=np.sqrt(8 / 3), orthorhombic=True)
    else:
        cell = bulk("Cu", lattice, a=1.0, cubic=True)
    atoms = cell.repeat(repeat if lattice != "bcc" else tuple(r + 1 for r in repeat[:2]) + repeat[2:])
    symbols = rng.choice(elements, len(atoms))
    symbols[: len(elements)] = elements  # each element occurs
    atoms.symbols = rng.permutation(symbols)
    volume = sum(LATTICE[s] ** 3 / 4 for s in atoms.symbols)
    atoms.set_cell(atoms.cell * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    atoms.info["lattice"] = lattice
    return atoms


def sample(task: Task) -> list[Record]:
    """Return the records of one structure: strain of some per cent, thermal and large displacements, vacancies."""
    from ase.calculators.emt import EMT

    rng = np.random.default_rng(task.seed)
    perfect = structure(task.elements, rng)
    name = f"{perfect.get_chemical_formula()}-{perfect.info['lattice']}-{task.number}"
    records: list[Record] = []
    while len(records) < task.frames:
        atoms = deform(perfect, random_strain(rng, 0.05, 0.02))
        config_type = "rattled"
        if len(atoms) >= 16 and rng.random() < 0.25:
            del atoms[int(rng.integers(len(atoms)))]
            config_type = "vacancy"
        atoms.positions += rng.normal(0.0, rng.uniform(0.03, 0.18), (len(atoms), 3))
        atoms.calc = EMT()
        if np.abs(atoms.get_forces()).max() > MAX_FORCE:
            continue
        records.append(atoms_record(atoms, f"{name}#{len(records)}", name, config_type))
    return records
