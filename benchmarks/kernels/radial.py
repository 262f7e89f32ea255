"""Time conv_radial beside h @ weight and conv on this machine and write benchmarks/results/kernels_radial.json.

    python benchmarks/kernels/radial.py [--problems 1 2 3] [--threads N] [--repeats N] [--output FILE]

Passes: forward; backward to x, y and h, as forces need it; double backward, whose gradients arrive at those of x, y and
h and go to x, y, h, the weight and g, as force training needs it. Both ways run by turns in one subprocess with large
malloc thresholds. Peak memory is what each way adds to the resident memory of a subprocess of its own over all three
passes; saved memory is what the forward pass keeps. A speed is reported only where value, first and second derivatives
agree with the plain-torch definition in fp64.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpu import HARMONICS, MALLOC, PASSES, TOLERANCE, machine

# name, node features, edge features, output, paths into one output summed, hidden features, nodes, edges
PROBLEMS = {
    1: ("MACE-medium", "128x0e+128x1o", HARMONICS, HARMONICS, False, 64, 128, 6600),
    2: ("32 channels, lmax 2", "32x0e+32x1o+32x2e", "0e+1o+2e", "0e+1o+2e", True, 32, 320, 4000),
    3: ("32 channels, lmax 2, more edges", "32x0e+32x1o+32x2e", "0e+1o+2e", "0e+1o+2e", True, 32, 640, 13000),
}
WAYS = ("fused", "plain")


def main() -> int:
    """Three subprocesses per problem: times, and the memory of each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=15)
    default = Path(__file__).resolve().parents[1] / "results" / "kernels_radial.json"
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--child", choices=["times", *WAYS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        problem = Problem(arguments.problems[0], arguments.threads)
        found = problem.measure(arguments.repeats) if arguments.child == "times" else problem.memory(arguments.child)
        print(json.dumps(found))
        return 0
    rows = [_row(number, arguments.threads, arguments.repeats) for number in arguments.problems]
    report = {"machine": machine(arguments.threads), "dtype": "float32", "rows": rows}
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(_table(rows))
    return 0 if all(row["correct"] for row in rows) else 1


def _row(number: int, threads: int, repeats: int) -> dict[str, Any]:
    row = _in_subprocess("times", number, threads, repeats)
    if row["correct"]:
        for way in WAYS:
            row[f"{way}_memory"] = _in_subprocess(way, number, threads, repeats)
    return row


def _in_subprocess(what: str, problem: int, threads: int, repeats: int) -> dict[str, Any]:
    settings = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", **(MALLOC if what == "times" else {})}
    options = {"--child": what, "--problems": problem, "--threads": threads, "--repeats": repeats}
    command = [sys.executable, __file__, *(str(part) for option in options.items() for part in option)]
    result = subprocess.run(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


class Problem:
    """Inputs of one problem, and the two ways to compute it."""

    def __init__(self, number: int, threads: int) -> None:
        import torch

        from sciml_kernels import Edges, Spec

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.number = number
        self.name, x, y, keep, summed, hidden, nodes, edges = PROBLEMS[number]
        self.spec = (Spec.summed if summed else Spec.separate)(x, y, keep)
        self.graph = Edges(torch.randint(nodes, (edges,)), torch.randint(nodes, (edges,)).sort().values, nodes)
        sizes = ((nodes, self.spec.dim_x), (edges, self.spec.dim_y), (edges, hidden), (hidden, self.spec.dim_w))
        self.arguments = [torch.randn(size) / size[0] ** (0.5 * (index == 3)) for index, size in enumerate(sizes)]

    def way(self, name: str, backend: str = "cpu") -> Callable[..., Any]:
        """A function of x, y, h and the weight."""
        from sciml_kernels import conv, conv_radial

        if name == "fused":
            return lambda *leaves: conv_radial(*leaves, self.graph, self.spec, backend)
        return lambda x, y, h, weight: conv(x, y, h @ weight, self.graph, self.spec, backend)

    def measure(self, repeats: int) -> dict[str, Any]:
        """Correctness, then times in ms."""
        row: dict[str, Any] = {"problem": self.number, "name": self.name, "weights": self.spec.dim_w}
        row["error"] = self._error()
        row["correct"] = row["error"] < TOLERANCE
        if row["correct"]:
            times = self._times(repeats)
            row.update({f"{way}_ms": times[way] for way in WAYS})
            plain, fused = (sum(times[way].values()) for way in ("plain", "fused"))
            row["ratio"] = round(plain / fused, 2)
        return row

    def _passes(self, way: str, backend: str = "cpu", double: bool = False) -> tuple[list[Any], list[float]]:
        """All results, and the seconds of each pass."""
        import torch

        dtype = torch.float64 if double else torch.float32
        leaves = [argument.to(dtype).clone().requires_grad_() for argument in self.arguments]
        function = self.way(way, backend)
        marks = [time.perf_counter()]
        value = function(*leaves)
        marks.append(time.perf_counter())
        g = torch.ones_like(value).requires_grad_()
        first = torch.autograd.grad(value, leaves[:3], g, create_graph=True)
        marks.append(time.perf_counter())
        second = torch.autograd.grad(first, [*leaves, g], [leaf.detach() for leaf in leaves[:3]])
        marks.append(time.perf_counter())
        results = [tensor.detach() for tensor in (value, *first, *second)]
        return results, [end - begin for begin, end in itertools.pairwise(marks)]

    def _error(self) -> float:
        """Largest deviation of the fused way from the definition in fp64, of the largest entry of each result."""
        found, wanted = self._passes("fused")[0], self._passes("plain", "reference", double=True)[0]
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))

    def _times(self, repeats: int) -> dict[str, dict[str, float]]:
        """Medians of each way, run by turns: what else the machine does meets both."""
        samples: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        for _ in range(repeats + 1):
            for way in WAYS:
                samples[way].append(self._passes(way)[1])
        return {
            way: {
                name: round(1e3 * statistics.median(times), 2)
                for name, times in zip(PASSES, zip(*found[1:], strict=True), strict=True)
            }
            for way, found in samples.items()
        }

    def memory(self, way: str) -> dict[str, float]:
        """MB kept by the forward pass, and MB that all passes add to the resident memory at its peak."""
        import torch

        kept: dict[int, int] = {}

        def keep(tensor: Any) -> Any:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        small = Problem(self.number, torch.get_num_threads())  # loads the libraries, with little memory of its own
        small.graph = type(small.graph)(small.graph.senders[:1], small.graph.receivers[:1], small.graph.num_nodes)
        small.arguments[1:3] = [argument[:1] for argument in small.arguments[1:3]]
        small._passes(way)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._passes(way)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        leaves = [argument.clone().requires_grad_() for argument in self.arguments]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = self.way(way)(*leaves)
        del value
        return {"saved_MB": round(sum(kept.values()) / 1e6, 2), "peak_MB": round(peak / 1e3, 1)}


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| problem | fused forward / backward / double, ms | h @ W + conv, ms | ratio | saved, MB | peak, MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        title = f"{row['problem']} {row['name']}, {row['weights']} weights"
        if not row["correct"]:
            lines.append(f"| {title} | WRONG: error {row['error']:.1e} | | | | |")
            continue
        times = [" / ".join(str(value) for value in row[f"{way}_ms"].values()) for way in WAYS]
        memory = [" / ".join(str(row[f"{way}_memory"][key]) for way in WAYS) for key in ("saved_MB", "peak_MB")]
        lines.append(f"| {title} | {' | '.join(times)} | {row['ratio']}x | {' | '.join(memory)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
