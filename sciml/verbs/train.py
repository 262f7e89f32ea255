"""``sciml train``: data, model, steps, package, evaluation, report."""

import json
import time
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from sciml.build import (
    Run,
    build_data,
    build_objective,
    build_start,
    check_data,
    levels_of_theory,
    open_inputs,
    with_heads_of_package,
)
from sciml.files import write_text
from sciml.launch import PREEMPTED, first_process
from sciml.models.recompute import recompute_blocks
from sciml.train.adapt.finetuning import from_scratch
from sciml.train.adapt.strategy import low_rank_of, merge_low_rank
from sciml.train.batch_size import find_budgets, with_budgets, with_stored_budgets
from sciml.train.checkpoint import package_of_checkpoint, step_of, validation_losses
from sciml.train.events import cut_events
from sciml.train.lock import run_lock
from sciml.train.loggers import build_loggers
from sciml.train.module import Module
from sciml.train.optimizer import relative_widths
from sciml.train.process import check_launch, prepare_process
from sciml.train.progress import say
from sciml.train.provenance import provenance
from sciml.train.resume import check_resumed, put_aside, resume_point
from sciml.train.run import fit, plan_steps
from sciml.train.sharding import unsharded
from sciml.train.sources import Splits
from sciml.verbs.machine import check_machine, device_of
from sciml.verbs.publish import publish


def train(config: Any) -> int:
    """``sciml train``: data, model, steps, package, evaluation, report.

    Returns 0, or 143 when ``trainer.segment_time`` or SIGTERM ended the run before its last step.
    """
    start = time.perf_counter()
    folder = Path(config.run_dir or f"runs/{config.name}/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    check_machine(config.trainer.accelerator, config.model.backend, "trainer.accelerator")
    check_launch(config.trainer.devices, config.trainer.nodes)
    with run_lock(folder) if first_process() else nullcontext():
        return _train(config, folder, start)


def _train(config: Any, folder: Path, start: float) -> int:
    """Training in a folder that no other process writes to."""
    config, checkpoint = _resumed(with_heads_of_package(config), folder)
    prepare_process(config.seed, config.trainer.threads)
    run = _built(config, folder)
    module = _module(run, resumed=checkpoint is not None)
    if config.data.find_batch and checkpoint is None:
        _find_budgets(run, module)
    if first_process():
        _write_run(folder, run.config, run.splits)
    module.total_steps, module.validations = plan_steps(module, run.data, run.config, start, checkpoint)
    loggers = build_loggers(run.config.logger, run.config.name, folder)
    if not fit(module, run.data, run.config, folder, start, loggers, checkpoint):
        say(f"stopped before the last step; continue with the same command and run_dir={folder} resume=true")
        return PREEMPTED
    return _finish(run)


def _resumed(config: Any, folder: Path) -> tuple[Any, Path | None]:
    """The configuration with the limits that the run found before, and the checkpoint that training goes on from."""
    damaged: dict[Path, str] = {}
    checkpoint = resume_point(folder, config.resume or not first_process(), damaged)
    if checkpoint is not None:
        put_aside(folder, damaged, checkpoint)
    if config.resume and checkpoint is not None:
        if config.data.find_batch:
            config = with_stored_budgets(config, folder)
        check_resumed(folder, config.model_dump())
    elif config.resume:
        say(f"resume: no checkpoint in {folder / 'checkpoints'}, so this run starts afresh")
        if first_process():
            cut_events(folder, 0)
    return config, checkpoint


def _built(config: Any, folder: Path) -> Run:
    """Data, model and loaders before the first step; raises UserError where they do not belong together."""
    inputs = open_inputs(config, folder / "data")
    for note in inputs.splits.notes:
        say(note)
    model, description, tuning = build_start(config, inputs, folder)
    check_data(config, inputs, model, description)
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters, kinds {', '.join(description['kinds'])}")
    data = build_data(config, inputs.splits, description, model.far_field)
    return Run(config, folder, inputs.splits, inputs.package, tuning, model, description, data)


def _module(run: Run, resumed: bool) -> Module:
    """The model with its objective and what the optimizer must know of it; fine-tuning has chosen what is trained."""
    config, model, description = run.config, run.model, run.description
    widths = relative_widths(model, description, config.optimizer.reference_channels)
    objective = build_objective(config.objective.terms)
    if config.trainer.recompute:
        recompute_blocks(model)
    factors = None
    if run.tuning:
        whole = config.strategy.name not in ("single", "ddp")
        factors = run.tuning.start(model, description, objective, run.data, resumed, whole)
    split = config.strategy.out_of_memory == "split"
    module = Module(model, objective, config.optimizer, 0, widths, config.trainer.compile, factors, split)
    levels = levels_of_theory(run.splits, description, run.package)
    module.package = {"model": description, "datasets_of_domain": levels} | low_rank_of(config.adapt)
    return module


def _find_budgets(run: Run, module: Module) -> None:
    """Grow the limits of micro-batches on this machine; the run takes them over, and loaders that keep to them."""
    device, autocast = device_of(run.config.trainer.accelerator), run.config.trainer.precision == "bf16-mixed"
    found = find_budgets(module, run.data, device, autocast)
    run.config = with_budgets(run.config, {kind: vars(budget) for kind, budget in found.items()})
    run.data = build_data(run.config, run.splits, run.description, run.model.far_field)


def _write_run(folder: Path, config: Any, splits: Splits) -> None:
    """The composed configuration and the provenance, at the start of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
    write_text(folder / "config.yaml", text)
    facts = provenance(splits.train + splits.validation + splits.test)
    with open(folder / "provenance.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")


def _finish(run: Run) -> int:
    """Make the trained model whole and publish it from the first process; returns the exit code."""
    run.model = unsharded(run.model, run.description)
    if not first_process():
        return 0
    merge_low_rank(run.model)
    if run.config.trainer.publish == "best":
        _take_best(run)
    run.model.to(device_of(run.config.trainer.accelerator))
    if run.tuning and run.config.adapt.from_scratch:
        try:
            code = from_scratch(run.config, run.tuning.package, run.splits.train, run.folder / "from_scratch", train)
        except Exception:
            say("the model from scratch failed; the fine-tuned one is published without it")
            publish(run)
            raise
        if code:
            return code
    publish(run)
    return 0


def _take_best(run: Run) -> None:
    """Give the model the averaged weights of the checkpoint with the lowest validation loss."""
    losses = validation_losses(run.folder / "checkpoints")
    best = next(iter(losses), None)
    last = max(losses, key=step_of, default=None)
    if best is None or last is None or best == last:
        return
    package = package_of_checkpoint(best)
    if package is not None:
        run.model.load_state_dict(package.model.state_dict())
        say(
            f"trainer.publish=best: the weights of step {step_of(best)} are published, of validation loss "
            f"{losses[best]:.4g}; at step {step_of(last)} it is {losses[last]:.4g}"
        )
