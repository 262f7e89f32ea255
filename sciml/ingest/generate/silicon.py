"""Silicon in cells of 64 atoms with energies, forces and stresses of GFN1-xTB (Grimme et al. 2017), by tblite.

The cells are sampled with the potential of Stillinger and Weber (``classical``), which is fast, and labelled by
GFN1-xTB, whose forces follow those of density functionals far better. tblite samples a periodic cell at the Gamma point
only: all cells have one size, so that what this leaves out is the same for all of them.
"""

from collections.abc import Iterator

import numpy as np

from sciml.data.records import Record
from sciml.ingest.generate import classical
from sciml.ingest.generate.common import atoms_record, require, run_tasks, task_seeds
from sciml.ingest.generate.xtb import calculator

METHOD, DATASET = "GFN1-xTB", "gfn1-xtb"
STRUCTURE = "Si-diamond-64"
KINDS = ("md", "strained", "vacancy", "md", "rattled", "md", "strained", "vacancy", "liquid", "md")


def generate(seed: int, groups: int = 40, frames: int = 3, workers: int = 1) -> Iterator[Record]:
    """Yield ``frames`` cells of each of ``groups`` groups (one way of sampling each), materials records.

    Raises UserError when tblite is not installed.
    """
    require("tblite", "tblite")
    tasks = [
        classical.Task(STRUCTURE, KINDS[number % len(KINDS)], number, task_seed, frames)
        for number, task_seed in enumerate(task_seeds(seed, groups))
    ]
    yield from run_tasks(sample, tasks, workers)


def sample(task: classical.Task) -> list[Record]:
    """Return the records of one group, without the cells whose self-consistent field does not converge."""
    group = f"{task.name}-{task.kind}-{task.number}"
    records: list[Record] = []
    for frame in classical.cells(task, np.random.default_rng(task.seed)):
        atoms = calculator(frame.copy(), METHOD)
        try:
            records.append(atoms_record(atoms, f"{group}#{len(records)}", group, task.kind))
        except RuntimeError:
            continue
    return records
