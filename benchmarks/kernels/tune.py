"""Measure launch configurations of the Triton kernels on this GPU and write kernels/sciml_kernels/tuned/<gpu>.json.

    python benchmarks/kernels/tune.py [--problems 1 2 3 4] [--minutes 8] [--output FILE]

N = 5,000 nodes, E = 250,000 edges, fp32, every pass of the convolution, then those of a loss on forces of the
convolution with the radial layer inside (64 hidden features, matrix products as precise as torch's own). A
configuration counts only where its results equal those of the default one; the fastest median is written, and what it
gains over the default. Of the kernels with the radial layer inside only those passes are written, and so used, that are
faster than a matrix product and the kernels of the convolution.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from problems import PROBLEMS, SIZES
from torch import Tensor

from sciml_kernels import Edges, Spec
from sciml_kernels.convolution_radial import fused, tiles
from sciml_kernels.convolution_radial import gpu as radial
from sciml_kernels.convolution_radial.passes import PASSES as RADIAL_PASSES
from sciml_kernels.convolution_radial.passes import Pass
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
HIDDEN = 64
RADIAL_CANDIDATES = [
    tiles.Config(block=block, threads=threads, step=step, maxnreg=maxnreg)
    for block, threads, maxnreg in ((32, 256, 128), (32, 256, 255), (16, 128, 128), (32, 128, 255))
    for step in (16, 32, 64)
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
    for tuned_pass in (tune, tune_radial):
        for problem in arguments.problems:
            for name in PASSES:
                found.update(tuned_pass(problem, name, device, end))
                output.parent.mkdir(parents=True, exist_ok=True)
                output.write_text(json.dumps({"configurations": found}, indent=1, sort_keys=True) + "\n")
    return 0


def tune(problem: str, name: str, device: torch.device, end: float) -> dict[str, dict[str, int]]:
    """The fastest configuration of a pass, by the name of its entry; none where the time is over."""
    spec, (terms, wants) = PROBLEMS[problem].spec(), PASSES[name]
    walk = choose_walk(spec, terms, wants, by_sender=True)
    arrays, tables = _inputs(spec, device)
    warp = 64 if torch.version.hip else WARP

    def prepare(config: Config) -> Callable[[], dict[str, Tensor]]:
        todo = gpu.build(spec, torch.float32, walk, terms, wants, config, warp)
        return lambda: gpu.execute(todo, arrays, tables, wants)

    best, _ = _fastest(f"{problem} {name}", CANDIDATES, prepare, end)
    return {tuned.entry(spec.key, torch.float32, walk, terms, wants): vars(best)} if best else {}


def tune_radial(problem: str, name: str, device: torch.device, end: float) -> dict[str, dict[str, int]]:
    """The same with the radial layer inside: an entry for each of the passes into which this one is split.

    None where the weights in memory are faster, or the time is over.
    """
    spec, found, total = PROBLEMS[problem].spec(), {}, 0.0
    arrays, tables = _inputs(spec, device)
    for todo in fused.split(Pass(*RADIAL_PASSES[name])):
        walk = choose_walk(spec, todo.terms, todo.trilinear_wants, by_sender=True)

        def prepare(config: tiles.Config, todo: Pass = todo, walk: Any = walk) -> Callable[[], dict[str, Tensor]]:
            exact = fused.precision(torch.float32)
            warp = 64 if torch.version.hip else WARP
            kernels = fused.build(spec, HIDDEN, torch.float32, exact, walk, todo, config, warp)
            return lambda: fused.execute(kernels, arrays, tables, todo.wants)

        candidates = list(dict.fromkeys([tiles.default(todo), *RADIAL_CANDIDATES]))
        best, milliseconds = _fastest(f"{problem} radial {name} {todo.wants}", candidates, prepare, end)
        if best is None:
            return {}
        found[tiles.entry(spec.key, HIDDEN, torch.float32, walk, todo)] = vars(best)
        total += milliseconds
    apart = _milliseconds(lambda: radial.unfused(spec.key, arrays, tables, *RADIAL_PASSES[name]))
    print(f"{problem} radial {name}: {total:.3f} ms, with weights in memory {apart:.3f} ms", flush=True)
    return found if total < apart else {}


def _fastest(name: str, candidates: Sequence[Any], prepare: Callable[[Any], Any], end: float) -> tuple[Any, float]:
    """The candidate of the shortest time, and that time, among those that give what the first one, the default, gives.

    None where the time is over.
    """
    expected: Mapping[str, Tensor] = {}
    times: dict[Any, float] = {}
    for config in candidates:
        if time.monotonic() > end:
            break
        run = prepare(config)
        results = run()
        expected = expected or results
        if all(_equal(results[want], tensor) for want, tensor in expected.items()):
            times[config] = _milliseconds(run)
    if not times:
        return None, 0.0
    best = min(times, key=lambda config: times[config])
    print(f"{name}: {best}, {times[best]:.3f} ms, default {times[candidates[0]]:.3f} ms", flush=True)
    return best, times[best]


def _inputs(spec: Spec, device: torch.device) -> tuple[dict[str, Tensor], Tables]:
    torch.manual_seed(0)
    receivers = torch.randint(NODES, (EDGES,), device=device).sort().values
    graph = Edges(torch.randint(NODES, (EDGES,), device=device), receivers, NODES)
    sizes = {"x": (NODES, spec.dim_x), "y": (EDGES, spec.dim_y), "w": (EDGES, spec.dim_w), "g": (NODES, spec.dim_out)}
    sizes |= {"h": (EDGES, HIDDEN), "W": (HIDDEN, spec.dim_w)}
    arrays = {kind: torch.randn(size, device=device) for kind, size in sizes.items()}
    tangents = {f"v{kind}": torch.randn_like(arrays[kind]) for kind in "xywh"}
    return {**arrays, **tangents}, graph.tables("triton", True)


def _equal(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def _milliseconds(run: Callable[[], Any]) -> float:
    from triton.testing import do_bench

    result: Any = do_bench(run, return_mode="median")
    return float(result)


if __name__ == "__main__":
    sys.exit(main())
