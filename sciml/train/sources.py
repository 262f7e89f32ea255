"""The data of a run: opened, split without leaks, and summed up for the model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.datamodule import Data, Source
from sciml.data.statistics import mean_neighbors, statistics
from sciml.data.store import Store, Subset, is_store
from sciml.errors import UserError
from sciml.graph import KINDS
from sciml.ingest.split import split_by_group

Open = Callable[[str], Store]


@dataclass
class Splits:
    """The sources of training, validation and test; ``held_out`` says what the test sources are."""

    train: list[Source]
    validation: list[Source]
    test: list[Source]
    notes: list[str]


def open_splits(config: Any, open_store: Open, datasets: list[str]) -> Splits:
    """Open ``train``, ``val`` and ``test`` and split off what is not given.

    ``datasets`` holds the levels of theory the model knows already; new ones are appended. Without ``test`` and
    ``data.test_fraction`` the test sources are the validation sources.
    """
    fractions = [
        0.0 if config.val else config.data.val_fraction,
        0.0 if config.test else config.data.test_fraction,
    ]
    splits = Splits([], [], [], [])
    for path in config.train:
        store = open_store(path)
        index = _dataset_index(store.dataset, datasets)
        parts, how = split_by_group(store, [1.0 - sum(fractions), *fractions], config.seed)
        if sum(fractions) > 0:
            splits.notes.append(how)
        for part, sources in zip(parts, (splits.train, splits.validation, splits.test), strict=True):
            if len(part):
                sources.append(Source(Subset(store, part), index, Path(path).stem))
    known = datasets_of_domain(splits.train, datasets)
    for given, sources in ((config.val, splits.validation), (config.test, splits.test)):
        sources += evaluation_sources(given or [], open_store, datasets, known)
    if not splits.validation:
        raise UserError("val: the validation set is empty; give val=FILE, more records, or a larger data.val_fraction.")
    splits.test = splits.test or splits.validation
    return splits


def _dataset_index(name: str, datasets: list[str]) -> int:
    """Index of a level of theory, appended when it is new."""
    if name not in datasets:
        datasets.append(name)
    return datasets.index(name)


def datasets_of_domain(sources: list[Source], datasets: list[str]) -> dict[str, list[str]]:
    """Names of the levels of theory that the sources bring, by domain."""
    known: dict[str, list[str]] = {}
    for source in sources:
        names = known.setdefault(source.data.domain, [])
        if datasets[source.dataset] not in names:
            names.append(datasets[source.dataset])
    return known


def evaluation_sources(
    paths: list[str], open_store: Open, datasets: list[str], known: dict[str, list[str]]
) -> list[Source]:
    """Open data to measure a model on; ``datasets`` are its levels of theory, ``known`` those of each domain.

    A raw file names no level of theory; it is taken for the model's where that has only one of the file's domain.
    Raises UserError for a level of theory that the model does not know.
    """
    sources = []
    for path in paths:
        store = open_store(path)
        names = known.get(store.domain, [])
        if store.dataset in names:
            name = store.dataset
        elif len(names) == 1 and not is_store(path):
            name = names[0]
        else:
            raise UserError(
                f"{path}: its level of theory is {store.dataset!r}, the model knows "
                f"{', '.join(map(repr, names)) or 'none'} for {store.domain}; "
                "ingest it with dataset=NAME where they are the same."
            )
        sources.append(Source(store, datasets.index(name), Path(path).stem))
    return sources


def kinds_of(sources: list[Source], heads: list[str], bins_per_step: dict[str, int]) -> list[str]:
    """Kinds of graph that the sources bring, a head reads and the configuration gives a micro-batch to."""
    brought = {kind for source in sources for kind in KINDS if source.data.serves(kind).any()}
    kinds = [kind for kind in KINDS if kind in brought and kind in heads and bins_per_step[kind] > 0]
    if not kinds:
        raise UserError(
            f"train: the data bring graphs of {', '.join(sorted(brought)) or 'no kind'}, but the heads and "
            f"data.bins_per_step leave none of them to train on; give at least one kind a head and a micro-batch."
        )
    return kinds


def context_of(sources: list[Source], datasets: list[str]) -> dict[str, Any]:
    """Facts of the training data for the heads: reference energies and scales per dataset, classes; see HeadContext."""
    references: dict[str, dict[str, float]] = {}
    scales: dict[str, float] = {}
    classes: list[str] = []
    for source in sources:
        name = datasets[source.dataset]
        if source.data.base == "hep":
            classes = _same_classes(classes, source.data)
            continue
        summary = statistics(source.data)
        references[name] = summary["reference_energies"] | references.get(name, {})
        scale = summary["force_rms"] or summary["energy_per_atom_std"]
        if scale and name not in scales:
            scales[name] = scale
    return {"datasets": list(datasets), "references": references, "scales": scales, "classes": classes}


def _same_classes(classes: list[str], data: Data) -> list[str]:
    found = data.manifest.get("classes") or []
    if classes and found != classes:
        raise UserError(f"{data.path}: its classes are {found}, another store has {classes}; all must agree.")
    return found


def neighbors_of(sources: list[Source], kinds: list[str], cutoffs: dict[str, float]) -> dict[str, float]:
    """Mean number of neighbours of a node, per kind of graph."""
    result = {}
    for kind in kinds:
        serving = [source.data for source in sources if source.data.serves(kind).any()]
        nodes = np.array([data.costs(kind, cutoffs[kind])[0][data.serves(kind)].sum() for data in serving], dtype=float)
        means = np.array([mean_neighbors(data, kind, cutoffs[kind]) for data in serving])
        result[kind] = max(1.0, float((nodes * means).sum() / nodes.sum()))
    return result
