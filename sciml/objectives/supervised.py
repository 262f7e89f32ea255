"""The supervised objective: a weighted sum over targets of (sum of label losses) / (labels in the whole optimizer
step).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch

from sciml import registry
from sciml.data.graph_dataset import LoadedBatch
from sciml.errors import UserError
from sciml.graph import graph_of_rows
from sciml.models.model import Model
from sciml.models.readout import Head, pool_sum

PER_ATOM = {"energy"}


@dataclass(frozen=True)
class Term:
    """One target of the objective: its weight, its elementwise loss by registered name, and the loss's options."""

    weight: float
    loss: str
    options: dict[str, Any] = field(default_factory=dict)


class Supervised:
    """Exact sums over labels.

    Missing labels (NaN, or -1 for classes) take no part. Errors of energies are per atom and in the unit that the head
    gives for the graph's dataset, so that datasets of different stiffness weigh alike.
    """

    def __init__(self, terms: dict[str, Term]) -> None:
        self.terms = {target: term for target, term in terms.items() if term.weight > 0}
        self.losses = {target: registry.resolve("losses", term.loss) for target, term in self.terms.items()}

    def __call__(
        self, model: Model, predictions: dict[str, Tensor], micro_batch: LoadedBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss (its sum over the step's micro-batches is the step's loss) and each target's share of it.

        Raises UserError where a target has no denominator.
        """
        shares: dict[str, Tensor] = {}
        for target, losses, _, _ in self._losses(model, predictions, micro_batch):
            labels = _denominator(target, micro_batch)
            shares[target] = self.terms[target].weight * losses.sum() / max(labels, 1.0)
        # Without any share the loss is a zero that still can be differentiated.
        loss = torch.stack(list(shares.values())).sum() if shares else 0.0 * next(model.parameters()).sum()
        return loss, shares

    def of_graphs(
        self, model: Model, predictions: dict[str, Tensor], micro_batch: LoadedBatch
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return {target: (summed loss with its weight (B,), labels (B,))} of every graph of a micro-batch."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for target, losses, labelled, graph in self._losses(model, predictions, micro_batch):
            rows = [values if values.dim() == 1 else values.flatten(1).sum(dim=1) for values in (losses, labelled)]
            total, labels = (pool_sum(values, graph, micro_batch.batch.num_graphs) for values in rows)
            found[target] = self.terms[target].weight * total, labels
        return found

    def _losses(
        self, model: Model, predictions: dict[str, Tensor], micro_batch: LoadedBatch
    ) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        """Yield (target, losses (m, ...), labels in them, graph of each row (m,)) of every target that has a term."""
        batch = micro_batch.batch
        for head in model.heads_for(micro_batch.kind):
            for target in head.targets:
                if target in self.terms and target in predictions and target in batch:
                    yield target, *self._rows(head, target, predictions[target], batch)

    def _rows(self, head: Head, target: str, prediction: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        label = batch[target]
        graph = graph_of_rows(batch, label, head.levels.get(target))
        loss, options = self.losses[target], self.terms[target].options
        if not label.is_floating_point():
            labelled = label >= 0
            losses = loss(prediction[labelled], label[labelled].long(), **options)
            return losses, torch.ones_like(losses), graph[labelled]
        label = label.to(prediction.dtype)
        unit = error_unit(target, graph, batch, head.scale(target, batch)).to(prediction.dtype)
        unit = unit.view(-1, *([1] * (label.dim() - 1)))
        labelled = torch.isfinite(label)
        label = torch.where(labelled, label, prediction.detach())  # an error whose gradient is finite
        error = head.error(target, prediction, label, batch) / unit
        error = torch.where(labelled, error, torch.zeros_like(error))
        return loss(error, torch.zeros_like(error), **options), labelled.to(error.dtype), graph


def error_unit(target: str, graph: Tensor, batch: Batch, scale: Tensor | None) -> Tensor:
    """Unit (m,) of the error in every row of a label, by its ``graph`` (m,); ``scale`` (B,) is what the head gives."""
    unit = torch.ones(batch.num_graphs, device=graph.device) if scale is None else scale
    if target in PER_ATOM:
        unit = unit * batch.ptr.diff()
    return unit[graph]


def _denominator(target: str, micro_batch: LoadedBatch) -> float:
    """Labels in the whole optimizer step; raises UserError where the domain does not count them."""
    if target not in micro_batch.denominators:
        raise UserError(
            f"objective: {target} has a weight, but the domain's counts() of {micro_batch.kind} does not count its "
            f"labels; add {target!r} there, or set its weight to 0."
        )
    return micro_batch.denominators[target]
