"""Classification of jets: accuracy, AUC, background rejection with errors, calibration, how much a tagger sculpts the
mass, and the mass window as a baseline.

Regression of four-momenta: relative errors of the components, and how well a jet's total is conserved; of masses and
transverse momenta: response and resolution.

Pure functions of numpy arrays. Labels below zero are absent and do not count. Scores rise with the signal.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

UNITS = {"true_momenta": "GeV", "true_mass": "GeV", "true_pt": "GeV"}
COMPONENTS = ("E", "px", "py", "pz")


class Roc(NamedTuple):
    """Efficiencies of background and signal (points,) for falling thresholds, from (0, 0) to (1, 1)."""

    background: np.ndarray
    signal: np.ndarray


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of labelled jets whose highest of ``logits`` (N, classes) is at ``labels`` (N,); NaN without labels."""
    labelled = labels >= 0
    return float((logits[labelled].argmax(axis=1) == labels[labelled]).mean()) if labelled.any() else float("nan")


def accuracy_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Bootstrap standard error of the accuracy, that of infinitely many resamplings: binomial. NaN without labels."""
    share, count = accuracy(logits, labels), int((labels >= 0).sum())
    return float(np.sqrt(share * (1.0 - share) / count)) if count else float("nan")


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
    return rejection_of(roc(scores, signal), efficiency)


def rejection_of(curve: Roc, efficiency: float) -> float:
    """The same of a curve."""
    after = int(np.searchsorted(curve.signal, efficiency))
    (x0, x1), (y0, y1) = curve.signal[after - 1 : after + 1], curve.background[after - 1 : after + 1]
    background = y0 + (y1 - y0) * (efficiency - x0) / (x1 - x0)
    return float(1.0 / background) if background > 0 else float("inf")


def resampled_rocs(scores: np.ndarray, signal: np.ndarray, resamplings: int, seed: int = 0) -> Iterator[Roc]:
    """Curves of bootstrap samples, signal and background resampled apart: jets keep their order and get counts."""
    rng = np.random.default_rng(seed)
    order = np.argsort(-scores, kind="stable")
    signal = np.asarray(signal, dtype=bool)[order]
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    positives, negatives = int(signal.sum()), int((~signal).sum())
    for _ in range(resamplings):
        passed, failed = np.zeros(len(order)), np.zeros(len(order))
        passed[signal] = np.bincount(rng.integers(positives, size=positives), minlength=positives)
        failed[~signal] = np.bincount(rng.integers(negatives, size=negatives), minlength=negatives)
        background, efficiency = np.cumsum(failed)[last_of_tie], np.cumsum(passed)[last_of_tie]
        yield Roc(np.append(0.0, background / negatives), np.append(0.0, efficiency / positives))


def rejection_with_error(
    scores: np.ndarray, signal: np.ndarray, efficiency: float, resamplings: int = 200, seed: int = 0
) -> tuple[float, float]:
    """Rejection and its bootstrap standard error.

    The error is NaN when more than one resampling in twenty passes no background: the sample is then too small to tell.
    """
    curves = resampled_rocs(scores, signal, resamplings, seed)
    return rejection(scores, signal, efficiency), _error([rejection_of(curve, efficiency) for curve in curves])


def tagging(
    scores: np.ndarray, signal: np.ndarray, efficiencies: Sequence[float], resamplings: int = 200, seed: int = 0
) -> dict[str, float]:
    """AUC and rejections with their bootstrap standard errors: auc, auc_error, rejection_30%, rejection_30%_error..."""
    areas: list[float] = []
    rejections: dict[float, list[float]] = {efficiency: [] for efficiency in efficiencies}
    for curve in resampled_rocs(scores, signal, resamplings, seed):
        areas.append(float(np.trapezoid(curve.signal, curve.background)))
        for efficiency, values in rejections.items():
            values.append(rejection_of(curve, efficiency))
    found = {"auc": auc(scores, signal), "auc_error": _error(areas)}
    for efficiency, values in rejections.items():
        name = f"rejection_{efficiency:.0%}"
        found |= {name: rejection(scores, signal, efficiency), f"{name}_error": _error(values)}
    return found


def _error(values: list[float]) -> float:
    """Standard deviation of the finite values; NaN where more than one in twenty is not."""
    finite = np.array(values)[np.isfinite(values)]
    return float(finite.std(ddof=1)) if len(finite) > 1 and len(finite) >= 0.95 * len(values) else float("nan")


def roc_band(
    scores: np.ndarray, signal: np.ndarray, efficiencies: np.ndarray, resamplings: int = 200, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles 16 % and 84 % of the background efficiency (points,) at signal ``efficiencies`` (points,)."""
    curves = resampled_rocs(scores, signal, resamplings, seed)
    values = [np.interp(efficiencies, curve.signal, curve.background) for curve in curves]
    low, high = np.quantile(values, [0.16, 0.84], axis=0)
    return low, high


def mean_auc(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean AUC over all pairs of classes that have jets (Hand & Till, Machine Learning 45, 171, 2001); NaN without one.

    Of a pair, each class is ranked by its own probability against the other.
    """
    probabilities = softmax(logits)
    classes = np.unique(labels[labels >= 0])
    areas = []
    for first in classes:
        for second in classes[classes != first]:
            chosen = (labels == first) | (labels == second)
            areas.append(auc(probabilities[chosen, first], labels[chosen] == first))
    return float(np.mean(areas)) if areas else float("nan")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes), float64."""
    shifted = np.exp(np.asarray(logits, dtype=np.float64) - np.max(logits, axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


class Reliability(NamedTuple):
    """How often the predicted class is right, by its probability: per bin (bins,) mean probability, accuracy, jets."""

    confidence: np.ndarray
    accuracy: np.ndarray
    jets: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al., 2017): the mean of |accuracy - confidence|, bins by their jets."""
        used = self.jets > 0
        gaps = np.abs(self.accuracy - self.confidence)[used]
        return float((gaps * self.jets[used]).sum() / self.jets.sum()) if used.any() else float("nan")


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> Reliability:
    """Labelled jets in ``bins`` of equal width of the highest probability; NaN in an empty bin."""
    labelled = labels >= 0
    probabilities = softmax(logits[labelled])
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels[labelled]
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(index, weights, minlength=bins) / count for weights in (confidence, right)]
    return Reliability(means[0], means[1], count)


def jensen_shannon(first: np.ndarray, second: np.ndarray) -> float:
    """Jensen-Shannon divergence in bits of two histograms (bins,) of counts: 0 for alike ones, 1 for apart ones."""
    first, second = (np.asarray(side, dtype=np.float64) / np.sum(side) for side in (first, second))
    middle = (first + second) / 2

    def relative(side: np.ndarray) -> float:
        used = side > 0
        return float((side[used] * np.log2(side[used] / middle[used])).sum())

    return (relative(first) + relative(second)) / 2


def mass_sculpting(
    scores: np.ndarray, signal: np.ndarray, masses: np.ndarray, efficiency: float, bins: int = 20
) -> float:
    """Jensen-Shannon divergence of the masses of background jets that pass a cut from those that fail it.

    The cut keeps ``efficiency`` of the signal; ``bins`` of equal background. It is 0 for a tagger that knows nothing of
    the mass, up to about bins / (1.4 * 4 * passing jets) by chance. NaN where fewer than ``bins`` jets pass or fail.
    """
    signal = np.asarray(signal, dtype=bool)
    threshold = np.quantile(scores[signal], 1.0 - efficiency)
    background, passing = masses[~signal], scores[~signal] >= threshold
    if min(passing.sum(), (~passing).sum()) < bins:
        return float("nan")
    edges = np.unique(np.quantile(background, np.linspace(0.0, 1.0, bins + 1)))
    return jensen_shannon(*(np.histogram(background[side], edges)[0] for side in (passing, ~passing)))


def response(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Median of predicted / true, and half the width of its central 68 % by that median: bias and resolution."""
    low, median, high = np.quantile(np.asarray(predicted, dtype=np.float64) / true, [0.16, 0.5, 0.84])
    return {"response": float(median), "resolution": float((high - low) / (2 * median))}


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
