"""Evaluate a model on sources: metrics per store and over all stores, as a table, a file and plots."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.datamodule import Source
from sciml.data.sampler import Budget
from sciml.evaluate.measure import baseline_predictions, masses_of, measure_jets, measure_numbers, measure_residues
from sciml.evaluate.predict import Columns, concatenate, predict
from sciml.evaluate.table import text_table
from sciml.models.model import Model

Metrics = dict[str, dict[str, Any]]


@dataclass
class Evaluation:
    """Metrics {target: values} over all stores and per store, and the predictions behind them for plots."""

    targets: Metrics
    stores: dict[str, Metrics]
    columns: dict[tuple[str, str], Columns]
    classes: list[str]

    @property
    def table(self) -> str:
        """The metrics per store as text."""
        return text_table(self.stores)

    def write(self, folder: Path, plots: bool = True) -> None:
        """Write ``metrics.json`` and, with ``plots``, ``parity.png``, ``roc.png`` and ``residues.png`` where they
        apply.
        """
        from sciml.evaluate.plots import write_plots

        folder.mkdir(parents=True, exist_ok=True)
        content = _without_nan({"targets": self.targets, "stores": self.stores})
        (folder / "metrics.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if plots:
            write_plots(self.columns, self.classes, folder)


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
    names = _unique([source.name for source in sources])
    stores: dict[str, Metrics] = {name: {} for name in names}
    numbers: dict[str, list[tuple[Columns, np.ndarray]]] = {}
    labelled = predict(model, sources, kinds, description["cutoffs"], budgets)
    targets: Metrics = {}
    for (index, target), columns in sorted(labelled.items()):
        source = sources[index]
        if target == "label":
            masses = masses_of(source, columns.records)
            measured = {target: measure_jets(columns, masses, context["classes"], baselines["mass_windows"])}
            targets |= measured
        elif target == "residue_types":
            groups = np.array(source.data.groups)[columns.records]
            measured = {target: measure_residues(columns, groups, baselines["residue_counts"])}
            targets |= measured
        else:
            references = context["references"].get(context["datasets"][source.dataset], {})
            baseline = baseline_predictions(target, source, columns, references)
            measured = measure_numbers(target, columns, baseline)
            numbers.setdefault(target, []).append((columns, baseline))
        stores[names[index]] |= measured
    for target, parts in numbers.items():
        joined = concatenate([columns for columns, _ in parts])
        targets |= measure_numbers(target, joined, np.concatenate([baseline for _, baseline in parts]))
    named = {(names[index], target): columns for (index, target), columns in labelled.items()}
    return Evaluation(targets, stores, named, context["classes"])


def _without_nan(values: Any) -> Any:
    """The same with null for numbers that JSON cannot hold: an interval of one sequence, a rejection without
    background.
    """
    if isinstance(values, dict):
        return {name: _without_nan(value) for name, value in values.items()}
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _unique(names: list[str]) -> list[str]:
    """Names with a number behind those that occur more than once."""
    return [name if names.count(name) == 1 else f"{name}-{names[:i].count(name) + 1}" for i, name in enumerate(names)]
