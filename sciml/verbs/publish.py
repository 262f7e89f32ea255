"""What a run leaves behind at its end: the package, the evaluation on its test data, the report."""

from typing import Any

from sciml.build import Run, levels_of_theory
from sciml.evaluate.measure import baselines_of
from sciml.evaluate.reliability import write_reliability
from sciml.evaluate.report import write_report
from sciml.evaluate.run import evaluate_sources
from sciml.evaluate.uncertainty import fit, to_tensors
from sciml.package import load, save
from sciml.train.adapt.merge import merged_baselines
from sciml.train.card import model_card, package_config
from sciml.train.sources import known_elements

GAINED = "What was gained on the new task and forgotten of the old ones"


def publish(run: Run) -> None:
    """Package, evaluation on the test sources, report; the paths are printed last."""
    model, splits, description, budgets = run.model.eval(), run.splits, run.description, run.data.budgets
    settings = _settings(run)
    evaluation = evaluate_sources(model, splits.test, description, budgets, settings["baselines"])
    records = run.config.uncertainty
    rigidities, without = fit(model, splits.train, splits.validation, description, budgets, records)
    tensors = to_tensors(rigidities)
    card = model_card(run.config.name, settings, evaluation.table)
    save(run.folder / "package", model, settings, card, tensors)
    evaluation.write(run.folder / "evaluation")
    certain, plot = write_reliability(model, tensors, splits.test, description, budgets, run.folder / "evaluation")
    if certain and run.splits.test is run.splits.validation:
        certain += "\nNo test data were given: these are the validation data that the uncertainties were calibrated on."
    certain = "\n".join(filter(None, (certain, without)))
    evaluation.plots += [plot] if plot else []
    print(f"{evaluation.table}\n{certain}".rstrip())
    tables = {"Uncertainty": certain} if certain else {}
    if run.tuning:
        folder = run.folder / "from_scratch"
        scratch = load(folder) if run.config.adapt.from_scratch and (folder / "package").is_dir() else None
        tables[GAINED] = run.tuning.finish(model, description, scratch)
        print(f"\n{GAINED}\n{tables[GAINED]}")
    report = write_report(run.folder, evaluation, settings, tables)
    print(f"checkpoint  {run.folder / 'package'}\nreport      {report}")


def _settings(run: Run) -> dict[str, Any]:
    """The content of the package's ``config.json``, in which what an earlier package knew lives on."""
    baselines = baselines_of(run.splits.train, run.description["context"]["classes"])
    if run.package:
        baselines = merged_baselines(run.package, baselines)
    settings = package_config(run.description, run.splits.train, baselines)
    settings["elements"] = sorted(known_elements(run.splits.train, run.package))
    settings["datasets_of_domain"] = levels_of_theory(run.splits, run.description, run.package)
    return settings
