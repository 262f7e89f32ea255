"""``sciml evaluate``: the errors of a trained model."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from sciml.build import budgets_of
from sciml.data.source import Source
from sciml.data.targets import described_targets
from sciml.evaluate import conformations, properties
from sciml.evaluate.reliability import write_reliability
from sciml.evaluate.run import evaluate_sources
from sciml.export.ase import calculator
from sciml.ingest.formats import Options
from sciml.ingest.ingest import open_data
from sciml.package import Package, load
from sciml.train.labels import check_targets
from sciml.train.sources import check_far_field, check_known, evaluation_sources
from sciml.verbs.package import open_package, output_folder


def evaluate(config: Any) -> int:
    """``sciml evaluate``: a package on stores, or on crystals; prints tables and writes ``metrics.json``,
    ``properties.json`` and plots.
    """
    package, device = open_package(config.package, config.device, load)
    names = "+".join(Path(path).stem for path in config.store or [config.properties])
    output = output_folder(config.output, package, "evaluate", f"evaluation-{names[:100]}")
    if config.properties:
        precise = calculator(config.package, config.dataset, device, torch.float64)
        print(properties.run(Path(config.properties), precise, output, config.plots))
        print(f"properties  {output / 'properties.json'}")
    if config.store:
        _measure(config, package, _sources(config, package, output), output)
    return 0


def _sources(config: Any, package: Package, output: Path) -> list[Source]:
    """The stores, opened and checked against what the package knows."""
    targets = described_targets(package.config["model"]["heads"])
    open_store = partial(open_data, cache_dir=output / "data", options=Options(targets=targets, may_lack_targets=True))
    sources = evaluation_sources(config.store, open_store, package.datasets, package.config["datasets_of_domain"])
    check_known(sources, package.config["model"]["context"], package.config.get("elements", ()))
    check_far_field(sources, package.model.far_field)
    check_targets(sources, targets)
    return sources


def _measure(config: Any, package: Package, sources: list[Source], output: Path) -> None:
    """Errors, uncertainties and, where asked for, denoising: as tables, and as files in ``output``."""
    model, description, budgets = package.model, package.config["model"], budgets_of(config.batch)
    evaluation = evaluate_sources(model, sources, description, budgets, package.config["baselines"])
    evaluation.write(output, plots=config.plots)
    certain, _ = write_reliability(model, package.uncertainty, sources, description, budgets, output)
    print(f"{evaluation.table}\n{certain}".rstrip())
    if config.denoise_levels:
        found = conformations.measure(model, sources, description, config.denoise_levels)
        print(conformations.write(found, output, config.plots))
    print(f"metrics  {output / 'metrics.json'}")
