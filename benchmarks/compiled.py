"""A training step compiled by torch.compile beside the same step run eagerly; writes results/compile.json.

    python benchmarks/compiled.py [--device cpu|gpu] [--model small] [--steps 10]

Each kind of graph has its row: the same model, batch and loss on both sides, forces and stress of atoms included. The
gradients of the parameters must agree before anything is timed. The first compiled call is timed apart: it compiles.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sciml.build import build_objective
from sciml.config import configure
from sciml.data.graph_dataset import GraphDataset, LoadedBatch
from sciml.data.sampler import MicroBatch
from sciml.data.source import Source
from sciml.data.store import Store
from sciml.graph import KINDS
from sciml.models.model import Model, build_model
from sciml.objectives.supervised import Supervised
from sciml.schema import SAMPLES, TrainConfig
from sciml.train.compiled import Forward, compiled_forward
from sciml.train.process import keep_freed_memory
from sciml.train.sources import coarse_of

RESULT = Path(__file__).parent / "results" / "compile.json"
SOURCES = {"atoms": "lithium", "jets": "jets", "residues": "peptides"}
GRAPHS = {"atoms": 16, "jets": 16, "residues": 3}
CUTOFFS = {"atoms": 5.0, "jets": 0.9, "residues": 8.0}
MOST_DIFFERENCE = 1e-3  # of the gradients, relative, in fp32


def main() -> int:
    """Measure every kind; returns 1 where a compiled gradient is not the eager one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--model", default="small")
    parser.add_argument("--steps", type=int, default=10)
    words = parser.parse_args()
    keep_freed_memory()
    device = "cuda" if words.device == "gpu" else "cpu"
    rows = {kind: measure(kind, words.model, words.steps, device) for kind in KINDS}
    for kind, row in rows.items():
        print(kind, json.dumps(row))
    wrong = [kind for kind, row in rows.items() if row["gradient_difference"] > MOST_DIFFERENCE]
    if wrong:
        print(f"the compiled gradients of {', '.join(wrong)} are not the eager ones", file=sys.stderr)
        return 1
    stored = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    stored[words.device] = {"model": words.model, "machine": machine(device), "kinds": rows}
    RESULT.write_text(json.dumps(stored, indent=1) + "\n")
    return 0


def measure(kind: str, model_name: str, steps: int, device: str) -> dict[str, float]:
    """Seconds of an eager and of a compiled step, of the compilation, and the difference of the gradients."""
    config = configure("train", ["train=x", f"model={model_name}"])
    torch.manual_seed(0)
    source = Source(Store(SAMPLES / SOURCES[kind]), 0)
    description = describe(kind, config, source)
    model = build_model(description).to(device)
    objective = build_objective(config.objective.terms)
    batch = load(kind, source, description).to(device)
    compiled = compiled_forward(model)
    eager, expected = timed(model, objective, lambda b, k: model(b, k, create_graph=True), batch, steps)
    begin = time.perf_counter()
    step(model, objective, compiled, batch)
    first = time.perf_counter() - begin
    seconds, found = timed(model, objective, compiled, batch, steps)
    return {
        "nodes": int(batch.batch.num_nodes),
        "edges": len(batch.batch.senders),
        "eager_seconds": eager,
        "compiled_seconds": seconds,
        "ratio": eager / seconds,
        "compilation_seconds": first,
        "gradient_difference": float((found - expected).norm() / expected.norm()),
    }


def describe(kind: str, config: TrainConfig, source: Source) -> dict[str, Any]:
    """A model for one kind with the backbone and the cutoffs of the configuration's coarse level."""
    backbone = config.model.model_dump()
    backbone |= backbone.pop("options")
    head = {"atoms": "energy", "jets": "jet_class", "residues": "residue_type"}[kind]
    cutoffs = {kind: CUTOFFS[kind]}
    return {
        "backbone": backbone,
        "heads": {head: {"hidden": 64}},
        "kinds": [kind],
        "cutoffs": cutoffs,
        "context": {"datasets": ["one"], "classes": ["qcd", "top", "w"]},
        "mean_neighbors": {kind: 20.0},
        "coarse": coarse_of([source], [kind], cutoffs, config.data.coarse_cutoff.model_dump()),
    }


def load(kind: str, source: Source, description: dict[str, Any]) -> LoadedBatch:
    """A micro-batch of the embedded samples."""
    data = GraphDataset([source], description["cutoffs"], coarse_cutoffs=description["coarse"]["cutoffs"])
    records = source.data.serves(kind).nonzero()[0][: GRAPHS[kind]]
    return data[MicroBatch(kind, tuple((0, int(i)) for i in records), data.counts(kind, 0, records), 0, 0)]


def step(model: Model, objective: Supervised, forward: Forward, batch: LoadedBatch) -> torch.Tensor:
    """Forward with forces, loss and backward; returns the gradient of all parameters."""
    model.zero_grad(set_to_none=True)
    objective(model, forward(batch.batch, batch.kind), batch)[0].backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    if gradient.is_cuda:
        torch.cuda.synchronize()
    return gradient


def timed(
    model: Model, objective: Supervised, forward: Forward, batch: LoadedBatch, steps: int
) -> tuple[float, torch.Tensor]:
    """Median seconds of a step after two more, and its gradient."""
    times = []
    for index in range(steps + 2):
        begin = time.perf_counter()
        gradient = step(model, objective, forward, batch)
        if index >= 2:
            times.append(time.perf_counter() - begin)
    return statistics.median(times), gradient


def machine(device: str) -> dict[str, str | int]:
    """What was measured on, without names of hosts."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


if __name__ == "__main__":
    sys.exit(main())
