"""One learning rate for every width: python benchmarks/width.py [--small]

Trains models of 16 to 128 channels on the embedded molecules at several learning rates, with one rate for all
parameters and with `optimizer.reference_channels` (see sciml/train/optimizer.py), and writes results/width.json and a
plot: the validation loss after equal steps against the learning rate, one line per width. Where the rule holds, the
best rate is the same for every width.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cells import arguments, run_cell
from workers import machine, say, write_result

from sciml.errors import UserError

RULES = ("one rate for all", "by width")
TIE = 1.01  # losses of one seed differ by as much


@dataclass(frozen=True)
class Settings:
    """What is swept."""

    widths: tuple[int, ...] = (16, 32, 64, 128)
    rates: tuple[float, ...] = (0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)
    reference: int = 32
    steps: int = 200
    graphs: int = 12


SMALL = Settings(widths=(4, 8), rates=(0.005, 0.02), reference=4, steps=2, graphs=2)


def words(settings: Settings, width: int, rate: float, rule: str, threads: int) -> list[str]:
    """The run of one cell: molecules alone, the same batches for all."""
    rule_words = [f"optimizer.reference_channels={settings.reference}"] if rule == "by width" else []
    return [
        "experiment=quickstart",
        "train=samples:molecules",
        *(f"data.bins_per_step.{kind}={int(kind == 'atoms')}" for kind in ("atoms", "jets", "residues")),
        "data.batch.atoms.max_nodes=null",
        f"data.batch.atoms.max_graphs={settings.graphs}",
        f"model.channels={width}",
        f"optimizer.learning_rate={rate}",
        "optimizer.ema_decay=0.9",  # of few steps, so that the loss is that of the end
        "optimizer.warmup_steps=20",
        f"trainer.max_steps={settings.steps}",
        f"trainer.threads={threads}",
        *rule_words,
    ]


def losses(settings: Settings, runs: Path, threads: int) -> list[dict[str, Any]]:
    """Every cell: {rule, channels, learning_rate, loss, seconds}; the loss is None where training diverged.

    At the reference width both rules are the same, so it is trained once.
    """
    rows = []
    for rule in RULES:
        for width in settings.widths:
            trained = RULES[0] if width == settings.reference else rule
            for rate in settings.rates:
                folder = runs / trained.replace(" ", "_") / f"{width}-{rate:g}"
                row = {"rule": rule, "channels": width, "learning_rate": rate}
                try:
                    cell = run_cell(folder, words(settings, width, rate, trained, threads))
                    rows.append({**row, "loss": cell["validation_loss"], "seconds": cell["seconds"]})
                except UserError as error:
                    if "lower optimizer.learning_rate" not in str(error):
                        raise
                    rows.append({**row, "loss": None, "seconds": None})
    return rows


def summary(rows: list[dict[str, Any]], reference: int) -> list[dict[str, Any]]:
    """Per rule and width: the best rate, its loss, and the loss at the rate that is chosen at the reference width: the
    lowest whose loss there is within TIE of the best.

    ``cost`` is the last over the best: what is lost by choosing the rate at the reference; None where that diverges.
    """
    table = []
    for rule in dict.fromkeys(row["rule"] for row in rows):
        curves: dict[int, dict[float, float]] = {}
        for row in rows:
            if row["rule"] == rule:
                loss = math.inf if row["loss"] is None else row["loss"]
                curves.setdefault(row["channels"], {})[row["learning_rate"]] = loss
        least = min(curves[reference].values())
        chosen = min(rate for rate, loss in curves[reference].items() if loss <= TIE * least)
        for width, curve in curves.items():
            best = min(curve, key=curve.__getitem__)
            row = {"rule": rule, "channels": width, "best_rate": best, "best_loss": curve[best], "chosen_rate": chosen}
            diverged = math.isinf(curve[chosen])
            row["loss_at_chosen"] = None if diverged else curve[chosen]
            row["cost"] = None if diverged else curve[chosen] / curve[best]
            table.append(row)
    return table


def text(table: list[dict[str, Any]]) -> list[list[str]]:
    """The table for people, one row per width: its header, then its rows."""
    header = [f"{what}, {rule}" for rule in RULES for what in ("best rate", "loss / best loss")]
    rows = {}
    for row in table:
        cost = "diverges" if row["cost"] is None else f"{row['cost']:.2f}"
        rows.setdefault(row["channels"], [str(row["channels"])]).extend([f"{row['best_rate']:g}", cost])
    return [["channels", *header], *rows.values()]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Loss against learning rate, a line per width, a panel per rule."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(RULES), figsize=(9, 3.6), sharey=True, layout="constrained")
    widths = sorted({row["channels"] for row in rows})
    for axis, rule in zip(axes, RULES, strict=True):
        for index, width in enumerate(widths):
            line = [row for row in rows if row["rule"] == rule and row["channels"] == width and row["loss"] is not None]
            colour = plt.get_cmap("viridis")(index / max(1, len(widths) - 1) * 0.9)
            x, y = [row["learning_rate"] for row in line], [row["loss"] for row in line]
            axis.plot(x, y, "o-", color=colour, label=f"{width} channels")
        axis.set(xscale="log", yscale="log", xlabel="learning rate", title=rule)
        rates = sorted({row["learning_rate"] for row in rows})
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=45)
        axis.minorticks_off()
    axes[0].set_ylabel("validation loss")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(values: Sequence[str] | None = None) -> int:
    """Run the cells that are missing, write the result."""
    options = arguments(__doc__ or "", "width", values)
    settings = SMALL if options.small else Settings()
    rows = losses(settings, options.runs, options.threads)
    table = summary(rows, settings.reference)
    result = {"machine": machine(), "threads": options.threads, "settings": asdict(settings)}
    write_result(options.output, {**result, "text": text(table), "table": table, "rows": rows})
    plot(rows, options.output.with_suffix(".png"))
    for row in text(table):
        say("  ".join(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
