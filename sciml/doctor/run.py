"""``sciml doctor``: what would go wrong with a training, before hours are spent on it; and the suite of faults."""

import copy
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sciml import build
from sciml.doctor.data import examine_data
from sciml.doctor.disk import examine_disks
from sciml.doctor.faults.ledger import examine_faults
from sciml.doctor.finding import Finding, megabytes, ok, problem, table, warning
from sciml.doctor.machine import examine_machine
from sciml.doctor.memory import Memory, estimate
from sciml.doctor.pace import time_steps
from sciml.doctor.recipe import head_labels, run_time
from sciml.errors import UserError
from sciml.files import write_text
from sciml.models.recompute import recompute_blocks
from sciml.train.adapt.strategy import choose_trained
from sciml.train.module import Module
from sciml.train.resume import resume_point

FULL, NEARLY = 0.95, 0.8  # of the memory
TIMED = 20.0  # seconds of steps that are taken to time them


def run(config: Any) -> int:
    """Print the findings about the training that ``config`` describes, or the ledger of faults; write them as JSON.

    Returns 1 where there is a problem, or a fault was not borne.
    """
    output = Path(config.output or Path("doctor") / config.name)
    if config.faults:
        return examine_faults(output, thorough=config.faults == "thorough")
    findings = examine(config)
    print(table(findings))
    output.mkdir(parents=True, exist_ok=True)
    facts = {"examined": datetime.now(UTC).isoformat(timespec="seconds"), "findings": [asdict(one) for one in findings]}
    write_text(output / "doctor.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    print(f"findings  {output / 'doctor.json'}")
    return int(any(finding.verdict == "problem" for finding in findings))


def examine(config: Any) -> list[Finding]:
    """Every finding: the machine, then the data and the recipe, then what the run costs and where it is written.

    Where the training would be refused, the refusal is the last finding.
    """
    found = examine_machine(config)
    folder = Path(config.run_dir or f"runs/{config.name}")
    try:
        if config.run_dir:
            damaged: dict[Path, str] = {}
            resume_point(folder, config.resume, damaged)
            found += [
                warning("checkpoints", f"{path.name} is damaged ({reason})", "the run would go on from an older one")
                for path, reason in damaged.items()
            ]
        config = build.with_heads_of_package(config)
        found += _examine_training(_on_one_device(config), config, folder)
    except UserError as error:
        found.append(problem("refused", f"training would stop with: {error}", "mend it, then ask again"))
    return found


def _on_one_device(config: Any) -> Any:
    """The configuration of what one of several devices does."""
    ranks = config.trainer.ranks
    bins = config.data.bins_per_step
    share = bins.model_copy(update={kind: number // ranks for kind, number in bins.model_dump().items()})
    return config.model_copy(update={"data": config.data.model_copy(update={"bins_per_step": share})})


def _examine_training(single: Any, config: Any, folder: Path) -> list[Finding]:
    """Build what would be trained, look at its data, count its memory and time its steps."""
    inputs = build.open_inputs(config)
    splits = inputs.splits
    weighted = {target: term["weight"] for target, term in config.objective.terms.items()}
    learned = {target for key in build.weighted_heads(config) for target in build.head_facts(config.heads, key)[1]}
    found = examine_data(splits, {target: weight for target, weight in weighted.items() if target in learned})
    model, description, tuning = build.build_start(config, inputs, folder)
    if tuning:
        choose_trained(model, config.adapt, model.heads)
    found += head_labels(description["heads"], weighted, splits.train)
    build.check_data(config, inputs, model, description)
    data = build.build_data(single, splits, description, model.far_field)
    if config.trainer.recompute:
        recompute_blocks(model)
    module = Module(model, build.build_objective(config.objective.terms), config.optimizer, total_steps=0)
    device, paths = _device(config.trainer.accelerator), [Path(path) for path in config.train]
    try:
        memory = estimate(copy.deepcopy(module), data, config, device)
    except torch.OutOfMemoryError:
        text = "not even a part of the largest micro-batch fits into the memory of the GPU"
        return [*found, problem("memory", text, "lower data.batch, or take a smaller model")]
    fits = _memory(memory, device, config)
    found += [fits, _cache(data, config)]
    if fits.verdict != "problem":
        pace = time_steps(module, data, config.optimizer, config.trainer.precision, device, TIMED)

        def building(steps: float) -> float:
            return sum(data.training.seconds_to_build(kind, steps * pace.drawn[kind]) for kind in data.kinds)

        found += run_time(config.trainer, pace, building)
    kept = config.trainer.checkpoint_keep + config.trainer.checkpoint_best
    return [*found, *examine_disks(folder, paths, memory.checkpoint, kept, config.data.workers)]


def _device(accelerator: str) -> torch.device:
    return torch.device("cpu" if accelerator == "cpu" or not torch.cuda.is_available() else "cuda")


def _memory(memory: Memory, device: torch.device, config: Any) -> Finding:
    """Whether the largest micro-batch fits into the memory of a device."""
    kind, (nodes, edges) = max(memory.largest.items(), key=lambda entry: entry[1][1])
    text = (
        f"a step takes {megabytes(memory.total)}: {megabytes(memory.weights)} of weights, moments and average, "
        f"{megabytes(memory.activations)} for the backward passes and gradients, {megabytes(memory.batches)} of "
        f"batches, {megabytes(memory.copies)} of a checkpoint that is being written; "
        f"the largest batch has {nodes:,} nodes and {edges:,} edges ({kind})"
    )
    if device.type == "cpu" and config.trainer.accelerator == "gpu":
        return warning("memory", f"{text}; counted on the CPU", "ask again on the machine with the GPU")
    room = torch.cuda.mem_get_info()[1] if device.type == "cuda" else available_memory() // config.trainer.devices
    text += f"; {megabytes(room)} are there"
    advice = f"lower data.batch.{kind}.max_edges"
    if memory.total > FULL * room:
        return problem("memory", text, advice)
    return warning("memory", text, advice) if memory.total > NEARLY * room else ok("memory", text)


def _cache(data: Any, config: Any) -> Finding:
    """Graphs that every process keeps in the memory of the machine."""
    mean = {kind: built.bytes / max(built.graphs, 1) for kind, built in data.training.built.items()}
    cache = config.data.cache_mib * 2**20

    def kept(sources: Any) -> float:
        return min(cache, sum(float(s.data.serves(kind).sum()) * mean[kind] for s in sources for kind in data.kinds))

    loaders = max(1, config.data.workers)
    size = config.trainer.devices * (loaders * kept(data.training.sources) + kept(data.validation.sources))
    room = available_memory()
    text = f"{config.trainer.devices * loaders} loaders keep {megabytes(size)} of graphs, {megabytes(room)} are free"
    if size > room:
        return problem("cache", text, "lower data.cache_mib or data.workers")
    return ok("cache", text)


def available_memory() -> int:
    """Bytes that the machine, or the control group of this process, has left."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8"))
        return min(free, int(limit) - used) if limit.isdigit() else free
    except OSError:
        return free
