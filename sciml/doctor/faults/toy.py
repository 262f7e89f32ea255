"""A handful of random molecules to train on where only the course of a run matters."""

from pathlib import Path

import numpy as np

from sciml.data.store import StoreWriter
from sciml.evaluate.verify.random_records import random_molecule


def write_molecules(path: Path, records: int = 12, atoms: int = 6, seed: int = 0) -> Path:
    """A store of molecules with energies and forces of a harmonic toy."""
    rng = np.random.default_rng(seed)
    with StoreWriter(path, "materials", "toy") as writer:
        for index in range(records):
            writer.add({**random_molecule(rng, atoms=atoms), "id": f"molecule#{index}", "group": f"group{index}"})
    writer.close()
    return path


TINY_RUN = (
    "model=tiny",
    "model.channels=4",
    "model.radial.hidden=[8]",
    "heads.energy.hidden=8",
    "data.val_fraction=0.25",
    "data.bins_per_step=4",
    "data.batch.atoms.max_graphs=2",
    "optimizer.warmup_steps=0",
    "optimizer.learning_rate=0.003",
    "trainer.progress=false",
    "trainer.log_every=1",
    "trainer.max_steps=5",
    "logger=disabled",
)
"""Words of the command line for a run of five optimizer steps of a tiny model."""
