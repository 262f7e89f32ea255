"""``report.html`` of a run: one page with the curves, the table and the plots, without outside files."""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sciml.evaluate.html import image, page, png, section
from sciml.evaluate.plots import COLOURS, figure
from sciml.evaluate.run import Evaluation
from sciml.files import write_text


def write_report(
    folder: Path, evaluation: Evaluation, settings: dict[str, Any], tables: Mapping[str, str] | None = None
) -> Path:
    """Write ``report.html`` in the run folder from ``metrics.jsonl``, the evaluation with its plots, and the package's
    settings; ``tables`` {title: text} come after the table of errors.
    """
    lines = read_metrics(folder / "metrics.jsonl")
    parts = [
        section("Errors on held-out records", f"<pre>{html.escape(evaluation.table)}</pre>"),
        *(section(title, f"<pre>{html.escape(text)}</pre>") for title, text in (tables or {}).items()),
        section("Loss", image(_loss_curves(lines)) if lines else "<p>No steps were logged.</p>"),
    ]
    titles = {
        "parity": "Parity",
        "roc": "Jet classes",
        "reliability": "Calibration",
        "residues": "Residue types",
        "uncertainty": "Uncertainty",
    }
    for path in evaluation.plots:
        kind, _, store = path.stem.partition("-")
        parts.append(section(f"{titles[kind]}: {store}" if store else titles[kind], image(path.read_bytes())))
    facts = {"model": settings["model"], "data": settings["data"]}
    parts.append(section("Model and data", f"<pre>{html.escape(json.dumps(facts, indent=1))}</pre>"))
    parts.append(section("Configuration", f"<pre>{html.escape((folder / 'config.yaml').read_text())}</pre>"))
    path = folder / "report.html"
    write_text(path, page(folder.name, f"<h1>{html.escape(folder.name)}</h1>{''.join(parts)}"))
    return path


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _loss_curves(lines: list[dict[str, float]]) -> bytes:
    """Training and validation loss of every target against the optimizer step, thin lines for the single stores."""
    keys = {key for line in lines for key in line if key.startswith(("train/", "val/"))}
    names = sorted({key.split("/")[1] for key in keys if key.count("/") == 1} - {"loss"})
    stores = sorted(key for key in keys if key.startswith("val/store/"))
    drawing, axes = figure(3.6 * len(names), 3.2, len(names))
    for axis, name in zip(axes, names, strict=True):
        for part, colour in (("train", COLOURS[0]), ("val", COLOURS[1])):
            points = [(line["step"], line[f"{part}/{name}"]) for line in lines if f"{part}/{name}" in line]
            if points:
                label = "training" if part == "train" else "validation (averaged weights)"
                axis.plot(*zip(*points, strict=True), color=colour, linewidth=1, label=label)
        single = [key for key in stores if key.endswith(f"/{name}")]
        for key in single if len(single) > 1 else []:
            points = [(line["step"], line[key]) for line in lines if key in line]
            axis.plot(*zip(*points, strict=True), linewidth=0.6, linestyle=":", label=key.split("/")[-2])
        axis.set_yscale("log")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("optimizer step", fontsize=8)
        axis.legend(fontsize=7, frameon=False)
    return png(drawing)
