"""What a base model is worth to a team with few labels: python benchmarks/finetune.py [--small] [--base PACKAGE]

Five tables, each over seeds, each cell resumable, every pair for the same wall-clock time:

    silicon   Si from 20 training cells of mlearn, on its test cells: from the base, from random weights
    jets      top against QCD from 500 labelled generated jets: from the base, from random weights
    proteins  residue types of 10 proteins of TS50 from the other 40: from the base, from random weights
    strategies  Si at three label counts: all parameters, low rank, random weights: error, trained parameters, time,
              forgetting
    lithium   Li after Si, without replay and with: the error that is left on Si

The base is trained here, by `--recipe` on a part of the embedded data that no table tests on and on generated backbones
of made-up proteins, unless `--base` names a package. Random weights are trained at the recipe's learning rate and at
larger ones, and the best by validation counts. Choices are made on validation data; the test sets are evaluated once a
cell. Writes results/finetune.json, finetune.png with what was measured against the number of labels, and three of the
plots of the first models: finetune_parity.png, finetune_roc.png and finetune_reliability.png.
`--tables silicon,lithium` runs some of them.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cells import arguments, mean_and_deviation, run_cell, text_of, value_at
from parts import DOMAINS, REFERENCE, shuffled, stores, write_parts, write_records
from ts50 import write_proteins
from workers import machine, say, write_result

from sciml.config import configure
from sciml.data.store import Store, StoreWriter
from sciml.evaluate.plots import learning_curves
from sciml.ingest.generate import backbones
from sciml.ingest.ingest import ingest

SHARES = {
    "materials": {"pretraining": 0.95, "validation": 0.05},
    "biology": {"pretraining": 0.95, "validation": 0.05},
    "hep": {"pretraining": 0.5, "training": 0.15, "validation": 0.05, "test": 0.3},
}
"""Of the embedded stores; fine-tuning and its tests take other data, but for jets."""
TABLES = ("silicon", "jets", "proteins", "strategies", "lithium")
PICTURES = {"parity": "silicon", "roc": "jets", "reliability": "jets"}
"""What the evaluation of a table's first model from the base draws, kept beside the result."""
KINDS = {"materials": "atoms", "hep": "jets", "biology": "residues"}
BACKBONE = (
    *("model=tiny", "model.channels=32", "model.layers=2", "model.correlation=3"),
    *("model.coarse_layers=0", "model.layers_after=0", "data.cutoff={atoms: 5.0, jets: 0.9, residues: 8.0}"),
)
NOISE = ("objective.denoise.weight={residues: 0.2}", "objective.denoise.levels=[0.05,0.3]")
"""On backbones, which are few: it keeps them from being learned by heart, from either start."""
MEASURES = {
    "silicon": (("forces RMSE, meV/Å", "forces.rmse", 1e3, 1), ("energy MAE, meV/atom", "energy_per_atom.mae", 1e3, 2)),
    "jets": (
        ("AUC top / qcd", "label.signals.top.auc", 1.0, 3),
        ("rejection at 30 %", "label.signals.top.rejection_30%", 1.0, 0),
    ),
    "proteins": (
        ("recovery, %", "residue_types.recovery", 1e2, 1),
        ("cross-entropy, nats", "residue_types.cross_entropy", 1.0, 3),
    ),
}
"""Of a table, what is shown: name, path in the metrics, factor to the unit, digits."""


@dataclass(frozen=True)
class Settings:
    """The size of the benchmark; ``seconds`` of a fine-tuning, ``pretraining`` words that end the base's training."""

    seeds: tuple[int, ...] = (0, 1, 2)
    seconds: int = 60
    pretraining: tuple[str, ...] = ("trainer.max_steps=2000",)
    rates: tuple[float, ...] = (1.0, 3.0)  # of random weights, in units of the recipe's
    cells: int = 20
    label_counts: tuple[int, ...] = (10, 40, 160)
    jets: int = 500
    replay: float = 0.3
    chains: int = 250  # of the base
    records: int | None = None
    small_words: tuple[str, ...] = ()

    @property
    def duration(self) -> tuple[str, ...]:
        """The words that end a fine-tuning."""
        minutes, seconds = divmod(self.seconds, 60)
        return (
            (f"trainer.max_time=00:{minutes:02d}:{seconds:02d}",) if not self.small_words else ("trainer.max_steps=2",)
        )


SMALL = Settings(
    seeds=(0,),
    pretraining=("trainer.max_steps=2",),
    cells=6,
    label_counts=(4,),
    jets=12,
    chains=4,
    records=24,
    rates=(1.0,),
    small_words=("optimizer.warmup_steps=1", "adapt.retained.records=2", "uncertainty=4"),
)


@dataclass(frozen=True)
class Cell:
    """One training of a table: its folder's name, who starts it, how many labels it has, its words, and its learning
    rate in units of the recipe's.
    """

    table: str
    name: str
    start: str
    seed: int
    labels: int
    words: tuple[str, ...]
    rate: float = 1.0


def write_crystals(folder: Path, counts: Sequence[int], seeds: Sequence[int]) -> None:
    """Stores of mlearn: {Si, Li}-test, and of training cells {Si, Li}-<count>-<seed>, nested for one seed.

    Raises SystemExit where the reference data are not there.
    """
    for element in ("Si", "Li"):
        for part in ("training", "test"):
            source, path = REFERENCE / "mlearn" / element / f"{part}.json", folder / f"{element}-{part}"
            if not source.is_file():
                raise SystemExit(f"{source} is missing: set SCIML_SHARED to the folder that holds data/mlearn")
            if not (path / "manifest.json").is_file():
                ingest(source, path, dataset="mlearn-pbe")
        store = Store(folder / f"{element}-training")
        for seed in seeds:
            order = shuffled(store, np.arange(len(store)), seed)
            for count in counts:
                write_records(store, order[:count], folder / f"{element}-{count}-{seed}")


def write_jets(folder: Path, jets: int, seeds: Sequence[int]) -> None:
    """Stores jets-<count>-<seed> of labelled jets that the base was not trained on."""
    store = Store(folder / "jets" / "training")
    for seed in seeds:
        write_records(store, shuffled(store, np.arange(len(store)), seed)[:jets], folder / f"jets-{jets}-{seed}")


def write_backbones(folder: Path, chains: int) -> Path:
    """A store of made-up chains."""
    path = folder / "backbones"
    if not (path / "manifest.json").is_file():
        with StoreWriter(path, "biology", backbones.DATASET) as writer:
            for record in backbones.generate(0, chains):
                writer.add(record)
    return path


def pretrain(settings: Settings, options: Any) -> Path:
    """The base model: the package that was named, or one trained on the embedded data's part for it."""
    if options.base:
        return Path(options.base)
    parts = options.runs / "data"
    words = [
        f"experiment={options.recipe}",
        *BACKBONE,
        f"train={stores(parts, list(DOMAINS), 'pretraining', write_backbones(parts, settings.chains))}",
        f"val={stores(parts, list(DOMAINS), 'validation')}",
        f"test={stores(parts, ['hep'], 'test')}",
        f"trainer.threads={options.threads}",
        *settings.pretraining,
        *(word for word in settings.small_words if not word.startswith("adapt.")),
    ]
    run_cell(options.runs / "base", words)
    return Path(options.runs / "base")


def cells(settings: Settings, options: Any, base: Path, tables: Sequence[str]) -> Iterator[Cell]:
    """Every training, whole seeds one after the other, so that a stopped benchmark has whole rows."""
    data = options.runs / "data"
    for seed in settings.seeds:
        shared = (f"seed={seed}", f"trainer.threads={options.threads}", *settings.duration, *settings.small_words)
        tuned = (f"init={base}", *shared)
        plain = (*BACKBONE, *(word for word in shared if not word.startswith("adapt.")), "adapt.layer_decay=1.0")
        of = {
            "silicon": ("finetune_materials", f"Si-{settings.cells}-{seed}", "Si-test", settings.cells, ()),
            "jets": ("finetune_hep", f"jets-{settings.jets}-{seed}", "jets/test", settings.jets, ()),
            "proteins": ("finetune_biology", "train", "test", 40, NOISE),
        }
        for table, (recipe, train, test, labels, further) in of.items():
            if table not in tables:
                continue
            sources = (f"experiment={recipe}", f"train={data / train}", f"test={data / test}", *further)
            yield Cell(table, f"{table}-base-{seed}", "base", seed, labels, (*sources, *tuned))
            yield from _scratch(settings, recipe, table, table, seed, labels, (*sources, *plain))
        for count in settings.label_counts if "strategies" in tables else ():
            recipe = "finetune_materials"
            sources = (f"experiment={recipe}", f"train={data / f'Si-{count}-{seed}'}", f"test={data / 'Si-test'}")
            for strategy in ("full", "lora"):
                words = (*sources, f"adapt={strategy}", *tuned)
                yield Cell("strategies", f"strategies-{strategy}-{count}-{seed}", strategy, seed, count, words)
            yield from _scratch(settings, recipe, "strategies", f"strategies-{count}", seed, count, (*sources, *plain))
        if "lithium" in tables:
            yield from _lithium(settings, data, options.runs, seed, tuned, shared)


def _scratch(
    settings: Settings, recipe: str, table: str, name: str, seed: int, labels: int, words: tuple[str, ...]
) -> Iterator[Cell]:
    """Random weights at each learning rate."""
    for rate in settings.rates:
        chosen = (*words, f"optimizer.learning_rate={rate * learning_rate(recipe):g}")
        yield Cell(table, f"{name}-scratch-{rate:g}-{seed}", "scratch", seed, labels, chosen, rate)


def _replay(settings: Settings, store: Path) -> tuple[str, ...]:
    """The words that mix a store of the base's own data into a fine-tuning."""
    return f"adapt.replay.fraction={settings.replay}", f"adapt.replay.stores={store}"


def learning_rate(recipe: str) -> float:
    """That of a recipe."""
    config = configure("train", [f"experiment={recipe}", "train=none", "adapt.layer_decay=1.0"])
    return float(config.optimizer.learning_rate)


def _lithium(
    settings: Settings, data: Path, runs: Path, seed: int, tuned: tuple[str, ...], shared: tuple[str, ...]
) -> Iterator[Cell]:
    """Si from the base, then Li from that, without replay and with; forgetting is measured on the test cells of Si."""
    recipe, count = "experiment=finetune_materials", settings.cells
    silicon = (f"train={data / f'Si-{count}-{seed}'}", f"test={data / 'Si-test'}")
    yield Cell("lithium", f"lithium-si-{seed}", "Si", seed, count, (recipe, *silicon, *tuned))
    after = (f"train={data / f'Li-{count}-{seed}'}", f"test={data / 'Li-test'}", f"init={runs / f'lithium-si-{seed}'}")
    kept = f"adapt.retained.stores={data / 'Si-test'}"
    replay = _replay(settings, data / f"Si-{count}-{seed}")
    for start, further in (("alone", ()), ("replay", replay)):
        words = (recipe, *after, *shared, kept, *further)
        yield Cell("lithium", f"lithium-{start}-{seed}", start, seed, count, words)


def run(options: Any, cell: Cell) -> dict[str, Any]:
    """What a cell found: its facts, seconds, steps, validation loss, targets, adaptation, trained parameters."""
    folder = options.runs / cell.name
    found = run_cell(folder, list(cell.words))
    file = folder / "evaluation" / "adaptation.json"
    adaptation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    facts = {"table": cell.table, "start": cell.start, "seed": cell.seed, "labels": cell.labels, "rate": cell.rate}
    facts |= {key: found[key] for key in ("seconds", "steps", "validation_loss", "targets")}
    return {**facts, "adaptation": adaptation, "trained": trained_parameters(folder)}


def trained_parameters(folder: Path) -> int:
    """The number of parameters that the run said it trains: all of a model from scratch."""
    said = (folder / "log.txt").read_text(encoding="utf-8")
    trained = re.search(r"^adapt=\w+: ([\d,]+) parameters are trained$", said, re.M)
    found = trained or re.search(r"^([\d,]+) parameters, kinds ", said, re.M)
    assert found
    return int(found[1].replace(",", ""))


def retained(row: dict[str, Any], measure: str) -> tuple[float, float] | None:
    """Mean error before and after over the base tasks that a run measured, None without any."""
    chosen = [r for r in row["adaptation"] if r["part"] == "retained" and r["measure"] == measure]
    if not chosen:
        return None
    before, after = (float(np.mean([r[key] for r in chosen])) for key in ("before", "after"))
    return before, after


def text(rows: list[dict[str, Any]]) -> dict[str, list[list[str]]]:
    """{table: header and rows} for people."""
    tables: dict[str, list[list[str]]] = {}
    for table, measures in MEASURES.items():
        lines = [["from", "labels", *(name for name, *_ in measures), "seconds", "seeds"]]
        lines += [
            [start, str(chosen[0]["labels"]), *(_mean(chosen, *measure[1:]) for measure in measures), *_cost(chosen)]
            for start in ("base", "scratch")
            if (chosen := _chosen(rows, table, start=start))
        ]
        tables[table] = lines
    lines = [
        [
            "strategy",
            "labels",
            "forces RMSE, meV/Å",
            "trained",
            "base tasks, forces MAE after / before",
            "seconds",
            "seeds",
        ]
    ]
    for labels in sorted({row["labels"] for row in rows if row["table"] == "strategies"}):
        for start in ("full", "lora", "scratch"):
            chosen = _chosen(rows, "strategies", start=start, labels=labels)
            if chosen:
                trained = f"{chosen[0]['trained']:,}"
                lines.append(
                    [start, str(labels), _mean(chosen, "forces.rmse", 1e3, 1), trained, _kept(chosen), *_cost(chosen)]
                )
    tables["strategies"] = lines
    lines = [["Li after Si", "Li forces RMSE, meV/Å", "Si forces MAE after / before", "seconds", "seeds"]]
    for start in ("alone", "replay"):
        chosen = _chosen(rows, "lithium", start=start)
        if chosen:
            lines.append([start, _mean(chosen, "forces.rmse", 1e3, 1), _kept(chosen), *_cost(chosen)])
    tables["lithium"] = lines
    return {table: lines for table, lines in tables.items() if len(lines) > 1}


def curves(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[int, list[float]]]]:
    """{panel: {line: {number of labels: value of each seed}}} of what was measured, for learning curves."""
    base, low_rank, scratch = "from the base", "from the base, low rank", "from random weights"
    silicon = {
        base: [("strategies", "full"), ("silicon", "base")],
        low_rank: [("strategies", "lora")],
        scratch: [("strategies", "scratch"), ("silicon", "scratch")],
    }
    strategies = {name: pairs[:1] for name, pairs in silicon.items() if name != scratch}
    found = {"Si: forces RMSE / meV/Å": _lines(rows, silicon, partial(_value, "forces.rmse", 1e3))}
    found["base tasks: forces MAE after / before"] = _lines(rows, strategies, _forgetting)
    for table, name, path, factor in (
        ("jets", "jets: AUC top / qcd", "label.signals.top.auc", 1.0),
        ("proteins", "proteins: recovery / %", "residue_types.recovery", 1e2),
    ):
        starts = {base: [(table, "base")], scratch: [(table, "scratch")]}
        found[name] = _lines(rows, starts, partial(_value, path, factor))
    return {name: lines for name, lines in found.items() if lines}


def _value(path: str, factor: float, row: dict[str, Any]) -> float:
    return factor * value_at(row["targets"], path)


def _forgetting(row: dict[str, Any]) -> float | None:
    pair = retained(row, "forces MAE")
    return pair[1] / pair[0] if pair else None


def _lines(
    rows: list[dict[str, Any]],
    lines: dict[str, list[tuple[str, str]]],
    measure: Callable[[dict[str, Any]], float | None],
) -> dict[str, dict[int, list[float]]]:
    """{line: {number of labels: ``measure`` of each seed}} of the rows of each line's tables and starts."""
    found: dict[str, dict[int, list[float]]] = {}
    for name, pairs in lines.items():
        for table, start in pairs:
            for labels in sorted({row["labels"] for row in rows if (row["table"], row["start"]) == (table, start)}):
                values = [measure(row) for row in _chosen(rows, table, start=start, labels=labels)]
                if known := [value for value in values if value is not None]:
                    found.setdefault(name, {})[labels] = known
    return found


def _chosen(rows: list[dict[str, Any]], table: str, **facts: Any) -> list[dict[str, Any]]:
    """The row of each seed, at the learning rate of the lowest validation loss."""
    of_seed: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["table"] == table and all(row[key] == value for key, value in facts.items()):
            best = of_seed.setdefault(row["seed"], row)
            of_seed[row["seed"]] = min(best, row, key=lambda row: row["validation_loss"])
    return list(of_seed.values())


def _mean(rows: list[dict[str, Any]], path: str, factor: float, digits: int) -> str:
    mean, deviation = mean_and_deviation([factor * value_at(row["targets"], path) for row in rows])
    return text_of(mean, deviation, digits)


def _kept(rows: list[dict[str, Any]]) -> str:
    pairs = [pair for row in rows if (pair := retained(row, "forces MAE"))]
    return text_of(*mean_and_deviation([after / before for before, after in pairs]), 2) if pairs else ""


def _cost(rows: list[dict[str, Any]]) -> tuple[str, str]:
    return f"{mean_and_deviation([row['seconds'] for row in rows])[0]:.0f}", str(len(rows))


def main(values: Sequence[str] | None = None) -> int:
    """Run the cells that are missing, write what is there."""
    options = arguments(__doc__ or "", "finetune", values)
    settings = SMALL if options.small else Settings()
    tables = options.tables.split(",") if options.tables else list(TABLES)
    unknown = set(tables) - set(TABLES)
    if unknown:
        found = ", ".join(sorted(unknown))
        raise SystemExit(f"--tables: there is no table {found}; give one or more of {', '.join(TABLES)}.")
    data = options.runs / "data"
    for domain, shares in SHARES.items():
        write_parts(data, shares, settings.records, [domain])
    if {"silicon", "strategies", "lithium"} & set(tables):
        write_crystals(data, sorted({settings.cells, *settings.label_counts}), settings.seeds)
    if "jets" in tables:
        write_jets(data, settings.jets, settings.seeds)
    if "proteins" in tables:
        write_proteins(data)
    base = pretrain(settings, options)
    planned = list(cells(settings, options, base, tables))
    rows: list[dict[str, Any]] = []
    for cell in planned:
        rows.append(run(options, cell))
        head = {"machine": machine(), "recipe": options.recipe, "base": options.base, "threads": options.threads}
        head |= {"settings": asdict(settings), "complete": len(rows) == len(planned)}
        write_result(options.output, {**head, "text": text(rows), "rows": rows})
    if panels := curves(rows):
        learning_curves(panels, options.output.with_suffix(".png"))
    for name, table in PICTURES.items():
        if table in tables:
            drawn = options.runs / f"{table}-base-{settings.seeds[0]}" / "evaluation" / f"{name}.png"
            if drawn.is_file():
                shutil.copyfile(drawn, options.output.with_name(f"{options.output.stem}_{name}.png"))
    for table, lines in text(rows).items():
        say(table)
        for line in lines:
            say("  ".join(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
