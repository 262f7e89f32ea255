"""Metrics of the targets that a configuration names, beside what the types of the nodes alone tell."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sciml.data.source import Source
from sciml.data.targets import Target
from sciml.domains.biology.metrics import correlations, cross_entropies
from sciml.domains.materials.metrics import errors
from sciml.evaluate.measure import by_kind, errors_by_kind
from sciml.evaluate.predict import Columns
from sciml.graph import NUM_TYPES


def baseline_of(target: Target, source: Source, columns: Columns, facts: dict[str, Any]) -> np.ndarray:
    """Predictions of the composition fit of an extensive target, of the mean of another, zero for tensors; nothing of
    classes. ``facts`` are those of :func:`sciml.train.labels.target_facts`.
    """
    if target.classes:
        return np.zeros(len(columns.labels))
    found = np.zeros(columns.labels.shape)
    scalars = target.scalar_columns
    if facts.get("by_type"):
        table = np.zeros((NUM_TYPES, len(scalars)))
        for number, values in facts["by_type"].items():
            table[int(number)] = values
        found[:, scalars] = [table[source.data[int(record)]["types"]].sum(axis=0) for record in columns.records]
    elif scalars:
        found[:, scalars] = facts.get("shift", [0.0] * len(scalars))
    return found


def measure_target(
    target: Target, columns: Columns, baseline: np.ndarray, kinds: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """MAE and RMSE of the components beside those of the baseline, and correlations where there is one component; or
    accuracy, recall of each class and cross-entropy (nats) beside the accuracy of always the most frequent class.
    Errors and accuracies also of each of the ``kinds``, as of :func:`sciml.evaluate.measure.kinds_of_rows`.
    """
    labels = columns.labels
    if not target.classes:
        worse = errors(baseline, labels, target.unit)
        return {
            **errors(columns.predictions, labels, target.unit),
            "baseline_mae": worse["mae"],
            "baseline_rmse": worse["rmse"],
            **errors_by_kind(columns.predictions, labels, kinds or {}),
            **(correlations(columns.predictions, labels) if target.dimension == 1 else {}),
        }
    guesses = columns.predictions.argmax(axis=1)

    def accuracy(rows: np.ndarray) -> dict[str, Any]:
        return {"accuracy": float((guesses == labels)[rows].mean()), "count": int(rows.sum())}

    counts = np.bincount(labels, minlength=len(target.classes))
    right = np.bincount(labels, weights=guesses == labels, minlength=len(target.classes))
    return {
        **accuracy(np.ones(len(labels), bool)),
        "unit": "",
        "baseline_accuracy": float(counts.max() / counts.sum()),
        "cross_entropy": float(cross_entropies(columns.predictions, labels).mean()),
        "recall": {name: float(r / n) for name, r, n in zip(target.classes, right, counts, strict=True) if n},
        **by_kind(accuracy, kinds or {}),
    }
