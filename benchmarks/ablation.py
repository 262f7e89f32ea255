"""Is every part of the model worth its cost? python benchmarks/ablation.py [--small]

Trains the whole model, and the model without each of its parts, on the embedded data of all domains for the same
wall-clock time on the same machine, and measures them on the same held-out data: what a part costs in time it must win
back in error. Writes results/ablation.json and a plot of the errors relative to the whole model of the same seed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cells import arguments, mean_and_deviation, run_cell, text_of, value_at
from parts import DOMAINS, stores, write_parts
from workers import machine, say, write_result

# What every run says, then what switches a part off.
WHOLE = (
    "model.correlation=3",
    "model.spurions=true",
    "model.coarse_layers=1",
    "model.layers_after=1",
    "model.reciprocal.charges=4",
)
PARTS = {
    "coarse level": ("model.coarse_layers=0",),
    "reciprocal space": ("model.reciprocal.charges=0",),
    "spurions": ("model.spurions=false",),
    "product": ("model.correlation=1",),
}
SHARES = {"training": 0.8, "validation": 0.05, "test": 0.15}
# name: path in the metrics, factor to the unit shown, digits; lower is better for all
MEASURES = {
    "forces MAE, meV/Å": ("forces.mae", 1e3, 0),
    "energy MAE, meV/atom": ("energy_per_atom.mae", 1e3, 1),
    "jets, cross-entropy": ("label.cross_entropy", 1.0, 3),
    "residues, cross-entropy": ("residue_types.cross_entropy", 1.0, 3),
}


@dataclass(frozen=True)
class Settings:
    """The time of a run, the seeds, the most records of every part of a store, and further words for all."""

    minutes: float = 4.0
    seeds: tuple[int, ...] = (0, 1, 2)
    records: int | None = None
    further: tuple[str, ...] = ()


SMALL = Settings(
    minutes=0.2, seeds=(0,), records=24, further=("model.channels=4", "model.layers=1", "trainer.max_steps=2")
)


def variants() -> dict[str, list[str]]:
    """{name: words}: the whole model, and it without each part."""
    found = {"whole": list(WHOLE)}
    for part, off in PARTS.items():
        replaced = {word.partition("=")[0] for word in off}
        found[f"without {part}"] = [*(word for word in WHOLE if word.partition("=")[0] not in replaced), *off]
    return found


def words(settings: Settings, data: Path, seed: int, threads: int) -> list[str]:
    """A run without its model: the quickstart's recipe on all domains, the same time for all."""
    seconds = math.ceil(60 * settings.minutes)
    return [
        "experiment=quickstart",
        *(f"{key}={stores(data, list(DOMAINS), part)}" for key, part in zip(("train", "val", "test"), SHARES)),
        f"trainer.max_time={seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}",
        f"trainer.threads={threads}",
        f"seed={seed}",
        *settings.further,
    ]


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per variant: steps, and per measure mean, deviation, and the mean ratio to the whole model of the same seed."""
    whole = {row["seed"]: row for row in rows if row["variant"] == "whole"}
    found = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        chosen = [row for row in rows if row["variant"] == variant]
        line: dict[str, Any] = {"variant": variant, "seeds": len(chosen), "measures": {}}
        line["steps"], _ = mean_and_deviation([row["steps"] for row in chosen])
        for name in MEASURES:
            mean, deviation = mean_and_deviation([row["measures"][name] for row in chosen])
            ratios = [row["measures"][name] / whole[row["seed"]]["measures"][name] for row in chosen]
            ratio, ratio_deviation = mean_and_deviation(ratios)
            line["measures"][name] = {
                "mean": mean,
                "deviation": deviation,
                "ratio": ratio,
                "ratio_deviation": ratio_deviation,
            }
        found.append(line)
    return found


def text(lines: list[dict[str, Any]]) -> list[list[str]]:
    """The table for people: its header, then its rows; errors, and their ratios to the whole model's."""
    return [["model", "steps", *MEASURES], *map(_row, lines)]


def _row(line: dict[str, Any]) -> list[str]:
    cells = []
    for name, (_, factor, digits) in MEASURES.items():
        entry = line["measures"][name]
        deviation = None if entry["deviation"] is None else factor * entry["deviation"]
        ratio = "" if line["variant"] == "whole" else f" ({entry['ratio']:.2f}x)"
        cells.append(text_of(factor * entry["mean"], deviation, digits) + ratio)
    return [line["variant"], f"{line['steps']:,.0f}", *cells]


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Errors of the variants over those of the whole model, a group of bars per measure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 3.8), layout="constrained")
    without = [line for line in lines if line["variant"] != "whole"]
    width = 0.8 / max(1, len(without))
    for index, line in enumerate(without):
        entries = [line["measures"][name] for name in MEASURES]
        places = [place + (index - (len(without) - 1) / 2) * width for place in range(len(MEASURES))]
        bars = [entry["ratio_deviation"] or 0.0 for entry in entries]
        axis.bar(places, [entry["ratio"] - 1 for entry in entries], width, 1.0, yerr=bars, label=line["variant"])
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(MEASURES)), list(MEASURES))
    axis.set_ylabel("error / that of the whole model")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(values: Sequence[str] | None = None) -> int:
    """Run the cells that are missing, write what is there."""
    options = arguments(__doc__ or "", "ablation", values)
    settings = SMALL if options.small else Settings()
    data = options.runs / "data"
    write_parts(data, SHARES, settings.records)
    rows = []
    for seed in settings.seeds:  # variants of a seed one after the other, so that a slow hour of the machine hits all
        for variant, model in variants().items():
            folder = options.runs / f"{variant.replace(' ', '_')}-{seed}"
            cell = run_cell(folder, [*words(settings, data, seed, options.threads), *model])
            measures = {name: value_at(cell["targets"], path) for name, (path, _, _) in MEASURES.items()}
            rows.append({"variant": variant, "seed": seed, "steps": cell["steps"], "seconds": cell["seconds"]})
            rows[-1]["measures"] = measures
    lines = table(rows)
    result = {"machine": machine(), "threads": options.threads, "settings": asdict(settings)}
    result |= {"variants": variants(), "text": text(lines), "table": lines, "rows": rows}
    write_result(options.output, result)
    plot(lines, options.output.with_suffix(".png"))
    for row in text(lines):
        say("  ".join(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
