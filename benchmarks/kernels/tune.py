"""Measure launch configurations of the Triton kernels on this GPU, and write kernels/sciml_kernels/tuned/<gpu>.json
with the best and benchmarks/results/tune_<gpu>.json with the time of each.

    python benchmarks/kernels/tune.py [--problems 1 2 3 4] [--passes forward backward double] [--kinds conv radial]
                                      [--processes N] [--minutes 8] [--output FILE] [--times FILE]

N = 5,000 nodes, E = 250,000 edges, fp32, every pass of the convolution, then those of a loss on forces of the
convolution with the radial layer inside (64 hidden features, matrix products as precise as torch's own). A
configuration counts only where its results equal those of the default one; the fastest median is written. Of the
kernels with the radial layer inside only those passes are written, and so used, that are faster than a matrix product
and the kernels of the convolution. All kernels are compiled first, by as many processes as there are cores, on a graph
of some edges; then they are timed one after another.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from limits import COPY_BYTES, FLOPS, operations, traffic
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

CONVOLUTIONS = [key for key, problem in PROBLEMS.items() if problem.operation == "conv"]
# Several warps a program were slower wherever a gradient to y is summed over channels (results/tune_nvidia_h200.json).
CANDIDATES = [Config(*sizes) for sizes in product((144, 112, 80, 184), (1,), (1, 2, 3))]
HIDDEN = 64
RESULTS = Path(__file__).resolve().parents[1] / "results"
RADIAL_CANDIDATES = [
    tiles.Config(block=block, threads=threads, step=step, maxnreg=maxnreg)
    for block, threads, maxnreg in ((32, 256, 128), (32, 256, 255), (16, 128, 128), (32, 128, 255))
    for step in (16, 32, 64)
]
TOLERANCE = 1e-4  # of the largest entry, fp32
Results = Mapping[str, Tensor]


class Job(NamedTuple):
    """A pass of a problem, or one of the passes into which that with the radial layer inside is split.

    Attributes:
        problem, name: of the problem and of its pass.
        part: with the radial layer inside; none for the convolution.
    """

    problem: str
    name: str
    part: Pass | None = None

    @property
    def spec(self) -> Spec:
        spec: Spec = PROBLEMS[self.problem].spec()
        return spec

    @property
    def terms(self) -> tuple[Any, str]:
        """Terms and wants of its trilinear kernels."""
        return PASSES[self.name] if self.part is None else (self.part.terms, self.part.trilinear_wants)

    @property
    def walk(self) -> Any:
        return choose_walk(self.spec, *self.terms, by_sender=True)

    @property
    def candidates(self) -> list[Any]:
        """Configurations; the first is the default."""
        first = tuned.default(*self.terms) if self.part is None else tiles.default(self.part)
        return list(dict.fromkeys([first, *(CANDIDATES if self.part is None else RADIAL_CANDIDATES)]))

    @property
    def entry(self) -> str:
        """Its key in the file."""
        if self.part is None:
            return tuned.entry(self.spec.key, torch.float32, self.walk, *self.terms)
        return tiles.entry(self.spec.key, HIDDEN, torch.float32, self.walk, self.part)

    def prepare(self, config: Any, inputs: tuple[Results, Tables]) -> Callable[[], Results]:
        """Its launch in a configuration."""
        warp, (terms, wants) = 64 if torch.version.hip else WARP, self.terms
        if self.part is None:
            kernels = gpu.build(self.spec, torch.float32, self.walk, terms, wants, config, warp)
            return lambda: gpu.execute(kernels, *inputs, wants)
        exact, part = fused.precision(torch.float32), self.part
        kernels = fused.build(self.spec, HIDDEN, torch.float32, exact, self.walk, part, config, warp)
        return lambda: fused.execute(kernels, *inputs, part.wants)

    def row(self, times: Mapping[Any, float]) -> dict[str, Any]:
        """Milliseconds of its configurations, and what the hardware needs at least."""
        found: dict[str, Any] = {"problem": self.problem, "pass": self.name, "radial": self.part and self.part.wants}
        if self.part is None:
            moved, _ = traffic(self.spec, self.name, *SIZES["gpu"])
            flops = operations(self.spec, self.name) * SIZES["gpu"][1]
            found["limit_ms"] = round(1e3 * max(moved / COPY_BYTES, flops / FLOPS), 4)
        return found | {"times": [{**vars(config), "ms": round(ms, 4)} for config, ms in times.items()]}

    def __str__(self) -> str:
        return f"{self.problem} {self.name}" + (f" radial {self.part.wants}" if self.part else "")


def main() -> int:
    """Compile, then tune every pass of every problem until the time is over."""
    arguments = _arguments()
    if not torch.cuda.is_available():
        print("tune.py measures on a GPU, and torch finds none here.", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    name = tuned.name_of(device)
    output = arguments.output or tuned.FOLDER / f"{name}.json"
    found = json.loads(output.read_text())["configurations"] if output.exists() else {}
    measured: dict[str, Any] = {"gpu": torch.cuda.get_device_name(device), "torch": torch.__version__}
    measured |= {"nodes": SIZES["gpu"][0], "edges": SIZES["gpu"][1], "dtype": "float32"}
    file = arguments.times or RESULTS / f"tune_{name}.json"
    before = json.loads(file.read_text())["passes"] if file.exists() else []
    end = time.monotonic() + 60 * arguments.minutes
    groups = [group for kind in arguments.kinds for group in _groups(kind, arguments.problems, arguments.passes)]
    compile_all([job for group in groups for job in group], arguments.processes, end)
    for group in groups:
        best, passes = tune(group, device, end)
        found.update(best)
        before = replaced(before, passes)
        _write(output, {"configurations": dict(sorted(found.items()))})
        _write(file, {**measured, "passes": before})
    return 0


def replaced(before: list[dict[str, Any]], passes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The measured passes of a file with new ones, which stand where those of the same names did or behind."""
    rows = {tuple(row[key] for key in ("problem", "pass", "radial")): row for row in (*before, *passes)}
    return list(rows.values())


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=CONVOLUTIONS, default=CONVOLUTIONS)
    parser.add_argument("--passes", nargs="+", choices=list(PASSES), default=list(PASSES))
    parser.add_argument("--kinds", nargs="+", choices=["conv", "radial"], default=["conv", "radial"])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--times", type=Path)
    return parser.parse_args()


def _groups(kind: str, problems: list[str], passes: list[str]) -> Iterator[list[Job]]:
    """Jobs that are used together or not at all."""
    for problem in problems:
        for name in passes:
            if kind == "conv":
                yield [Job(problem, name)]
            else:
                yield [Job(problem, name, part) for part in fused.split(Pass(*RADIAL_PASSES[name]))]


def compile_all(jobs: list[Job], processes: int, end: float) -> None:
    """Fill the cache of compiled kernels. What fails here fails again, and is passed over, where it is timed."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        found = [pool.submit(_compile, job, config) for job in jobs for config in job.candidates]
        wait(found, timeout=max(1.0, end - time.monotonic()))
        pool.shutdown(wait=False, cancel_futures=True)


def _compile(job: Job, config: Any) -> None:
    job.prepare(config, _inputs(job.spec, torch.device("cuda"), nodes=8, edges=64))()


def tune(group: list[Job], device: torch.device, end: float) -> tuple[dict[str, dict[str, int]], list[dict[str, Any]]]:
    """The fastest configurations of jobs by their entries in the file, and the milliseconds of all.

    No configurations where the time is over or, with the radial layer inside, where the weights in memory are faster.
    """
    found, passes, total, first = {}, [], 0.0, group[0]
    inputs = _inputs(first.spec, device, *SIZES["gpu"])
    for job in group:
        times = _times(job, inputs, end)
        if not times:
            return {}, passes
        best = min(times, key=lambda config: times[config])
        found[job.entry] = vars(best)
        total += times[best]
        passes.append(job.row(times))
        default = times.get(job.candidates[0], float("nan"))
        print(f"{job}: {best}, {times[best]:.3f} ms, default {default:.3f} ms", flush=True)
    if first.part is None:
        return found, passes
    apart = _with_weights_in_memory(first, inputs)
    passes[-1]["with_weights_in_memory_ms"] = apart
    with tf32():
        passes[-1]["with_weights_in_memory_tf32_ms"] = _with_weights_in_memory(first, inputs)
    print(f"{first.problem} {first.name} radial: {total:.3f} ms, with weights in memory {apart:.3f} ms", flush=True)
    return (found if total < apart else {}), passes


def _with_weights_in_memory(job: Job, inputs: tuple[Results, Tables]) -> float:
    """Milliseconds of the whole pass of a job by the other way."""
    tangents, wants = RADIAL_PASSES[job.name]
    return round(_milliseconds(lambda: radial.unfused(job.spec.key, *inputs, tangents, wants)), 4)


@contextmanager
def tf32() -> Iterator[None]:
    """Within, matrix products may be computed in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _times(job: Job, inputs: tuple[Results, Tables], end: float) -> dict[Any, float]:
    """Milliseconds of the candidates that give what the first one, the default, gives; none where the time is over."""
    expected: Results = {}
    times: dict[Any, float] = {}
    for config in job.candidates:
        if time.monotonic() > end:
            break
        run = job.prepare(config, inputs)
        try:
            results = run()
        except Exception as error:  # a candidate that needs more than this GPU has
            print(f"{job}: {config} left out: {(str(error).splitlines() or [type(error).__name__])[0]}", flush=True)
            continue
        expected = expected or results
        if all(_equal(results[want], tensor) for want, tensor in expected.items()):
            times[config] = _milliseconds(run)
    return times


def _inputs(spec: Spec, device: torch.device, nodes: int, edges: int) -> tuple[Results, Tables]:
    torch.manual_seed(0)
    receivers = torch.randint(nodes, (edges,), device=device).sort().values
    graph = Edges(torch.randint(nodes, (edges,), device=device), receivers, nodes)
    sizes = {"x": (nodes, spec.dim_x), "y": (edges, spec.dim_y), "w": (edges, spec.dim_w), "g": (nodes, spec.dim_out)}
    sizes |= {"h": (edges, HIDDEN), "W": (HIDDEN, spec.dim_w)}
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
