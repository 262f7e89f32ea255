"""This project's side of the comparisons; started by `mace.py` and `gpu_step.py` as a separate process."""

from __future__ import annotations

import argparse
from functools import partial
from types import SimpleNamespace
from typing import Any

import ase
import ase.io
import numpy as np
import torch
from stepping import MODES, Training, every_mode
from structures import CUTOFF, edge_fingerprint
from workers import keep_result, peak_memory, time_steps, versions, write_result

from sciml.data.graph_dataset import LoadedBatch
from sciml.domains.materials.graphs import graph
from sciml.graph import Graph, collate
from sciml.models.backbone import edge_vectors, edges_of
from sciml.models.model import Model, build_model, floating_inputs_to
from sciml.objectives.supervised import Supervised, Term
from sciml.package import load
from sciml.train.optimizer import build_optimizer

# The architecture of the peers: fine level alone, L = 1.
MODEL = {
    "name": "backbone",
    "channels": 128,
    "layers": 2,
    "lmax_node": 1,
    "lmax_edge": 3,
    "correlation": 3,
    "radial": {"basis": 8, "hidden": [64, 64, 64]},
    "feed_forward": 2,
    "backend": "auto",
}
OPTIMIZER = {"learning_rate": 0.003, "weight_decay": 1e-4, "betas": (0.9, 0.99), "eps": 1e-8}
TERMS = {"energy": Term(1.0, "mse"), "forces": Term(100.0, "mse")}
CLIP = 10.0


def record(frame: ase.Atoms) -> dict[str, Any]:
    """A frame with energy and forces as a record of the materials domain."""
    periodic = bool(frame.pbc.any())
    return {
        "types": frame.numbers.astype(np.uint8),
        "positions": frame.positions.astype(np.float32),
        "cell": np.array(frame.cell) if periodic else np.zeros((3, 3)),
        "pbc": np.array(frame.pbc),
        "charge": 0.0,
        "spin": 1.0,
        "energy": frame.get_potential_energy(),
        "forces": frame.get_forces().astype(np.float32),
    }


def atoms_graph(frame: ase.Atoms, cutoff: float, dataset: int = 0) -> Graph:
    """The frame's graph, at the level of theory of this index."""
    result = graph(record(frame), "atoms", cutoff)
    result.dataset = torch.tensor([dataset])
    return result


def build(structure: ase.Atoms, edges: int, **changes: Any) -> Model:
    """An untrained model for one structure, `changes` made to its architecture."""
    description = {
        "backbone": {**MODEL, **changes},
        "heads": {"atoms": {"name": "energy"}},
        "kinds": ["atoms"],
        "cutoffs": {"atoms": CUTOFF},
        "context": {"datasets": ["alloy"], "references": {}, "scales": {}, "classes": []},
        "mean_neighbors": {"atoms": edges / len(structure)},
    }
    return build_model(description)


def run_step(options: argparse.Namespace) -> dict[str, Any]:
    """Time the training step on the one structure in `options.structure`."""
    torch.manual_seed(0)
    before = peak_memory()
    structure = ase.io.read(options.structure)
    batch = collate([atoms_graph(structure, CUTOFF)])
    model = build(structure, len(batch.senders))
    objective = Supervised(TERMS)
    optimizer = build_optimizer(model, SimpleNamespace(**OPTIMIZER))
    loaded = LoadedBatch(batch, "atoms", {"energy": 1.0, "forces": 3.0 * len(structure)}, ((0, 0),))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss, _ = objective(model, model(batch, "atoms", create_graph=True), loaded)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss)

    timing = time_steps(step, options.warmup, options.repeats)
    return {
        **timing,
        **edge_fingerprint(edge_vectors(batch, edges_of(batch), batch.positions, batch.cell.float()).numpy()),
        "atoms": len(structure),
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_memory_mib": peak_memory(),
        "memory_before_model_mib": before,
        "settings": {**MODEL, **OPTIMIZER, "clip": CLIP, "dtype": "float32"},
    }


def run_modes(options: argparse.Namespace) -> dict[str, Any]:
    """Time the training step on the structure in every mode of `stepping.py`."""
    structure = ase.io.read(options.structure)
    batch = collate([atoms_graph(structure, CUTOFF)])
    fingerprint = edge_fingerprint(edge_vectors(batch, edges_of(batch), batch.positions, batch.cell.float()).numpy())
    batch = floating_inputs_to(batch, torch.float32).to(options.device)
    objective = Supervised(TERMS)
    loaded = LoadedBatch(batch, "atoms", {"energy": 1.0, "forces": 3.0 * len(structure)}, ((0, 0),))

    def make() -> Training:
        torch.manual_seed(0)
        model = build(structure, fingerprint["edges"], channels=options.channels).to(options.device)
        optimizer = build_optimizer(model, SimpleNamespace(**OPTIMIZER))

        def loss() -> torch.Tensor:
            value, _ = objective(model, model(batch, "atoms", create_graph=True), loaded)
            return value

        return Training(model, optimizer, loss, CLIP)

    device = {"gpu": torch.cuda.get_device_name()} if options.device == "cuda" else {}

    def report(found: dict[str, Any]) -> dict[str, Any]:
        return {"precisions": found, "device": device, **fingerprint, "atoms": len(structure)}

    keep = partial(keep_result, options.result, report)
    return report(every_mode(make, options.device, options.repeats, options.modes, keep))


def run_predict(options: argparse.Namespace) -> dict[str, Any]:
    """Write the predictions of a package on the frames of `options.test`, at the level of theory it was trained on."""
    package = load(options.package)
    cutoff, level = package.config["model"]["cutoffs"]["atoms"], package.datasets.index(options.dataset)
    frames = ase.io.read(options.test, index=":")
    energies, forces = [], []
    for start in range(0, len(frames), 50):
        batch = collate([atoms_graph(frame, cutoff, level) for frame in frames[start : start + 50]])
        output = package.model(batch, "atoms")
        energies.append(output["energy"].detach().double().numpy())
        forces.append(output["forces"].detach().double().numpy())
    np.savez(options.predictions, energies=np.concatenate(energies), forces=np.concatenate(forces))
    return {"parameters": sum(p.numel() for p in package.model.parameters())}


def main() -> None:
    """Run one worker and write its JSON result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("step", "modes", "predict"))
    parser.add_argument("--result", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    for name in ("structure", "package", "test", "predictions", "dataset"):
        parser.add_argument(f"--{name}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {"step": run_step, "modes": run_modes, "predict": run_predict}[options.task](options)
    result["versions"] = versions("sciml", "torch", "lightning", "torch-geometric", "e3nn", "ase", "numpy")
    write_result(options.result, result)


if __name__ == "__main__":
    main()
