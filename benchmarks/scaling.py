"""Ranks: throughput, messages and load on this machine, and a projection to 1,024 GPUs: python benchmarks/scaling.py

measured     one process, and two under every strategy: seconds of an optimizer step, edges per second, and what the
             ranks send in a step, counted at the collectives that are called (DDP's by a hook on its buckets); ZeRO-3
             with forces that are read out directly, beside one process that does so too;
load         edges of the busiest rank / mean, and the seconds that planning a step takes, of the plan of batches at 8
             to 1,024 ranks, on the embedded molecules, silicon, lithium, metals and peptides;
projection   no measurement: the step of one GPU is assumed, the measured messages are scaled to larger models and to
             more ranks by the formulas of ring algorithms, and neither sending while computing nor congestion is in it.

Writes results/scaling.json. `--small` takes one strategy, few steps and few ranks, and writes beside its runs.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

sys.path.insert(0, str(Path(__file__).parent / "peers"))  # holds the helpers of all benchmarks
from workers import machine, say, versions, write_result

from sciml.data.packing import Budget
from sciml.data.sampler import Plan, Stream
from sciml.data.source import Source
from sciml.data.store import Store
from sciml.doctor.faults.launch import errors_of, run_ranks
from sciml.schema import SAMPLES

ROOT = Path(__file__).parent.parent
OUTPUT = Path(__file__).parent / "results" / "scaling.json"
STRATEGIES = ("ddp", "zero1", "zero2", "fsdp2", "zero3")
DIRECT = ("zero3",)  # strategies that are refused where forces are derivatives
COLLECTIVES = {  # name: bytes that a rank sends in a ring of N ranks, per byte of the call's largest tensor
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather_into_tensor": lambda n: (n - 1) / n,
    "all_gather_single": lambda n: (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter_tensor": lambda n: (n - 1) / n,
    "reduce_scatter_single": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1.0,
    "reduce": lambda n: 1.0,
}
# Numbers of parameters that a rank sends in a step with m micro-batches. DeepSpeed reduces gradients on every rank,
# where the paper on ZeRO (Rajbhandari et al., 2020) would scatter them: N-1 over N more a time.
FORMULAS: dict[str, tuple[str, Callable[[int, int], float]]] = {
    "ddp": ("2 (N-1)/N: gradients reduced once a step", lambda n, m: 2 * (n - 1) / n),
    "zero1": ("3 (N-1)/N: gradients reduced once a step, parameters gathered", lambda n, m: 3 * (n - 1) / n),
    "zero2": ("(2 m + 1) (N-1)/N: gradients reduced in every micro-batch", lambda n, m: (2 * m + 1) * (n - 1) / n),
    "fsdp2": ("2 m (N-1)/N: parameters gathered, gradients scattered, every time", lambda n, m: 2 * m * (n - 1) / n),
    "zero3": ("2 m (N-1)/N: parameters (of < 1e5 numbers) gathered once, scattered", lambda n, m: 2 * m * (n - 1) / n),
}
RANKS = (8, 16, 32, 64, 128, 256, 512, 1024)
ASSUMED = {
    "gpus_of_a_node": 8,
    "bytes_per_second_in_a_node": 300e9,
    "bytes_per_second_between_nodes": 50e9,
    "seconds_per_message_and_doubling_of_ranks": 5e-6,
    "seconds_of_a_step_on_one_gpu": [0.05, 0.2, 1.0],
    "parameters": [1e6, 1e7, 1e8],
    "micro_batches_of_a_rank": 2,
}
BUDGET = Budget(64, 512, 16384)
WARMUP = 2


class Counter(Callback):
    """Counts calls and bytes of collectives, and times steps, between two optimizer steps; writes them to ``path``."""

    def __init__(self, path: Path, steps: int) -> None:
        self.path, self.steps = path, steps
        self.found: dict[str, list[int]] = {}
        self.edges, self.begun, self.done = 0, 0.0, -1
        for name in COLLECTIVES:
            if hasattr(torch.distributed, name):  # two of them are new in torch 2.13
                self._watch(name)

    def _watch(self, name: str) -> None:
        call = getattr(torch.distributed, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            given = (*args, *kwargs.values())
            lists = [sum(tensor.nbytes for tensor in value) for value in given if isinstance(value, list)]
            self._add(name, max([*lists, *(value.nbytes for value in given if isinstance(value, torch.Tensor))]))
            return call(*args, **kwargs)

        setattr(torch.distributed, name, counted)

    def _add(self, name: str, size: int) -> None:
        entry = self.found.setdefault(name, [0, 0])
        entry[0], entry[1] = entry[0] + 1, entry[1] + size

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        wrapped = trainer.strategy.model
        if isinstance(wrapped, torch.nn.parallel.DistributedDataParallel):
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

            wrapped.register_comm_hook(None, allreduce_hook)  # in Python, where the calls are counted

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.edges += len(batch.batch.senders)
        if trainer.global_step == self.done:
            return
        self.done = trainer.global_step
        if self.done == WARMUP:
            self.found, self.edges, self.begun = {}, 0, time.perf_counter()
        elif self.done == WARMUP + self.steps:
            seconds = (time.perf_counter() - self.begun) / self.steps
            per_step = {name: [value / self.steps for value in entry] for name, entry in self.found.items()}
            facts = {
                "seconds_per_step": seconds,
                "edges_per_step": self.edges / self.steps,
                "collectives": {name: {"calls": calls, "bytes": size} for name, (calls, size) in per_step.items()},
                "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in module.model.parameters()),
                "micro_batches": trainer.accumulate_grad_batches,
            }
            rank = trainer.global_rank
            self.path.with_name(f"{self.path.name}-{rank}.json").write_text(json.dumps(facts), encoding="utf-8")


def install(steps: int) -> None:
    """Let every trainer of this process count; the run's folder is the file's name."""
    plain = lightning.Trainer.__init__

    def with_counter(self: Any, *args: Any, callbacks: Any = None, **kwargs: Any) -> None:
        plain(self, *args, callbacks=[*(callbacks or []), Counter(Path(Path.cwd().name), steps)], **kwargs)

    lightning.Trainer.__init__ = with_counter  # type: ignore[method-assign]


def measure(
    folder: Path, strategy: str, ranks: int, steps: int, model: list[str], direct: bool = False
) -> dict[str, Any]:
    """A run of ``steps`` counted steps; what its first rank found, edges and seconds over all ranks."""
    run = folder / (f"{strategy}-{ranks}" + ("-direct" if direct else ""))
    run.mkdir(parents=True, exist_ok=True)
    words = [
        "train",
        "train=samples:molecules",
        "run_dir=run",
        f"strategy={strategy}",
        f"trainer.devices={ranks}",
        f"trainer.max_steps={WARMUP + steps}",
        f"trainer.val_every={WARMUP + steps}",
        "data.val_fraction=0.02",
        "data.bins_per_step=4",
        "trainer.threads=1",
        "trainer.progress=false",
        "logger=disabled",
        *(["heads=direct"] if direct else []),
        *model,
    ]
    prelude = f"import sys; sys.path[:0] = [{str(ROOT / 'benchmarks')!r}]; import scaling; scaling.install({steps})"
    codes = run_ranks(ranks, [words], run, prelude, timeout=3600.0)
    if any(codes):
        raise RuntimeError(f"{strategy} on {ranks} ranks ended with {codes}: {errors_of(run)}")
    found = [json.loads((run / f"{run.name}-{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]
    first = found[0]
    first["edges_per_second"] = sum(facts["edges_per_step"] for facts in found) / first["seconds_per_step"]
    first["bytes_sent_per_step"] = sum(
        COLLECTIVES[name](ranks) * entry["bytes"] for name, entry in first["collectives"].items()
    )
    if strategy in FORMULAS:
        text, formula = FORMULAS[strategy]
        first["formula"] = text
        first["bytes_by_formula"] = 4 * first["parameters"] * formula(ranks, first["micro_batches"])
    say(f"{strategy} on {ranks}: {1e3 * first['seconds_per_step']:.0f} ms, {first['bytes_sent_per_step']:,.0f} bytes")
    return first


def loads(ranks: int, steps: int) -> dict[str, float]:
    """The plan of batches at a number of ranks: edges of the busiest over mean, and seconds to plan a step."""
    sources = [Source(Store(SAMPLES / name), 0) for name in ("molecules", "silicon", "lithium", "metals", "peptides")]
    costs = [source.costs("atoms", 5.0) for source in sources]
    stream = Stream("atoms", [nodes for nodes, _ in costs], [edges for _, edges in costs], BUDGET, seed=0)
    plan = Plan({"atoms": stream}, {"atoms": ranks}, seed=0)
    ratios, start = [], time.perf_counter()
    for step in range(steps):
        edges = [stream.edges(items) for _, items in plan.bins(step)]
        ratios.append(max(edges) / float(np.mean(edges)))
    seconds = (time.perf_counter() - start) / steps
    return {"mean": float(np.mean(ratios)), "largest": max(ratios), "seconds_to_plan_a_step": seconds}


def project(load: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Efficiency of weak scaling by formulas and assumptions: not a measurement."""
    rows = []
    batches = ASSUMED["micro_batches_of_a_rank"]
    for strategy, (_, formula) in FORMULAS.items():
        for parameters in ASSUMED["parameters"]:
            for step in ASSUMED["seconds_of_a_step_on_one_gpu"]:
                efficiency = {}
                for ranks, found in load.items():
                    inside = int(ranks) <= ASSUMED["gpus_of_a_node"]
                    speed = ASSUMED["bytes_per_second_in_a_node" if inside else "bytes_per_second_between_nodes"]
                    messages = 2 * (batches if strategy in ("zero2", "fsdp2", "zero3") else 1)
                    waiting = messages * np.log2(int(ranks)) * ASSUMED["seconds_per_message_and_doubling_of_ranks"]
                    sending = 4 * parameters * formula(int(ranks), batches) / speed
                    efficiency[ranks] = round(float(step / (step * found["mean"] + sending + waiting)), 4)
                row = {"strategy": strategy, "parameters": parameters, "seconds_of_a_step": step}
                rows.append({**row, "efficiency": efficiency})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    strategies, ranks, steps, model = STRATEGIES, RANKS, options.steps, ["model=small"]
    if options.small:
        strategies, ranks, steps = ("ddp",), (8, 16), 2
        model = ["model=tiny", "model.channels=4", "model.radial.hidden=[8]", "data.batch.atoms.max_graphs=4"]
    measured = {}
    for direct in (False, True):
        chosen = [strategy for strategy in strategies if (strategy in DIRECT) == direct]
        for strategy, number in [("single", 1), *((strategy, 2) for strategy in chosen)] if chosen else ():
            name = f"{strategy}, direct forces on {number}" if direct else f"{strategy} on {number}"
            measured[name] = measure(options.runs, strategy, number, steps, model, direct)
    load = {str(number): loads(number, 2 if number > 128 else 4) for number in ranks}
    result = {
        "machine": machine(),
        "versions": versions("torch", "lightning", "deepspeed"),
        "model": model,
        "measured": measured,
        "load": load,
        "projection": {
            "note": "A projection by formulas from the assumptions beside it, not a measurement: no GPU was used. "
            "Every rank adds as much work (weak scaling). Sending starts after the backward pass and nothing overlaps.",
            "assumptions": ASSUMED,
            "rows": project(load),
        },
    }
    path = options.runs / "scaling.json" if options.small else OUTPUT
    write_result(path, result)
    say(f"wrote {path.name}")


if __name__ == "__main__":
    main()
