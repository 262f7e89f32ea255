"""Plots of an evaluation: parity, ROC with bands, reliability, residue recovery; and curves against label count."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sciml.domains.hep.metrics import one_vs_one, reliability, roc, roc_band
from sciml.evaluate.measure import UNITS, background_class
from sciml.evaluate.predict import Columns
from sciml.graph import RESIDUES

INK = "#222222"
COLOURS = ("#3b6fb6", "#d1603d", "#3f8f5b", "#8a5aa8", "#b8912f", "#5a5a5a")
MOST_NAMES = 10  # in a legend
MOST_BANDS = 4  # around curves: more hide each other


def write_plots(
    columns: dict[tuple[str, str], Columns],
    classes: list[str],
    folder: Path,
    composition: dict[str, np.ndarray],
    units: dict[str, str],
) -> list[Path]:
    """Write every plot that the targets allow; returns their paths.

    ``composition`` {store: eV (m,)} are the energies of the composition fit, which parity plots leave out; ``units``
    {target: unit} those of a user's own targets.
    Jets and residues have a plot per store, with its name in the file's where there are several.
    """
    paths = []
    stores = {target: [store for store, name in columns if name == target] for _, target in columns}
    numeric = {target for (_, target), values in columns.items() if values.labels.dtype.kind == "f"}
    if numeric:
        paths.append(_parity(columns, sorted(numeric), composition, UNITS | units, folder / "parity.png"))
    for (store, target), values in columns.items():
        suffix = f"-{store}" if len(stores[target]) > 1 else ""
        if target == "label" and len(classes) > 1:
            paths.append(_roc(values, classes, folder / f"roc{suffix}.png"))
            paths.append(_reliability(values, folder / f"reliability{suffix}.png"))
        if target == "residue_types":
            paths.append(_residues(values, folder / f"residues{suffix}.png"))
    return paths


def figure(width: float, height: float, panels: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """A matplotlib figure of ``panels`` axes in one row, drawn without a display; with ``rows`` a list of rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots(rows, panels, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=INK, labelsize=8)
        axis.grid(alpha=0.2, linewidth=0.5)
    return drawing, axes if rows > 1 else axes[0]


def _parity(
    columns: dict[tuple[str, str], Columns],
    targets: list[str],
    composition: dict[str, np.ndarray],
    units: dict[str, str],
    path: Path,
) -> Path:
    """Predicted against reference; energies per atom, beyond what the composition alone tells."""
    drawing, axes = figure(4.2 * len(targets), 3.8, len(targets))
    for axis, target in zip(axes, targets, strict=True):
        stores = [store for store, name in columns if name == target]
        for store, colour in zip(stores, COLOURS * len(stores), strict=False):
            values = columns[store, target]
            labels, predictions = values.labels, values.predictions
            if target == "energy":
                labels, predictions = ((side - composition[store]) / values.sizes for side in (labels, predictions))
            labels, predictions = labels.ravel(), predictions.ravel()
            shown = np.random.default_rng(0).permutation(len(labels))[:4000]
            axis.plot(labels[shown], predictions[shown], ".", markersize=2, color=colour, label=store, rasterized=True)
        low, high = axis.get_xlim()
        axis.plot([low, high], [low, high], color=INK, linewidth=0.7)
        unit = units.get("energy_per_atom" if target == "energy" else target, "")
        what = "energy per atom - composition fit" if target == "energy" else target
        axis.set_xlabel(f"reference {what}{' / ' if unit else ''}{unit}", fontsize=8)
        axis.set_ylabel("predicted", fontsize=8)
        axis.legend(fontsize=7, frameon=False, markerscale=4)
    drawing.savefig(path, dpi=150)
    return path


def _roc(values: Columns, classes: list[str], path: Path) -> Path:
    """Background against signal efficiency of every class against the background class, the first ones with bands of
    68 % of bootstrap samples.
    """
    drawing, (axis,) = figure(4.6, 3.8)
    background = background_class(classes)
    grid = np.linspace(0.02, 1.0, 50)
    for index, name in enumerate(classes):
        scores, signal = one_vs_one(values.predictions, values.labels, index, background)
        if index != background and signal.any() and not signal.all():
            colour = COLOURS[index % len(COLOURS)]
            if len(axis.get_lines()) < MOST_BANDS:
                low, high = roc_band(scores, signal, grid, resamplings=100)
                least = 0.5 / (~signal).sum()  # below what one jet is
                low, high = np.maximum(low, least), np.maximum(high, least)
                axis.fill_between(grid, low, high, color=colour, alpha=0.25, linewidth=0)
            curve = roc(scores, signal)
            shown = np.where(curve.background > 0, curve.background, np.nan)  # where no jet passes nothing is known
            axis.plot(curve.signal, shown, label=f"{name} / {classes[background]}", color=colour)
    axis.set_yscale("log")
    axis.set_xlabel("signal efficiency", fontsize=8)
    axis.set_ylabel("background efficiency", fontsize=8)
    curves = axis.get_lines()
    if curves:
        more = f"and {len(curves) - MOST_NAMES} more" if len(curves) > MOST_NAMES else None
        axis.legend(handles=curves[:MOST_NAMES], title=more, fontsize=8, title_fontsize=8, frameon=False)
    drawing.savefig(path, dpi=150)
    return path


def _reliability(values: Columns, path: Path) -> Path:
    """How often the predicted class is right against its probability, with binomial errors; below, how many jets."""
    found = reliability(values.predictions, values.labels)
    drawing, rows = figure(4.2, 4.4, rows=2)
    above, below = (row[0] for row in rows)
    above.plot([0, 1], [0, 1], color=INK, linewidth=0.7)
    used = found.jets > 0
    errors = np.sqrt(found.accuracy * (1 - found.accuracy) / np.maximum(found.jets, 1))
    above.errorbar(
        found.confidence[used], found.accuracy[used], errors[used], fmt="o-", markersize=4, linewidth=1,
        color=COLOURS[0], label=f"expected calibration error {found.error:.3f}",
    )  # fmt: skip
    above.set_ylabel("share that is right", fontsize=8)
    above.legend(fontsize=8, frameon=False)
    edges = np.linspace(0, 1, len(found.jets) + 1)
    below.bar(edges[:-1], found.jets, np.diff(edges), align="edge", color=COLOURS[0])
    below.set_ylabel("jets", fontsize=8)
    below.set_xlabel("probability of the predicted class", fontsize=8)
    for axis in (above, below):
        axis.set_xlim(0, 1)
    drawing.savefig(path, dpi=150)
    return path


def learning_curves(panels: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]], path: Path) -> Path:
    """Draw {panel: {line: {number of labels: value of each seed}}}: means with standard deviations over the seeds.

    A panel's name is its vertical axis, such as ``force MAE / eV/Å``; a line has one colour in all panels.
    """
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    drawing, axes = figure(4.0 * len(panels), 3.4, len(panels))
    for axis, (what, lines) in zip(axes, panels.items(), strict=True):
        for name, points in lines.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            numbers = sorted(points)
            means = [float(np.mean(points[number])) for number in numbers]
            spreads = [float(np.std(points[number], ddof=1)) if len(points[number]) > 1 else 0.0 for number in numbers]
            axis.errorbar(
                numbers, means, spreads, fmt="o-", markersize=4, linewidth=1, capsize=2, color=colour, label=name
            )
        axis.set_xscale("log")
        ticks = sorted({number for points in lines.values() for number in points})
        axis.set_xticks(ticks, [f"{number:,}" for number in ticks])
        if len(ticks) == 1:
            axis.set_xlim(ticks[0] / 2, ticks[0] * 2)
        axis.minorticks_off()
        axis.set_xlabel("labelled records", fontsize=8)
        axis.set_ylabel(what, fontsize=8)
    handles = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    drawing.legend(handles.values(), handles, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    drawing.savefig(path, dpi=150)
    return path


def _residues(values: Columns, path: Path) -> Path:
    """Mean probability that the model gives to the true type, by type."""
    logits = values.predictions - values.predictions.max(axis=1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = probabilities[np.arange(len(values.labels)), values.labels]
    counts = np.bincount(values.labels, minlength=20)
    means = np.bincount(values.labels, weights=true, minlength=20) / np.maximum(counts, 1)
    drawing, (axis,) = figure(6.4, 3.0)
    axis.bar(list(RESIDUES), means, color=COLOURS[0], label="model")
    axis.plot(list(RESIDUES), counts / counts.sum(), "_", markersize=10, color=COLOURS[1], label="share of the type")
    axis.set_ylabel("probability of the true type", fontsize=8)
    axis.legend(fontsize=8, frameon=False)
    drawing.savefig(path, dpi=150)
    return path
