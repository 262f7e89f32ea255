"""Measure launch configurations of the Triton kernels on this GPU and write kernels/sciml_kernels/tuned/<gpu>.json.

    python benchmarks/kernels/tune.py [--problems 1 2 3 4] [--minutes 8] [--output FILE]

N = 5,000 nodes, E = 250,000 edges, fp32, every pass. A configuration counts only where its results equal those of the
default one; the fastest median is written, and what it gains over the default.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from problems import PROBLEMS, SIZES
from torch import Tensor

from sciml_kernels import Edges, Spec
from sciml_kernels.edges import Tables
from sciml_kernels.trilinear import gpu, tuned
from sciml_kernels.trilinear.emit import PASSES
from sciml_kernels.trilinear.parts import WARP, Config, choose_walk

NODES, EDGES = SIZES["gpu"]
CONVOLUTIONS = [key for key, problem in PROBLEMS.items() if problem.operation == "conv"]
CANDIDATES = [tuned.DEFAULT] + [
    config
    for config in (Config(values, warps) for values in (80, 112, 144, 184) for warps in (1, 2, 4))
    if config != tuned.DEFAULT
]
TOLERANCE = 1e-4  # of the largest entry, fp32


def main() -> int:
    """Tune every pass of every problem until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=CONVOLUTIONS, default=CONVOLUTIONS)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("tune.py measures on a GPU, and torch finds none here.", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    output = arguments.output or tuned.FOLDER / f"{tuned.name_of(device)}.json"
    found = json.loads(output.read_text())["configurations"] if output.exists() else {}
    end = time.monotonic() + 60 * arguments.minutes
    for problem in arguments.problems:
        for name in PASSES:
            found.update(tune(problem, name, device, end))
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps({"configurations": found}, indent=1, sort_keys=True) + "\n")
    return 0


def tune(problem: str, name: str, device: torch.device, end: float) -> dict[str, dict[str, int]]:
    """The fastest configuration of a pass, by the name of its entry; none where the time is over."""
    spec, (terms, wants) = PROBLEMS[problem].spec(), PASSES[name]
    walk = choose_walk(spec, terms, wants, by_sender=True)
    arrays, tables = _inputs(spec, device)
    warp = 64 if torch.version.hip else WARP
    expected: dict[str, Tensor] = {}
    times: dict[Config, float] = {}
    for config in CANDIDATES:
        if time.monotonic() > end:
            break
        todo = gpu.build(spec, torch.float32, walk, terms, wants, config, warp)
        results = gpu.execute(todo, arrays, tables, wants)
        expected = expected or results
        if all(_equal(results[want], tensor) for want, tensor in expected.items()):
            times[config] = _milliseconds(todo, arrays, tables, wants)
    if not times:
        return {}
    best = min(times, key=lambda config: times[config])
    print(f"{problem} {name}: {best}, {times[best]:.3f} ms, default {times[tuned.DEFAULT]:.3f} ms", flush=True)
    entry = tuned.entry(spec.key, torch.float32, walk, terms, wants)
    return {entry: {"values": best.values, "warps": best.warps}}


def _inputs(spec: Spec, device: torch.device) -> tuple[dict[str, Tensor], Tables]:
    torch.manual_seed(0)
    receivers = torch.randint(NODES, (EDGES,), device=device).sort().values
    graph = Edges(torch.randint(NODES, (EDGES,), device=device), receivers, NODES)
    sizes = {"x": (NODES, spec.dim_x), "y": (EDGES, spec.dim_y), "w": (EDGES, spec.dim_w), "g": (NODES, spec.dim_out)}
    arrays = {kind: torch.randn(size, device=device) for kind, size in sizes.items()}
    tangents = {f"v{kind}": torch.randn_like(arrays[kind]) for kind in "xyw"}
    return {**arrays, **tangents}, graph.tables("triton", True)


def _equal(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def _milliseconds(todo: gpu.Plan, arrays: dict[str, Tensor], tables: Tables, wants: str) -> float:
    from triton.testing import do_bench

    result: Any = do_bench(lambda: gpu.execute(todo, arrays, tables, wants), return_mode="median")
    return float(result)


if __name__ == "__main__":
    sys.exit(main())
