"""Are the uncertainties those of the errors? A file, a plot and a line for every target."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sciml.data.packing import Budget
from sciml.data.source import Source
from sciml.data.targets import described_targets
from sciml.evaluate.measure import UNITS
from sciml.evaluate.plots import COLOURS, INK, figure
from sciml.evaluate.uncertainty import from_tensors, labelled_rows, reliability, text
from sciml.files import write_text
from sciml.models.model import Model

RECORDS = 2000  # of every source


def write_reliability(
    model: Model,
    tensors: dict[str, Tensor],
    sources: Sequence[Source],
    description: dict[str, Any],
    budgets: dict[str, Budget],
    folder: Path,
) -> tuple[str, Path | None]:
    """Write ``uncertainty.json`` and ``uncertainty.png``; returns a text of them, and the plot where there is one.

    ``tensors`` are those of a package, see :func:`sciml.evaluate.uncertainty.to_tensors`.
    """
    rigidities = from_tensors(tensors)
    rows = labelled_rows(model.eval(), sources, description, budgets, RECORDS) if rigidities else {}
    names = sorted(rows.keys() & rigidities.keys())
    earlier = [name for name in names if rows[name].features.shape[2] != len(rigidities[name].inverse)]
    found = {name: reliability(rows[name], rigidities[name]) for name in names if name not in earlier}
    told = [f"uncertainty of {name}: the package holds that of an earlier version, train again" for name in earlier]
    if not found:
        return "\n".join(told), None
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "uncertainty.json", json.dumps(found, indent=1) + "\n")
    path = folder / "uncertainty.png"
    units = UNITS | {target.name: target.unit for target in described_targets(description["heads"])}
    drawing, axes = figure(3.8 * len(found), 3.6, len(found))
    for axis, (name, values) in zip(axes, found.items(), strict=True):
        _draw(axis, name, values, units.get(name, ""))
    drawing.savefig(path, dpi=150)
    return "\n".join([text(found), *told]), path


def _draw(axis: Any, name: str, values: dict[str, Any], unit: str) -> None:
    """Error against uncertainty, or accuracy against confidence, in bins; on the diagonal they are right."""
    axis.set_title(name, fontsize=9)
    if "error" in values:
        axis.plot(values["uncertainty"], values["error"], "o-", color=COLOURS[0], markersize=4)
        shown = [value for value in (*values["uncertainty"], *values["error"]) if value > 0] or [1.0]
        ends = [min(shown), max(shown)]
        _logarithmic(axis, ends[1] / ends[0])
        of_unit = f" / {unit}" if unit else ""
        axis.set_xlabel(f"RMS uncertainty{of_unit}", fontsize=8)
        axis.set_ylabel(f"RMS error{of_unit}", fontsize=8)
    else:
        for kind, colour in (("plain", COLOURS[1]), ("softened", COLOURS[0])):
            pair = values[f"confidence_{kind}"], values[f"accuracy_{kind}"]
            axis.plot(*pair, "o-", color=colour, markersize=4, label="with uncertainty" if kind == "softened" else kind)
        axis.set_xlabel("confidence", fontsize=8)
        axis.set_ylabel("accuracy", fontsize=8)
        axis.legend(fontsize=7, frameon=False)
        ends = [0.0, 1.0]
    axis.plot(ends, ends, color=INK, linewidth=0.7)


def _logarithmic(axis: Any, spread: float) -> None:
    """Logarithmic axes; where they span few decades, their ticks are few and written plainly, or they would overlap."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    axis.set_xscale("log")
    axis.set_yscale("log")
    if spread < 100:
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(4) if spread < 10 else LogLocator(subs=(1.0, 2.0, 5.0)))
            side.set_major_formatter("{x:.3g}")
        axis.minorticks_off()
