"""From a checked configuration to the objects of a run, and the order in which a verb uses them."""

import json
import time
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from sciml import registry
from sciml.data.corruption import Corruption
from sciml.data.datamodule import DataModule
from sciml.data.far_field import FarField
from sciml.data.sampler import Budget
from sciml.data.targets import described_targets
from sciml.errors import UserError
from sciml.evaluate import conformations, properties
from sciml.evaluate.measure import baselines_of
from sciml.evaluate.reliability import write_reliability
from sciml.evaluate.report import write_report
from sciml.evaluate.run import evaluate_sources
from sciml.evaluate.uncertainty import fit as fit_uncertainty
from sciml.evaluate.uncertainty import to_tensors
from sciml.evaluate.verify.dynamics import Dynamics
from sciml.evaluate.verify.run import certify
from sciml.evaluate.verify.run import write as write_certificate
from sciml.evaluate.verify.systems import embedded_sources
from sciml.export.ase import calculator
from sciml.files import write_text
from sciml.ingest.formats import Options
from sciml.ingest.ingest import open_data
from sciml.models.model import Model, build_model
from sciml.models.recompute import recompute_blocks
from sciml.objectives.denoise import Denoise
from sciml.objectives.masked import Masked
from sciml.objectives.supervised import Supervised, Term
from sciml.package import Package, load, save
from sciml.train.adapt.finetuning import FineTuning, from_scratch
from sciml.train.adapt.merge import (
    copy_weights,
    ignored_settings,
    merged_baselines,
    merged_datasets,
    merged_description,
    renamed_classes,
)
from sciml.train.adapt.strategy import low_rank_of, merge_low_rank
from sciml.train.batch_size import find_budgets, with_budgets, with_stored_budgets
from sciml.train.card import model_card, package_config
from sciml.train.checkpoint import is_checkpoint, package_of_checkpoint
from sciml.train.labels import check_classes_seen, check_targets, target_facts
from sciml.train.lock import run_lock
from sciml.train.loggers import build_loggers
from sciml.train.module import Module
from sciml.train.optimizer import relative_widths
from sciml.train.process import check_launch, first_process, prepare_process
from sciml.train.progress import say
from sciml.train.provenance import provenance
from sciml.train.resume import check_resumed, resume_point
from sciml.train.run import fit, plan_steps
from sciml.train.sharding import unsharded
from sciml.train.sources import (
    Splits,
    check_far_field,
    check_known,
    coarse_of,
    context_of,
    datasets_of_domain,
    evaluation_sources,
    kinds_of,
    neighbors_of,
    open_splits,
)
from sciml_kernels.backends import choose

PREEMPTED = 143
GAINED = "What was gained on the new task and forgotten of the old ones"


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
    checkpoint = resume_point(folder, config.resume or not first_process())
    if config.resume and checkpoint is not None:
        if config.data.find_batch:
            config = with_stored_budgets(config, folder)
        check_resumed(folder, config.model_dump())
    elif config.resume:
        say(f"resume: no checkpoint in {folder / 'checkpoints'}, so this run starts afresh")
    prepare_process(config.seed, config.trainer.threads)
    package = load(config.init) if config.init else None
    datasets = list(package.datasets) if package else []
    targets = described_targets(config.heads)
    open_store = partial(open_data, cache_dir=folder / "data", options=Options(targets=targets))
    splits = open_splits(config, open_store, datasets)
    for note in splits.notes:
        say(note)
    budgets = budgets_of(config.data.batch)
    tuning = FineTuning(package, config.adapt, splits, open_store, folder, budgets) if package else None
    description = describe(config, splits, datasets, package)
    model, description = initial_model(description, package)
    if tuning:
        description = tuning.adopt(model, description, splits.train)
    check_known(splits.validation + splits.test, description["context"])
    check_far_field(splits.train + splits.validation + splits.test, model.far_field)
    check_targets(splits.validation + splits.test, targets)
    check_classes_seen(splits, targets, package.config["model"]["context"]["classes"] if package else [])
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters, kinds {', '.join(description['kinds'])}")
    data = build_data(config, splits, description, model.far_field)
    widths = relative_widths(model, description, config.optimizer.reference_channels)
    objective = build_objective(config.objective.terms)
    if config.trainer.recompute:
        recompute_blocks(model)
    resumed, first = checkpoint is not None, first_process()
    whole = config.strategy.name not in ("single", "ddp")
    factors = tuning.start(model, description, objective, data, resumed, first, whole) if tuning else None
    split = config.strategy.out_of_memory == "split"
    module = Module(model, objective, config.optimizer, 0, widths, config.trainer.compile, factors, split)
    module.package = {"model": description, "datasets_of_domain": _datasets_of_domain(splits, description, package)}
    module.package |= low_rank_of(config.adapt)
    if config.data.find_batch and not resumed:
        autocast = config.trainer.precision == "bf16-mixed"
        found = find_budgets(module, data, _device(config.trainer.accelerator), autocast)
        config = with_budgets(config, {kind: vars(budget) for kind, budget in found.items()})
        data = build_data(config, splits, description, model.far_field)
    if first_process():
        _write_run(folder, config, splits)
    module.total_steps, module.validations = plan_steps(module, data, config, start, checkpoint)
    finished = fit(module, data, config, folder, start, build_loggers(config.logger, config.name, folder), checkpoint)
    if not finished:
        say(f"stopped before the last step; continue with the same command and run_dir={folder} resume=true")
        return PREEMPTED
    model = unsharded(model, description)
    if first_process():
        merge_low_rank(model)
        model.to(_device(config.trainer.accelerator))
        if tuning and config.adapt.from_scratch:
            code = from_scratch(config, tuning.package, folder / "from_scratch", train)
            if code:
                return code
        _publish(config, folder, model, description, splits, data, package, tuning)
    return 0


def _publish(
    config: Any,
    folder: Path,
    model: Model,
    description: dict[str, Any],
    splits: Splits,
    data: DataModule,
    package: Package | None,
    tuning: FineTuning | None,
) -> None:
    """Package, evaluation on the test sources, report; the paths are printed last."""
    baselines = baselines_of(splits.train, description["context"]["classes"])
    if package:
        baselines = merged_baselines(package, baselines)
    settings = package_config(description, splits.train, baselines)
    settings["datasets_of_domain"] = _datasets_of_domain(splits, description, package)
    evaluation = evaluate_sources(model.eval(), splits.test, description, data.budgets, baselines)
    rigidities = fit_uncertainty(
        model, splits.train, splits.validation, description, data.budgets, config.uncertainty
    )
    tensors = to_tensors(rigidities)
    save(folder / "package", model, settings, model_card(config.name, settings, evaluation.table), tensors)
    evaluation.write(folder / "evaluation")
    certain, plot = write_reliability(model, tensors, splits.test, description, data.budgets, folder / "evaluation")
    evaluation.plots += [plot] if plot else []
    tables = {"Uncertainty": certain} if certain else {}
    print(f"{evaluation.table}\n{certain}".rstrip())
    if tuning:
        scratch = load(folder / "from_scratch") if config.adapt.from_scratch else None
        tables[GAINED] = tuning.finish(model, description, scratch)
        print(f"\n{GAINED}\n{tables[GAINED]}")
    report = write_report(folder, evaluation, settings, tables)
    print(f"checkpoint  {folder / 'package'}\nreport      {report}")


def _datasets_of_domain(
    splits: Splits, description: dict[str, Any], package: Package | None
) -> dict[str, list[str]]:
    """Levels of theory by domain, those of the package that training starts from among them."""
    table = datasets_of_domain(splits.train, description["context"]["datasets"])
    return merged_datasets(package, table) if package else table


def evaluate(config: Any) -> int:
    """``sciml evaluate``: a package on stores, or on crystals; prints tables and writes ``metrics.json``,
    ``properties.json`` and plots.
    """
    check_machine(config.device, "auto", "device")
    device = _device(config.device)
    package = load(config.package, device=device)
    check_machine(config.device, package.config["model"]["backbone"].get("backend", "auto"), "device")
    names = "+".join(Path(path).stem for path in config.store or [config.properties])
    output = _output_folder(config, package, "evaluate", f"evaluation-{names[:100]}")
    targets = described_targets(package.config["model"]["heads"])
    if config.properties:
        precise = calculator(config.package, config.dataset, device, torch.float64)
        print(properties.run(Path(config.properties), precise, output, config.plots))
        print(f"properties  {output / 'properties.json'}")
    if not config.store:
        return 0
    sources = evaluation_sources(
        config.store,
        partial(open_data, cache_dir=output / "data", options=Options(targets=targets)),
        package.datasets,
        package.config["datasets_of_domain"],
    )
    check_known(sources, package.config["model"]["context"])
    check_far_field(sources, package.model.far_field)
    check_targets(sources, targets)
    evaluation = evaluate_sources(
        package.model, sources, package.config["model"], budgets_of(config.batch), package.config["baselines"]
    )
    evaluation.write(output, plots=config.plots)
    certain, _ = write_reliability(
        package.model, package.uncertainty, sources, package.config["model"], budgets_of(config.batch), output
    )
    print(f"{evaluation.table}\n{certain}".rstrip())
    if config.denoise_levels:
        found = conformations.measure(package.model, sources, package.config["model"], config.denoise_levels)
        print(conformations.write(found, output, config.plots))
    print(f"metrics  {output / 'metrics.json'}")
    return 0


def verify(config: Any) -> int:
    """``sciml verify``: the laws that a package or checkpoint obeys; writes ``certificate.json`` and a page.

    Returns 1 where a law that it should obey fails.
    """
    check_machine(config.device, "auto", "device")
    device = _device(config.device)
    package = _package_or_checkpoint(Path(config.package), device)
    check_machine(config.device, package.config["model"]["backbone"].get("backend", "auto"), "device")
    output = _output_folder(config, package, "verify", "certificate")
    sources = embedded_sources(package)
    if config.store:
        known = package.config["datasets_of_domain"]
        sources = evaluation_sources(
            config.store, lambda path: open_data(path, cache_dir=output / "data"), package.datasets, known
        )
        check_known(sources, package.config["model"]["context"])
    certificate = certify(package, sources, config.samples, Dynamics(**config.nve.model_dump()), config.seed)
    page = write_certificate(certificate, output)
    print(certificate.table)
    print(f"certificate  {output / 'certificate.json'}\npage         {page}")
    return 1 if certificate.failed else 0


def _package_or_checkpoint(path: Path, device: str) -> Package:
    """The package at ``path`` or in that run folder; where training has not written one yet, the newest checkpoint."""
    if not any((folder / "config.json").is_file() for folder in (path, path / "package")):
        found = package_of_checkpoint(path, device)
        if found is not None:
            return found
    return load(path, device=device)


def describe(config: Any, splits: Splits, datasets: list[str], package: Package | None = None) -> dict[str, Any]:
    """The model's description (see :func:`sciml.models.model.build_model`) from the configuration and the training
    data; what ``package``, which the model starts from, knows already is not fitted anew.
    """
    known = package.config["model"] if package else {"context": {"references": None}}
    head_kinds = weighted_heads(config)
    bins = config.data.bins_per_step.model_dump()
    kinds = kinds_of(splits.train, list(head_kinds.values()), bins)
    cutoffs = {kind: value for kind, value in config.data.cutoff.model_dump().items() if kind in kinds}
    backbone = config.model.model_dump()
    backbone |= backbone.pop("options")
    classifiers = classifying_heads(config, head_kinds)
    # Where no jet has a label, heads of classes are left out beside other heads of their kind.
    if not any(source.data.base == "hep" and source.data.has("label").any() for source in splits.train):
        others = {kind for key, kind in head_kinds.items() if key not in classifiers}
        head_kinds = {key: kind for key, kind in head_kinds.items() if key not in classifiers or kind not in others}
    heads = {key: dict(config.heads[key]) for key, kind in head_kinds.items() if kind in kinds}
    classify = any(key in heads for key in classifiers)
    description = {
        "backbone": backbone,
        "heads": heads,
        "kinds": kinds,
        "cutoffs": cutoffs,
        "context": context_of(splits.train, datasets, known["context"]["references"], classify),
        "mean_neighbors": neighbors_of(splits.train, kinds, cutoffs),
    }
    for target in described_targets(heads):
        description["context"]["targets"][target.name] = target_facts(splits.train, target)
    if config.model.coarse_layers or "coarse" in known:
        description["coarse"] = coarse_of(splits.train, kinds, cutoffs, config.data.coarse_cutoff.model_dump())
    return description


def classifying_heads(config: Any, heads: Iterable[str]) -> list[str]:
    """Which of ``heads`` tell classes."""
    return [key for key in heads if "label" in _head_facts(config.heads, key)[1]]


def weighted_heads(config: Any) -> dict[str, str]:
    """{key of a head: its kind} of the heads with a target of a weight above 0.

    Raises UserError where none is left, or two predict the same.
    """
    terms = config.objective.terms
    kept = {}
    owners: dict[str, str] = {}
    for key in config.heads:
        kind, targets = _head_facts(config.heads, key)
        if any(terms.get(target, {}).get("weight", 0.0) > 0 for target in targets):
            kept[key] = kind
            for target in targets:
                if owners.setdefault(target, key) != key:
                    raise UserError(
                        f"heads: {owners[target]} and {key} both predict {target}, expected one; leave the other out "
                        f"with heads.{owners[target]}=null."
                    )
    if not kept:
        raise UserError(
            f"objective: no target of the heads {', '.join(config.heads) or '(none)'} has a weight above 0; give one a "
            "weight, such as objective.energy.weight=1, or add its head."
        )
    return kept


def _head_facts(heads: dict[str, dict[str, Any]], key: str) -> tuple[str, tuple[str, ...]]:
    """Kind and targets of one of the ``heads`` of a configuration or description."""
    facts: tuple[str, tuple[str, ...]] = registry.resolve("heads", heads[key].get("name", key)).facts(key, heads[key])
    return facts


def check_machine(accelerator: str, backend: str, key: str) -> None:
    """Raise UserError where this machine lacks the GPU or the kernels asked for; ``key`` names the accelerator's."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(f"{key}: found gpu, but torch finds no GPU on this machine; use {key}=cpu or auto.")
    if backend in ("auto", "reference"):
        return
    try:
        with warnings.catch_warnings(action="ignore"):  # the sentence below says the same
            choose(backend, torch.empty(0, device=_device(accelerator)))
    except ValueError as error:
        raise UserError(f"model.{error}; use model.backend=auto.") from None


def _output_folder(config: Any, package: Package, verb: str, name: str) -> Path:
    """Where a verb writes what it finds of a package: ``output``, else the folder ``name`` of the run, and never the
    package, whose content is hashed.
    """
    if config.output:
        return Path(config.output)
    if package.path.name == "package":
        return package.path.parent / name
    if is_checkpoint(package.path):
        return package.path.parent.parent / name
    return Path(f"runs/{verb}/{datetime.now():%Y-%m-%d_%H-%M-%S}")


def initial_model(description: dict[str, Any], package: Package | None) -> tuple[Model, dict[str, Any]]:
    """A model with random weights, or with the weights of ``package`` wherever they fit, and its description."""
    if package is None:
        return build_model(description), description
    if ignored := ignored_settings(package, description):
        say(f"init: these settings are the package's (in brackets), the given ones are ignored: {', '.join(ignored)}")
    description = merged_description(package, description)
    model = build_model(description)
    classes = description["context"]["classes"]
    fresh = copy_weights(model, package, classes)
    if renamed := renamed_classes(package, classes):
        say(f"init: {renamed}")
    say(f"starting from {package.path}" + (f"; new parameters: {', '.join(fresh)}" if fresh else ""))
    return model, description


def build_objective(terms: dict[str, dict[str, Any]]) -> Supervised:
    """The objective from {target: {weight, loss, **options of the loss}}."""
    built = {}
    for target, options in terms.items():
        options = dict(options)
        built[target] = Term(options.pop("weight"), options.pop("loss"), options)
    return Supervised(built)


def build_corruptions(objective: Any, heads: dict[str, dict[str, Any]]) -> list[Corruption]:
    """What the objectives of pretraining do to the samples: of those that have a weight, and one of the ``heads`` of
    the model's description that learns of it.
    """
    denoise, masked = objective.denoise, objective.masked
    corruptions: list[Corruption] = [
        Denoise(kind, denoise.fraction, tuple(denoise.levels))
        for kind, weight in denoise.weight.model_dump().items()
        if weight > 0
    ]
    corruptions += [
        Masked(kind, masked.fraction, masked.nodes) for kind, weight in masked.weight.model_dump().items() if weight > 0
    ]
    learned = {target for key in heads for target in _head_facts(heads, key)[1]}
    return [corruption for corruption in corruptions if corruption.target in learned]


def budgets_of(batch: Any) -> dict[str, Budget]:
    """Budget of a micro-batch per kind."""
    return {kind: Budget(**limits) for kind, limits in batch.model_dump().items()}


def build_data(
    config: Any, splits: Splits, description: dict[str, Any], far_field: FarField = FarField()  # noqa: B008 (frozen)
) -> DataModule:
    """The loaders of a run; kinds of which no target has a weight are left out."""
    trained = set(weighted_heads(config).values())
    kinds = [kind for kind in description["kinds"] if kind in trained]
    return DataModule(
        splits.train,
        splits.validation,
        kinds_of(splits.train, kinds, config.data.bins_per_step.model_dump()),
        description["cutoffs"],
        budgets_of(config.data.batch),
        config.data.bins_per_step.model_dump(),
        config.data.temperature,
        config.seed,
        config.data.workers,
        config.data.cache_mib,
        description.get("coarse", {}).get("cutoffs"),
        far_field,
        build_corruptions(config.objective, description["heads"]),
        config.data.weights,
        config.adapt.replay.fraction,
        described_targets(description["heads"]),
    )


def _write_run(folder: Path, config: Any, splits: Splits) -> None:
    """The composed configuration and the provenance, at the start of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
    write_text(folder / "config.yaml", text)
    facts = provenance(splits.train + splits.validation + splits.test)
    with open(folder / "provenance.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")


def _device(accelerator: str) -> str:
    gpu = torch.cuda.is_available()
    return "cuda" if accelerator == "gpu" or (accelerator == "auto" and gpu) else "cpu"
