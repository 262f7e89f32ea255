"""Metrics of one target on one source, each beside the error of a predictor that knows next to nothing."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from sciml.data.source import Source
from sciml.domains.biology.metrics import bootstrap_difference, correlations, cross_entropies, recovery
from sciml.domains.hep import metrics as hep
from sciml.domains.hep.metrics import (
    accuracy,
    accuracy_error,
    auc,
    conservation_errors,
    fit_mass_window,
    jet_masses,
    jet_starts,
    mass_sculpting,
    mass_window_score,
    mean_auc,
    one_vs_one,
    relative_errors,
    reliability,
    response,
    tagging,
)
from sciml.domains.materials import metrics as materials
from sciml.domains.materials.metrics import composition_energies, errors
from sciml.evaluate.predict import Columns

UNITS = materials.UNITS | hep.UNITS
EFFICIENCIES = (0.3, 0.5)


def baselines_of(sources: list[Source], classes: list[str]) -> dict[str, Any]:
    """What the simple predictors know of the training data, as plain data for a package.

    ``residue_counts`` (20,) for the composition; ``mass_windows`` {class: GeV} the centre of the best window against
    the background class.
    """
    residues = np.zeros(20)
    masses, labels = [], []
    for source in sources:
        if source.data.base == "biology":
            types = np.concatenate([record["residue_types"] for record in source.data])
            residues += np.bincount(types[types < 20], minlength=20)
        if source.data.base == "hep" and source.data.has("label").any():
            chosen = np.flatnonzero(source.data.has("label"))
            masses.append(masses_of(source, chosen))
            labels.append(np.array([int(source.data[int(index)]["label"]) for index in chosen]))
    windows = _mass_windows(np.concatenate(masses), np.concatenate(labels), classes) if masses else {}
    return {"residue_counts": residues.tolist(), "mass_windows": windows}


def _mass_windows(masses: np.ndarray, labels: np.ndarray, classes: list[str]) -> dict[str, float]:
    background = background_class(classes)
    windows = {}
    for index, name in enumerate(classes):
        chosen = (labels == index) | (labels == background)
        if index != background and (labels == index).any() and (labels == background).any():
            windows[name] = fit_mass_window(masses[chosen], labels[chosen] == index)
    return windows


def background_class(classes: list[str]) -> int:
    """Index of the class that taggers reject: the first whose name begins with qcd, else the first."""
    return next((index for index, name in enumerate(classes) if name.lower().startswith("qcd")), 0)


def masses_of(source: Source, records: np.ndarray) -> np.ndarray:
    """Invariant masses of jets, GeV."""
    return jet_masses([source.data[int(record)]["momenta"] for record in records])


def baseline_predictions(target: str, source: Source, columns: Columns, references: dict[str, float]) -> np.ndarray:
    """Energies of the composition fit of the training data; mass and transverse momentum of a jet as measured; zero for
    every other number.
    """
    if target == "true_mass":
        return masses_of(source, columns.records)
    if target == "true_pt":
        totals = [np.sum(source.data[int(record)]["momenta"], axis=0, dtype=np.float64) for record in columns.records]
        return np.hypot(*np.array(totals)[:, 1:3].T)
    if target != "energy":
        return np.zeros_like(columns.labels)
    types = [np.asarray(source.data[int(record)]["types"]) for record in columns.records]
    return composition_energies(types, {int(number): energy for number, energy in references.items()})


def kinds_of_rows(target: str, source: Source, columns: Columns) -> dict[str, np.ndarray]:
    """What the errors are told apart by: {"element": (m,), "config_type": (m,)} as texts, each where there is such.

    Forces and a user's own targets of every atom have an element, every number of a record with a ``config_type`` has
    that (empty where it has none).
    """
    kinds = {}
    if source.data.base == "materials":
        config_types = np.array(source.data.texts("config_type"))
        if (config_types != "").any():
            kinds["config_type"] = config_types[columns.records]
    of_atoms = {"forces", *(own.name for own in source.data.targets if own.level == "fine" and own.kind == "atoms")}
    if target in of_atoms and source.data.base != "hep":
        firsts = columns.records[jet_starts(columns.sizes)]
        elements = np.concatenate([np.asarray(source.data[int(record)]["types"]) for record in firsts])
        if len(elements) == len(columns.labels):  # every atom has a label
            kinds["element"] = np.array(chemical_symbols)[elements]
    return kinds


def measure_numbers(
    target: str, columns: Columns, baseline: np.ndarray, kinds: Mapping[str, np.ndarray] | None = None
) -> dict[str, dict[str, Any]]:
    """MAE, RMSE, count, unit and the baseline's MAE and RMSE; energies also per atom, targets of one's own also
    correlations.

    ``kinds`` {name: (m,)} as of :func:`kinds_of_rows`; the errors of each kind are under ``by_<name>`` where there are
    several, those of energies per atom.
    """
    unit = UNITS.get(target, "")
    table = {target: _beside(columns.predictions, columns.labels, baseline, unit)}
    if target == "energy":
        predictions, labels, base = (c / columns.sizes for c in (columns.predictions, columns.labels, baseline))
        table["energy_per_atom"] = _beside(predictions, labels, base, UNITS["energy_per_atom"])
        table["energy_per_atom"] |= errors_by_kind(predictions, labels, kinds or {})
    else:
        table[target] |= errors_by_kind(columns.predictions, columns.labels, kinds or {})
    if target in ("true_mass", "true_pt"):
        table[target] |= response(columns.predictions, columns.labels)
        table[target] |= {f"baseline_{name}": value for name, value in response(baseline, columns.labels).items()}
    if target not in UNITS:
        table[target] |= correlations(columns.predictions, columns.labels)
    return table


def errors_by_kind(predictions: np.ndarray, labels: np.ndarray, kinds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """{by_<name>: {kind: {mae, rmse, count}}}, most labels first."""

    def of_rows(rows: np.ndarray) -> dict[str, Any]:
        values = errors(predictions[rows], labels[rows], "")
        return {key: values[key] for key in ("mae", "rmse", "count")}

    return by_kind(of_rows, kinds)


def by_kind(measure: Callable[[np.ndarray], dict[str, Any]], kinds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """{by_<name>: {kind: what ``measure`` finds of its rows, a mask (m,)}} where there are several, most rows first."""
    result: dict[str, Any] = {}
    for name, of_rows in kinds.items():
        found, counts = np.unique(of_rows[of_rows != ""], return_counts=True)
        if len(found) > 1:
            ordered = found[np.argsort(-counts, kind="stable")].tolist()
            result[f"by_{name}"] = {kind: measure(of_rows == kind) for kind in ordered}
    return result


def _beside(predictions: np.ndarray, labels: np.ndarray, baseline: np.ndarray, unit: str) -> dict[str, Any]:
    worse = errors(baseline, labels, unit)
    return {**errors(predictions, labels, unit), "baseline_mae": worse["mae"], "baseline_rmse": worse["rmse"]}


def measure_jets(columns: Columns, masses: np.ndarray, classes: list[str], windows: dict[str, float]) -> dict[str, Any]:
    """Accuracy with its error, cross-entropy (nats), mean AUC over pairs of classes and calibration; for every class
    against the background AUC and rejections with errors, how much a cut on the score sculpts the mass, and the mass
    window's AUC.
    """
    logits, labels = columns.predictions, columns.labels
    background = background_class(classes)
    result: dict[str, Any] = {
        "count": len(labels),
        "unit": "",
        "accuracy": accuracy(logits, labels),
        "accuracy_error": accuracy_error(logits, labels),
        "cross_entropy": float(cross_entropies(logits, labels).mean()),
        "mean_auc": mean_auc(logits, labels),
        "calibration_error": reliability(logits, labels).error,
        "background": classes[background],
        "signals": {},
    }
    for index, name in enumerate(classes):
        scores, signal = one_vs_one(logits, labels, index, background)
        if index == background or not signal.any() or signal.all():
            continue
        chosen = (labels == index) | (labels == background)
        pair = tagging(scores, signal, EFFICIENCIES)
        for efficiency in EFFICIENCIES:
            pair[f"mass_divergence_{efficiency:.0%}"] = mass_sculpting(scores, signal, masses[chosen], efficiency)
        if name in windows:
            pair["mass_window_auc"] = auc(mass_window_score(masses[chosen], windows[name]), signal)
        result["signals"][name] = pair
    return result


def momenta_and_totals(source: Source, columns: Columns) -> np.ndarray:
    """Of every particle (n, 8) in GeV: its four-momentum as measured, and the total that its jet is to have."""
    rows = []
    for record in columns.records[jet_starts(columns.sizes)]:
        jet = source.data[int(record)]
        momenta = np.asarray(jet["momenta"], dtype=np.float64)
        total = np.asarray(jet.get("total_momentum", momenta.sum(axis=0)))
        rows.append(np.concatenate([momenta, np.broadcast_to(total, momenta.shape)], axis=1))
    return np.concatenate(rows)


def measure_momenta(columns: Columns, beside: np.ndarray) -> dict[str, Any]:
    """MAE and RMSE [GeV] and relative errors of the components, beside those of the momenta as measured; the largest
    violation of the total, relative to the jet's energy. ``beside`` (n, 8) as from :func:`momenta_and_totals`.
    """
    measured, totals = beside[:, :4], beside[:, 4:]
    return {
        **_beside(columns.predictions, columns.labels, measured, UNITS["true_momenta"]),
        "relative": relative_errors(columns.predictions, columns.labels),
        "baseline_relative": relative_errors(measured, columns.labels),
        "conservation": float(conservation_errors(columns.predictions, totals, columns.sizes).max()),
        "baseline_conservation": float(conservation_errors(measured, totals, columns.sizes).max()),
    }


def measure_residues(columns: Columns, groups: np.ndarray, residue_counts: list[float]) -> dict[str, Any]:
    """Recovery, cross-entropy (nats) and perplexity beside the training composition, with a 95 % interval of the
    difference.

    The interval resamples whole sequences.
    """
    logits, labels = columns.predictions, columns.labels
    composition = np.log((np.asarray(residue_counts) + 1.0) / (np.sum(residue_counts) + 20.0))
    values = cross_entropies(logits, labels)
    baseline = -composition[labels]
    interval = bootstrap_difference(values, baseline, groups)
    return {
        "count": len(labels),
        "unit": "nats",
        "recovery": recovery(logits, labels),
        "cross_entropy": float(values.mean()),
        "perplexity": float(np.exp(values.mean())),
        "baseline_cross_entropy": float(baseline.mean()),
        "baseline_recovery": float((labels == composition.argmax()).mean()),
        "difference": interval["difference"],
        "difference_low": interval["low"],
        "difference_high": interval["high"],
    }
