"""The top-tagging reference set (Kasieczka et al., SciPost Phys. 7, 014, 2019): a row of its table, over seeds.

    top_tagging.py --store stores/top-test --packages runs/seed0 runs/seed1 runs/seed2

Each package is one training with another seed (``sciml train experiment=top_tagging seed=N``); the store is the test
set as ``sciml ingest`` makes it of ``test.h5``. Writes the row to ``results/top_tagging.json`` and, with
``--scores FOLDER``, the probability of a top and the label of every jet.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))

from workers import write_result

SIGNAL, BACKGROUND = "top", "qcd"
EFFICIENCIES = (0.3, 0.5)
# AUC and 1 / background efficiency at 30 % signal efficiency, as published by their authors.
PUBLISHED = {
    "LorentzNet": (0.9868, 2195), "PELICAN": (0.9870, 2250), "L-GATr": (0.9870, 2240),
    "L-GATr, fine-tuned": (0.9879, 2894), "OmniLearned-L": (0.9880, 3486),
}  # fmt: skip


def measure(logits: np.ndarray, labels: np.ndarray, classes: list[str]) -> dict[str, float]:
    """Accuracy, AUC and rejections of one training, from the logits (jets, classes) and labels (jets,)."""
    from sciml.domains.hep.metrics import accuracy, auc, one_vs_one, rejection

    scores, signal = one_vs_one(logits, labels, classes.index(SIGNAL), classes.index(BACKGROUND))
    rejections = {f"rejection_{e:.0%}": rejection(scores, signal, e) for e in EFFICIENCIES}
    return {"accuracy": accuracy(logits, labels), "auc": auc(scores, signal), **rejections}


def over_seeds(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of every metric over trainings; no deviation of one."""
    return {
        name: {
            "mean": float(np.mean([run[name] for run in runs])),
            "std": float(np.std([run[name] for run in runs], ddof=1)) if len(runs) > 1 else float("nan"),
        }
        for name in runs[0]
    }


def predictions(path: Path, store: Path, device: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits (jets, classes), labels (jets,) and names of the classes."""
    from sciml.build import budgets_of
    from sciml.config import configure
    from sciml.data.graph_dataset import GraphDataset
    from sciml.evaluate.predict import predict
    from sciml.ingest.ingest import open_data
    from sciml.package import load
    from sciml.train.sources import check_known, evaluation_sources

    package = load(path, device=device)
    description = package.config["model"]
    known = package.config["datasets_of_domain"]
    sources = evaluation_sources([str(store)], open_data, package.datasets, known)
    check_known(sources, description["context"])
    coarse = description.get("coarse", {}).get("cutoffs")
    dataset = GraphDataset(sources, description["cutoffs"], coarse_cutoffs=coarse, far_field=package.model.far_field)
    budgets = budgets_of(configure("evaluate", [f"package={path}", f"store={store}"]).batch)  # type: ignore[attr-defined]
    columns = predict(package.model, dataset, ["jets"], budgets)[0, "label"]
    return columns.predictions, columns.labels, description["context"]["classes"]


def table(row: dict[str, dict[str, float]]) -> str:
    """Our row below the published ones."""
    lines = [f"{'':<20}{'accuracy':>16}{'AUC':>18}{'1/eB at 30 %':>16}{'1/eB at 50 %':>16}"]
    lines += [f"{name:<20}{'':>16}{area:>18.4f}{rejection:>16}" for name, (area, rejection) in PUBLISHED.items()]
    cells = [
        f"{row[name]['mean']:{digits}} ± {row[name]['std']:{digits}}"
        for name, digits in (("accuracy", ".4f"), ("auc", ".5f"), ("rejection_30%", ".0f"), ("rejection_50%", ".1f"))
    ]
    return "\n".join([*lines, f"{'sciml':<20}{cells[0]:>16}{cells[1]:>18}{cells[2]:>16}{cells[3]:>16}"])


def main() -> int:
    """Measure every package and write the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--packages", type=Path, nargs="+", required=True)
    parser.add_argument("--scores", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).resolve().parents[1] / "results" / "top_tagging.json"
    )
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for number, path in enumerate(options.packages):
        logits, labels, classes = predictions(path, options.store, options.device)
        runs.append(measure(logits, labels, classes))
        if options.scores:
            from sciml.domains.hep.metrics import softmax

            options.scores.mkdir(parents=True, exist_ok=True)
            top = softmax(logits)[:, classes.index(SIGNAL)]
            np.savez(options.scores / f"scores-{number}.npz", top=top, label=labels == classes.index(SIGNAL))
    row = over_seeds(runs)
    print(table(row))
    write_result(options.output, {"jets": len(labels), "runs": runs, "over_seeds": row})
    return 0


if __name__ == "__main__":
    sys.exit(main())
