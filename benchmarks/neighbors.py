"""Neighbour lists of batches: our one function with each of its libraries, beside the list of one record at a time.

    python benchmarks/neighbors.py [--device cpu|gpu] [--repeats 9] [--output benchmarks/results/neighbors.json]

Crystals in triclinic cells and molecules in batches, 0.05 atoms per Å³, cutoff 5 Å. `records` is what preparing data
does: `sciml.data.neighbors` on numpy arrays, one record after another, here put together to a batch. Every list must
have the pairs of the first before it is timed. Medians on one thread, by the wall clock and, on a CPU, by the
processor time of this process, which a busy machine distorts less; on a GPU the results are named after it, and
`records` has no part.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.workers import processor, versions, write_result
from torch import Tensor

from sciml.data.neighbors import neighbors
from sciml_kernels import neighbor_list

CUTOFF, DENSITY = 5.0, 0.05
CASES = {  # systems, atoms of each, periodic
    "one crystal of 100 atoms": (1, 100, True),
    "one crystal of 1,000 atoms": (1, 1000, True),
    "one crystal of 10,000 atoms": (1, 10_000, True),
    "64 crystals of 100 atoms": (64, 100, True),
    "256 molecules of 20 atoms": (256, 20, False),
    "16 molecules of 1,000 atoms": (16, 1000, False),
}
Batch = tuple[Tensor, Tensor, Tensor, Tensor]
Pairs = tuple[Tensor, Tensor, Tensor]


def batch(systems: int, atoms: int, periodic: bool) -> Batch:
    """Random positions, triclinic cells, periodic directions and pointers."""
    generator = torch.Generator().manual_seed(0)
    length = (atoms / DENSITY) ** (1 / 3)
    noise = torch.randn(systems, 3, 3, dtype=torch.float64, generator=generator)
    cells = length * (torch.eye(3, dtype=torch.float64) + 0.1 * noise)
    positions = torch.rand(systems, atoms, 3, dtype=torch.float64, generator=generator) @ cells
    pbc = torch.full((systems, 3), periodic)
    return positions.flatten(0, 1), cells, pbc, torch.arange(systems + 1) * atoms


def by_record(positions: Tensor, cells: Tensor, pbc: Tensor, pointers: Tensor) -> Pairs:
    """Senders, receivers and shifts by the function that prepares data."""
    found = []
    for (start, end), cell, flags in zip(itertools.pairwise(pointers.tolist()), cells.numpy(), pbc.numpy()):
        senders, receivers, shifts = neighbors(positions[start:end].numpy(), cell, flags, CUTOFF)
        found.append((senders + start, receivers + start, shifts))
    senders, receivers, shifts = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*found, strict=True))
    return senders, receivers, shifts


def same(found: Pairs, expected: Pairs) -> bool:
    """Whether two lists have the same pairs."""
    rows = [torch.column_stack([receivers, senders, shifts]).cpu() for senders, receivers, shifts in (found, expected)]
    if rows[0].shape != rows[1].shape:
        return False
    sorted_rows = [row[np.lexsort(row.numpy().T[::-1])] for row in rows]
    return torch.equal(*sorted_rows)


def milliseconds(work: Callable[[], object], repeats: int, cuda: bool) -> dict[str, float]:
    """Medians by clock; the first call, which may compile, does not count."""
    samples = []
    for _ in range(repeats + 1):
        start = time.perf_counter(), time.process_time()
        work()
        if cuda:
            torch.cuda.synchronize()
        samples.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    wall, processor_time = (round(1e3 * statistics.median(times), 3) for times in zip(*samples[1:], strict=True))
    return {"ms": wall} if cuda else {"ms": wall, "processor_ms": processor_time}


def measure(case: tuple[int, int, bool], device: str, repeats: int) -> dict[str, Any]:
    """Pairs of a case and the ms of everyone who finds them."""
    arguments = tuple(tensor.to(device) for tensor in batch(*case))
    work: dict[str, Callable[[], Pairs]] = {}
    if device == "cpu":
        work["records"] = lambda: by_record(*arguments)
        work["vesin"] = lambda: neighbor_list(*arguments, CUTOFF, "vesin")
    if importlib.util.find_spec("nvalchemiops"):
        work["nvalchemi"] = lambda: neighbor_list(*arguments, CUTOFF, "nvalchemi")
    expected = by_record(*batch(*case))
    row: dict[str, Any] = {"pairs": len(expected[0]), "times": {}, "wrong": []}
    for name, function in work.items():
        if same(function(), expected):
            row["times"][name] = milliseconds(function, repeats, device == "cuda")
        else:
            row["wrong"].append(name)
    return row


def main() -> int:
    """Measure every case and save the figures; 1 where a list was wrong, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    cuda = arguments.device == "gpu"
    if cuda and not torch.cuda.is_available():
        parser.exit(2, "--device gpu: torch finds no GPU here.\n")
    torch.set_num_threads(1)
    machine: dict[str, Any] = {"processor": processor(), "threads": 1}
    if cuda:
        machine["gpu"] = torch.cuda.get_device_name()
    machine |= versions("torch", "vesin", "nvalchemi-toolkit-ops")
    found = {name: measure(CASES[name], "cuda" if cuda else "cpu", arguments.repeats) for name in arguments.cases}
    for name, row in found.items():
        print(f"{name:<28} {row['pairs']:>8,} pairs  {row['times']}", *[f"WRONG: {wrong}" for wrong in row["wrong"]])
    name = "neighbors_" + machine["gpu"].lower().replace(" ", "_") if cuda else "neighbors"
    output = arguments.output or Path(__file__).parent / "results" / f"{name}.json"
    write_result(output, {"machine": machine, "cutoff": CUTOFF, "cases": found})
    return int(any(row["wrong"] for row in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
