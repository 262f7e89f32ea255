"""Evaluate a model on sources: metrics per store and over all stores, as a table, a file and plots."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.graph_dataset import GraphDataset
from sciml.data.packing import Budget
from sciml.data.source import Source, source_names
from sciml.data.targets import Target, described_targets
from sciml.evaluate.measure import (
    baseline_predictions,
    kinds_of_rows,
    masses_of,
    measure_jets,
    measure_momenta,
    measure_numbers,
    measure_residues,
    momenta_and_totals,
)
from sciml.evaluate.predict import Columns, concatenate, predict
from sciml.evaluate.table import text_table
from sciml.evaluate.targets import baseline_of, measure_target
from sciml.files import write_text
from sciml.models.model import Model

Metrics = dict[str, dict[str, Any]]
Kinds = dict[str, np.ndarray]


@dataclass
class Evaluation:
    """Metrics {target: values} over all stores and per store, and what the plots need: predictions, and the energies
    of the composition fit {store: eV (m,)}; ``units`` {target: unit} are those of a user's own targets.
    """

    targets: Metrics
    stores: dict[str, Metrics]
    columns: dict[tuple[str, str], Columns]
    classes: list[str]
    composition: dict[str, np.ndarray] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    plots: list[Path] = field(default_factory=list)

    @property
    def table(self) -> str:
        """The metrics per store as text."""
        return text_table(self.stores)

    def write(self, folder: Path, plots: bool = True) -> None:
        """Write ``metrics.json`` and, with ``plots``, ``parity.png``, ``roc.png``, ``reliability.png`` and
        ``residues.png`` where they apply; the paths of the plots are kept in ``plots``.
        """
        from sciml.evaluate.plots import write_plots

        folder.mkdir(parents=True, exist_ok=True)
        content = _without_nan({"targets": self.targets, "stores": self.stores})
        write_text(folder / "metrics.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        if plots:
            self.plots = write_plots(self.columns, self.classes, folder, self.composition, self.units)


def evaluate_sources(
    model: Model,
    sources: list[Source],
    description: dict[str, Any],
    budgets: dict[str, Budget],
    baselines: dict[str, Any],
) -> Evaluation:
    """Predict and measure every source; ``description`` and ``baselines`` are those of the model's package."""
    context = description["context"]
    kinds = [kind for kind in description["kinds"] if model.heads_for(kind)]
    names = source_names(sources)
    stores: dict[str, Metrics] = {name: {} for name in names}
    # Of every target, the parts of the stores: predictions, what the baseline needs of their rows, and their kinds.
    parts: dict[str, list[tuple[Columns, np.ndarray, Kinds]]] = {}
    composition: dict[str, np.ndarray] = {}
    coarse = description.get("coarse", {}).get("cutoffs")
    own = {target.name: target for target in described_targets(description["heads"])}
    dataset = GraphDataset(
        sources, description["cutoffs"], coarse_cutoffs=coarse, far_field=model.far_field, targets=list(own.values())
    )
    labelled = predict(model, dataset, kinds, budgets)
    for (index, target), columns in sorted(labelled.items()):
        source = sources[index]
        kinds_of_numbers = kinds_of_rows(target, source, columns)
        if target in own:
            beside = baseline_of(own[target], source, columns, context.get("targets", {}).get(target, {}))
        elif target == "label":
            beside = masses_of(source, columns.records)
        elif target == "true_momenta":
            beside = momenta_and_totals(source, columns)
        elif target == "residue_types":
            beside = np.array(source.data.groups)[columns.records]
        else:
            references = context["references"].get(context["datasets"][source.dataset], {})
            beside = baseline_predictions(target, source, columns, references)
        if target == "energy":
            composition[names[index]] = beside
        parts.setdefault(target, []).append((columns, beside, kinds_of_numbers))
        stores[names[index]] |= _measure(target, columns, beside, context["classes"], baselines, kinds_of_numbers, own)
    targets: Metrics = {}
    for target, several in parts.items():
        joined = concatenate([columns for columns, _, _ in several])
        beside = np.concatenate([beside for _, beside, _ in several])
        targets |= _measure(target, joined, beside, context["classes"], baselines, _joined_kinds(several), own)
    named = {(names[index], target): columns for (index, target), columns in labelled.items()}
    units = {name: target.unit for name, target in own.items()}
    return Evaluation(targets, stores, named, context["classes"], composition, units)


def _joined_kinds(parts: list[tuple[Columns, np.ndarray, Kinds]]) -> Kinds:
    """The kinds of the rows of several stores; empty where a store does not tell one."""
    names = dict.fromkeys(name for _, _, kinds in parts for name in kinds)
    return {
        name: np.concatenate([kinds.get(name, np.full(len(columns.labels), "")) for columns, _, kinds in parts])
        for name in names
    }


def _measure(
    target: str,
    columns: Columns,
    beside: np.ndarray,
    classes: list[str],
    baselines: dict[str, Any],
    kinds: Kinds,
    own: dict[str, Target],
) -> Metrics:
    """Metrics of one target on one store or several; ``beside`` holds the masses of jets, the measured momenta and
    totals of particles, the sequence of every residue, or the baseline's predictions of numbers.
    """
    if target in own:
        return {target: measure_target(own[target], columns, beside, kinds)}
    if target == "label":
        return {target: measure_jets(columns, beside, classes, baselines["mass_windows"])}
    if target == "true_momenta":
        return {target: measure_momenta(columns, beside)}
    if target == "residue_types":
        return {target: measure_residues(columns, beside, baselines["residue_counts"])}
    return measure_numbers(target, columns, beside, kinds)


def _without_nan(values: Any) -> Any:
    """The same with null for numbers that JSON cannot hold: an interval of one sequence, a rejection without
    background.
    """
    if isinstance(values, dict):
        return {name: _without_nan(value) for name, value in values.items()}
    return None if isinstance(values, float) and not math.isfinite(values) else values
