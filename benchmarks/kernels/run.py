"""Check and time our kernels beside published libraries, and write benchmarks/results/kernels_<cpu or GPU>.json.

    python benchmarks/kernels/run.py [--device cpu|gpu] [--problems 1 2 ...] [--providers ours e3nn ...]
                                     [--threads N] [--repeats N] [--minutes 10] [--output FILE]

Every provider runs each problem in a process of its own, with large malloc thresholds so that big tensors are not
mapped anew at every call. Its value, first and second derivatives are held against our plain-torch definition in fp64
on a smaller problem of the same irreps: where they deviate, no speed is reported. Time and peak memory are those of
forward, backward (to what forces need) and double backward (to everything) in fp32. Beside them stands the time that
the hardware needs at least (`limits.py`). A plot of the file lies beside it. Exit code 1: ours was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import report
import torch
from limits import copy_times, limits
from measure import MALLOC, PASSES, TOLERANCE, Work, machine
from problems import REGISTRY, Instance, Problem, definition
from providers import PROVIDERS, Prepared

RESULTS = Path(__file__).resolve().parents[1] / "results"


def main() -> int:
    """Run what was asked for; after each problem the file is written anew."""
    arguments = _arguments()
    device = "cuda" if arguments.device == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        print("--device gpu: torch finds no GPU here.", file=sys.stderr)
        return 2
    output = arguments.output or RESULTS / f"kernels_{_name(device)}.json"
    found = {"machine": machine(device, arguments.threads), "dtype": "float32", "tolerance": TOLERANCE, "rows": []}
    end = time.monotonic() + 60 * (arguments.minutes or (60 if device == "cpu" else 9.5))
    print(report.head())
    for key in arguments.problems:
        found["rows"].append(measure(key, device, arguments, end))
        output.write_text(json.dumps(found, indent=1) + "\n")
        print(report.lines(found["rows"][-1]), flush=True)
    report.plot(found, output.with_suffix(".png"))
    return 0 if all(row["correct"] for row in found["rows"]) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--problems", nargs="+", choices=list(REGISTRY), default=list(REGISTRY))
    parser.add_argument("--providers", nargs="+", choices=list(PROVIDERS), default=list(PROVIDERS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--minutes", type=float, help="no process goes on after that time; 9.5 on a GPU, 60 on a CPU")
    parser.add_argument("--size", choices=["cpu", "gpu", "gate", "tiny"], help="default: that of the device")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def _name(device: str) -> str:
    if device == "cpu":
        return "cpu"
    from sciml_kernels.trilinear.tuned import name_of

    return name_of(torch.device("cuda", torch.cuda.current_device()))


def measure(key: str, device: str, arguments: argparse.Namespace, end: float) -> dict[str, Any]:
    """One row: all providers of one problem."""
    problem = REGISTRY[key]
    plain = problem.describe(arguments.size or arguments.device)
    row: dict[str, Any] = {"problem": key, "name": problem.name, "nodes": plain["nodes"], "edges": plain["edges"]}
    row |= {"paths": len(plain.get("paths", [])), "skipped": {}, "errors": {}}
    options = {"device": device, "threads": arguments.threads, "repeats": arguments.repeats, "plain": plain}
    sizes = {size: problem.describe(size) for size in ("tiny", "gate")}
    shared = options | sizes | {"expected": expected(problem)}
    found: dict[str, dict[str, Any]] = {}
    for name in problem.peers:
        reason = "not asked for"
        if name in arguments.providers:
            answer, reason = _in_subprocess({**shared, "provider": name, "hardware": name == "ours"}, end)
            if answer:
                found[name] = answer
        if name not in found:
            row["skipped"][name] = reason
    return row | summary(found, plain, device)


def expected(problem: Problem, size: str = "gate") -> list[torch.Tensor]:
    """Value, first and second derivatives by the definition in fp64."""
    instance = Instance(problem.describe(size), "cpu", torch.float64)
    return Work(Prepared(definition(instance)), instance).results()


def _in_subprocess(payload: dict[str, Any], end: float) -> tuple[dict[str, Any] | None, str]:
    """The answer of `child.py`, or why there is none."""
    python, reason = PROVIDERS[payload["provider"]].interpreter(payload["device"])
    if python is None:
        return None, reason
    if time.monotonic() > end:
        return None, "the time was over"
    settings = {"OMP_NUM_THREADS": str(payload["threads"]), "GOMP_SPINCOUNT": "10000", **MALLOC}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "payload.pt"
        torch.save(payload, path)
        command = [str(python), str(Path(__file__).with_name("child.py")), str(path)]
        environment, left = {**os.environ, **settings}, end - time.monotonic()
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, timeout=max(1.0, left)
            )
        except subprocess.TimeoutExpired:
            return None, "the time was over"
    if done.returncode:
        return None, f"it failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer, ""


def summary(found: dict[str, dict[str, Any]], plain: dict[str, Any], device: str) -> dict[str, Any]:
    """The row of a file: results of each provider by name, ratios to the fastest peer, and the limit."""
    row: dict[str, Any] = {"errors": {name: answer["error"] for name, answer in found.items()}}
    row["correct"] = found.get("ours", {}).get("correct", False)
    right = {name: answer for name, answer in found.items() if answer["correct"]}
    for name, answer in right.items():
        row |= {f"{name}_ms": answer["ms"], f"{name}_memory": answer["memory"]}
    if "ours" not in right:
        return row
    ours = right.pop("ours")
    row |= {name: ours[name] for name in ("copy_GBps", "product_GFLOPps")}
    speed, total = 1e9 * ours["copy_GBps"], sum(ours["ms"].values())
    row["limit_ms"] = limits(plain, device, speed, 1e9 * ours["product_GFLOPps"])
    row["of_copy"] = round(sum(copy_times(plain, device, speed).values()) / total, 2)
    row["of_limit"] = round(sum(row["limit_ms"].values()) / total, 2)
    if right:
        row["peer"] = min(right, key=lambda name: sum(right[name]["ms"].values()))
        peer = right[row["peer"]]
        row["ratio"] = round(sum(peer["ms"].values()) / total, 2)
        row["ratios"] = {name: round(peer["ms"][name] / ours["ms"][name], 2) for name in PASSES}
        used, theirs = ours["memory"], peer["memory"]
        row["memory_ratios"] = {name: round(theirs[name] / used[name], 2) for name in used if used[name] > 0}
    return row


if __name__ == "__main__":
    sys.exit(main())
