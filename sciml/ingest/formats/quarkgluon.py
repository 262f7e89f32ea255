"""Quark and gluon jets of Pythia or Herwig as numpy archives (Komiske, Metodiev & Thaler, 2019; Zenodo 3164691).

An archive holds ``X`` (jets, particles, 4): transverse momentum [GeV], rapidity, azimuth and PDG number, rows of zeros
behind the last particle; and ``y`` (jets,): 1 quark, 0 gluon. Energies follow from the masses of the particles.
"""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.records import Record
from sciml.errors import UserError
from sciml.ingest.formats import Options, Rejected, identifier, refuse_unused

DOMAIN = "hep"
CLASSES = ["gluon", "quark"]
_ARRAYS = {"X.npy", "y.npy"}
# |PDG number|: (kind of the schema, charge of the positive number, mass in GeV), the particles that live long enough.
_PARTICLES = {
    11: (4, -1, 0.000511), 13: (5, -1, 0.10566), 22: (3, 0, 0.0), 130: (2, 0, 0.49761), 211: (1, 1, 0.13957),
    310: (2, 0, 0.49761), 321: (1, 1, 0.49368), 2112: (2, 0, 0.93957), 2212: (1, 1, 0.93827),
}  # fmt: skip
_OTHER = (6, 0, 0.0)


def sniff(path: Path) -> bool:
    """Return whether the file is an archive of ``X`` and ``y``."""
    if path.suffix.lower() != ".npz" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist()) >= _ARRAYS


def metadata(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the names of the classes."""
    return {"classes": CLASSES}


def read(path: Path, options: Options) -> Iterator[Record | Rejected]:
    """Yield one record per jet. Raises UserError where the arrays cannot be read or have other shapes."""
    refuse_unused(path, options, ())
    try:
        with np.load(path, allow_pickle=False) as archive:
            jets, labels = archive["X"], archive["y"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path}: cannot be read as a numpy archive ({error}); is the file whole?") from None
    if jets.ndim != 3 or jets.shape[2] != 4 or labels.shape != jets.shape[:1]:
        raise UserError(
            f"{path}: X of shape {jets.shape} and y of shape {labels.shape} found, expected (jets, particles, 4) and "
            "(jets,)."
        )
    for index, (particles, label) in enumerate(zip(jets, labels)):
        name = identifier(path, index)
        if label not in (0, 1):
            yield Rejected(name, f"y: {label:g} found, expected 0 for gluon or 1 for quark")
            continue
        yield {"id": name, "group": name, "label": int(label), **_jet(particles[particles[:, 0] > 0])}


def _jet(particles: np.ndarray) -> Record:
    """Kinds, charges and four-momenta of particles (n, 4) as the archive has them."""
    pt, rapidity, azimuth = particles[:, :3].astype(np.float64).T
    numbers = np.rint(particles[:, 3]).astype(int)
    facts = np.array([_PARTICLES.get(abs(number), _OTHER) for number in numbers], np.float64).reshape(-1, 3)
    transverse = np.sqrt(pt**2 + facts[:, 2] ** 2)
    momenta = (transverse * np.cosh(rapidity), pt * np.cos(azimuth), pt * np.sin(azimuth))
    return {
        "types": facts[:, 0],
        "momenta": np.stack([*momenta, transverse * np.sinh(rapidity)], axis=1),
        "particle_charge": facts[:, 1] * np.sign(numbers),
    }
