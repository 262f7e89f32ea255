"""A run that starts from a package: what it adds to training, in the order in which that happens."""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from sciml.data.classes import class_names
from sciml.data.datamodule import DataModule
from sciml.data.source import Source
from sciml.evaluate.run import Metrics, evaluate_sources
from sciml.evaluate.verify.systems import embedded_sources
from sciml.graph import KINDS
from sciml.models.model import Model
from sciml.objectives.supervised import Supervised
from sciml.package import Package
from sciml.train.adapt.forgetting import RETAINED, Forgetting, Measure, retained_sources
from sciml.train.adapt.levels import adopt_levels, start_new_elements
from sciml.train.adapt.parity import CANDIDATES, assert_parity
from sciml.train.adapt.replay import replay_sources, with_classes_of_all
from sciml.train.adapt.strategy import choose_trained, learning_rate_factors, trained_parameters
from sciml.train.progress import say
from sciml.train.sources import Open, Splits

_NO_BASELINES = {"mass_windows": {}, "residue_counts": [0.0] * 20}


class FineTuning:
    """Replay, the choice of parameters, step-0 parity, and the same records measured before and after.

    ``options`` are the section adapt of the configuration, ``drawn`` the kinds of graph that steps are made of; the
    replayed sources that serve them join ``splits.train``.
    """

    def __init__(
        self,
        package: Package,
        options: Any,
        splits: Splits,
        open_store: Open,
        folder: Path,
        budgets: Any,
        drawn: Collection[str] = KINDS,
    ) -> None:
        self.package, self.options, self.budgets = package, options, budgets
        self.baselines = {**_NO_BASELINES, **package.config.get("baselines", {})}
        retained = retained_sources(options, package, open_store, splits.train)
        if options.retained.records and not retained:
            say(
                "what is forgotten is not measured: no embedded sample has a level of theory of the package, and the "
                "data that it was trained on are not where they were; give records of its tasks with "
                "adapt.retained.stores=FILES"
            )
        self.forgetting = Forgetting(splits.test, retained, options.retained.records, folder / "evaluation")
        self.untrained: Model | None = None
        replayed = replay_sources(options.replay, package, splits.train, open_store, folder / "data", budgets, drawn)
        splits.train += with_classes_of_all(replayed, splits.train, package)

    def adopt(
        self,
        model: Model,
        description: dict[str, Any],
        sources: list[Source],
        learned: Collection[str],
        measured: Sequence[Source] = (),
    ) -> dict[str, Any]:
        """Start new elements and levels of theory from what the package knows; returns the description with them.

        Raises UserError where labels, also of sources to be ``measured``, have other units than those of the package,
        and energies or forces are among the targets that are ``learned``.
        """
        for number, near in start_new_elements(model, self.package, sources).items():
            neighbours = ", ".join(chemical_symbols[other] for other in near)
            say(f"element {chemical_symbols[number]}, new to the package, starts as the mean of {neighbours}")
        check_units = self.options.parity and not {"energy", "forces", "stress"}.isdisjoint(learned)
        description, notes = adopt_levels(model, self.package, description, sources, check_units, measured)
        old, new = (one["context"]["classes"] for one in (self.package.config["model"], description))
        for note in [*notes, *self.forgetting.keep_classes(old, new)]:
            say(note)
        return description

    def start(
        self,
        model: Model,
        description: dict[str, Any],
        objective: Supervised,
        data: DataModule,
        resumed: bool,
        whole: bool = False,
    ) -> dict[str, float]:
        """Keep the model as it starts, choose what is trained, and check that the model is the package's. ``whole``
        freezes nothing, for strategies that want a gradient of every parameter.

        Returns {parameter: its share of the learning rate}. Raises UserError where the model is not the package's.
        """
        self.untrained = copy.deepcopy(model)  # measured at the end, so that the time of the run is that of training
        learned = objective.terms.keys()
        trained = [head for kind in data.kinds for head in model.heads_for(kind) if learned & set(head.targets)]
        heads = {key for key, head in model.heads.items() if head in trained}
        choose_trained(model, self.options, set(model.heads) if whole else heads)
        say(f"adapt={self.options.name}: {trained_parameters(model):,} parameters are trained")
        if self.options.parity and not resumed:
            say(self._parity(model, description, data.training.sources))
        return learning_rate_factors(model, self.options.layer_decay)

    def _parity(self, model: Model, description: dict[str, Any], training: list[Source]) -> str:
        """Compare the model with its package on the training data, else on what of the tasks of the package is at hand;
        a sentence on what was compared. Raises UserError where they differ.
        """
        others, path = [*self.forgetting.sources[RETAINED], *embedded_sources(self.package)], self.package.path
        for sources, where in ((training, "of the training data"), (others, "of tasks of the package")):
            if graphs := assert_parity(model, self.package, sources, description):
                return f"before the first update the model gives what {path} gives, on {graphs} graphs {where}"
        elements = ", ".join(chemical_symbols[one] for one in self.package.config.get("elements", [])) or "none"
        return (
            f"before the first update the model was not compared with {path}: it reads {', '.join(self.package.kinds)} "
            f"and the elements {elements}, of which no training record or embedded sample is made alone, among "
            f"up to {CANDIDATES} of each source; give records of its tasks with adapt.retained.stores=FILES"
        )

    def finish(self, model: Model, description: dict[str, Any], scratch: Package | None) -> str:
        """The table of what was gained and what was forgotten, beside a model trained from ``scratch``."""
        assert self.untrained is not None
        untrained = self.untrained.to(next(model.parameters()).device)
        beside = None
        if scratch is not None:
            names = description["context"]["datasets"]
            sources = [
                Source(source.data, scratch.datasets.index(names[source.dataset]), source.name)
                for source in self.forgetting.sources["new"]
            ]
            beside = self._measure(scratch.model, scratch.config["model"])(sources, None)
        return self.forgetting.compare(self._measure(untrained, description), self._measure(model, description), beside)

    def _measure(self, model: Model, description: dict[str, Any]) -> Measure:
        def measure(sources: list[Source], classes: list[str] | None) -> dict[str, Metrics]:
            with among_classes(model.eval(), description, classes) as described:
                return evaluate_sources(model, sources, described, self.budgets, self.baselines).stores

        return measure


@contextmanager
def among_classes(model: Model, description: dict[str, Any], classes: list[str] | None) -> Iterator[dict[str, Any]]:
    """Let the heads that tell classes of graphs tell ``classes`` alone, some of theirs; gives the description of that.
    Does nothing without ``classes``.
    """
    context = description["context"]
    if classes is None or classes == context["classes"]:
        yield description
        return
    columns = [context["classes"].index(name) for name in classes]

    def narrow(module: Any, inputs: Any, found: dict[str, Any]) -> dict[str, Any]:
        return {**found, "label": found["label"][:, columns]}

    heads = [head for head in model.heads.values() if "label" in getattr(head, "targets", ())]
    handles = [head.register_forward_hook(narrow) for head in heads]
    try:
        yield {**description, "context": {**context, "classes": classes}}
    finally:
        for handle in handles:
            handle.remove()


def from_scratch(config: Any, package: Package, training: list[Source], folder: Path, run: Callable[[Any], int]) -> int:
    """Train a model of the package's backbone from random weights on the new data, for as long; in ``folder``.

    ``training`` are the sources of the fine-tuning, those that it replays among them. ``run`` is the function of the
    verb; returns its exit code, and 0 where the model is there already.
    """
    if (folder / "package").is_dir():
        return 0
    say("from scratch: the same backbone from random weights, for the same time")
    own = [len(class_names(source.data)) for source in training if not source.replayed]
    return run(scratch_config(config, package, folder, max(own, default=0)))


def scratch_config(config: Any, package: Package, folder: Path, classes: int) -> Any:
    """The configuration of a run of the same backbone, cutoffs, data and time that starts from random weights.

    It tells only the first ``classes`` of jets of the fine-tuned model, those of the new data, and has their weights.
    """
    described = package.config["model"]
    keys = set(type(config.model).model_fields) - {"options"}
    given = {**config.model.model_dump(), **{k: v for k, v in described["backbone"].items() if k in keys}}
    given["options"] = {k: v for k, v in described["backbone"].items() if k not in keys and k != "noise"}
    coarse = described.get("coarse", {}).get("cutoffs", {})
    data = config.data.model_copy(
        update={
            "weights": {k: v for k, v in config.data.weights.items() if not k.startswith("replay-")},
            "cutoff": config.data.cutoff.model_copy(update=described["cutoffs"]),
            "coarse_cutoff": config.data.coarse_cutoff.model_copy(update=coarse),
        }
    )
    label = config.objective.label
    if label.class_weights is not None:
        label = label.model_copy(update={"class_weights": label.class_weights[:classes]})
    options = config.adapt
    replay = options.replay.model_copy(update={"fraction": 0.0})
    return config.model_copy(
        update={
            "init": None,
            "run_dir": str(folder),
            "resume": (folder / "config.yaml").is_file(),
            "model": type(config.model).model_validate(given),
            "data": data,
            "objective": config.objective.model_copy(update={"label": label}),
            "adapt": options.model_copy(
                update={"name": "full", "layer_decay": 1.0, "from_scratch": False, "replay": replay}
            ),
        }
    )
