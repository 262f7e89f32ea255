"""How the labels of new data agree with what a model gives at a level of theory that it knows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sciml.data.graph_dataset import GraphDataset
from sciml.data.records import MAX_ELEMENT
from sciml.data.source import Source
from sciml.graph import collate
from sciml.models.model import Model

RECORDS = 50
STIFFNESS = (0.2, 5.0)  # of a level of theory relative to another: more is no matter of scale


class Agreement(NamedTuple):
    """How a level of theory explains labels: ``misfit``, the mean squared error of its predictions times ``stiffness``;
    ``factor``, which makes it least, and the ``cosine`` of predictions and labels.

    Of energies the misfit is the variance per atom that the level leaves beyond their mean [(eV/atom)^2], and factor
    and cosine are those of what the composition does not tell.
    """

    misfit: float
    factor: float = 1.0
    cosine: float = 0.0

    @property
    def stiffness(self) -> float:
        """The factor within ``STIFFNESS``."""
        return float(np.clip(self.factor, *STIFFNESS))


def agreements(
    model: Model, description: dict[str, Any], sources: Sequence[Source], level: int, most: int = RECORDS
) -> dict[str, Agreement]:
    """{"forces", "stress", "energies": how a known ``level`` explains these labels of sources}, each where there are
    such, of at most ``most`` records.
    """
    pairs: dict[str, list[Tensor]] = {"forces": [], "stress": []}
    counts, energies = [], []
    for graph in labelled_graphs(model, description, sources, level, most):
        predictions = predict(model, graph)
        for name, found in pairs.items():
            if name in graph and name in predictions:
                known = graph[name].isfinite() & predictions[name].isfinite()
                found.append(torch.stack([predictions[name][known], graph[name][known]]).double())
        if bool(graph.energy.isfinite().all()):
            counts.append(np.bincount(graph.types.numpy(), minlength=MAX_ELEMENT + 1))
            energies.append([float(predictions["interaction_energy"][0]), float(graph.energy[0])])
    result = {}
    for name, found in pairs.items():
        if found and (both := torch.cat(found, dim=1).numpy()).size:
            result[name] = _along(*both)
    if energies:
        result["energies"] = _of_energies(np.array(counts), np.array(energies))
    return result


def explained(model: Model, description: dict[str, Any], sources: Sequence[Source], level: int) -> Agreement:
    """How a known level of theory explains the forces of sources; without any, their energies."""
    found = agreements(model, description, sources, level)
    return found.get("forces") or found.get("energies", Agreement(0.0))._replace(factor=1.0)


def _along(predicted: np.ndarray, labels: np.ndarray) -> Agreement:
    own, product = float((predicted**2).sum()), float((predicted * labels).sum())
    norms = np.sqrt(own * float((labels**2).sum()))
    found = Agreement(0.0, product / own if own else 1.0, product / norms if norms else 0.0)
    return found._replace(misfit=float(((found.stiffness * predicted - labels) ** 2).mean()))


def _of_energies(counts: np.ndarray, both: np.ndarray) -> Agreement:
    """Of interaction and labelled energies (records, 2) and the numbers of atoms by element (records, elements)."""
    left = (both[:, 1] - both[:, 0]) / counts.sum(axis=1)
    present = counts[:, counts.any(axis=0)].astype(float)
    found = Agreement(0.0)
    if len(counts) >= np.linalg.matrix_rank(present) + 3:  # else the composition may tell everything
        told = present @ np.linalg.lstsq(present, both, rcond=None)[0]
        found = _along(*(both - told).T)
    return found._replace(misfit=float(left.var()))


def labelled_graphs(
    model: Model, description: dict[str, Any], sources: Sequence[Source], level: int, most: int
) -> list[Any]:
    """Labelled graphs of atoms at a level of theory, at most ``most``, spread over the sources."""
    coarse = description.get("coarse", {}).get("cutoffs")
    dataset = GraphDataset(list(sources), description["cutoffs"], coarse_cutoffs=coarse, far_field=model.far_field)
    found = []
    for index, source in enumerate(sources):
        labelled = source.data.serves("atoms") & (source.data.has("energy") | source.data.has("forces"))
        records = np.flatnonzero(labelled)
        number = min(len(records), max(1, most // len(sources)))
        for place in np.unique(np.linspace(0, len(records) - 1, number).astype(int)) if number else ():
            graph = dataset.graph(index, int(records[place]), "atoms").clone()
            graph.dataset = torch.tensor([level])
            found.append(graph)
    return found


def predict(model: Model, graph: Any) -> dict[str, Tensor]:
    with torch.no_grad():
        return model(collate([graph]), "atoms")
