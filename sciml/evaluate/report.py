"""``report.html`` of a run: one page with the curves, the table and the plots, without outside files."""

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

from sciml.evaluate.plots import COLOURS, figure
from sciml.evaluate.run import Evaluation
from sciml.files import write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
pre { background: #f6f6f4; padding: .8rem; overflow-x: auto; font-size: .82rem; line-height: 1.4 }
img { max-width: 100% } .note { color: #666 }
"""


def write_report(folder: Path, evaluation: Evaluation, settings: dict[str, Any]) -> Path:
    """Write ``report.html`` in the run folder from ``metrics.jsonl``, the evaluation with its plots, and the package's
    settings.
    """
    lines = read_metrics(folder / "metrics.jsonl")
    parts = [
        _section("Errors on held-out records", f"<pre>{html.escape(evaluation.table)}</pre>"),
        _section("Loss", _image(_loss_curves(lines)) if lines else "<p>No steps were logged.</p>"),
    ]
    titles = {"parity": "Parity", "roc": "Jet classes", "residues": "Residue types"}
    for path in evaluation.plots:
        kind, _, store = path.stem.partition("-")
        parts.append(_section(f"{titles[kind]}: {store}" if store else titles[kind], _image(path.read_bytes())))
    facts = {"model": settings["model"], "data": settings["data"]}
    parts.append(_section("Model and data", f"<pre>{html.escape(json.dumps(facts, indent=1))}</pre>"))
    parts.append(_section("Configuration", f"<pre>{html.escape((folder / 'config.yaml').read_text())}</pre>"))
    name = html.escape(folder.name)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style></head>'
        f"<body><h1>{name}</h1>{''.join(parts)}</body></html>\n"
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _section(title: str, content: str) -> str:
    return f"<h2>{html.escape(title)}</h2>{content}"


def _image(data: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


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
    buffer = io.BytesIO()
    drawing.savefig(buffer, dpi=150)
    return buffer.getvalue()
