"""Uncertainty by last-layer prediction rigidity: one pass of one model, no ensemble (Bigi et al., 2024).

What a prediction is linear in, the inputs f of a head's last layer, gives its variance alpha^2 f^T (C + s^2)^-1 f,
where C sums f f^T over the training labels, each in the unit of its loss. alpha and s are chosen on validation data:
for numbers by the Gaussian likelihood of the errors, for classes by that of the labels under the logits divided by
sqrt(1 + pi/8 variance) (MacKay, 1992).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from sciml.data.graph_dataset import GraphDataset, evaluation_loader
from sciml.data.packing import Budget
from sciml.data.source import Source
from sciml.data.store import Subset
from sciml.data.targets import described_targets
from sciml.graph import graph_of_rows
from sciml.models.model import Model
from sciml.models.readout import Head
from sciml.objectives.supervised import error_unit

RIDGES = tuple(10.0**power for power in range(-8, 0))
"""s^2 by the mean eigenvalue of C."""
ALPHAS = np.concatenate([[0.0], np.logspace(-3, 3, 61)])
"""Mean variances of logits that are tried."""
Captured = dict[str, tuple[Head, dict[int, Tensor]]]
UNCHANGED = 1e-12  # features that are smaller, by the largest ones, are rounding
FEWEST = 8  # validation labels that an uncertainty can be calibrated on


@dataclass
class Rigidity:
    """alpha^2 (C + s^2)^-1 of one target, (w, w) float64."""

    inverse: Tensor

    def variance(self, features: Tensor) -> Tensor:
        """Variance (rows,) of predictions with features (rows, components, w), the mean over the components."""
        features = features.double()
        inverse = self.inverse.to(features.device)
        return torch.einsum("rcv,vw,rcw->rc", features, inverse, features).mean(dim=1).clamp_min(0.0)


@dataclass
class Rows:
    """Labelled rows of one target: features (m, c, w) float64, predictions and labels (m, ...), their unit (m,)."""

    features: Tensor
    predictions: Tensor
    labels: Tensor
    units: Tensor

    @property
    def squared_errors(self) -> Tensor:
        """The mean over the components of a row, (m,)."""
        return (self.predictions.double() - self.labels.double()).square().reshape(len(self.labels), -1).mean(dim=1)

    @property
    def of_classes(self) -> bool:
        return not self.labels.is_floating_point()


@contextmanager
def captured(model: Model, kind: str) -> Iterator[Captured]:
    """Within, {target: (head, {index: inputs} of its last layers)} of the newest call of ``model`` on ``kind``.

    A bias counts as an input of one.
    """
    found: Captured = {}
    handles = []
    for head in model.heads_for(kind):
        for target in head.targets:
            for index, layer in enumerate(head.last_layers(target)):
                handles.append(layer.register_forward_pre_hook(_keep(found, target, head, index)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _keep(found: Captured, target: str, head: Head, index: int) -> Any:
    def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs = arguments[0].detach().double()
        if getattr(module, "bias", None) is not None:
            inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=-1)
        found.setdefault(target, (head, {}))[1][index] = inputs

    return hook


def features_of(found: Captured, target: str, batch: Batch) -> Tensor:
    """What the prediction of every row is linear in, (rows, components, w) float64."""
    head, inputs = found[target]
    return head.pool_features(target, [inputs[index] for index in sorted(inputs)], batch).detach()


def labelled_rows(
    model: Model, sources: Sequence[Source], description: dict[str, Any], budgets: dict[str, Budget], records: int
) -> dict[str, Rows]:
    """Rows of every target with an uncertainty, from at most ``records`` of every source, spread over it."""
    sources = [_spread(source, records) for source in sources if len(source.data)]
    coarse = description.get("coarse", {}).get("cutoffs")
    own = described_targets(description["heads"])
    dataset = GraphDataset(
        sources, description["cutoffs"], coarse_cutoffs=coarse, far_field=model.far_field, targets=own
    )
    kinds = [kind for kind in description["kinds"] if model.heads_for(kind)]
    parts: dict[str, list[tuple[Tensor, ...]]] = {}
    device = next(model.parameters()).device
    for micro_batch in evaluation_loader(dataset, kinds, budgets):
        micro_batch = micro_batch.to(device)
        batch = micro_batch.batch
        with captured(model, micro_batch.kind) as found, torch.no_grad():
            predictions = model(batch, micro_batch.kind)
        for target in (target for target in found if target in batch):
            label = batch[target]
            known = label >= 0 if not label.is_floating_point() else label.isfinite()
            known = known.reshape(len(label), -1).all(dim=1)
            head = found[target][0]
            graph = graph_of_rows(batch, label, head.levels.get(target))
            unit = error_unit(target, graph, batch, head.scale(target, batch))
            features, prediction = features_of(found, target, batch), predictions[target]
            if label.is_floating_point():
                prediction, label = (head.compared(target, values, batch) for values in (prediction, label))
            columns = (features, prediction, label, unit)
            if any(len(column) != len(label) for column in columns):
                continue  # a head of one's own, whose last layer has other rows than its labels
            parts.setdefault(target, []).append(tuple(column[known].detach().cpu() for column in columns))
    joined = {name: Rows(*(torch.cat(column) for column in zip(*part, strict=True))) for name, part in parts.items()}
    told = {name: _changeable(rows) for name, rows in joined.items()}
    return {name: rows for name, rows in told.items() if len(rows.labels)}


def _changeable(rows: Rows) -> Rows:
    """The rows that the last layer can change: not the momentum of a jet's only particle, which conservation gives."""
    size = rows.features.square().sum(dim=(1, 2)).sqrt()
    kept = size > UNCHANGED * size.max() if len(size) else size > 0
    return Rows(rows.features[kept], rows.predictions[kept], rows.labels[kept], rows.units[kept])


def _spread(source: Source, records: int) -> Source:
    chosen = np.unique(np.linspace(0, len(source.data) - 1, min(records, len(source.data))).astype(int))
    return Source(Subset(source.data, chosen), source.dataset, source.name)


def calibrate(training: dict[str, Rows], validation: dict[str, Rows]) -> dict[str, Rigidity]:
    """The rigidity of every target that both have labels of: C of the first, alpha and s by the second."""
    found = {}
    for target in training.keys() & validation.keys():
        if len(validation[target].labels) >= FEWEST:
            found[target] = _calibrated(training[target], validation[target])
    return found


def _calibrated(training: Rows, validation: Rows) -> Rigidity:
    scaled = (training.features / training.units.double()[:, None, None]).flatten(0, 1)
    values, vectors = torch.linalg.eigh(scaled.T @ scaled)
    values = values.clamp_min(0.0)
    along = (validation.features @ vectors).square()
    best, chosen = np.inf, (values, 0.0)
    for ridge in RIDGES:
        spectrum = values + ridge * float(values.mean()) + 1e-300
        variances = (along / spectrum).sum(dim=2).mean(dim=1).clamp_min(1e-300)
        judge = _of_classes if validation.of_classes else _of_numbers
        loss, alpha = judge(validation, variances)
        if loss < best:
            best, chosen = loss, (spectrum, alpha)
    spectrum, alpha = chosen
    return Rigidity(alpha * (vectors / spectrum) @ vectors.T)


def _of_numbers(rows: Rows, variances: Tensor) -> tuple[float, float]:
    """Negative log likelihood a row, and the best factor of the variances: the mean of error^2 / variance."""
    alpha = float((rows.squared_errors / variances).mean())
    return 0.5 * (float(variances.log().mean()) + float(np.log(max(alpha, 1e-300)))), alpha


def _of_classes(rows: Rows, variances: Tensor) -> tuple[float, float]:
    factors = ALPHAS / float(variances.mean())
    losses = [_cross_entropy(softened(rows.predictions, factor * variances), rows.labels) for factor in factors]
    best = int(np.argmin(losses))
    return losses[best], float(factors[best])


def softened(logits: Tensor, variances: Tensor) -> Tensor:
    """Logits (m, classes) divided by sqrt(1 + pi/8 variance), (m,) of each."""
    return logits.double() / (1.0 + np.pi / 8.0 * variances.double())[:, None].sqrt()


def _cross_entropy(logits: Tensor, labels: Tensor) -> float:
    return float(nn.functional.cross_entropy(logits, labels.long()))


def fit(
    model: Model,
    training: Sequence[Source],
    validation: Sequence[Source],
    description: dict[str, Any],
    budgets: dict[str, Budget],
    records: int,
) -> tuple[dict[str, Rigidity], str]:
    """The rigidities of a trained model, and a sentence on the predictions without one, empty where all have one.

    ``records`` of every source at most, 0 for none at all.
    """
    if not records:
        return {}, ""
    rows = [labelled_rows(model.eval(), part, description, budgets, records) for part in (training, validation)]
    found = calibrate(*rows)
    heads = [head for kind in description["kinds"] for head in model.heads_for(kind)]
    return found, _without(heads, found, *rows)


def _without(
    heads: Sequence[Head], found: dict[str, Rigidity], training: dict[str, Rows], validation: dict[str, Rows]
) -> str:
    """Which targets have no rigidity, and why, as a sentence."""
    reasons: dict[str, list[str]] = {}
    for head in heads:
        for target in (target for target in head.targets if target not in found):
            labels = [len(rows[target].labels) if target in rows else 0 for rows in (training, validation)]
            counts = f"{labels[0]} training and {labels[1]} validation labels were found, 1 and {FEWEST} are needed"
            why = counts if head.last_layers(target) else "not linear in the inputs of a last layer"
            reasons.setdefault(why, []).append(target)
    parts = [f"{', '.join(targets)} ({why})" for why, targets in reasons.items()]
    return f"without calibrated uncertainty: {'; '.join(parts)}" if parts else ""


def reliability(rows: Rows, rigidity: Rigidity, bins: int = 10) -> dict[str, Any]:
    """How far the uncertainties of rows are those of their errors.

    Numbers: RMS of error / uncertainty (1 is right), the part of the rows with an error below one and two of them (0.68
    and 0.95 of a Gaussian), the rank correlation of both, and the RMS of both in ``bins`` of rising uncertainty.
    Classes: the expected calibration error without and with the variance, and confidence and accuracy in bins.
    """
    variances = rigidity.variance(rows.features)
    if rows.of_classes:
        return _reliability_of_classes(rows, variances, bins)
    errors, sigmas = rows.squared_errors.sqrt().numpy(), variances.sqrt().numpy()
    ratio = errors / np.maximum(sigmas, 1e-300)
    order = np.array_split(np.argsort(sigmas), min(bins, len(sigmas)))
    ranks = [np.argsort(np.argsort(values)) for values in (errors, sigmas)]
    correlation: Any = np.corrcoef(np.stack(ranks))
    return {
        "count": len(errors),
        "rms_ratio": float(np.sqrt(np.square(ratio).mean())),
        "within_one": float((ratio < 1).mean()),
        "within_two": float((ratio < 2).mean()),
        "rank_correlation": float(correlation[0, 1]) if len(errors) > 2 else float("nan"),
        "uncertainty": [float(np.sqrt(np.square(sigmas[part]).mean())) for part in order],
        "error": [float(np.sqrt(np.square(errors[part]).mean())) for part in order],
    }


def _reliability_of_classes(rows: Rows, variances: Tensor, bins: int) -> dict[str, Any]:
    result: dict[str, Any] = {"count": len(rows.labels)}
    for name, logits in (("plain", rows.predictions.double()), ("softened", softened(rows.predictions, variances))):
        confidence, guesses = (column.numpy() for column in logits.softmax(dim=1).max(dim=1))
        right = guesses == rows.labels.numpy()
        parts = np.array_split(np.argsort(confidence), min(bins, len(right)))
        result[f"confidence_{name}"] = [float(confidence[part].mean()) for part in parts]
        result[f"accuracy_{name}"] = [float(right[part].mean()) for part in parts]
        gaps = [len(part) * abs(confidence[part].mean() - right[part].mean()) for part in parts]
        result[f"calibration_error_{name}"] = float(sum(gaps) / len(right))
    return result


def to_tensors(rigidities: dict[str, Rigidity]) -> dict[str, Tensor]:
    """Plain tensors for a package, {target: (w, w)}."""
    return {target: rigidity.inverse.contiguous() for target, rigidity in rigidities.items()}


def from_tensors(tensors: dict[str, Tensor]) -> dict[str, Rigidity]:
    """The rigidities of a package."""
    return {target: Rigidity(inverse) for target, inverse in tensors.items()}


def text(found: dict[str, dict[str, Any]]) -> str:
    """One line a target."""
    lines = []
    for target, values in sorted(found.items()):
        if "rms_ratio" in values:
            what = (
                f"error / uncertainty {values['rms_ratio']:.2f}, {values['within_one']:.0%} within one and "
                f"{values['within_two']:.0%} within two, rank correlation {values['rank_correlation']:.2f}"
            )
        else:
            plain, softer = values["calibration_error_plain"], values["calibration_error_softened"]
            what = f"calibration error {softer:.3f}, {plain:.3f} without"
        lines.append(f"uncertainty of {target}: {what} ({values['count']:,} labels)")
    return "\n".join(lines)
