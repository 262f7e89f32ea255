"""Jets as a detector would measure them, with the true momenta beside: what four-momenta, masses and transverse momenta
are regressed from.

The energy of every particle is smeared by the resolution of its kind; its direction and mass stay. The total of the
jet is the true one, as where a jet is calibrated or comes from a resonance of known momentum. No other effect of a
detector is in it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from sciml.data.checks import regulate_energies
from sciml.data.records import Record
from sciml.data.store import Store, StoreWriter
from sciml.errors import UserError

RESOLUTIONS = {1: (0.0, 0.01), 2: (0.8, 0.05), 3: (0.1, 0.01), 4: (0.1, 0.01), 5: (0.0, 0.01), 6: (0.8, 0.05)}
"""{kind of particle: (a, c)} of the relative resolution a / sqrt(E / GeV) (+) c: tracks for charged hadrons and muons,
the electromagnetic and the hadronic calorimeter for the others; round numbers as detectors at the LHC have them."""
WORST = 1.0  # relative resolution of the softest
_DROPPED = ("parent", "jet_momentum")  # are made anew of the smeared momenta


def write(source: str | Path, output: str | Path, seed: int) -> Store:
    """Write the smeared jets of the store ``source`` into the store ``output`` and return it.

    Raises UserError when the source is not a store of jets or the output exists.
    """
    store = Store(source)
    if store.base != "hep":
        raise UserError(f"{source}: a store of {store.domain} found, expected jets.")
    metadata = {name: store.manifest.get(name, "") for name in ("classes", "licence", "source")}
    with StoreWriter(output, "hep", f"{store.dataset}-smeared", metadata=metadata) as writer:
        for jet in smear(store, seed):
            writer.add(jet)
    return writer.close()


def smear(jets: Iterable[Record], seed: int) -> Iterator[Record]:
    """Yield hep records with smeared ``momenta``, the given ones as ``true_momenta``, their sum as ``total_momentum``,
    and its mass and transverse momentum as ``true_mass`` and ``true_pt`` where they are above zero.

    Momenta, in float32 as a store holds them, are multiplied by exp(s g - s^2 / 2), g normal and s the resolution:
    1 on average and never negative.
    """
    for number, jet in enumerate(jets):
        rng = np.random.default_rng([seed, number])
        true = np.asarray(jet["momenta"], dtype=np.float64)
        s = resolutions(true[:, 0], np.asarray(jet["types"]))
        momenta = true[:, 1:] * np.exp(s * rng.normal(size=len(true)) - 0.5 * s**2)[:, None]
        mass_squared = np.maximum(true[:, 0] ** 2 - (true[:, 1:] ** 2).sum(axis=1), 0.0)
        energy = np.sqrt((momenta**2).sum(axis=1) + mass_squared)
        smeared = np.concatenate([energy[:, None], momenta], axis=1).astype(np.float32)
        smeared[:, 0] = regulate_energies(smeared)
        total = true.sum(axis=0)
        mass = np.sqrt(max(total[0] ** 2 - (total[1:] ** 2).sum(), 0.0))
        kinematics = {"true_mass": mass, "true_pt": np.hypot(total[1], total[2])}
        yield {
            **{name: value for name, value in jet.items() if name not in _DROPPED},
            "momenta": smeared,
            "true_momenta": true,
            "total_momentum": total,
            **{name: value for name, value in kinematics.items() if value > 0},
        }


def resolutions(energies: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Relative resolution (n,) of particles with ``energies`` (n,) [GeV] and kinds (n,) 1 to 6."""
    stochastic, constant = np.array([RESOLUTIONS[int(kind)] for kind in kinds]).T
    return np.minimum(np.hypot(stochastic / np.sqrt(energies), constant), WORST)
