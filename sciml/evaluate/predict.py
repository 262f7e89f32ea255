"""Run a model over sources and collect predictions and labels as flat arrays."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sciml.data.graph_dataset import GraphDataset, LoadedBatch, evaluation_loader
from sciml.data.packing import Budget
from sciml.graph import graph_of_rows
from sciml.models.model import Model


class Columns(NamedTuple):
    """Predictions and labels of one target on one source, one row per labelled graph, fine node or coarse node.

    ``sizes`` (m,) are the fine nodes of the row's graph, ``records`` (m,) its record in the source.
    """

    predictions: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    records: np.ndarray


def concatenate(parts: list[Columns]) -> Columns:
    """Join the rows of several parts."""
    return Columns(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def predict(
    model: Model, dataset: GraphDataset, kinds: list[str], budgets: dict[str, Budget]
) -> dict[tuple[int, str], Columns]:
    """Return {(source index, target): Columns} for every target that a head predicts and a source labels."""
    parts: dict[tuple[int, str], list[Columns]] = {}
    device = next(model.parameters()).device
    for micro_batch in evaluation_loader(dataset, kinds, budgets):
        micro_batch = micro_batch.to(device)
        levels = model.levels(micro_batch.kind)
        with torch.no_grad():
            predictions = model(micro_batch.batch, micro_batch.kind)
        for target, prediction in predictions.items():
            if target in micro_batch.batch:
                for source, columns in _labelled_rows(target, prediction, micro_batch, levels.get(target)):
                    parts.setdefault((source, target), []).append(columns)
    return {key: concatenate(value) for key, value in parts.items()}


def _labelled_rows(
    target: str, prediction: Tensor, micro_batch: LoadedBatch, level: str | None
) -> list[tuple[int, Columns]]:
    """The labelled rows of one micro-batch, by source."""
    batch = micro_batch.batch
    label = batch[target]
    graph = graph_of_rows(batch, label, level)
    finite = label >= 0 if not label.is_floating_point() else torch.isfinite(label)
    labelled = finite.reshape(len(label), -1).all(dim=1)
    of_graph = torch.bincount(batch.batch, minlength=batch.num_graphs)[graph]
    predictions, labels, sizes, graphs = (c[labelled].cpu().numpy() for c in (prediction, label, of_graph, graph))
    sources, records = np.array(micro_batch.items)[graphs].T
    result = []
    for source in np.unique(sources):
        rows = sources == source
        result.append((int(source), Columns(predictions[rows], labels[rows], sizes[rows], records[rows])))
    return result
