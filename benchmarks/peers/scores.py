"""One scoring for both sides: predictions against the labels of the test file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from structures import labels


def _errors(difference: np.ndarray, unit: str) -> dict[str, float | int | str]:
    return {
        "mae": float(np.abs(difference).mean()),
        "rmse": float(np.sqrt(np.square(difference).mean())),
        "count": int(difference.size),
        "unit": unit,
    }


def score(predictions: Path, test: Path) -> dict[str, dict[str, float | int | str]]:
    """MAE and RMSE of `predictions` (npz: energies (n,) [eV], forces (sum of atoms, 3) [eV/Å]) on the file `test`."""
    energies, forces = labels(test)
    predicted = np.load(predictions)
    atoms = np.array([len(frame) for frame in forces])
    if predicted["energies"].shape != energies.shape or len(predicted["forces"]) != atoms.sum():
        raise ValueError(f"{predictions.name} does not hold one prediction per frame of {test.name}")
    energy_error = predicted["energies"] - energies
    return {
        "forces": _errors(predicted["forces"] - np.concatenate(forces), "eV/Å"),
        "energy": _errors(energy_error, "eV"),
        "energy_per_atom": _errors(energy_error / atoms, "eV/atom"),
    }
