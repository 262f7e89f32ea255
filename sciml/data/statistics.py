"""Scales of a data set: reference energies per element, force and stress scales, neighbours, label counts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sciml.data.records import MAX_ELEMENT, UNKNOWN_RESIDUE

if TYPE_CHECKING:
    from sciml.data.columns import Column
    from sciml.data.store import Store, Subset

OUTLIER = 30.0  # typical deviations, beyond which an energy counts as an error of the data
_FIT_RECORDS = 200_000  # more records do not change a fit of at most 118 numbers


def statistics(store: "Store | Subset", indices: np.ndarray | None = None) -> dict[str, Any]:
    """Return the statistics of ``store``, or of its records ``indices``, as plain data.

    Keys: ``sizes`` (records, fine nodes); materials and biology: ``elements``, ``mean_neighbors`` within the reference
    radius, ``reference_energies`` {"Z": eV}, ``energy_per_atom_std`` (eV, after the references), ``force_rms`` (eV/Å,
    over components), ``stress_rms`` (eV/Å^3), each None where nothing is labelled; biology also ``residue_counts``
    (21,); hep ``label_counts`` and ``mean_constituents``. Training passes its own split, so that nothing leaks.
    """
    origin, selected = _selection(store, indices)
    sizes = origin.sizes[selected]
    result: dict[str, Any] = {"records": len(sizes), "fine_nodes": int(sizes.sum())}
    if origin.base == "hep":
        labels = _values(origin, "label", selected)
        classes = len(origin.manifest.get("classes", []))
        return {
            **result,
            "label_counts": np.bincount(labels, minlength=classes).tolist(),
            "mean_constituents": _mean(sizes),
        }
    result |= _energy_statistics(origin, selected)
    result["mean_neighbors"] = float(origin.pairs[selected].sum() / max(sizes.sum(), 1))
    result["force_rms"] = _rms(_values(origin, "forces", selected))
    if origin.base == "materials":
        result["stress_rms"] = _rms(_values(origin, "stress", selected))
    else:
        residues = np.bincount(_values(origin, "residue_types", selected), minlength=UNKNOWN_RESIDUE + 1)
        result["residue_counts"] = residues.tolist()
    return result


def joint_statistics(
    stores: "Sequence[Store | Subset]", known: Mapping[str, float] | None = None
) -> tuple[dict[str, float], float | None, float | None]:
    """Return reference energies {"Z": eV}, scale and spread of several stores of one level of theory, fitted at once.

    ``known`` references stay as they are and the elements beyond them are fitted to what they leave. The scale is the
    RMS of all force components (eV/Å), without forces the spread, or None. The spread is the deviation of the energy
    per atom that the references leave (eV), at least a thousandth of the scale (times 1 Å); without energies None.
    """
    counts, energies, forces = [], [], []
    for store in stores:
        origin, selected = _selection(store)
        labelled = selected & origin.has("energy")
        counts.append(composition(origin, labelled))
        energies.append(_values(origin, "energy", labelled))
        forces.append(_values(origin, "forces", selected).ravel())
    references, deviation = _fit(np.concatenate(counts), np.concatenate(energies), known or {})
    scale = _rms(np.concatenate(forces)) or deviation
    return references, scale, max(deviation, 1e-3 * scale) if deviation is not None and scale else None


def elements_of(store: "Store | Subset") -> list[int]:
    """Return the sorted atomic numbers in the records that can become graphs of the kind "atoms"."""
    origin, selected = _selection(store)
    selected &= origin.serves("atoms")
    found = np.zeros(MAX_ELEMENT + 1, bool)
    for start, columns, length in origin.shards():
        found[_chosen(columns["types"], selected[start : start + length])] = True
    return np.flatnonzero(found).tolist()


def composition(store: "Store", selected: np.ndarray) -> np.ndarray:
    """Return atoms per element of the selected records, int64 (records, 119), column Z."""
    width = MAX_ELEMENT + 1
    parts = []
    for start, columns, length in store.shards():
        types = columns["types"]
        owner = np.repeat(np.arange(length), types.lengths)
        counts = np.bincount(owner * width + types.values, minlength=length * width).reshape(length, width)
        parts.append(counts[selected[start : start + length]].astype(np.int32))
    return np.concatenate(parts)


def energies_less_references(store: "Store | Subset", references: Mapping[str, float]) -> np.ndarray:
    """Return the energy per atom, eV, that ``references`` {"Z": eV} leave of every record that has one."""
    origin, selected = _selection(store)
    labelled = selected & origin.has("energy")
    counts = composition(origin, labelled)
    table = np.zeros(counts.shape[1])
    for number, energy in references.items():
        table[int(number)] = energy
    return (_values(origin, "energy", labelled) - counts @ table) / counts.sum(axis=1)


def fit_reference_energies(counts: np.ndarray, energies: np.ndarray, rounds: int = 10) -> np.ndarray:
    """Return energies per element (Z,), eV, that explain ``energies`` (m,) by the composition ``counts`` (m, Z).

    Least squares on energies per atom, made robust by Huber weights; gross outliers, :data:`OUTLIER` typical deviations
    from the fit of least absolute deviations, take no part. Where compositions do not determine every element, the
    solution of least norm is taken, so the sum over each composition seen is still right.
    """
    atoms = counts.sum(axis=1)
    matrix, values = counts / atoms[:, None], energies / atoms
    typical = _typical(matrix, values)
    matrix, values = matrix[typical], values[typical]
    weights = np.ones(len(values))
    solution = np.zeros(counts.shape[1])
    for _ in range(rounds):
        root = np.sqrt(weights)
        updated = np.linalg.lstsq(matrix * root[:, None], values * root, rcond=1e-9)[0]
        converged = np.allclose(updated, solution, rtol=1e-10, atol=1e-10)
        solution = updated
        residual = np.abs(values - matrix @ solution)
        scale = 3 * 1.4826 * np.median(residual)
        if converged or scale < 1e-9:
            break
        weights = np.minimum(1.0, scale / np.maximum(residual, 1e-300))
    return solution


def _typical(matrix: np.ndarray, values: np.ndarray, rounds: int = 50) -> np.ndarray:
    """Which rows a fit of least absolute deviations explains, bool (m,).

    Iteratively reweighted least squares by the normal equations, whose digits are enough to tell outliers.
    """
    weights, before = np.ones(len(values)), np.inf
    for _ in range(rounds):
        weighted = matrix * weights[:, None]
        solution = np.linalg.lstsq(weighted.T @ matrix, weighted.T @ values, rcond=1e-9)[0]
        residual = np.abs(values - matrix @ solution)
        if residual.sum() > 0.9999 * before:
            break
        before = residual.sum()
        weights = 1.0 / np.maximum(residual, 1e-3 * np.median(residual) + 1e-9)
    return _near(residual, values)


def _near(residual: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which absolute residuals are no gross outliers: rounding of the values is none, nor is a third of the data."""
    near = residual <= OUTLIER * 1.4826 * np.median(residual) + 1e-9 * (1.0 + np.median(np.abs(values)))
    return near if near.mean() >= 2 / 3 else np.ones(len(near), bool)


def _selection(store: "Store | Subset", indices: np.ndarray | None = None) -> tuple["Store", np.ndarray]:
    """The store behind subsets, and which of its records are meant, bool (n,)."""
    from sciml.data.store import base_indices

    origin, chosen = base_indices(store)
    if indices is not None:
        chosen = chosen[np.asarray(indices, dtype=np.int64)]
    selected = np.zeros(len(origin), bool)
    selected[chosen] = True
    return origin, selected


def _energy_statistics(store: "Store", selected: np.ndarray) -> dict[str, Any]:
    counts = composition(store, selected)
    labelled = store.has("energy")[selected]
    references, deviation = _fit(counts[labelled], _values(store, "energy", selected), {})
    return {
        "elements": np.flatnonzero(counts.sum(axis=0)).tolist(),
        "reference_energies": references,
        "energy_per_atom_std": deviation,
    }


def _fit(counts: np.ndarray, energies: np.ndarray, known: Mapping[str, float]) -> tuple[dict[str, float], float | None]:
    """Reference energies of the elements in ``counts`` (m, 119), and the deviation per atom that they leave, eV.

    An element of unlabelled records only has no reference.
    """
    if not len(energies):
        return dict(known), None
    references = np.zeros(counts.shape[1])
    for number, energy in known.items():
        references[int(number)] = energy
    fresh = np.flatnonzero(counts.sum(axis=0))
    fresh = fresh[[str(number) not in known for number in fresh.tolist()]]
    rows = np.flatnonzero(counts[:, fresh].sum(axis=1))
    rows = rows[:: max(1, -(-len(rows) // _FIT_RECORDS))]
    if len(rows):
        rest = energies[rows] - counts[rows] @ references
        references[fresh] = fit_reference_energies(counts[rows][:, fresh], rest)
    left = (energies - counts @ references) / counts.sum(axis=1)
    deviation = float(np.std(left[_near(np.abs(left - np.median(left)), left)]))
    return {**known, **{str(number): float(references[number]) for number in fresh.tolist()}}, deviation


def _values(store: "Store", name: str, selected: np.ndarray) -> np.ndarray:
    """Concatenate the field ``name`` over the selected records that have it."""
    parts = []
    for start, columns, length in store.shards():
        column = columns.get(name)
        if column is not None:
            parts.append(_chosen(column, selected[start : start + length]))
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _chosen(column: "Column", selected: np.ndarray) -> np.ndarray:
    keep = selected if column.present is None else selected & column.present
    if column.offsets is None:
        return column.values[keep]
    return column.values[np.repeat(keep, column.lengths)]


def _rms(values: np.ndarray) -> float | None:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2))) if values.size else None


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
