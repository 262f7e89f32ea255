"""How accurate is a potential after some minutes on a GPU? python benchmarks/gpu_accuracy.py [--base PACKAGE]

Trains `experiment=rmd17_ethanol` and `experiment=threebpa`, each from random weights and, with `--base`, from a base
model, for `--minutes` each, and measures energies and forces on the test configurations, beside published figures.

A call ends within `--segment` minutes: a training that does not fit into what is left of them is stopped with a
checkpoint, and the next call of the same command goes on from there. Exit code 75: another call is needed; 0: all that
was asked for is measured. Writes results/gpu_accuracy_<gpu>.json; without a GPU it refuses with exit code 2, unless
`--device cpu` is given, whose result lies beside the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cells import choose_places, command_line, finished, run_segment, value_at
from mace import FILES, PeerError, duration
from structures import read_frames
from workers import machine, say, versions, write_result

from sciml.errors import UserError
from sciml.package import Package, load
from sciml_kernels.trilinear.tuned import name_of

RECIPES = {
    "rmd17_ethanol": "rMD17 ethanol: {training} configurations to train on, {test} to test on",
    "threebpa": "3BPA: {training} configurations at 300 K to train on, {test} at 300, 600 and 1200 K to test on",
}
"""Recipe: title of its table."""
STARTS = {"scratch": "from random weights", "base": "from the base model"}
TUNED = ("optimizer.learning_rate=0.002",)  # of fine-tuning, as in README.md and benchmarks/peers/mace.py
MEASURES = (
    ("energy MAE, meV", "energy.mae"),
    ("forces MAE, meV/Å", "forces.mae"),
    ("energy RMSE, meV", "energy.rmse"),
    ("forces RMSE, meV/Å", "forces.rmse"),
)
PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    "rmd17_ethanol": {
        "MACE": {"energy.mae": 0.4, "forces.mae": 2.1},
        "NequIP": {"energy.mae": 0.4, "forces.mae": 2.8},
    },
    "threebpa": {
        "MACE, at 300 K": {"energy.rmse": 3.0, "forces.rmse": 8.8},
        "NequIP, at 300 K": {"energy.rmse": 3.3, "forces.rmse": 10.8},
        "MACE, at 1200 K": {"energy.rmse": 29.8, "forces.rmse": 62.0},
        "NequIP, at 1200 K": {"energy.rmse": 38.5, "forces.rmse": 76.2},
    },
}
"""meV and meV/Å, by recipe, model and measure; of Batatia et al., NeurIPS 2022."""
NOTE = (
    "MACE and NequIP: published (Batatia et al., MACE, NeurIPS 2022), not run here. Their test sets of 3BPA have one "
    "temperature each; the one here mixes three and does not say which configuration has which."
)
SPLIT_SEED = 0


@dataclass(frozen=True)
class Settings:
    """The size of the benchmark; ``reserve`` and ``shortest`` in seconds of a call."""

    reserve: float = 60.0  # for the evaluation behind a training, which no segment time limits
    shortest: float = 30.0  # of a training that is worth beginning in what is left
    frames: int | None = None  # of each file; None for all
    length: tuple[str, ...] = ()  # of a training, in place of --minutes
    words_of: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by start


SMALL = Settings(
    reserve=0.0,
    frames=8,
    length=("trainer.max_time=null", "trainer.max_steps=20", "optimizer.warmup_steps=1"),
    words_of={"scratch": ("model=tiny",), "base": ("adapt.retained.records=2",)},
)


@dataclass(frozen=True)
class Cell:
    """One training: its recipe, what it starts from, the name of its folder, and the words that make it."""

    recipe: str
    start: str
    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Base:
    """The base model: the package as it was named on the command line, and loaded."""

    path: str
    package: Package

    @property
    def digest(self) -> str:
        """Of its weights; two bases have cells of their own."""
        hashes = json.loads((self.package.path / "hashes.json").read_text(encoding="utf-8"))
        return str(hashes["weights.safetensors"])[:12]


def parse(values: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__ or "", "gpu_accuracy_<gpu>")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--base", help="the base model's package; without it only random weights are trained")
    parser.add_argument("--minutes", type=float, default=6.25, help="trainer.max_time of each training")
    parser.add_argument("--segment", type=float, default=8.5, help="minutes of one call of this command")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="cpu, with --small, to try it")
    return parser.parse_args(values)


def cells(settings: Settings, options: argparse.Namespace, digest: str | None) -> Iterator[Cell]:
    """Every training, those from a base only where there is one: ``digest`` tells it from others."""
    common = (
        f"trainer={options.device}",
        f"trainer.threads={options.threads}",
        *(settings.length or (f"trainer.max_time={duration(options.minutes)}",)),
        "uncertainty=0",  # nothing here asks for it, and it takes time after the training
    )
    for recipe in RECIPES:
        for start in STARTS:
            if start == "base" and digest is None:
                continue
            name = f"{recipe}-{start}" + (f"-{digest}" if start == "base" else "")
            own = (*(TUNED if start == "base" else ()), *settings.words_of.get(start, ()))
            yield Cell(recipe, start, name, (f"experiment={recipe}", *common, *own))


def data_words(recipe: str, folder: Path, frames: int | None) -> list[str]:
    """The files of a recipe, with the split of benchmarks/peers/mace.py, as words of `sciml train`.

    ``frames`` limits each of them. Raises PeerError where the reference data are not there.
    """
    files = FILES[recipe](folder, SPLIT_SEED)
    chosen = {name: files[name] for name in ("train", "val", "test")}
    if frames is not None:
        for name, source in chosen.items():
            chosen[name] = folder / f"small-{name}.xyz"
            chosen[name].write_text("".join(read_frames(source)[:frames]), encoding="utf-8")
    return [f"{name}={path}" for name, path in chosen.items()]


def row(cell: Cell, folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What a finished training found: facts, time, number of parameters, errors in eV and eV/Å."""
    targets = found["targets"]
    facts = {"recipe": cell.recipe, "start": cell.start, "words": found["words"]}
    facts |= {key: found[key] for key in ("steps", "seconds", "segments")}
    return {
        **facts,
        "parameters": parameters_of(load(folder)),
        "test_configurations": targets["energy"]["count"],
        "errors": {
            target: {measure: value_at(targets, f"{target}.{measure}") for measure in ("mae", "rmse")}
            for target in ("energy", "forces")
        },
    }


def parameters_of(package: Package) -> int:
    """The number of a package's parameters."""
    return sum(parameter.numel() for parameter in package.model.parameters())


def text(rows: list[dict[str, Any]], sizes: dict[str, dict[str, int]]) -> dict[str, list[list[str]]]:
    """{title of the table of a recipe: header and rows} for people; ``sizes`` {recipe: configurations}."""
    tables: dict[str, list[list[str]]] = {}
    for recipe, title in RECIPES.items():
        lines = [["", *(name for name, _ in MEASURES), "parameters", "steps", "seconds"]]
        for start, name in STARTS.items():
            found = next((row for row in rows if (row["recipe"], row["start"]) == (recipe, start)), None)
            lines.append([f"sciml, {name}", *_measured(found)])
        for name, errors in PUBLISHED[recipe].items():
            values = (f"{errors[path]:.1f}" if path in errors else "" for _, path in MEASURES)
            lines.append([name, *values, "", "", ""])
        counts = {part: f"{count:,}" for part, count in sizes[recipe].items()}
        tables[title.format(**counts)] = lines
    return tables


def _measured(found: dict[str, Any] | None) -> list[str]:
    """The cells of a row behind its name; without a measurement it says so in the first."""
    if found is None:
        return ["not measured", *[""] * (len(MEASURES) + 2)]
    values = (f"{1e3 * value_at(found['errors'], path):.1f}" for _, path in MEASURES)
    seconds = "unknown" if found["seconds"] is None else f"{found['seconds']:.0f}"
    return [*values, f"{found['parameters']:,}", f"{found['steps']:,}", seconds]


def report(options: argparse.Namespace, base: Base | None, sizes: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write what is measured so far; nothing where that is nothing."""
    if not rows:
        return
    gpu = {"gpu": torch.cuda.get_device_name()} if options.device == "gpu" else {}
    done = {(row["recipe"], row["start"]) for row in rows}
    asked = None
    if base is not None:
        asked = {"weights_sha256": base.digest, "parameters": parameters_of(base.package)}
    result = {
        "machine": machine() | gpu,
        "versions": versions("sciml", "torch", "lightning"),
        "threads": options.threads,
        "minutes": options.minutes,
        "base": asked,
        "not_measured": [f"{r}, {STARTS[s]}" for r in RECIPES for s in STARTS if (r, s) not in done],
        "text": text(rows, sizes),
        "note": NOTE,
        "published": {"source": "Batatia et al., MACE, NeurIPS 2022", "unit": "meV, meV/Å", **PUBLISHED},
        "rows": rows,
    }
    write_result(options.output, result)


def measure(settings: Settings, options: argparse.Namespace, end: float) -> list[str]:
    """Train what is not finished until ``end`` of time.monotonic and write what is there; returns what is left.

    The first training of a call always gets some time: without, no call would end it.
    """
    base = Base(options.base, load(options.base)) if options.base else None
    data = {recipe: data_words(recipe, options.runs / "data" / recipe, settings.frames) for recipe in RECIPES}
    sizes = {recipe: configurations(words) for recipe, words in data.items()}
    rows, missing, going = [], [], True
    for cell in cells(settings, options, base.digest if base else None):
        folder = options.runs / cell.name
        found = finished(folder, cell.words)
        if found is None and going:
            seconds = max(1.0, end - time.monotonic() - settings.reserve)
            init = [f"init={base.path}"] if base and cell.start == "base" else []
            segment = f"trainer.segment_time={duration(seconds / 60)}"
            found = run_segment(folder, cell.words, [*data[cell.recipe], *init, segment])
            going = found is not None and end - time.monotonic() - settings.reserve >= settings.shortest
        if found is None:
            missing.append(f"{cell.recipe} {STARTS[cell.start]}")
            continue
        rows.append(row(cell, folder, found))
        report(options, base, sizes, rows)
    return missing


def configurations(words: Sequence[str]) -> dict[str, int]:
    """How many configurations there are for {training, test}, in the files that the words name."""
    files = dict(word.split("=", 1) for word in words)
    return {part: len(read_frames(Path(files[key]))) for part, key in (("training", "train"), ("test", "test"))}


def main(values: Sequence[str] | None = None) -> int:
    """Run one call; 0 where all is measured, 75 where another is needed, 2 where something is missing."""
    begun = time.monotonic()
    options = parse(values)
    if options.device == "gpu" and not torch.cuda.is_available():
        say("gpu_accuracy.py: torch finds no GPU here; --device cpu --small runs a miniature on the CPU.")
        return 2
    name = name_of(torch.device("cuda", torch.cuda.current_device())) if options.device == "gpu" else "cpu"
    choose_places(options, f"gpu_accuracy_{name}", published=options.device == "gpu" and not options.small)
    try:
        missing = measure(SMALL if options.small else Settings(), options, begun + 60 * options.segment)
    except (PeerError, UserError) as error:
        say(f"gpu_accuracy.py: {error}")
        return 2
    if missing:
        say(f"Not measured yet: {', '.join(missing)}; run the same command again, which goes on from there.")
        return os.EX_TEMPFAIL
    return 0


if __name__ == "__main__":
    sys.exit(main())
