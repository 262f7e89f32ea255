"""Jets that the tests of this folder share: embedded and published ones, and how hard a frame is on rounding."""

from pathlib import Path

import numpy as np
import torch

import sciml
from sciml.data.records import Record
from sciml.data.store import Store
from sciml.physics import lorentz

LIGHT = 0.1
"""GeV, the mass of the lightest jets that the bounds are held to, at an energy of 500 GeV."""
SAMPLES = Path(sciml.__file__).parent / "data" / "samples" / "jets"


def embedded_jets(number: int) -> list[Record]:
    """Jets spread evenly over the embedded store, in float64."""
    store = Store(SAMPLES)
    chosen = np.linspace(0, len(store) - 1, number).astype(int)
    return [{**record, "momenta": record["momenta"].astype(np.float64)} for record in map(store.__getitem__, chosen)]


def energy_over_mass(*frames: Record) -> float:
    """E / M_eff of one jet in several frames: its largest energy in any, over the regulated mass."""
    totals = [torch.from_numpy(np.asarray(record["momenta"], dtype=np.float64)).sum(dim=0) for record in frames]
    regulated = lorentz.regulated(totals[0], lorentz.lab_spurions()[0])
    return max(float(total[0]) for total in totals) / float(lorentz.mass_squared(regulated).sqrt())
