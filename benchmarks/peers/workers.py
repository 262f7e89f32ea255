"""What every worker process shares: timing, memory, versions and the way a result is handed back.

Imported by both sides of a comparison, each in its own virtual environment, so it needs the standard library only.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# glibc hands freed blocks above the mmap threshold (128 KiB, growing to 32 MiB) back to the kernel, so that eager
# torch maps and page-faults its big intermediates anew at every operation: 1.3 to 1.6 times slower. Both sides get
# the same large thresholds, which keep such blocks in the heap.
TUNED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


def worker_environment(threads: int) -> dict[str, str]:
    """Environment of one worker: tuned malloc, `threads` threads in every library that reads a variable, and short
    spinning of those that wait, as `sciml train` has it.
    """
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return {**os.environ, **TUNED_MALLOC, **limits, "GOMP_SPINCOUNT": "10000", "PYTHONWARNINGS": "ignore"}


def peak_memory() -> float:
    """Largest resident memory of this process so far [MiB] (getrusage; Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_steps(step: Callable[[], float], warmup: int, repeats: int) -> dict[str, Any]:
    """Run `step` warmup + repeats times; seconds of each repeat and the loss before the first and the last step.

    `cpu_seconds` (processor time of all threads, mean per step) tells a busy machine: with 2 threads at work it is at
    most twice the seconds, and well below them where others took the cores.
    """
    losses = [step() for _ in range(warmup)]
    seconds = []
    cpu = time.process_time()
    for _ in range(repeats):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    cpu = (time.process_time() - cpu) / repeats
    return {"seconds": seconds, "cpu_seconds": cpu, "first_loss": losses[0], "last_loss": losses[-1]}


def versions(*packages: str) -> dict[str, str]:
    """Python's version and that of each installed package of those named."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Name of the CPU model."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def vectors() -> dict[str, str]:
    """{"vectors": what torch computes with} on an x86 processor that has wide ones."""
    import torch

    name = {"AVX512": "AVX-512", "AVX2": "AVX2"}.get(torch.backends.cpu.get_cpu_capability())
    return {"vectors": name} if name else {}


def machine() -> dict[str, Any]:
    """What a reader must know of the machine: no host name, no paths."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": processor(),
        **vectors(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def keep_result(path: str, report: Callable[[Any], dict[str, Any]], found: Any) -> None:
    """Write what a worker has found so far."""
    if path:
        write_result(path, report(found))


def write_result(path: str | Path, result: dict[str, Any]) -> None:
    """Write `result` as JSON, complete or not at all."""
    partial = Path(f"{path}.partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, path)


def say(text: str) -> None:
    """One line of progress on stderr (stdout stays free for results)."""
    print(text, file=sys.stderr, flush=True)
