"""What was measured, as a table and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from measure import PASSES

HEAD = ["problem", "by", "forward / backward / double, ms", "peak, MB", "kept, MB", "error", "ours is faster by"]


def head() -> str:
    """The first two lines of a table in Markdown."""
    return f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}"


def lines(row: dict[str, Any]) -> str:
    """The limit of a problem, then a line for each provider."""
    title = f"{row['problem']} {row['name']}"
    table = []
    if "limit_ms" in row:
        table.append(f"| {title} | limit of the hardware | {_times(row['limit_ms'])} | | | | |")
    for name, error in row["errors"].items():
        table.append(f"| {title} | {' | '.join(_cells(row, name, error))} |")
    for name, reason in row["skipped"].items():
        table.append(f"| {title} | {name} | not measured: {reason} | | | | |")
    return "\n".join(table)


def _cells(row: dict[str, Any], name: str, error: float) -> list[str]:
    if f"{name}_ms" not in row:
        return [name, "WRONG", "", "", f"{error:.0e}", ""]
    times, memory = row[f"{name}_ms"], row[f"{name}_memory"]
    by = ""
    if name != "ours" and "ours_ms" in row:
        by = f"{sum(times.values()) / sum(row['ours_ms'].values()):.1f}x"
    return [name, _times(times), f"{memory['peak_MB']:.0f}", f"{memory['saved_MB']:.1f}", f"{error:.0e}", by]


def _times(values: dict[str, float]) -> str:
    return " / ".join(f"{values[name]:.3g}" for name in PASSES)


def plot(found: dict[str, Any], path: Path) -> None:
    """Time of each pass by each provider, with the limit as a line; nothing where nothing was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in found["rows"] if "ours_ms" in row]
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row["errors"] if f"{name}_ms" in row))
    figure, axes = pyplot.subplots(
        1, len(rows), figsize=(2.2 * len(rows) + 1.5, 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, row in zip(axes[0], rows, strict=True):
        for index, name in enumerate(names):
            if f"{name}_ms" in row:
                places = [place + 0.8 * index / len(names) for place in range(len(PASSES))]
                heights = [row[f"{name}_ms"][order] for order in PASSES]
                axis.bar(places, heights, 0.8 / len(names), color=f"C{index}", align="edge", label=name)
        for place, order in enumerate(PASSES):
            axis.hlines(row["limit_ms"][order], place, place + 0.8, color="black")
        axis.set(yscale="log", title=f"{row['problem']}", xticks=[place + 0.4 for place in range(len(PASSES))])
        axis.set_xticklabels(PASSES, rotation=45)
    axes[0][0].set_ylabel("ms (line: limit of the hardware)")
    handles = {label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(list(handles.values()), list(handles), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)
