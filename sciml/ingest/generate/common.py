"""What the generators share: seeds, worker processes, molecular dynamics and the record of labelled atoms."""

import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from ase import Atoms

from sciml.data.records import Record
from sciml.errors import UserError


def require(module: str, engine: str) -> None:
    """Raise UserError, naming the extra, when the module of an engine is not installed; imports nothing."""
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"{engine} is not installed (Python module {module!r} not found); install the generate extra: "
            "pip install 'sciml[generate]'."
        )


def task_seeds(seed: int, count: int) -> list[int]:
    """Return ``count`` independent seeds below 2^31 that depend on ``seed`` alone."""
    return [int(child.generate_state(1)[0] >> 1) for child in np.random.SeedSequence(seed).spawn(count)]


def run_tasks(function: Callable[[Any], list[Record]], tasks: Sequence[Any], workers: int = 1) -> Iterator[Record]:
    """Yield the records of ``function(task)`` for every task, in the order of the tasks whatever ``workers`` is.

    Worker processes are started afresh (spawn), since engines with threads of their own do not survive a fork, and have
    one thread each: threads of two engines on the same cores are many times slower.
    """
    if workers <= 1:
        results: Iterable[list[Record]] = map(function, tasks)
        for records in results:
            yield from records
        return
    context = multiprocessing.get_context("spawn")
    with _one_thread(), ProcessPoolExecutor(workers, mp_context=context) as pool:
        for records in pool.map(function, tasks):
            yield from records


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that start here have one thread."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def atoms_record(atoms: Atoms, identifier: str, group: str, config_type: str) -> Record:
    """Return the materials record of ``atoms`` with the energy, the forces and, where periodic, the stress of its
    calculator, in eV, eV/Å and eV/Å^3. The charge is the sum of the atoms' initial charges."""
    record: Record = {
        "id": identifier,
        "group": group,
        "config_type": config_type,
        "types": atoms.numbers.astype(np.uint8),
        "positions": atoms.positions.astype(np.float32),
        "cell": np.array(atoms.cell.array, np.float64),
        "pbc": np.array(atoms.pbc, bool),
        "charge": np.float32(round(float(atoms.get_initial_charges().sum()))),
        "spin": np.float32(1),
        "energy": np.float64(atoms.get_potential_energy()),
        "forces": atoms.get_forces().astype(np.float32),
    }
    if atoms.pbc.all():
        record["stress"] = atoms.get_stress(voigt=False).astype(np.float32)
    return record


def molecular_dynamics(
    atoms: Atoms, temperature: float, frames: int, interval: int, timestep: float, rng: np.random.Generator
) -> Iterator[Atoms]:
    """Yield ``atoms`` itself ``frames`` times, each ``interval`` steps of Langevin dynamics after the one before.

    The temperature is in K, the time step in fs. The velocities start at the temperature, the friction time is 100 fs:
    the aim is decorrelated frames of the canonical ensemble, not dynamics.
    """
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

    # the potential energy of a relaxed start must come out of the kinetic energy: twice the temperature is shared
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature, rng=rng)
    friction = 0.01 / units.fs
    dynamics = Langevin(atoms, timestep * units.fs, temperature_K=temperature, friction=friction, rng=rng, fixcm=False)
    for _ in range(frames):
        dynamics.run(interval)
        yield atoms


def random_strain(rng: np.random.Generator, volume: float, shape: float) -> np.ndarray:
    """Return a deformation matrix (3, 3): uniform isotropic strain in +-``volume`` and a normal symmetric part."""
    symmetric = rng.normal(0.0, shape, (3, 3))
    return np.eye(3) * (1 + rng.uniform(-volume, volume)) + (symmetric + symmetric.T) / 2


def deform(atoms: Atoms, deformation: np.ndarray) -> Atoms:
    """Return a copy of periodic ``atoms`` whose lattice and positions are multiplied by ``deformation`` (3, 3)."""
    deformed = atoms.copy()
    deformed.set_cell(atoms.cell.array @ deformation.T, scale_atoms=True)
    return deformed
