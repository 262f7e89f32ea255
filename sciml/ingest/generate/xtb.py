"""Molecules of H, C, N, O, F, Si, P, S and Cl with energies and forces of GFN2-xTB (Bannwarth et al. 2019), by tblite.

Molecules: the closed-shell ones of ASE's G2 collection, and new ones made from them by replacing hydrogens with small
groups. Each is relaxed, checked to have stayed one molecule, and sampled by molecular dynamics at several
temperatures. The group of a record is its molecule, so that whole molecules can be held out.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from ase import Atoms

from sciml.data.records import Record
from sciml.ingest.generate.common import atoms_record, molecular_dynamics, require, run_tasks, task_seeds

ELEMENTS = frozenset({"H", "C", "N", "O", "F", "Si", "P", "S", "Cl"})
TEMPERATURES = (200.0, 500.0, 900.0, 1400.0)  # K
DATASET = "gfn2-xtb"

# A group that replaces a hydrogen: its atoms; the first binds, at the origin, the old bond comes in along -z. Å
GROUPS: dict[str, tuple[str, list[tuple[float, float, float]]]] = {
    "F": ("F", [(0.0, 0.0, 0.0)]),
    "Cl": ("Cl", [(0.0, 0.0, 0.0)]),
    "CH3": ("CH3", [(0, 0, 0), (1.03, 0, 0.36), (-0.515, 0.892, 0.36), (-0.515, -0.892, 0.36)]),
    "OH": ("OH", [(0, 0, 0), (0.91, 0, 0.32)]),
    "SH": ("SH", [(0, 0, 0), (1.33, 0, 0.13)]),
    "NH2": ("NH2", [(0, 0, 0), (0.46, 0.82, 0.38), (0.46, -0.82, 0.38)]),
    "PH2": ("PH2", [(0, 0, 0), (0.95, 1.0, 0.2), (0.95, -1.0, 0.2)]),
    "SiH3": ("SiH3", [(0, 0, 0), (1.40, 0, 0.49), (-0.70, 1.21, 0.49), (-0.70, -1.21, 0.49)]),
}


class Task(NamedTuple):
    """One molecule to sample: its name, geometry (atomic numbers and Å) and seed."""

    name: str
    numbers: np.ndarray
    positions: np.ndarray
    seed: int
    frames: int


def generate(seed: int, molecules: int = 180, frames: int = 14, workers: int = 1) -> Iterator[Record]:
    """Yield ``frames`` conformations of each of ``molecules`` molecules, materials records.

    A molecule that breaks apart when it is relaxed gives no records, nor does one with neither hydrogen nor carbon
    (SiF4, ClF3, ...), whose energy lies 1 eV per atom from what its composition suggests. Raises UserError when tblite
    is not installed.
    """
    require("tblite", "tblite")
    named = list(_molecules(np.random.default_rng(seed), molecules))
    tasks = [
        Task(name, atoms.numbers, atoms.positions, task_seed, frames)
        for (name, atoms), task_seed in zip(named, task_seeds(seed, len(named)))
        if {"H", "C"} & set(atoms.symbols)
    ]
    yield from run_tasks(sample, tasks, workers)


def calculator(atoms: Atoms, method: str = "GFN2-xTB") -> Atoms:
    """Return ``atoms`` with a silent tblite calculator attached."""
    from tblite.ase import TBLite

    atoms.calc = TBLite(method=method, verbosity=0)
    return atoms


def sample(task: Task) -> list[Record]:
    """Return the records of one molecule: relaxed, then molecular dynamics of 0.5 fs at each temperature."""
    from ase.optimize import BFGS

    rng = np.random.default_rng(task.seed)
    relaxed = calculator(Atoms(task.numbers, task.positions))
    try:
        BFGS(relaxed, logfile=None).run(fmax=0.05, steps=150)
        if not intact(relaxed):
            return []
        records: list[Record] = []
        for i, temperature in enumerate(TEMPERATURES):
            share = len(range(i, task.frames, len(TEMPERATURES)))
            start = calculator(relaxed.copy())
            for frame in molecular_dynamics(start, temperature, share, 50, 0.5, rng):
                if not intact(frame):
                    break
                number = len(records)
                records.append(atoms_record(frame, f"{task.name}#{number}", task.name, f"md_{temperature:.0f}K"))
        return records
    except RuntimeError:  # the self-consistent field did not converge: not a molecule worth having
        return []


def intact(atoms: Atoms) -> bool:
    """Tell whether the atoms are one connected molecule: bonds up to 1.4 times the covalent radii, none under 0.6."""
    from scipy.sparse.csgraph import connected_components

    ratios = bond_ratios(atoms)
    return bool(ratios.min() > 0.6 and connected_components(ratios < 1.4, directed=False)[0] == 1)


def bond_ratios(atoms: Atoms) -> np.ndarray:
    """Distances by the sums of the covalent radii, (atoms, atoms), about 1 where bonded; infinite on the diagonal."""
    from ase.data import covalent_radii

    radii = covalent_radii[atoms.numbers]
    ratios = atoms.get_all_distances() / (radii[:, None] + radii[None, :])
    np.fill_diagonal(ratios, np.inf)
    return ratios


def _molecules(rng: np.random.Generator, count: int) -> Iterator[tuple[str, Atoms]]:
    """Yield ``count`` distinct named molecules of 4 to 18 atoms: G2's own, then substituted ones."""
    bases = dict(_g2())
    own = [(name, atoms) for name, atoms in bases.items() if len(atoms) >= 4][:count]
    yield from own
    names, seen = sorted(bases), {name for name, _ in own}
    while len(seen) < count:
        base = names[rng.integers(len(names))]
        name, atoms = base, bases[base].copy()
        for _ in range(rng.integers(1, 4)):
            group = list(GROUPS)[rng.integers(len(GROUPS))]
            substituted = substitute(atoms, group, rng)
            if substituted is None or len(substituted) > 18:
                break
            name, atoms = f"{name}+{group}", substituted
        if len(atoms) < 4 or name in seen or name == base or not _apart(atoms):
            continue
        seen.add(name)
        yield name, atoms


def _g2() -> Iterator[tuple[str, Atoms]]:
    from ase.collections import g2

    for name in g2.names:
        atoms = g2[name]
        closed_shell = not np.any(atoms.get_initial_magnetic_moments()) and atoms.numbers.sum() % 2 == 0
        if closed_shell and len(atoms) > 1 and set(atoms.symbols) <= ELEMENTS:
            yield name, Atoms(atoms.numbers, atoms.positions)


def substitute(atoms: Atoms, group: str, rng: np.random.Generator) -> Atoms | None:
    """Return ``atoms`` with one random hydrogen replaced by ``group`` at a random torsion, or None without hydrogen."""
    from ase.data import covalent_radii

    hydrogens = np.flatnonzero(atoms.numbers == 1)
    if len(hydrogens) == 0 or len(atoms) == len(hydrogens):
        return None
    chosen = int(rng.choice(hydrogens))
    distances = atoms.get_distances(chosen, range(len(atoms)))
    distances[atoms.numbers == 1] = np.inf
    anchor = int(np.argmin(distances))
    symbols, coordinates = GROUPS[group]
    new = Atoms(symbols, positions=coordinates)
    new.rotate(float(rng.uniform(0, 360)), "z")
    direction = atoms.positions[chosen] - atoms.positions[anchor]
    direction /= np.linalg.norm(direction)
    new.rotate((0, 0, 1), direction)
    length = covalent_radii[atoms.numbers[anchor]] + covalent_radii[new.numbers[0]]
    new.translate(atoms.positions[anchor] + length * direction)
    kept = atoms[[i for i in range(len(atoms)) if i != chosen]]
    return kept + new


def _apart(atoms: Atoms) -> bool:
    """Tell whether no two atoms of a constructed geometry clash (0.7 of the sum of the covalent radii)."""
    return bool(bond_ratios(atoms).min() > 0.7)
