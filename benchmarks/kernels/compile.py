"""Compile the Triton kernels of every operation without a GPU and write benchmarks/results/kernels_compile.json.

    python benchmarks/kernels/compile.py [--operations conv conv_radial layers ...] [--problems 1 2 3 4]
                                         [--targets sm_80 sm_90 gfx942] [--output FILE]

For every pass (forward, backward with all gradients, double backward with all tangents; fp32, default configuration) of
the convolution, and of those of a loss on forces of the convolution with the radial layer inside (64 hidden features):
registers, bytes spilled and seconds of processor time of each kernel, and what a launch costs at N = 5,000 nodes and
E = 250,000 edges; the same of every launch of the other operations (`launches.py`), which have no use for --problems.
Nothing here is a measured time of a GPU. Rows and targets of the file that were not asked for stay as they are.

Bytes: every input is read once, every output written once; rows of edges that are summed at their nodes, and partial
gradients to y, are written and read. What is read again at every edge (rows of the other node) is counted apart: it
comes from the cache where the nodes fit into it. Flops: what depends on y alone is counted once an edge.
The limit is the larger of bytes over 4.3 TB/s (a copy on an H200) and flops over 67 TFLOP/s (its fp32 rate); matrix
products run at 400 TFLOP/s in TF32, a third of it in single precision, beside the others.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from launches import OPERATIONS, Launch
from limits import (
    COPY_BYTES,
    FLOPS,
    FLOPS_FP64,
    PRODUCT_FLOPS,
    operations,
    radial_operations,
    radial_traffic,
    traffic,
)
from problems import PROBLEMS, SIZES

from sciml_kernels import aot
from sciml_kernels.convolution_radial import fused, tiles
from sciml_kernels.convolution_radial.passes import PASSES as RADIAL_PASSES
from sciml_kernels.convolution_radial.passes import Pass
from sciml_kernels.trilinear import gpu
from sciml_kernels.trilinear.emit import PASSES
from sciml_kernels.trilinear.parts import WARP, Config, choose_walk
from sciml_kernels.trilinear.tuned import default

NODES, EDGES = SIZES["gpu"]
CONVOLUTIONS = [key for key, problem in PROBLEMS.items() if problem.operation == "conv"]
RADIAL, HIDDEN = ("1", "2", "4"), 64
ORDER = ["conv", "conv_radial", *OPERATIONS]


def main() -> int:
    """Compile, write the report, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", nargs="+", choices=ORDER, default=ORDER)
    parser.add_argument("--problems", nargs="+", choices=CONVOLUTIONS, default=CONVOLUTIONS)
    parser.add_argument("--targets", nargs="+", default=list(aot.TARGETS))
    default = Path(__file__).resolve().parents[1] / "results" / "kernels_compile.json"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    rows = _rows_of(arguments.output)
    for row in itertools.chain.from_iterable(_reports(name, arguments) for name in arguments.operations):
        place = row["operation"], row["problem"], row["pass"]
        others = [kernel for kernel in rows.get(place, row)["kernels"] if kernel["target"] not in arguments.targets]
        rows[place] = row | {"kernels": sorted(others + row["kernels"], key=lambda kernel: _place_of(kernel["target"]))}
        _write(arguments.output, sorted(rows.values(), key=lambda row: ORDER.index(row["operation"])))
        print(_line(row), flush=True)
    return 0 if all(kernel["spills"] == 0 for row in rows.values() for kernel in row["kernels"]) else 1


def _reports(operation: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of an operation."""
    if operation in OPERATIONS:
        yield from (launch_report(launch, arguments.targets) for launch in OPERATIONS[operation]())
        return
    for problem, name in itertools.product(arguments.problems, PASSES):
        if operation == "conv":
            yield report(problem, name, arguments.targets)
        elif problem in RADIAL:
            yield radial_report(problem, name, arguments.targets)


def _rows_of(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The rows that a file has, by operation, problem and pass."""
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    return {(row["operation"], row["problem"], row["pass"]): row for row in rows}


def _place_of(target: str) -> int:
    return aot.TARGETS.index(target) if target in aot.TARGETS else len(aot.TARGETS)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    result = {
        "nodes": NODES,
        "edges": EDGES,
        "dtype": "float32",
        "triton": triton.__version__,
        "configuration": vars(Config()),
        "radial_configuration": vars(tiles.Config()),
        "copy_bytes_per_s": COPY_BYTES,
        "flops_per_s": FLOPS,
        "flops_per_s_fp64": FLOPS_FP64,
        "rows": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


def report(key: str, name: str, targets: list[str]) -> dict[str, Any]:
    """One pass of one problem."""
    spec, (terms, wants) = PROBLEMS[key].spec(), PASSES[name]
    walk = choose_walk(spec, terms, wants, by_sender=True)
    kernels = []
    for target in targets:
        todo = gpu.build(spec, torch.float32, walk, terms, wants, default(terms, wants), _warp(target))
        for kernel in todo.kernels:
            found = aot.report(kernel.function, gpu.signature(kernel.text, torch.float32), {}, target, kernel.warps)
            lines = len(kernel.text.source.splitlines())
            kernels.append({"target": target, "lines": lines, **vars(found)})
    moved, cached = traffic(spec, name, NODES, EDGES)
    flops = operations(spec, name) * EDGES
    limits = {"bytes": moved / COPY_BYTES, "flops": flops / FLOPS}
    bound = max(limits, key=lambda key: limits[key])
    return {
        "operation": "conv",
        "problem": key,
        "name": PROBLEMS[key].name,
        "pass": name,
        "walk": walk,
        "bytes": moved,
        "bytes_through_cache": cached,
        "flops": flops,
        "limit_ms": round(1e3 * limits[bound], 3),
        "bound": bound,
        "kernels": kernels,
    }


def radial_report(key: str, name: str, targets: list[str]) -> dict[str, Any]:
    """One pass of one problem with the radial layer inside; in single precision, but for the limit in TF32."""
    spec, kernels, walks = PROBLEMS[key].spec(), [], []
    for todo in fused.split(Pass(*RADIAL_PASSES[name])):
        walks.append(choose_walk(spec, todo.terms, todo.trilinear_wants, by_sender=True))
        for target in targets:
            exact = "ieee" if target.startswith("gfx") else "tf32x3"
            config, warp = tiles.default(todo), _warp(target)
            plan = fused.build(spec, HIDDEN, torch.float32, exact, walks[-1], todo, config, warp)
            for kernel in plan.kernels:
                types = fused.signature(kernel.text, torch.float32)
                found = aot.report(kernel.function, types, {}, target, kernel.warps, maxnreg=kernel.maxnreg)
                lines = len(kernel.text.source.splitlines())
                kernels.append({"target": target, "wants": todo.wants, "lines": lines, **vars(found)})
    moved, cached = radial_traffic(spec, HIDDEN, name, NODES, EDGES)
    couplings, products = (EDGES * flops for flops in radial_operations(spec, HIDDEN, name))
    limits = {"bytes": moved / COPY_BYTES, "flops": couplings / FLOPS, "products": products / PRODUCT_FLOPS["tf32x3"]}
    bound = max(limits, key=lambda key: limits[key])
    in_tf32 = max(limits["bytes"], limits["flops"], products / PRODUCT_FLOPS["tf32"])
    return {
        "operation": "conv_radial",
        "problem": key,
        "name": PROBLEMS[key].name,
        "pass": name,
        "hidden": HIDDEN,
        "walk": "+".join(walks),
        "bytes": moved,
        "bytes_through_cache": cached,
        "flops": couplings + products,
        "flops_of_products": products,
        "limit_ms": round(1e3 * limits[bound], 3),
        "limit_ms_tf32": round(1e3 * in_tf32, 3),
        "bound": bound,
        "kernels": kernels,
    }


def launch_report(launch: Launch, targets: list[str]) -> dict[str, Any]:
    """One launch of an operation that is no convolution of edges."""
    kernels = []
    for target in targets:
        for kernel in launch.kernels(_warp(target)):
            found = aot.report(kernel.function, kernel.types, kernel.constants, target, kernel.warps)
            kernels.append({"target": target, **vars(found)})
    rate = FLOPS_FP64 if launch.dtype == torch.float64 else FLOPS
    limits = {"bytes": launch.moved / COPY_BYTES, "flops": launch.flops / rate}
    bound = max(limits, key=lambda key: limits[key])
    return {
        "operation": launch.operation,
        "problem": launch.problem,
        "pass": launch.name,
        "dtype": str(launch.dtype).removeprefix("torch."),
        "bytes": launch.moved,
        "flops": launch.flops,
        "limit_ms": round(1e3 * limits[bound], 4),
        "bound": bound,
        "kernels": kernels,
    }


def _warp(target: str) -> int:
    """Threads of a warp."""
    return 64 if target.startswith("gfx") else WARP


def _line(row: dict[str, Any]) -> str:
    kernels = row["kernels"]
    return (
        f"{row['operation']}, {row['problem']}, {row['pass']}: "
        f"{row['bytes'] / 1e9:.3g} GB, {row['flops'] / 1e9:.3g} GFLOP, "
        f"limit {row['limit_ms']} ms ({row['bound']}); at most {max(kernel['registers'] for kernel in kernels)} "
        f"registers, {sum(kernel['spills'] for kernel in kernels)} bytes spilled, "
        f"{max(kernel['seconds'] for kernel in kernels)} s"
    )


if __name__ == "__main__":
    sys.exit(main())
