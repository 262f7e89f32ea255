"""Errors of energies, forces and stress. Pure functions of numpy arrays; labels that are NaN do not count."""

import numpy as np

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


def metrics(
    predicted: dict[str, np.ndarray], reference: dict[str, np.ndarray], atoms: np.ndarray
) -> dict[str, dict[str, float | int | str]]:
    """Errors of every target that has a label, in UNITS.

    ``predicted`` and ``reference`` hold ``energy`` (N,) [eV], ``forces`` (sum of n, 3) [eV/Å] and ``stress`` (N, 3, 3)
    [eV/Å^3], each optional; ``atoms`` (N,) is the number of atoms of each structure, for ``energy_per_atom``.
    """
    targets: tuple[str, ...] = ("energy", "forces", "stress")
    table = {
        name: errors(predicted[name], reference[name], UNITS[name])
        for name in targets
        if name in predicted and name in reference
    }
    if "energy" in table:
        per_atom = UNITS["energy_per_atom"]
        table["energy_per_atom"] = errors(predicted["energy"] / atoms, reference["energy"] / atoms, per_atom)
    return {name: row for name, row in table.items() if row["count"]}


def composition_fit(types: list[np.ndarray], energies: np.ndarray) -> dict[int, float]:
    """Energy per element [eV] that fits ``energies`` (N,) best as a sum over atoms: the baseline of an energy error.

    ``types`` holds the atomic numbers (n,) of each structure. Where compositions do not determine every element (one
    molecule only), the smallest energies that fit are taken.
    """
    elements, counts = _compositions(types)
    labelled = np.isfinite(energies)
    solution, *_ = np.linalg.lstsq(counts[labelled], energies[labelled], rcond=1e-8)
    return dict(zip(elements.tolist(), solution.tolist(), strict=True))


def composition_energies(types: list[np.ndarray], references: dict[int, float]) -> np.ndarray:
    """Sum of the energies per element [eV] of each structure (N,); an element without a reference counts zero."""
    elements, counts = _compositions(types)
    return counts @ np.array([references.get(int(element), 0.0) for element in elements])


def _compositions(types: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    elements = np.unique(np.concatenate(types))
    counts = [[np.count_nonzero(structure == element) for element in elements] for structure in types]
    return elements, np.array(counts, dtype=np.float64)


def _labelled(predicted: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Differences of labelled components; raises ValueError where a labelled one has another shape."""
    predicted, reference = np.asarray(predicted, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if predicted.shape != reference.shape:
        raise ValueError(f"metrics: predictions of shape {predicted.shape} for labels of shape {reference.shape}.")
    return (predicted - reference)[~np.isnan(reference)]
