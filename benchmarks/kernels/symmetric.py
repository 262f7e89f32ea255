"""Time symmetric_contraction beside mace-torch's and write benchmarks/results/kernels_symmetric.json (problem 5).

    python benchmarks/peers/mace.py setup          once: makes .venv-mace
    python benchmarks/kernels/symmetric.py [--nodes N] [--threads N] [--repeats N] [--output FILE]

Correlation 3, 128 channels, 0e+1o to 0e+1o, 10 species, fp32. Each side runs in a process of its own environment, with
large malloc thresholds, on the same features, weights and species. Passes: forward; backward to the features, as forces
need it; double backward to features and weights, as force training needs it. A speed is reported only where all results
of both sides agree.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANNELS, SPECIES, CORRELATION = 128, 10, 3
IRREPS = f"{CHANNELS}x0e+{CHANNELS}x1o"
PASSES = ("forward", "backward", "double")
TOLERANCE = 1e-4  # of the largest entry of each result
CHECKOUT = Path(__file__).resolve().parents[2]
SIDES = {"ours": Path(sys.executable), "mace": CHECKOUT / ".venv-mace" / "bin" / "python"}


def main() -> int:
    """Run both sides on one problem and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=15)
    default = CHECKOUT / "benchmarks" / "results" / "kernels_symmetric.json"
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        _work(arguments.side, arguments.folder, arguments.threads, arguments.repeats)
        return 0
    if not SIDES["mace"].exists():
        print("no .venv-mace in this checkout: run `python benchmarks/peers/mace.py setup` first", file=sys.stderr)
        return 2
    report = _compare(arguments.nodes, arguments.threads, arguments.repeats)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0 if report["correct"] else 1


def _compare(nodes: int, threads: int, repeats: int) -> dict[str, Any]:
    import torch
    from cpu import MALLOC, machine

    settings = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", **MALLOC}
    report: dict[str, Any] = {"machine": machine(threads), "nodes": nodes, "irreps": IRREPS, "dtype": "float32"}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        problem = torch.randn(nodes, 4, CHANNELS), torch.randn(SPECIES, 16, CHANNELS), torch.randint(SPECIES, (nodes,))
        torch.save(problem, Path(folder) / "problem.pt")
        for side, python in SIDES.items():
            options = {"--side": side, "--folder": folder, "--threads": threads, "--repeats": repeats}
            command = [str(python), __file__, *(str(part) for option in options.items() for part in option)]
            subprocess.run(command, env={**os.environ, **settings}, check=True)
        found = {side: torch.load(Path(folder) / f"{side}.pt") for side in SIDES}
    pairs = list(zip(found["ours"]["results"], found["mace"]["results"], strict=True))
    report["error"] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    report["correct"] = report["error"] < TOLERANCE
    if report["correct"]:
        report.update({f"{side}_ms": result["ms"] for side, result in found.items()})
        report["ratio"] = round(sum(found["mace"]["ms"].values()) / sum(found["ours"]["ms"].values()), 1)
    return report


def _work(side: str, folder: Path, threads: int, repeats: int) -> None:
    """All results of one side in our layout, and the median of each pass in ms."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(threads)
    x, weights, species = torch.load(folder / "problem.pt")
    function = (_ours if side == "ours" else _mace)(species)
    leaves = [x.requires_grad_(), weights.requires_grad_()]
    samples = []
    for _ in range(repeats + 2):
        marks = [time.perf_counter()]
        value = function(*leaves)
        marks.append(time.perf_counter())
        g = torch.ones_like(value)
        first = torch.autograd.grad(value, leaves[:1], g, create_graph=True)
        marks.append(time.perf_counter())
        second = torch.autograd.grad(first, leaves, [leaves[0].detach()])
        marks.append(time.perf_counter())
        samples.append([1e3 * (end - begin) for begin, end in itertools.pairwise(marks)])
    medians = [round(statistics.median(times), 2) for times in zip(*samples[2:], strict=True)]
    results = [tensor.detach() for tensor in (value, *first, *second)]
    torch.save({"results": results, "ms": dict(zip(PASSES, medians, strict=True))}, folder / f"{side}.pt")


def _ours(species: Any) -> Callable[[Any, Any], Any]:
    from sciml_kernels import SymmetricSpec, symmetric_contraction

    spec = SymmetricSpec(IRREPS, "0e+1o", CORRELATION)
    return lambda x, weights: symmetric_contraction(x, weights, species, spec)


def _mace(species: Any) -> Callable[[Any, Any], Any]:
    """mace-torch's module with our weights in the place of its own; channels stand before components there."""
    import torch
    from mace.modules.symmetric_contraction import (
        SymmetricContraction,
        o3,
    )  # mace first: it lets this e3nn load its file

    irreps = o3.Irreps(IRREPS)
    module = SymmetricContraction(irreps, irreps, CORRELATION, num_elements=SPECIES)
    one_hot = torch.nn.functional.one_hot(species, SPECIES).float()
    places = []  # (contraction, attribute, index) of each block of our rows, and its length
    for contraction in module.contractions:
        lower = [(contraction.weights, str(i), w.shape[1]) for i, w in enumerate(contraction.weights)]
        highest = contraction.weights_max.shape[1]
        places += [*reversed(lower), (contraction, "weights_max", highest)]
    for owner, name, _ in places:
        del owner._parameters[name]

    def contract(x: Any, weights: Any) -> Any:
        for (owner, name, _), block in zip(places, weights.split([size for *_, size in places], dim=1), strict=True):
            owner.__dict__[name] = block
        return _component_major(module(x.transpose(1, 2), one_hot))

    return contract


def _component_major(flat: Any) -> Any:
    import torch

    scalars, vectors = flat[:, :CHANNELS], flat[:, CHANNELS:].unflatten(1, (CHANNELS, 3))
    return torch.cat([scalars.unsqueeze(1), vectors.transpose(1, 2)], dim=1)


if __name__ == "__main__":
    sys.exit(main())
