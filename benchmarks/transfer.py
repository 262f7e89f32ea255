"""Does pretraining help, and does joint pretraining help more? python benchmarks/transfer.py [--small]

Every domain is trained on shares of its embedded data from random weights, from a model pretrained on other data of the
same domain, and from one pretrained on all domains together; a plain transformer from random weights stands beside
them. The embedded stores are cut once, by trajectory, event or sequence, into a part for pretraining, one to train on,
one for validation and one for the test (`parts.py`). All starts of a domain take the same number of steps on the same
samples, each with the learning rate that had the lowest validation loss for the first seed; the time is reported, not
equal. Writes results/transfer.json and a plot with the standard deviation over seeds, whatever they show; a case that
stands there, found with the same settings, is not repeated.

The recipe of the pretraining is `--recipe`; backbone and cutoffs are those of BACKBONE in every run. Labels are part of
the pretraining where the recipe uses them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cells import arguments, mean_and_deviation, run_cell, text_of, value_at
from parts import DOMAINS, stores, write_fractions, write_parts
from workers import machine, say, write_result

KINDS = {"materials": ("atoms",), "hep": ("jets",), "biology": ("atoms", "residues")}
BACKBONE = (
    *("model=tiny", "model.channels=32", "model.layers=2", "model.correlation=3"),
    *("model.coarse_layers=0", "model.layers_after=0"),
)
TRANSFORMER = ("model=transformer", "model.channels=64", "model.layers=3", "model.options.attention_heads=8")
CUTOFFS = ("data.cutoff.atoms=4.2", "data.cutoff.residues=8.0")
SHARES = {"pretraining": 0.5, "training": 0.3, "validation": 0.05, "test": 0.15}
STARTS = ("scratch", "in-domain", "joint", "transformer")


@dataclass(frozen=True)
class Measure:
    """A number of the table: where the metrics hold it, its factor to the unit shown, and which way is better."""

    domain: str
    name: str
    path: str
    factor: float
    digits: int
    better: str


MEASURES = (
    Measure("materials", "forces MAE, meV/Å", "forces.mae", 1e3, 0, "lower"),
    Measure("materials", "energy MAE, meV/atom", "energy_per_atom.mae", 1e3, 1, "lower"),
    Measure("hep", "accuracy, %", "label.accuracy", 1e2, 1, "higher"),
    Measure("hep", "AUC top / qcd", "label.signals.top.auc", 1.0, 3, "higher"),
    Measure("biology", "residue cross-entropy, nats", "residue_types.cross_entropy", 1.0, 3, "lower"),
    Measure("biology", "forces MAE, meV/Å", "forces.mae", 1e3, 0, "lower"),
)


@dataclass(frozen=True)
class Settings:
    """The size of the benchmark; ``records`` limits every part of every store, None takes all."""

    fractions: tuple[float, ...] = (0.05, 0.25, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    pretraining_steps: int = 600
    steps: int = 300
    rates: tuple[float, ...] = (0.005, 0.0015)
    records: int | None = None
    small_words: tuple[str, ...] = ()


SMALL = Settings(
    fractions=(0.5,),
    seeds=(0,),
    pretraining_steps=2,
    steps=2,
    rates=(0.005,),
    records=24,
    small_words=("model.channels=8", "optimizer.warmup_steps=1"),
)


@dataclass(frozen=True)
class Case:
    """One training of the table, apart from its learning rate."""

    domain: str
    fraction: float
    seed: int
    start: str

    @property
    def name(self) -> str:
        """Folder of its runs."""
        return f"{self.domain}-{self.fraction:g}-{self.start}-{self.seed}"


def cases(settings: Settings) -> list[Case]:
    """Every training of the table; whole seeds one after the other, so that a stopped benchmark has whole rows."""
    return [
        Case(domain, fraction, seed, start)
        for seed in settings.seeds
        for domain in DOMAINS
        for fraction in settings.fractions
        for start in STARTS
    ]


def shared_words(settings: Settings, kinds: Sequence[str], seed: int, threads: int) -> list[str]:
    """What pretraining and training have in common: kinds, cutoffs, seed."""
    bins = [f"data.bins_per_step.{kind}={int(kind in kinds)}" for kind in ("atoms", "jets", "residues")]
    return [*bins, *CUTOFFS, f"seed={seed}", f"trainer.threads={threads}", *settings.small_words]


def pretrain(settings: Settings, options: Any, domain: str, seed: int) -> Path:
    """The run of a model pretrained on ``domain``, or on all for "joint"."""
    chosen = list(DOMAINS) if domain == "joint" else [domain]
    kinds = [kind for one in chosen for kind in KINDS[one]]
    folder = options.runs / "pretraining" / f"{domain}-{seed}"
    parts = options.runs / "data"
    run_cell(
        folder,
        [
            f"experiment={options.recipe}",
            *BACKBONE,
            "data.cutoff.jets=0.9",
            f"train={stores(parts, chosen, 'pretraining')}",
            f"val={stores(parts, chosen, 'validation')}",
            f"trainer.max_steps={settings.pretraining_steps}",
            *shared_words(settings, kinds, seed, options.threads),
        ],
    )
    return folder


def words(settings: Settings, options: Any, case: Case, rate: float) -> list[str]:
    """The training of a case, without its start."""
    parts = options.runs / "data"
    model = TRANSFORMER if case.start == "transformer" else BACKBONE
    edges = 2.5 if case.start == "transformer" else 0.9  # a transformer looks at all pairs of a jet
    part = f"training-{case.fraction:g}-{case.seed}"
    return [
        "experiment=quickstart",
        *model,
        f"data.cutoff.jets={edges}",
        f"train={stores(parts, [case.domain], part)}",
        f"val={stores(parts, [case.domain], 'validation')}",
        f"test={stores(parts, [case.domain], 'test')}",
        f"optimizer.learning_rate={rate}",
        f"trainer.max_steps={settings.steps}",
        *shared_words(settings, KINDS[case.domain], case.seed, options.threads),
    ]


def run_case(settings: Settings, options: Any, case: Case, rates: Sequence[float]) -> dict[str, Any]:
    """The best of the learning ``rates`` by validation loss: {case, learning rate, steps, seconds, measures}."""
    start = []
    if case.start in ("in-domain", "joint"):
        domain = case.domain if case.start == "in-domain" else "joint"
        start = [f"init={pretrain(settings, options, domain, case.seed)}"]
    found = {}
    for rate in rates:
        folder = options.runs / case.name / f"rate-{rate:g}"
        found[rate] = run_cell(folder, [*words(settings, options, case, rate), *start])
    rate = min(found, key=lambda rate: found[rate]["validation_loss"])
    cell = found[rate]
    measures = {
        measure.name: value_at(cell["targets"], measure.path) for measure in MEASURES if measure.domain == case.domain
    }
    return {
        **asdict(case),
        "learning_rate": rate,
        "steps": cell["steps"],
        "seconds": cell["seconds"],
        "validation_loss": cell["validation_loss"],
        "measures": measures,
    }


def rates_of(settings: Settings, case: Case, rows: list[dict[str, Any]]) -> list[float]:
    """The learning rates to try: all of them for the first seed, for a later one what that seed chose."""
    same = (case.domain, case.fraction, case.start)
    chosen = [row["learning_rate"] for row in rows if (row["domain"], row["fraction"], row["start"]) == same]
    return chosen[:1] or list(settings.rates)


def found_before(path: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a benchmark that was stopped, on whatever machine, if its settings were the same."""
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    same = all(found.get(key) == json.loads(json.dumps(head[key])) for key in ("recipe", "settings"))
    return list(found["rows"]) if same else []


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per measure, fraction and start: mean and standard deviation over seeds, their number, and the mean seconds."""
    found = []
    for measure in MEASURES:
        for fraction in sorted({row["fraction"] for row in rows}):
            line: dict[str, Any] = {"domain": measure.domain, "measure": measure.name, "fraction": fraction}
            for start in STARTS:
                chosen = [
                    row
                    for row in rows
                    if (row["domain"], row["fraction"], row["start"]) == (measure.domain, fraction, start)
                ]
                if chosen:
                    mean, deviation = mean_and_deviation([row["measures"][measure.name] for row in chosen])
                    seconds, _ = mean_and_deviation([row["seconds"] for row in chosen])
                    line[start] = {"mean": mean, "deviation": deviation, "seeds": len(chosen), "seconds": seconds}
            if len(line) > 3:
                found.append(line)
    return found


def text(lines: list[dict[str, Any]]) -> list[list[str]]:
    """The table for people: its header, then its rows."""
    return [["domain", "on the test set", "share of the labels", *STARTS], *map(_row, lines)]


def _row(line: dict[str, Any]) -> list[str]:
    measure = next(m for m in MEASURES if (m.domain, m.name) == (line["domain"], line["measure"]))
    cells = []
    for start in STARTS:
        entry = line.get(start)
        scale = measure.factor
        deviation = None if entry is None or entry["deviation"] is None else scale * entry["deviation"]
        cells.append("" if entry is None else text_of(scale * entry["mean"], deviation, measure.digits))
    return [line["domain"], f"{measure.name} ({measure.better} is better)", f"{line['fraction']:.0%}", *cells]


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """The first measure of every domain against the share of labels, one line per start, with error bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(DOMAINS), figsize=(4 * len(DOMAINS), 3.6), layout="constrained")
    for axis, domain in zip(axes, DOMAINS, strict=True):
        measure = next(measure for measure in MEASURES if measure.domain == domain)
        chosen = [line for line in lines if line["domain"] == domain and line["measure"] == measure.name]
        for start in STARTS:
            points = [(line["fraction"], line[start]) for line in chosen if start in line]
            means = [measure.factor * entry["mean"] for _, entry in points]
            bars = [measure.factor * (entry["deviation"] or 0.0) for _, entry in points]
            style = "s--" if start == "transformer" else "o-"
            axis.errorbar([fraction for fraction, _ in points], means, bars, fmt=style, capsize=3, label=start)
        fractions = sorted({line["fraction"] for line in chosen})
        axis.set(xscale="log", xlabel="share of the labels", title=domain)
        axis.set_ylabel(f"{measure.name}\n({measure.better} is better)")
        axis.set_xticks(fractions, [f"{fraction:.0%}" for fraction in fractions], minor=False)
        axis.set_xticks([], minor=True)
    axes[-1].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(values: Sequence[str] | None = None) -> int:
    """Run the cells that are missing, write what is there."""
    options = arguments(__doc__ or "", "transfer", values)
    settings = SMALL if options.small else Settings()
    write_parts(options.runs / "data", SHARES, settings.records)
    write_fractions(options.runs / "data", "training", settings.fractions, settings.seeds)
    head = {"machine": machine(), "recipe": options.recipe, "threads": options.threads, "settings": asdict(settings)}
    rows = found_before(options.output, head)
    for case in cases(settings)[len(rows) :]:
        rows.append(run_case(settings, options, case, rates_of(settings, case, rows)))
        lines = table(rows)
        complete = len(rows) == len(cases(settings))
        write_result(options.output, {**head, "complete": complete, "text": text(lines), "table": lines, "rows": rows})
    lines = table(rows)
    plot(lines, options.output.with_suffix(".png"))
    for row in text(lines):
        say("  ".join(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
