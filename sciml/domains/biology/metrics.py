"""Residue types from the backbone: recovery, cross-entropies and the interval of a difference.

Pure functions of numpy arrays. Labels below zero are absent and do not count. Energies and forces of the ``atoms`` kind
are measured as in :mod:`sciml.domains.materials.metrics`.
"""

import numpy as np


def recovery(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of labelled residues whose highest of ``logits`` (R, 20) is at ``labels`` (R,); NaN without labels."""
    labelled = labels >= 0
    return float((logits[labelled].argmax(axis=1) == labels[labelled]).mean()) if labelled.any() else float("nan")


def cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log softmax(logits)[label] (R,) in nats; NaN where the label is absent."""
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(labels)), np.maximum(labels, 0)]
    return np.where(labels >= 0, np.log(np.exp(shifted).sum(axis=1)) - chosen, np.nan)


def correlations(predicted: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Pearson's coefficient and Spearman's, the same of the ranks with ties at their mean, over labelled components.

    NaN with fewer than two labels, or where one side is constant.
    """
    labelled = np.isfinite(np.asarray(reference, dtype=np.float64))
    sides = [np.asarray(side, dtype=np.float64)[labelled] for side in (predicted, reference)]
    return {"pearson": _pearson(*sides), "spearman": _pearson(*(_ranks(side) for side in sides))}


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean() if first.size else first, second - second.mean() if second.size else second
    norm = float(np.sqrt(np.square(first).sum() * np.square(second).sum()))
    return float((first * second).sum() / norm) if norm > 0 else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, those of equal values their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - 0.5 * (counts - 1))[inverse.reshape(-1)]


def bootstrap_difference(
    values: np.ndarray,
    baseline: np.ndarray,
    groups: np.ndarray,
    confidence: float = 0.95,
    resamplings: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Mean of ``values - baseline`` (R,) over labelled residues with a percentile interval, whole groups resampled.

    ``groups`` (R,) names the sequence of each residue: residues of one sequence, and its conformations, are not
    independent. Returns difference, low and high; the interval is NaN with fewer than two groups.
    """
    difference = np.asarray(values) - np.asarray(baseline)
    labelled = np.isfinite(difference)
    names, members = np.unique(np.asarray(groups)[labelled], return_inverse=True)
    difference = difference[labelled]
    if len(names) < 2:
        mean = float(difference.mean()) if difference.size else float("nan")
        return {"difference": mean, "low": float("nan"), "high": float("nan")}
    sums = np.bincount(members, weights=difference)
    counts = np.bincount(members)
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamplings, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return {"difference": float(difference.mean()), "low": float(low), "high": float(high)}
