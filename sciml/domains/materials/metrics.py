"""Errors of energies, forces and stress. Pure functions of numpy arrays; labels that are NaN do not count."""

import numpy as np

from sciml.data.records import MAX_ELEMENT

UNITS = {"energy": "eV", "energy_per_atom": "eV/atom", "forces": "eV/Å", "stress": "eV/Å^3"}


def mae(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Mean absolute error over every labelled component; NaN when there is none."""
    difference = _labelled(predicted, reference)
    return float(np.abs(difference).mean()) if difference.size else float("nan")


def rmse(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Root of the mean squared error over every labelled component; NaN when there is none."""
    difference = _labelled(predicted, reference)
    return float(np.sqrt(np.square(difference).mean())) if difference.size else float("nan")


def errors(predicted: np.ndarray, reference: np.ndarray, unit: str) -> dict[str, float | int | str]:
    """MAE, RMSE, number of labelled components and unit of one target, predicted and reference of the same shape."""
    return {
        "mae": mae(predicted, reference),
        "rmse": rmse(predicted, reference),
        "count": int(_labelled(predicted, reference).size),
        "unit": unit,
    }


def composition_energies(types: list[np.ndarray], references: dict[int, float]) -> np.ndarray:
    """Sum of the energies per element [eV] of each structure (N,); an element without a reference counts zero."""
    table = np.zeros(MAX_ELEMENT + 1)
    for element, energy in references.items():
        table[element] = energy
    return np.array([table[structure].sum() for structure in types])


def _labelled(predicted: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Differences of labelled components; raises ValueError where a labelled one has another shape."""
    predicted, reference = np.asarray(predicted, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if predicted.shape != reference.shape:
        raise ValueError(f"metrics: predictions of shape {predicted.shape} for labels of shape {reference.shape}.")
    return (predicted - reference)[~np.isnan(reference)]
