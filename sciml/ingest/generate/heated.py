"""``sciml heat``: hot configurations of given molecules, with energies and forces of GFN2-xTB (Bannwarth et al., 2019).

Labels of an accurate level of theory are few and are often made at one temperature. A model that has first learned
the cheap forces of the same molecules, far from equilibrium and at other torsions, has the shape of the surface, and
the accurate labels correct it (transfer learning across levels of theory, Smith et al., 2019).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from scipy.sparse.csgraph import connected_components

from sciml.data.records import Record
from sciml.data.store import Store, StoreWriter
from sciml.errors import UserError
from sciml.ingest.generate.common import atoms_record, molecular_dynamics, require, run_tasks, task_seeds
from sciml.ingest.generate.xtb import DATASET, bond_ratios, intact
from sciml.ingest.ingest import open_data

HEAVIEST = 86  # the last element of GFN2-xTB
FRAMES = 15  # of a trajectory
INTERVAL = 3  # steps between its frames
TIMESTEP = 2.0  # fs, with hydrogens of
HYDROGEN_MASS = 4.0  # u: masses have no part in what is sampled, and heavier hydrogens allow the longer step
BONDED = 1.25  # times the sum of covalent radii; what is not bonded stays farther when torsions are drawn anew
SINGLE = 0.9  # times the sum: a shorter bond is a double one, which does not turn


class Task(NamedTuple):
    """One trajectory: its start (a record), the temperature in K, whether torsions are drawn anew, frames and seed."""

    start: Record
    temperature: float
    turn: bool
    frames: int
    seed: int


def run(config: Any) -> int:
    """Heat the molecules of ``config.source`` into ``config.output``; the keys are those of configs/heat.yaml."""
    source = config.source[0] if len(config.source) == 1 else config.source
    given, output = ", ".join(config.source), Path(config.output)
    if any(output.resolve() == Path(one).resolve() for one in config.source):
        raise UserError(f"output: found {output}, which is the source and would be lost; give another folder.")
    store = open_data(source)
    if store.domain != "materials":
        raise UserError(f"{given}: found {store.domain} records, expected molecules as materials records.")
    tasks = list(trajectories(store, given, config.records, config.temperatures, config.turn, config.seed))
    require("tblite", "tblite")
    origin = store.manifest.get("source") or store.path.name
    metadata = {"source": f"GFN2-xTB dynamics from {origin}", "temperatures": list(config.temperatures)}
    with StoreWriter(output, "materials", DATASET, metadata=metadata, overwrite=config.overwrite) as writer:
        listed = ", ".join(f"{one:g}" for one in config.temperatures)
        print(f"{given}: {len(tasks)} trajectories at {listed} K", flush=True)
        for record in run_tasks(heat, tasks, config.workers):
            writer.add(record)
        if not len(writer):
            raise UserError(
                f"{given}: no trajectory has a configuration to keep: every molecule fell apart, or its energy did not "
                f"converge, at {listed} K; lower temperatures, or look at the charges and spins of the records."
            )
        made = writer.close()
    lost = config.records - len(made)
    told = f", {lost} of them not made: molecules fell apart or energies did not converge" if lost else ""
    print(f"{made.path}: {len(made)} records of {len(tasks)} trajectories{told}; next, sciml train train={made.path}")
    return 0


def trajectories(
    store: Store, given: str, records: int, temperatures: Sequence[float], turn: bool, seed: int
) -> Iterator[Task]:
    """Yield the trajectories that give ``records`` configurations: from starts spread over the ``store``, the
    temperatures in turn, every second pass over them with torsions drawn anew where ``turn``.

    Raises UserError, with the record and where it was ``given``, for what GFN2-xTB dynamics of a molecule is not for.
    """
    count = -(-records // FRAMES)
    places = np.linspace(0, len(store) - 1, count).round().astype(int)
    for number, (place, task_seed) in enumerate(zip(places.tolist(), task_seeds(seed, count), strict=True)):
        record = store[place]
        _check(record, given)
        passes, kind = divmod(number, len(temperatures))
        frames = min(FRAMES, records - number * FRAMES)
        yield Task(record, temperatures[kind], turn and passes % 2 == 1, frames, task_seed)


def _check(record: Record, given: str) -> None:
    found, heavy = "", int(max(record["types"]))
    charge, spin = round(float(record["charge"])), round(float(record["spin"]))
    electrons = int(np.sum(record["types"], dtype=int)) - charge
    if record["pbc"].any():
        found = "is periodic, and heat is for molecules"
    elif heavy > HEAVIEST:
        found = f"has {chemical_symbols[heavy]}, and GFN2-xTB ends at {chemical_symbols[HEAVIEST]}"
    elif not intact(Atoms(record["types"], record["positions"])):
        found = "is not one molecule: atoms are farther than bonds from the others, or nearer"
    elif (electrons - (spin - 1)) % 2:
        found = f"has {electrons} electrons (charge {charge:+d}), which cannot have the multiplicity {spin}"
    if found:
        raise UserError(f"{given}: record {record['id']!r} {found}; mend it, or ingest the others with only=LIST.")


def heat(task: Task) -> list[Record]:
    """Return the records of one trajectory, up to where the molecule fell apart or its energy did not converge.

    They are grouped by their start, so that copies of one geometry are never on two sides of a split. The velocities
    start hot and the thermostat takes 100 fs: the temperature is nominal, for variety rather than for averages.
    """
    from ase.calculators.calculator import CalculationFailed
    from tblite.ase import TBLite

    rng = np.random.default_rng(task.seed)
    atoms = Atoms(task.start["types"], task.start["positions"].astype(float))
    charge, spin = round(float(task.start["charge"])), round(float(task.start["spin"]))
    atoms.set_initial_charges(np.full(len(atoms), charge / len(atoms)))
    atoms.set_masses(np.where(atoms.numbers == 1, HYDROGEN_MASS, atoms.get_masses()))
    if task.turn:
        turn_torsions(atoms, rng)
    atoms.calc = TBLite(method="GFN2-xTB", charge=charge, multiplicity=spin, verbosity=0)
    group, kind = str(task.start["id"]), f"heated_{task.temperature:g}K"
    records: list[Record] = []
    try:
        for frame in molecular_dynamics(atoms, task.temperature, task.frames, INTERVAL, TIMESTEP, rng):
            if not intact(frame):
                break
            name = f"{group}@{task.seed:08x}#{len(records)}"
            records.append(atoms_record(frame, name, group, kind) | {"spin": np.float32(spin)})
    except CalculationFailed:  # the self-consistent field did not converge
        pass
    return records


def turn_torsions(atoms: Atoms, rng: np.random.Generator, attempts: int = 20) -> None:
    """Turn all rotatable bonds of ``atoms`` by random angles, in place, until no atoms clash; else leave them be."""
    start, bonds = atoms.positions.copy(), rotatable_bonds(atoms)
    apart = bond_ratios(atoms) >= BONDED
    for _ in range(attempts if bonds else 0):
        for first, second, moved in bonds:
            axis = atoms.positions[second] - atoms.positions[first]
            part = atoms[moved]
            part.rotate(float(rng.uniform(0, 360)), axis, center=atoms.positions[second])
            atoms.positions[moved] = part.positions
        if intact(atoms) and (bond_ratios(atoms)[apart] >= BONDED).all():
            return
        atoms.positions = start


def rotatable_bonds(atoms: Atoms) -> list[tuple[int, int, np.ndarray]]:
    """Single bonds outside of rings whose ends both bind to more: the two atoms, and those (indices) on the side of the
    second, which is the smaller.
    """
    ratios = bond_ratios(atoms)
    bonded, found = ratios < BONDED, []
    for first, second in np.argwhere(np.triu(bonded) & (ratios > SINGLE)):
        rest = bonded.copy()
        rest[first, second] = rest[second, first] = False
        _, side = connected_components(rest, directed=False)
        if side[first] == side[second]:
            continue
        near, far = np.flatnonzero(side == side[first]), np.flatnonzero(side == side[second])
        if len(near) < len(far):
            first, second, near, far = second, first, far, near
        if len(far) > 1:
            found.append((int(first), int(second), far))
    return found
