"""The one way in which everything here is checked and timed: three passes, their results, their time, their memory."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from problems import Instance
from providers import Prepared, same
from torch import Tensor

PASSES = ("forward", "backward", "double")
TOLERANCE = 1e-4  # of the largest entry of each result, fp32 against fp64
PATIENCE = 10.0  # seconds
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}


class Work:
    """One problem in the hands of one provider.

    The passes: forward; backward to `instance.first`, as forces need it; double backward to all arguments and to the
    gradient g that arrived, as force training needs it.
    """

    def __init__(self, prepared: Prepared, instance: Instance) -> None:
        self.prepared, self.first = prepared, instance.first
        count = len(instance.arguments)
        self.leaves = [self._theirs(i, argument).requires_grad_() for i, argument in enumerate(instance.arguments)]
        self.tangents = [
            self._theirs(i, instance.random(instance.arguments[i].shape)) for i in self.first
        ]  # not along the arguments: the harmonics of a direction do not change along it
        self.g = self._theirs("out", instance.random(instance.plain["out"])).requires_grad_()
        self.places: list[int | str] = ["out", *self.first, *range(count), "out"]

    def _theirs(self, place: int | str, tensor: Tensor) -> Tensor:
        return self.prepared.theirs.get(place, same)(tensor).detach().contiguous()

    def run(self, clock: Any) -> list[Tensor]:
        """All results in the provider's layout; the clock is read before, between and after the passes."""
        clock()
        value = self.prepared.function(*self.leaves)
        clock()
        first = torch.autograd.grad(value, [self.leaves[i] for i in self.first], self.g, create_graph=True)
        clock()
        second = torch.autograd.grad(first, [*self.leaves, self.g], self.tangents)
        clock()
        return [tensor.detach() for tensor in (value, *first, *second)]

    def results(self) -> list[Tensor]:
        """Value, first and second derivatives in our layout."""
        found = self.run(lambda: None)
        return [self.prepared.ours.get(place, same)(tensor) for place, tensor in zip(self.places, found)]

    def times(self, repeats: int) -> dict[str, float]:
        """Median of each pass in ms; fewer repeats, three at least, where they take long."""
        self._round()
        rounds: list[list[float]] = []
        end = time.monotonic() + PATIENCE
        while len(rounds) < repeats and (len(rounds) < 3 or time.monotonic() < end):
            rounds.append(self._round())
        return {name: round(statistics.median(times), 3) for name, times in zip(PASSES, zip(*rounds))}

    def _round(self) -> list[float]:
        if not self.g.is_cuda:
            marks: list[float] = []
            self.run(lambda: marks.append(time.perf_counter()))
            return [1e3 * (end - begin) for begin, end in itertools.pairwise(marks)]
        events: list[Any] = []

        def record() -> None:
            events.append(torch.cuda.Event(enable_timing=True))
            events[-1].record()

        self.run(record)
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in itertools.pairwise(events)]

    def memory(self) -> dict[str, float]:
        """MB that the three passes add at their peak, results included, and MB that the forward pass keeps.

        On a CPU this is the resident memory of the process.
        """
        before = _used(self.g.is_cuda)
        self.run(lambda: None)
        peak = _peak(self.g.is_cuda) - before
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = self.prepared.function(*self.leaves)
        del value
        return {"peak_MB": round(peak / 1e6, 2), "saved_MB": round(sum(kept.values()) / 1e6, 4)}


def _used(cuda: bool) -> float:
    """Bytes in use now; the peak counts from here. Free memory that the allocator keeps goes back to the system."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(cuda: bool) -> float:
    """Bytes at the peak since `_used`."""
    return float(torch.cuda.max_memory_allocated()) if cuda else _status("VmHWM")


def _status(name: str) -> float:
    """Bytes of a line of /proc/self/status. (The ru_maxrss of a process begins with that of its parent.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest deviation, of the largest entry of each result; NaN where a result is not finite."""
    errors = [float((a.double().cpu() - b).abs().max() / b.abs().max()) for a, b in zip(found, expected)]
    return max(errors) if all(value == value for value in errors) else float("nan")


def bandwidth(device: str) -> float:
    """Bytes a second of a copy, read and written."""
    count = 2**28 if device == "cuda" else 2**25
    source, target = torch.ones(count, device=device), torch.ones(count, device=device)
    return 8 * count / _median_seconds(lambda: target.copy_(source), device)


def flops(device: str) -> float:
    """Additions and multiplications a second of a product of matrices in fp32."""
    size = 8192 if device == "cuda" else 1024
    a, b = torch.ones(size, size, device=device), torch.ones(size, size, device=device)
    return 2 * size**3 / _median_seconds(lambda: a @ b, device)


def _median_seconds(work: Callable[[], object], device: str, repeats: int = 9) -> float:
    samples = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples[1:])


def machine(device: str, threads: int) -> dict[str, Any]:
    """What the times were measured on, and how busy it was."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    found: dict[str, Any] = {"processor": model, "threads": threads}
    if vectors := {"AVX512": "AVX-512", "AVX2": "AVX2"}.get(torch.backends.cpu.get_cpu_capability()):
        found["vectors"] = vectors
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    load = round(os.getloadavg()[0], 1)
    return found | {"load_before": load, "python": platform.python_version(), "torch": torch.__version__}
