"""Classification of jets: accuracy, AUC, background rejection with errors, and the mass window as a baseline.

Regression of four-momenta: relative errors of the components, and how well a jet's total is conserved.

Pure functions of numpy arrays. Labels below zero are absent and do not count. Scores rise with the signal.
"""

from typing import NamedTuple

import numpy as np

UNITS = {"true_momenta": "GeV"}
COMPONENTS = ("E", "px", "py", "pz")


class Roc(NamedTuple):
    """Efficiencies of background and signal (points,) for falling thresholds, from (0, 0) to (1, 1)."""

    background: np.ndarray
    signal: np.ndarray


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of labelled jets whose highest of ``logits`` (N, classes) is at ``labels`` (N,); NaN without labels."""
    labelled = labels >= 0
    return float((logits[labelled].argmax(axis=1) == labels[labelled]).mean()) if labelled.any() else float("nan")


def auc(scores: np.ndarray, signal: np.ndarray) -> float:
    """Probability that a signal jet scores above a background jet, ties one half (Mann-Whitney rank statistic).

    ``scores`` (N,), ``signal`` (N,) bool; NaN when one of the two is missing.
    """
    signal = np.asarray(signal, dtype=bool)
    positives, negatives = int(signal.sum()), int((~signal).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - 0.5 * (counts - 1))[inverse]
    return float((ranks[signal].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def one_vs_one(logits: np.ndarray, labels: np.ndarray, signal: int, background: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores logit_signal - logit_background (N',) of the jets of two classes, and which are signal (N',)."""
    chosen = (labels == signal) | (labels == background)
    return logits[chosen, signal] - logits[chosen, background], labels[chosen] == signal


def roc(scores: np.ndarray, signal: np.ndarray) -> Roc:
    """The ROC curve, one point per different score, so that tied jets pass together."""
    signal = np.asarray(signal, dtype=bool)
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    passed = np.cumsum(signal[order])[last_of_tie]
    failed = np.cumsum(~signal[order])[last_of_tie]
    return Roc(np.append(0.0, failed / failed[-1]), np.append(0.0, passed / passed[-1]))


def rejection(scores: np.ndarray, signal: np.ndarray, efficiency: float) -> float:
    """1 / background efficiency at a signal ``efficiency`` in (0, 1]; inf where no background passes.

    Linear between points of the curve, at the first point that reaches the efficiency.
    """
    curve = roc(scores, signal)
    after = int(np.searchsorted(curve.signal, efficiency))
    (x0, x1), (y0, y1) = curve.signal[after - 1 : after + 1], curve.background[after - 1 : after + 1]
    background = y0 + (y1 - y0) * (efficiency - x0) / (x1 - x0)
    return float(1.0 / background) if background > 0 else float("inf")


def rejection_with_error(
    scores: np.ndarray, signal: np.ndarray, efficiency: float, resamplings: int = 200, seed: int = 0
) -> tuple[float, float]:
    """Rejection and its bootstrap standard error, signal and background resampled apart.

    The error is NaN when more than one resampling in twenty passes no background: the sample is then too small to tell.
    """
    rng = np.random.default_rng(seed)
    signal = np.asarray(signal, dtype=bool)
    passing, failing = scores[signal], scores[~signal]
    flags = np.repeat([True, False], [len(passing), len(failing)])

    def resampled() -> np.ndarray:
        return np.concatenate([rng.choice(passing, len(passing)), rng.choice(failing, len(failing))])

    values = np.array([rejection(resampled(), flags, efficiency) for _ in range(resamplings)])
    finite = values[np.isfinite(values)]
    error = float(finite.std(ddof=1)) if len(finite) >= 0.95 * resamplings else float("nan")
    return rejection(scores, signal, efficiency), error


def jet_masses(momenta: list[np.ndarray]) -> np.ndarray:
    """Invariant mass (N,) [GeV] of jets given by their particles (n, 4) in the order E, px, py, pz."""
    totals = np.array([np.asarray(jet, dtype=np.float64).sum(axis=0) for jet in momenta])
    momentum = np.linalg.norm(totals[:, 1:], axis=1)
    return np.sqrt(np.maximum((totals[:, 0] - momentum) * (totals[:, 0] + momentum), 0.0))


def fit_mass_window(masses: np.ndarray, signal: np.ndarray, points: int = 400) -> float:
    """The centre m0 [GeV] for which -|m - m0| has the highest AUC on training jets, scanned over their quantiles."""
    centres = np.unique(np.quantile(masses, np.linspace(0.0, 1.0, points)))
    values = [auc(mass_window_score(masses, centre), signal) for centre in centres]
    return float(centres[int(np.argmax(values))])


def mass_window_score(masses: np.ndarray, centre: float) -> np.ndarray:
    """-|m - m0| (N,): ranking by it is a mass window around m0 of every width."""
    return -np.abs(masses - centre)


def relative_errors(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """{component: RMS of the difference over the RMS of the true value} of four-momenta (n, 4), by COMPONENTS."""
    difference = np.asarray(predicted, dtype=np.float64) - true
    errors = np.sqrt(np.square(difference).mean(axis=0) / np.square(np.asarray(true, dtype=np.float64)).mean(axis=0))
    return dict(zip(COMPONENTS, errors.tolist(), strict=True))


def conservation_errors(predicted: np.ndarray, totals: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """|sum of the four-momenta - total| over the total energy, (jets,), the largest of the four components.

    ``predicted`` and ``totals`` (n, 4) [GeV] have a row per particle, jet after jet; ``sizes`` (n,) are the particles
    of the row's jet.
    """
    starts = jet_starts(sizes)
    sums = np.add.reduceat(np.asarray(predicted, dtype=np.float64), starts, axis=0)
    return np.abs(sums - totals[starts]).max(axis=1) / totals[starts, 0]


def jet_starts(sizes: np.ndarray) -> np.ndarray:
    """The first row (jets,) of every jet, from the number of particles in each row's jet (n,)."""
    starts = [0]
    while starts[-1] + sizes[starts[-1]] < len(sizes):
        starts.append(starts[-1] + int(sizes[starts[-1]]))
    return np.array(starts)
