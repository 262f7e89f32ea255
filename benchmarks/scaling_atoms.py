"""Time per atom against the number of atoms, periodic: python benchmarks/scaling_atoms.py

Supercells of rock salt with displaced atoms, 64 to 10,648 of them. Two parts are timed apart:

short range   energy and forces of a model (`configs/model/small.yaml`, fine level) without long range, its graph made
              before;
reciprocal    the block of long-range potentials (`model.reciprocal`, 4 sets of charges) with its gradient to the
              positions: waves, pairs beyond the edges and the small network; and what its graph needs, made once.

Writes results/scaling_atoms.json and a plot: seconds, growth of the short range per atom, exponent of the block from
10^2 atoms on (slope of a straight line through the logarithms). One thread, so that processor time, which busy machines
distort least, can decide; the wall clock is recorded too. Memory is tuned as in `peers/`, else every large tensor is
mapped and page-faulted anew.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent / "peers"))  # holds the helpers of all benchmarks
from workers import TUNED_MALLOC, machine, peak_memory, say, versions, worker_environment, write_result

from sciml.data.far_field import FarField, add_far_field
from sciml.domains.materials.graphs import graph
from sciml.graph import Graph, collate
from sciml.models.backbone import edge_vectors, edges_of
from sciml.models.model import Model, build_model
from sciml.models.reciprocal import ReciprocalBlock
from sciml_kernels import Edges, edge_embedding

OUTPUT = Path(__file__).parent / "results" / "scaling_atoms.json"
SMALL = Path(__file__).parent.parent / "configs" / "model" / "small.yaml"
LATTICE = 5.64  # Å, of sodium chloride
CUTOFF = 5.0
CHARGES = 4
REPEATS = (2, 3, 4, 6, 8, 11)


def rock_salt(repeat: int) -> Graph:
    """A supercell of repeat^3 cubic cells of 8 atoms, displaced by 0.1 Å."""
    sites = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]) / 2
    corners = np.stack(np.meshgrid(*[np.arange(repeat)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    positions = LATTICE * (corners + sites).reshape(-1, 3)
    positions += 0.1 * np.random.default_rng(0).normal(size=positions.shape)
    types = np.tile([11] * 4 + [17] * 4, repeat**3)
    cell = LATTICE * repeat * np.eye(3)
    record = {"types": types, "positions": positions, "cell": cell, "pbc": np.ones(3, bool)}
    made = graph(record, "atoms", CUTOFF)
    assert made is not None
    made.dataset = torch.tensor([0])
    return made


def short_range(neighbors: float) -> Model:
    """The small model with two fine blocks: a crystal has no coarse level."""
    torch.manual_seed(0)
    backbone = {key: value for key, value in yaml.safe_load(SMALL.read_text()).items() if key != "options"}
    backbone |= {"layers": 2, "coarse_layers": 0, "layers_after": 0}
    context = {"datasets": ["salt"], "references": {"salt": {"11": 0.0, "17": 0.0}}}
    return build_model(
        {
            "backbone": backbone,
            "heads": {"energy": {"hidden": 64}},
            "kinds": ["atoms"],
            "cutoffs": {"atoms": CUTOFF},
            "context": context,
            "mean_neighbors": {"atoms": neighbors},
        }
    ).eval()


def timed(work: Callable[[], Any], budget: float) -> dict[str, float]:
    """The least wall and processor seconds of repetitions within about ``budget`` seconds, after one that warms up."""
    work()
    wall, cpu, start = [], [], time.perf_counter()
    while not wall or time.perf_counter() - start < budget:
        before = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - before[0])
        cpu.append(time.process_time() - before[1])
    return {"seconds": min(wall), "cpu_seconds": min(cpu), "repeats": len(wall)}


def block_of(sample: Graph, channels: int = 64) -> Callable[[], Any]:
    """One pass of the reciprocal block and its gradient to positions and features."""
    torch.manual_seed(0)
    block, batch = ReciprocalBlock(channels, CHARGES), collate([sample])
    torch.nn.init.normal_(block.network[-1].weight, std=0.1)
    edges = Edges(batch.senders, batch.receivers, len(batch.types))
    envelope = edge_embedding(edge_vectors(batch, edges_of(batch), batch.positions, batch.cell) / CUTOFF, 0, 1).envelope
    features = torch.randn(len(batch.types), 1, channels)

    def work() -> None:
        positions, x = batch.positions.clone().requires_grad_(), features.clone().requires_grad_()
        out = block(x, envelope, edges, positions, batch.cell, batch)
        torch.autograd.grad(out.square().sum(), (positions, x))

    return work


def measure(repeat: int, budget: float) -> dict[str, Any]:
    """Both parts of one supercell."""
    start = time.perf_counter()
    sample = rock_salt(repeat)
    made = time.perf_counter() - start
    atoms, batch = len(sample.types), collate([sample])
    model = short_range(len(sample.senders) / atoms)
    row: dict[str, Any] = {"atoms": atoms, "edges_per_atom": len(sample.senders) / atoms, "graph_seconds": made}
    row["short_range"] = timed(lambda: model(batch.clone(), "atoms"), budget)
    start = time.perf_counter()
    add_far_field(sample, FarField(ewald=True))
    row["far_field_seconds"] = time.perf_counter() - start
    row["splitting"], row["far_pairs_per_atom"] = float(sample.splitting), len(sample.far_senders) / atoms
    row["waves"] = len(sample.waves)
    row["reciprocal"] = timed(block_of(sample), budget)
    row["peak_memory_mib"] = peak_memory()
    say(
        f"{atoms:6} atoms  short range {1e6 * row['short_range']['cpu_seconds'] / atoms:7.1f} µs/atom  "
        f"reciprocal {1e6 * row['reciprocal']['cpu_seconds'] / atoms:7.1f} µs/atom"
    )
    return row


def exponent(rows: list[dict[str, Any]], clock: str) -> float:
    """Slope of the logarithm of the block's time from 10^2 atoms on."""
    chosen = [row for row in rows if row["atoms"] >= 100]
    atoms, seconds = np.log([[row["atoms"], row["reciprocal"][clock]] for row in chosen]).T
    return float(np.polyfit(atoms, seconds, 1)[0])


def growth(rows: list[dict[str, Any]], clock: str) -> float:
    """Short-range time per atom of the largest system over that of the first of 10^2 atoms or more."""
    first, last = (row["short_range"][clock] / row["atoms"] for row in (rows[1], rows[-1]))
    return last / first


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds per atom of both parts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
    atoms = [row["atoms"] for row in rows]
    for part, label in (("short_range", "short range"), ("reciprocal", "reciprocal block")):
        axis.loglog(atoms, [1e6 * row[part]["cpu_seconds"] / row["atoms"] for row in rows], marker="o", label=label)
    axis.set(xlabel="atoms", ylabel="µs per atom, energy and forces")
    axis.legend()
    figure.savefig(path, dpi=150)


def main() -> int:
    """Measure, write, and tell whether both bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=3.0, help="seconds of repetitions for each timing")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    if not TUNED_MALLOC.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], worker_environment(threads=1))
    torch.set_num_threads(1)
    rows = [measure(repeat, options.budget) for repeat in REPEATS]
    checks = {
        "short range, growth per atom": {"bound": 1.3, **{c: growth(rows, c) for c in ("seconds", "cpu_seconds")}},
        "reciprocal, exponent": {"bound": 1.5, **{c: exponent(rows, c) for c in ("seconds", "cpu_seconds")}},
    }
    for values in checks.values():
        values["holds"] = values["cpu_seconds"] <= values["bound"]
    about = {"machine": machine(), "versions": versions("torch"), "threads": 1}
    write_result(options.output, {**about, "checks": checks, "rows": rows})
    plot(rows, options.output.with_suffix(".png"))
    for name, values in checks.items():
        say(f"{name}: {values['seconds']:.2f} by the wall clock, {values['cpu_seconds']:.2f} by processor time")
    return 0 if all(values["holds"] for values in checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
