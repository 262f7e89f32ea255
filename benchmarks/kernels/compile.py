"""Compile the Triton kernels of problems 1-4 without a GPU and write benchmarks/results/kernels_compile.json.

    python benchmarks/kernels/compile.py [--problems 1 2 3 4] [--targets sm_80 sm_90 gfx942] [--output FILE]

For every pass (forward, backward with all gradients, double backward with all tangents; fp32, default configuration):
registers, bytes spilled and seconds of processor time of each kernel, and what a launch costs at N = 5,000 nodes and
E = 250,000 edges. Nothing here is a measured time of a GPU.

Bytes: every input is read once, every output written once; rows of edges that are summed at their nodes, and partial
gradients to y, are written and read. What is read again at every edge (rows of the other node) is counted apart: it
comes from the cache where the nodes fit into it. Flops: what depends on y alone is counted once an edge.
The limit is the larger of bytes over 4.3 TB/s (a copy on an H200) and flops over 67 TFLOP/s (its fp32 rate).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import triton
from cpu import PROBLEMS

from sciml_kernels import Spec, aot
from sciml_kernels.trilinear import gpu
from sciml_kernels.trilinear.emit import PASSES, Term, emit
from sciml_kernels.trilinear.parts import WARP, arrays_read, choose_walk
from sciml_kernels.trilinear.triton import HELD, OTHER
from sciml_kernels.trilinear.tuned import DEFAULT

NODES, EDGES = 5000, 250_000
COPY_BYTES, FLOPS = 4.3e12, 67e12  # a second, on an H200


def main() -> int:
    """Compile, write the report, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--targets", nargs="+", default=list(aot.TARGETS))
    default = Path(__file__).resolve().parents[1] / "results" / "kernels_compile.json"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    rows = []
    for problem in arguments.problems:
        for name in PASSES:
            rows.append(report(problem, name, arguments.targets))
            print(_line(rows[-1]), flush=True)
    result = {
        "nodes": NODES,
        "edges": EDGES,
        "dtype": "float32",
        "triton": triton.__version__,
        "configuration": {"values": DEFAULT.values, "warps": DEFAULT.warps},
        "copy_bytes_per_s": COPY_BYTES,
        "flops_per_s": FLOPS,
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(kernel["spills"] == 0 for row in rows for kernel in row["kernels"]) else 1


def report(problem: int, name: str, targets: list[str]) -> dict[str, Any]:
    """One pass of one problem."""
    title, *irreps = PROBLEMS[problem]
    spec, (terms, wants) = Spec.separate(*irreps), PASSES[name]
    walk = choose_walk(spec, terms, wants, by_sender=True)
    kernels = []
    for target in targets:
        todo = gpu.build(spec, torch.float32, walk, terms, wants, DEFAULT, 64 if target.startswith("gfx") else WARP)
        for kernel in todo.kernels:
            found = aot.report(kernel.function, gpu.signature(kernel.text, torch.float32), {}, target, kernel.warps)
            lines = len(kernel.text.source.splitlines())
            kernels.append({"target": target, "lines": lines, **vars(found)})
    moved, cached = traffic(spec, name)
    flops = operations(spec, terms, wants) * EDGES
    limits = {"bytes": moved / COPY_BYTES, "flops": flops / FLOPS}
    bound = max(limits, key=lambda key: limits[key])
    return {
        "problem": problem,
        "name": title,
        "pass": name,
        "walk": walk,
        "bytes": moved,
        "bytes_through_cache": cached,
        "flops": flops,
        "limit_ms": round(1e3 * limits[bound], 3),
        "bound": bound,
        "kernels": kernels,
    }


def traffic(spec: Spec, name: str) -> tuple[int, int]:
    """Bytes that a pass must move, and those that every edge reads again of the node that is not walked."""
    terms, wants = PASSES[name]
    walk = choose_walk(spec, terms, wants, by_sender=True)
    todo = gpu.build(spec, torch.float32, walk, terms, wants, DEFAULT)
    rows = {"x": NODES, "y": EDGES, "w": EDGES, "g": NODES}
    dims = {"x": spec.dim_x, "y": spec.dim_y, "w": spec.dim_w, "g": spec.dim_out}
    reads = [name[-1] for name in arrays_read(terms, wants)]
    numbers = sum(rows[kind] * dims[kind] for kind in (*reads, *wants))
    other = OTHER[walk]
    numbers += 2 * EDGES * dims[other] * (other in wants)
    numbers += 2 * EDGES * dims["y"] * todo.slabs * ("y" in wants and todo.slabs > 1)
    index = 8 * EDGES * (1 + (HELD[walk] == "x") + (other in wants))
    return 4 * numbers + index, 4 * EDGES * dims[other] * reads.count(other)


def operations(spec: Spec, terms: tuple[Term, ...], wants: str) -> int:
    """Additions and multiplications for one edge; those of y alone once for all channels and paths that share them."""
    shared: set[tuple[int, str]] = set()
    total = 0
    for path in spec.paths:
        seen: set[str] = set()
        for step in emit(path, terms, wants):
            count = step.expression.count("*") + step.expression.count(" + ")
            count += step.kind == "add" or step.name in seen
            seen.add(step.name)
            if step.kind != "matrix":
                total += count * spec.irreps_x[path.x].mul
            elif (path.y, step.expression) not in shared:
                shared.add((path.y, step.expression))
                total += count
    return total


def _line(row: dict[str, Any]) -> str:
    kernels = row["kernels"]
    return (
        f"{row['problem']} {row['pass']}: {row['bytes'] / 1e9:.2f} GB, {row['flops'] / 1e9:.0f} GFLOP, "
        f"limit {row['limit_ms']} ms ({row['bound']}); at most {max(kernel['registers'] for kernel in kernels)} "
        f"registers, {sum(kernel['spills'] for kernel in kernels)} bytes spilled, "
        f"{max(kernel['seconds'] for kernel in kernels)} s"
    )


if __name__ == "__main__":
    sys.exit(main())
