"""Jets of Pythia 8 and FastJet: runs the separate program (``scripts/pythia_jets.py``) and reads what it writes.

Pythia 8 and FastJet are GPL; nothing here imports them. Classes: light-quark and gluon jets (qcd), and top, W and Z
jets (the resonance decays to quarks and lies within R of the axis), each of anti-kT R = 0.8. The group of a record is
its event; one jet of an event is kept.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sciml.data.records import Record
from sciml.errors import UserError
from sciml.ingest.generate.common import require, run_tasks, task_seeds

CLASSES = ("qcd", "top", "w", "z")
DATASET = "pythia8"
_CHUNK = 250  # jets of one process, so that the work spreads evenly


class Task(NamedTuple):
    """One run of the program."""

    program: str
    process: str
    jets: int
    seed: int
    options: tuple[str, ...]


def generate(
    seed: int,
    program: Path,
    counts: Mapping[str, int],
    transverse_momentum: tuple[float, float] = (500.0, 650.0),
    constituents: int = 64,
    minimum: float = 1.0,
    workers: int = 1,
) -> Iterator[Record]:
    """Yield ``counts[name]`` jets of each class, hep records whose label is the index in CLASSES.

    ``program`` is the file ``scripts/pythia_jets.py``; the jet's transverse momentum and the least of a constituent
    are in GeV. Raises UserError when the program or an engine is missing or a class is unknown.
    """
    require("pythia8mc", "Pythia 8")
    require("fastjet", "FastJet")
    if not program.is_file():
        raise UserError(f"{program}: the program that makes jets is not there; give scripts/pythia_jets.py.")
    for name in counts:
        if name not in CLASSES:
            raise UserError(f"jet class {name!r} is not known; use some of {', '.join(CLASSES)}.")
    low, high = transverse_momentum
    options = ("--pt", f"{low}", f"{high}", "--constituents", f"{constituents}", "--minimum-pt", f"{minimum}")
    chunks = [(name, min(_CHUNK, count - start)) for name, count in counts.items() for start in range(0, count, _CHUNK)]
    tasks = [
        Task(str(program), name, jets, 1 + task_seed % 900_000_000, options)
        for (name, jets), task_seed in zip(chunks, task_seeds(seed, len(chunks)))
    ]
    yield from run_tasks(run, tasks, workers)


def run(task: Task) -> list[Record]:
    """Run the program once and return its jets. Raises UserError with the program's last line when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "jets.npz"
        command = [sys.executable, task.program, "--process", task.process, "--jets", str(task.jets)]
        command += ["--seed", str(task.seed), "--output", str(output), *task.options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{task.program}: ended with exit code {done.returncode}: {last}")
        return read(output, task.process, task.seed)


def read(path: Path, process: str, seed: int) -> list[Record]:
    """Return the records of a file that the program wrote for one class."""
    with np.load(path) as arrays:
        counts, events = arrays["counts"], arrays["events"]
        momenta, kinds, charges = arrays["momenta"], arrays["kinds"], arrays["charges"]
        totals = arrays["jet_momenta"]
    ends = np.cumsum(counts)
    records: list[Record] = []
    for i, (start, end) in enumerate(zip(ends - counts, ends)):
        records.append(
            {
                "id": f"{process}-{seed}#{i}",
                "group": f"{process}-{seed}-{events[i]}",
                "types": kinds[start:end],
                "momenta": momenta[start:end],
                "particle_charge": charges[start:end],
                "label": np.int16(CLASSES.index(process)),
                "jet_momentum": totals[i].astype(np.float32),
            }
        )
    return records
