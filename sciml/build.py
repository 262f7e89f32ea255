"""From a checked configuration to the objects of a run: data, model, objective, loaders."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sciml import registry
from sciml.combinations import refused
from sciml.config.keys import option_of
from sciml.data.corruption import Corruption
from sciml.data.datamodule import DataModule
from sciml.data.far_field import FarField
from sciml.data.packing import Budget
from sciml.data.targets import Target, described_targets
from sciml.errors import UserError
from sciml.graph import RESIDUES
from sciml.ingest.formats import Options
from sciml.ingest.ingest import open_data
from sciml.models.model import Model, build_model
from sciml.objectives.denoise import Denoise
from sciml.objectives.masked import Masked
from sciml.objectives.supervised import Supervised, Term
from sciml.package import Package, load, read_description
from sciml.train.adapt.finetuning import FineTuning
from sciml.train.adapt.merge import (
    check_same_targets,
    copy_weights,
    heads_of_package,
    ignored_settings,
    merged_datasets,
    merged_description,
    renamed_classes,
)
from sciml.train.labels import check_classes_seen, check_kinds, check_labelled, check_targets, target_facts
from sciml.train.progress import say
from sciml.train.sources import (
    Open,
    Splits,
    check_far_field,
    check_known,
    coarse_of,
    context_of,
    datasets_of_domain,
    kinds_of,
    known_elements,
    neighbors_of,
    open_splits,
)

REGRESSED = ("true_momenta", "true_mass", "true_pt")  # of jets
CLASSES_LOSS, NUMBERS_LOSSES = "cross_entropy", ("huber", "mae", "mse")


@dataclass
class Inputs:
    """What training starts from: its data, and the ``package`` of ``init`` if there is one.

    ``datasets`` are the levels of theory that the package knows and after them those of the data. ``open_known`` opens
    data that the package may know, with the targets that it has where they are there.
    """

    package: Package | None
    splits: Splits
    datasets: list[str]
    open_known: Open


@dataclass
class Run:
    """A training in ``folder``: its configuration, its data, and its model with the description of that.

    ``package`` is what it started from and ``tuning`` what fine-tuning adds to it, None for random weights.
    """

    config: Any
    folder: Path
    splits: Splits
    package: Package | None
    tuning: FineTuning | None
    model: Model
    description: dict[str, Any]
    data: DataModule


def with_heads_of_package(config: Any) -> Any:
    """The configuration with the options of the heads that the package of ``init`` has, where the user gave no others.

    Raises UserError where these do not go together with the rest of the configuration.
    """
    if not config.init:
        return config
    known = read_description(config.init).get("heads", {})
    heads, taken = heads_of_package(config.heads, known, option_of("heads", "default"))
    if not taken:
        return config
    say(f"init: these options of heads are the package's, since only defaults were given: {', '.join(taken)}")
    config = config.model_copy(update={"heads": heads})
    if problem := refused(config):
        raise UserError(f"{problem}.")
    return config


def open_inputs(config: Any, cache_dir: Path | None = None) -> Inputs:
    """Read the package and open the data; stores that raw files become are kept in ``cache_dir``."""
    weighted_heads(config)  # refuses heads that learn nothing before files are read
    package = load(config.init) if config.init else None
    datasets = list(package.datasets) if package else []
    options = Options(targets=described_targets(config.heads))
    open_store = partial(open_data, cache_dir=cache_dir, options=options)
    of_package = described_targets(package.config["model"]["heads"]) if package else ()
    known = partial(open_data, cache_dir=cache_dir, options=Options(targets=of_package, may_lack_targets=True))
    return Inputs(package, open_splits(config, open_store, datasets), datasets, known)


def build_start(config: Any, inputs: Inputs, folder: Path) -> tuple[Model, dict[str, Any], FineTuning | None]:
    """The model before its first step, its description, and what fine-tuning adds to the run in ``folder``.

    Sources that fine-tuning replays join those of training. Raises UserError where heads, loss, data and package do not
    go together, before anything is replayed where that can be told.
    """
    package, splits, tuning = inputs.package, inputs.splits, None
    check_heads(config, splits, package)
    if package:
        budgets = budgets_of(config.data.batch)
        drawn = [kind for kind, bins in config.data.bins_per_step.model_dump().items() if bins]
        tuning = FineTuning(package, config.adapt, splits, inputs.open_known, folder, budgets, drawn)
    described = describe(config, splits, inputs.datasets, package)
    model, description = initial_model(described, package)
    check_class_weights(config.objective.terms, description["heads"], description["context"]["classes"])
    if tuning:
        learned = {target for key in described["heads"] for target in head_facts(config.heads, key)[1]}
        measured = splits.validation + [source for source in splits.test if source not in splits.validation]
        description = tuning.adopt(model, description, splits.train, learned, measured)
    return model, description, tuning


def check_data(config: Any, inputs: Inputs, model: Model, description: dict[str, Any]) -> None:
    """Raise UserError where validation or test data hold what the model cannot know or be measured on."""
    splits, package, targets = inputs.splits, inputs.package, described_targets(config.heads)
    check_known(splits.validation + splits.test, description["context"], known_elements(splits.train, package))
    check_far_field(splits.train + splits.validation + splits.test, model.far_field)
    check_targets(splits.validation + splits.test, targets)
    check_classes_seen(splits, targets, package.config["model"]["context"]["classes"] if package else [])


def describe(config: Any, splits: Splits, datasets: list[str], package: Package | None = None) -> dict[str, Any]:
    """The model's description (see :func:`sciml.models.model.build_model`) from the configuration and the training
    data; what ``package``, which the model starts from, knows already is not fitted anew.
    """
    known: dict[str, Any] = package.config["model"] if package else {"context": {"references": None}}
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
        facts = known["context"].get("targets", {}).get(target.name)
        description["context"]["targets"][target.name] = target_facts(splits.train, target, facts)
    if config.model.coarse_layers or "coarse" in known:
        description["coarse"] = coarse_of(splits.train, kinds, cutoffs, config.data.coarse_cutoff.model_dump())
    return description


def check_heads(config: Any, splits: Splits, package: Package | None) -> None:
    """Raise UserError where the heads to train ask for labels that the training data, before replayed sources join
    them, do not have, for something else than those of ``package`` do, or for other numbers of class weights.
    """
    kinds = weighted_heads(config)
    heads = {key: config.heads[key] for key in kinds}
    if package:
        check_same_targets(package.config["model"]["heads"], heads)
    check_class_weights(config.objective.terms, heads)
    check_regressed(config, kinds, splits)
    targets = described_targets(heads)
    check_losses(config.objective.terms, targets)
    trained = kinds_of(splits.train, list(kinds.values()), config.data.bins_per_step.model_dump())
    check_kinds(targets, trained, splits.train)
    for target in targets:
        check_labelled(splits.train, target)


def check_losses(terms: dict[str, dict[str, Any]], targets: Sequence[Target]) -> None:
    """Raise UserError where the loss of one of a user's own ``targets`` is one of numbers and it has classes, or the
    other way round.
    """
    for target in targets:
        term = terms.get(target.name, {"weight": 0.0})
        found = term.get("loss")
        if not term["weight"] or found not in (CLASSES_LOSS, *NUMBERS_LOSSES):
            continue
        if (found == CLASSES_LOSS) != bool(target.classes):
            has, expected = ("classes", CLASSES_LOSS) if target.classes else ("numbers", " or ".join(NUMBERS_LOSSES))
            raise UserError(
                f"objective.others.{target.name}.loss: found {found}, but the target {target.name} has {has}; expected "
                f"{expected}."
            )


def check_class_weights(
    terms: dict[str, dict[str, Any]], heads: dict[str, dict[str, Any]], classes: Sequence[str] = ()
) -> None:
    """Raise UserError where the loss of a target of the ``heads`` has not as many ``class_weights`` as it has classes;
    ``classes`` are those of jets, which are not checked without.
    """
    own = {target.name: target.classes for target in described_targets(heads)}
    names: dict[str, Sequence[str]] = {**own, "label": classes, "residue_types": RESIDUES}
    for target in (target for key in heads for target in head_facts(heads, key)[1] if names.get(target)):
        term = terms.get(target, {"weight": 0.0})
        weights = term.get("class_weights")
        if not term["weight"] or term["loss"] != "cross_entropy" or weights is None:
            continue
        found = len(weights) if isinstance(weights, list) else repr(weights)
        if found != len(names[target]):
            key = f"objective.{'others.' * (target in own)}{target}.class_weights"
            raise UserError(
                f"{key}: found {found}, expected {len(names[target])} weights, one for each of the classes "
                f"{', '.join(names[target])} in this order."
            )


def check_regressed(config: Any, heads: Iterable[str], splits: Splits) -> None:
    """Raise UserError where one of ``heads`` regresses quantities of jets, and no jet to train on has any of them."""
    terms, stores = config.objective.terms, [source.data for source in splits.train if source.data.base == "hep"]
    for key in heads:
        wanted = [target for target in head_facts(config.heads, key)[1] if terms.get(target, {}).get("weight", 0.0) > 0]
        regresses = stores and wanted and set(wanted) <= set(REGRESSED)
        if regresses and not any(store.has(target).any() for store in stores for target in wanted):
            raise UserError(
                f"heads.{key}: no jet of the training data has {' or '.join(wanted)}, expected some; give jets with "
                f"true values (scripts/smear_jets makes them of any jets), or leave the head out with heads.{key}=null."
            )


def classifying_heads(config: Any, heads: Iterable[str]) -> list[str]:
    """Which of ``heads`` tell classes."""
    return [key for key in heads if "label" in head_facts(config.heads, key)[1]]


def weighted_heads(config: Any) -> dict[str, str]:
    """{key of a head: its kind} of the heads with a target of a weight above 0.

    Raises UserError where none is left, two predict the same, or the loss has no term for any target of one.
    """
    terms = config.objective.terms
    kept = {}
    owners: dict[str, str] = {}
    for key in config.heads:
        kind, targets = head_facts(config.heads, key)
        if not any(target in terms for target in targets):
            raise UserError(
                f"heads.{key}: the loss has no term for {' or '.join(targets)}, so it would learn nothing; give it a "
                f"weight by 'objective.others.{targets[0]}={{weight: 1.0, loss: huber}}' (cross_entropy for classes), "
                f"or leave the head out with heads.{key}=null."
            )
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


def head_facts(heads: dict[str, dict[str, Any]], key: str) -> tuple[str, tuple[str, ...]]:
    """Kind and targets of one of the ``heads`` of a configuration or description."""
    facts: tuple[str, tuple[str, ...]] = registry.resolve("heads", heads[key].get("name", key)).facts(key, heads[key])
    return facts


def levels_of_theory(splits: Splits, description: dict[str, Any], package: Package | None) -> dict[str, list[str]]:
    """Levels of theory by domain, those of the package that training starts from among them."""
    table = datasets_of_domain(splits.train, description["context"]["datasets"])
    return merged_datasets(package, table) if package else table


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
    learned = {target for key in heads for target in head_facts(heads, key)[1]}
    return [corruption for corruption in corruptions if corruption.target in learned]


def budgets_of(batch: Any) -> dict[str, Budget]:
    """Budget of a micro-batch per kind."""
    return {kind: Budget(**limits) for kind, limits in batch.model_dump().items()}


def build_data(
    config: Any,
    splits: Splits,
    description: dict[str, Any],
    far_field: FarField = FarField(),  # noqa: B008 (frozen)
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
