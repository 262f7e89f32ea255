"""Time the generated C++ convolution beside e3nn on this machine and write benchmarks/results/kernels_cpu.json.

    python benchmarks/kernels/cpu.py [--problems 1 2 3 4] [--threads N] [--repeats N] [--output FILE]

Problems: N = 128 nodes, E = 6,600 edges, fp32. Peer: e3nn's TensorProduct ('uvu') on gathered features, then index_add.
Both run in a subprocess with large malloc thresholds, so that big tensors are not mapped anew at every call. A speed is
reported only where value, first and second derivatives agree with the plain-torch definition in fp64. The limit is the
time to copy the bytes that a pass must move (each input read and each output written once) at the measured bandwidth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NODES, EDGES = 128, 6600
HARMONICS = "0e+1o+2e+3o"
PROBLEMS = {
    1: ("MACE-medium", "128x0e+128x1o", HARMONICS, HARMONICS),
    2: ("MACE-large", "128x0e+128x1o+128x2e", HARMONICS, HARMONICS),
    3: ("NequIP", "+".join(f"64x{degree}{parity}" for degree in range(4) for parity in "oe"), HARMONICS, HARMONICS),
    4: ("SevenNet l3i5", "128x0e+64x1e+32x2e+32x3e", "0e+1e+2e+3e", "0e+1e+2e+3e"),
}
PASSES = ("forward", "backward", "double")
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
TOLERANCE = 1e-4  # of the largest entry of each result, fp32 against fp64


def main() -> int:
    """Run one subprocess per problem and gather their lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=9)
    default = Path(__file__).resolve().parents[1] / "results" / "kernels_cpu.json"
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.problems[0], arguments.threads, arguments.repeats)))
        return 0
    rows = [_in_subprocess(number, arguments.threads, arguments.repeats) for number in arguments.problems]
    report = {"machine": machine(arguments.threads), "nodes": NODES, "edges": EDGES, "dtype": "float32", "rows": rows}
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(_table(rows))
    return 0 if all(row["correct"] for row in rows) else 1


def _in_subprocess(problem: int, threads: int, repeats: int) -> dict[str, Any]:
    settings = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", **MALLOC}
    options = {"--problems": problem, "--threads": threads, "--repeats": repeats}
    command = [sys.executable, __file__, "--child", *(str(part) for option in options.items() for part in option)]
    result = subprocess.run(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return row


def measure(problem: int, threads: int, repeats: int) -> dict[str, Any]:
    """Correctness, then times in ms of one problem."""
    import torch

    from sciml_kernels import Edges, Spec, conv

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    name, irreps_x, irreps_y, keep = PROBLEMS[problem]
    spec = Spec.separate(irreps_x, irreps_y, keep)
    graph = Edges(torch.randint(NODES, (EDGES,)), torch.randint(NODES, (EDGES,)).sort().values, NODES)
    x, y, w = torch.randn(NODES, spec.dim_x), torch.randn(EDGES, spec.dim_y), torch.randn(EDGES, spec.dim_w)
    row: dict[str, Any] = {"problem": problem, "name": name, "paths": len(spec.paths)}
    start = time.perf_counter()
    row["error"] = _error(spec, graph, (x, y, w))
    row["first_call_s"] = round(time.perf_counter() - start, 2)  # the compiler, and the definition in fp64
    row["correct"] = row["error"] < TOLERANCE
    if not row["correct"]:
        return row
    row["bandwidth_GBps"] = round(bandwidth(repeats), 1)
    row["limit_ms"] = {key: round(value / row["bandwidth_GBps"] / 1e6, 3) for key, value in _bytes(spec).items()}
    row["ours_ms"] = times(lambda *leaves: conv(*leaves, graph, spec, "cpu"), (x, y, w), repeats)
    row["e3nn_ms"] = times(_peer(spec, graph), (x, y, w), max(3, repeats // 3))
    totals = [sum(row[key].values()) for key in ("e3nn_ms", "ours_ms", "limit_ms")]
    row["ratio"], row["of_limit"] = round(totals[0] / totals[1], 1), round(totals[2] / totals[1], 2)
    return row


def _peer(spec: Any, graph: Any) -> Callable[..., Any]:
    """e3nn's convolution; its channel-major layout is given it for free."""
    import torch
    from e3nn import o3

    instructions = [(path.x, path.y, path.out, "uvu", True) for path in spec.paths]
    tensor_product = o3.TensorProduct(
        spec.irreps_x, spec.irreps_y, spec.irreps_out, instructions, shared_weights=False, internal_weights=False
    )

    def convolve(x: Any, y: Any, w: Any) -> Any:
        messages = tensor_product(x[graph.senders], y, w)
        return torch.zeros(NODES, messages.shape[1]).index_add(0, graph.receivers, messages)

    return convolve


def _derivatives(function: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
    import torch

    leaves = [argument.detach().clone().requires_grad_() for argument in arguments]
    value = function(*leaves)
    g = torch.ones_like(value).requires_grad_()
    first = torch.autograd.grad(value, leaves, g, create_graph=True)
    second = torch.autograd.grad(first, [*leaves, g], list(arguments))
    return [value, *first, *second]


def _error(spec: Any, graph: Any, arguments: Sequence[Any]) -> float:
    """Largest deviation from the definition in fp64, of the largest entry of each result, on a tenth of the edges."""
    from sciml_kernels import Edges, conv

    rows = EDGES // 10
    part = Edges(graph.senders[::10], graph.receivers[::10], NODES)
    x, y, w = arguments[0], arguments[1][:rows], arguments[2][:rows]
    found = _derivatives(lambda *leaves: conv(*leaves, part, spec, "cpu"), (x, y, w))
    exact = [argument.double() for argument in (x, y, w)]
    wanted = _derivatives(lambda *leaves: conv(*leaves, part, spec, "reference"), exact)
    return max(float((a - b).abs().max().detach() / b.abs().max().detach()) for a, b in zip(found, wanted, strict=True))


def times(function: Callable[..., Any], arguments: Sequence[Any], repeats: int) -> dict[str, float]:
    """Medians in ms of the forward, the backward (all inputs) and the double backward pass (all tangents)."""
    import torch

    leaves = [argument.clone().requires_grad_() for argument in arguments]
    g = torch.ones_like(function(*leaves)).detach().requires_grad_()
    samples: dict[str, list[float]] = {name: [] for name in PASSES}
    for _ in range(repeats + 1):
        marks = [time.perf_counter()]
        value = function(*leaves)
        marks.append(time.perf_counter())
        first = torch.autograd.grad(value, leaves, g, create_graph=True)
        marks.append(time.perf_counter())
        torch.autograd.grad(first, [*leaves, g], list(arguments))
        marks.append(time.perf_counter())
        for name, begin, end in zip(PASSES, marks, marks[1:], strict=False):
            samples[name].append(1e3 * (end - begin))
        del value, first
    return {name: round(statistics.median(values[1:]), 2) for name, values in samples.items()}


def _bytes(spec: Any) -> dict[str, int]:
    """What each pass must move: w is the bulk, x and the output rows of all nodes count once."""
    x, out, y, w = NODES * spec.dim_x, NODES * spec.dim_out, EDGES * spec.dim_y, EDGES * spec.dim_w
    forward = x + y + w + out
    backward = 2 * (x + y + w) + out
    double = 3 * (x + y + w) + 2 * out
    return {name: 4 * count for name, count in zip(PASSES, (forward, backward, double), strict=True)}


def bandwidth(repeats: int) -> float:
    """GB/s of a copy (bytes read plus bytes written)."""
    import torch

    source, target = torch.ones(2**25), torch.ones(2**25)
    samples = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        target.copy_(source)
        samples.append(time.perf_counter() - start)
    return 2 * source.numel() * 4 / statistics.median(samples[1:]) / 1e9


def machine(threads: int) -> dict[str, Any]:
    """What the times were measured on, and how busy it was."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    load = round(os.getloadavg()[0], 1)
    return {"processor": model, "threads": threads, "load_before": load, "python": platform.python_version()}


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| problem | ours forward / backward / double, ms | limit, ms | e3nn, ms | ratio |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        title = f"{row['problem']} {row['name']}, {row['paths']} paths"
        if not row["correct"]:
            lines.append(f"| {title} | WRONG: error {row['error']:.1e} | | | |")
            continue
        times = [" / ".join(str(value) for value in row[key].values()) for key in ("ours_ms", "limit_ms", "e3nn_ms")]
        lines.append(f"| {title} | {' | '.join(times)} | {row['ratio']}x |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
