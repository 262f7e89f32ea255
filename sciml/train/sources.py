"""The data of a run: opened, split without leaks, and summed up for the model."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from sciml.data.far_field import FarField
from sciml.data.source import Data, Source, coarse_means, mean_neighbors
from sciml.data.statistics import elements_of, joint_statistics, statistics
from sciml.data.store import Store, Subset, is_store
from sciml.errors import UserError
from sciml.graph import KINDS
from sciml.ingest.groups import Together
from sciml.ingest.ingest import detect, expand
from sciml.ingest.split import split_records
from sciml.package import Package

Paths = str | list[str]
Open = Callable[[Paths], Store]


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
    paths = joined(config.train)
    stores = [open_store(path) for path in paths]
    divided, notes = _divided(stores, [1.0 - sum(fractions), *fractions], config)
    splits = Splits([], [], [], notes if sum(fractions) > 0 else [])
    for path, store, parts in zip(paths, stores, divided, strict=True):
        index = _dataset_index(store.dataset, datasets)
        for part, sources in zip(parts, (splits.train, splits.validation, splits.test), strict=True):
            if len(part):
                sources.append(Source(Subset(store, part), index, _name(path)))
    known = datasets_of_domain(splits.train, datasets)
    splits.notes += _levels_of_theory(known)
    for given, sources in ((config.val, splits.validation), (config.test, splits.test)):
        sources += evaluation_sources(joined(given or []), open_store, datasets, known)
    if not splits.validation:
        raise UserError("val: the validation set is empty; give val=FILE, more records, or a larger data.val_fraction.")
    splits.test = splits.test or splits.validation
    return splits


def _divided(stores: list[Store], shares: list[float], config: Any) -> tuple[list[list[np.ndarray]], list[str]]:
    """The parts of every store, and sentences on how they were made. Stores of proteins are split together: a protein
    may have homologs in another.
    """
    how = (config.seed, config.data.split_by, config.data.split_identity)
    parts: dict[int, list[np.ndarray]] = {}
    notes = []
    proteins = [index for index, store in enumerate(stores) if store.base == "biology"]
    if len(proteins) > 1 and sum(shares[1:]) > 0:
        together = Together([stores[index] for index in proteins])
        chosen, note = split_records(together, shares, *how)
        parts = {index: list(each) for index, each in zip(proteins, zip(*map(together.of_each, chosen)), strict=True)}
        notes.append(note)
    for index, store in enumerate(stores):
        if index not in parts:
            parts[index], note = split_records(store, shares, *how)
            notes.append(note)
    return [parts[index] for index in range(len(stores))], notes


def joined(paths: Sequence[str]) -> list[Paths]:
    """Stores by themselves, raw files of one reader as one list: one store, one level of theory, one split."""
    result: list[Paths] = []
    raw: dict[str, list[str]] = {}
    for path in paths:
        if Path(path).is_dir():
            result.append(path)
            continue
        for file in map(str, expand(path)):
            reader = detect(Path(file))
            if reader not in raw:
                raw[reader] = []
                result.append(raw[reader])
            raw[reader].append(file)
    return [path[0] if isinstance(path, list) and len(path) == 1 else path for path in result]


def _name(path: Paths) -> str:
    """Name of a source: the first file's, and how many more there are."""
    if isinstance(path, str):
        return Path(path).stem
    return f"{Path(path[0]).stem}_and_{len(path) - 1}_more"


def _shown(path: Paths) -> str:
    return path if isinstance(path, str) else f"{path[0]} and {len(path) - 1} more"


def _levels_of_theory(known: dict[str, list[str]]) -> list[str]:
    """A sentence where the training data have more than one level of theory in a domain."""
    if all(len(names) < 2 for names in known.values()):
        return []
    listed = "; ".join(f"{domain}: {', '.join(names)}" for domain, names in known.items())
    return [f"levels of theory, each with energies of its own: {listed}."]


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
    paths: Sequence[Paths], open_store: Open, datasets: list[str], known: dict[str, list[str]]
) -> list[Source]:
    """Open data to measure a model on; ``datasets`` are its levels of theory, ``known`` those of each domain.

    A list of raw files is one source. A raw file names no level of theory; it is taken for the model's where that has
    only one of the file's domain.
    Raises UserError for a level of theory that the model does not know.
    """
    sources = []
    for path in paths:
        store = open_store(path)
        names = known.get(store.domain, [])
        if store.dataset in names:
            name = store.dataset
        elif len(names) == 1 and (isinstance(path, list) or not is_store(path)):
            name = names[0]
        else:
            raise UserError(
                f"{_shown(path)}: its level of theory is {store.dataset!r}, the model knows "
                f"{', '.join(map(repr, names)) or 'none'} for {store.domain}; "
                "ingest it with dataset=NAME where they are the same."
            )
        sources.append(Source(store, datasets.index(name), _name(path)))
    return sources


def check_known(sources: list[Source], context: dict[str, Any], elements: Collection[int] = ()) -> None:
    """Raise UserError where sources have classes or elements that a model of ``context`` does not know.

    Class names must be the model's in the model's order, since labels are indices; the first few of them will do.
    Elements must be among ``elements``, those that the model has seen, where they are given; and where the source has
    energies, have a reference energy in its level of theory, where that has any.
    """
    for source in sources:
        if source.data.base == "hep":
            _check_classes(source.data, context["classes"])
        else:
            _check_elements(source.data, context["datasets"][source.dataset], context["references"], elements)


def check_far_field(sources: list[Source], far_field: FarField) -> None:
    """Raise UserError where the model has sums over charges and a record is a slab or a wire: they have none."""
    if not far_field.ewald:
        return
    for source in sources:
        periodic = source.data.periodic() if source.data.serves("atoms").any() else np.zeros((0, 3), bool)
        mixed = np.flatnonzero(periodic.any(axis=1) & ~periodic.all(axis=1))
        if len(mixed):
            directions = " and ".join(axis for axis, found in zip("abc", periodic[mixed[0]]) if found)
            name = source.data[mixed[0]].get("id") or f"number {mixed[0]}"
            raise UserError(
                f"{where(source.data)}: record {name} is periodic along {directions} alone, "
                f"as are {len(mixed) - 1} more, but sums over charges are there for all directions or none; give one "
                "with vacuum that is periodic in all, or set heads.energy.charges and model.reciprocal.charges to 0."
            )


def where(data: Data) -> str:
    """Path of a store, and the first of the files that it was made of."""
    files = (data.manifest.get("source") or "").split(", ")
    return f"{data.path} (from {files[0]}{' and others' if len(files) > 1 else ''})" if files[0] else str(data.path)


def _check_classes(data: Data, classes: list[str]) -> None:
    if not data.has("label").any():
        return
    found = data.manifest.get("classes") or []
    if not found or found != classes[: len(found)]:
        raise UserError(
            f"{where(data)}: its classes are {', '.join(found) or 'not named'}, the model's are "
            f"{', '.join(classes) or 'none'}; give data with the model's classes in the same order."
        )
    largest = len(statistics(data)["label_counts"]) - 1
    if largest >= len(classes):
        raise UserError(
            f"{where(data)}: the label {largest} was found, but there are only the {len(classes)} classes "
            f"{', '.join(classes)}, which begin at 0; ingest the source again with all its classes."
        )


def _check_elements(
    data: Data, dataset: str, references: dict[str, dict[str, float]], elements: Collection[int]
) -> None:
    referenced = {int(number) for number in references.get(dataset, {})} if data.has("energy").any() else set()
    found = elements_of(data)
    for known, what in ((elements, ""), (referenced, f" with energies of {dataset!r}")):
        unknown = [chemical_symbols[number] for number in found if number not in known] if known else []
        if unknown and isinstance(data, Subset):
            raise UserError(
                f"{where(data)}: element {unknown[0]} is in the records split off for validation or test, but in none "
                f"that are left to train on{what}; give more records with it, or leave them out."
            )
        if unknown:
            listed = ", ".join(chemical_symbols[number] for number in sorted(known))
            raise UserError(
                f"{where(data)}: element {unknown[0]} is not in the training data{what}, which has {listed}; leave its "
                "records out, or train on data with it."
            )


def known_elements(sources: list[Source], package: Package | None = None) -> set[int]:
    """Atomic numbers in the training data and in those of the package that training starts from."""
    before = package.config.get("elements", []) if package else []
    return {
        *before,
        *(number for source in sources if source.data.base != "hep" for number in elements_of(source.data)),
    }


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


def context_of(
    sources: list[Source],
    datasets: list[str],
    references: dict[str, dict[str, float]] | None = None,
    classify: bool = True,
) -> dict[str, Any]:
    """Facts of the training data for the heads: reference energies, scales and spreads per dataset,
    classes; see HeadContext.

    Sources of one dataset are fitted together. ``references`` that are known already keep their values. Raises
    UserError where a head is to ``classify`` jets of which none has a label with a name.
    """
    groups: dict[str, list[Data]] = {}
    for source in sources:
        if source.data.base != "hep":
            groups.setdefault(datasets[source.dataset], []).append(source.data)
    fitted: dict[str, dict[str, float]] = {}
    scales: dict[str, float] = {}
    spreads: dict[str, float] = {}
    for name, parts in groups.items():
        fitted[name], scale, spread = joint_statistics(parts, (references or {}).get(name))
        if scale:
            scales[name] = scale
        if spread:
            spreads[name] = spread
    classes = _classes_of([source.data for source in sources if source.data.base == "hep"], classify)
    return {
        "datasets": list(datasets),
        "references": fitted,
        "scales": scales,
        "spreads": spreads,
        "classes": classes,
        "targets": {},
    }


def _classes_of(stores: list[Data], classify: bool) -> list[str]:
    """Names of the classes; a domain of one's own may do without, and a store without labels beside one with them."""
    classes: list[str] = []
    labelled = [bool(data.has("label").any()) for data in stores]
    missing = classify and not any(labelled)
    for data, has_labels in zip(stores, labelled, strict=True):
        found = data.manifest.get("classes") or []
        if data.domain == "hep" and (missing or (has_labels and not found)):
            what = "its classes have no names" if has_labels else "no jet has a label"
            raise UserError(f"{data.path}: {what}; give jets with label_* branches, or ingest them again with classes.")
        shorter, longer = sorted((found, classes), key=len)
        if shorter != longer[: len(shorter)]:
            raise UserError(
                f"{where(data)}: its classes are {', '.join(found)}, those of another store are {', '.join(classes)}; "
                "expected the same names in the same order, of which one store may have the first few alone; ingest "
                "the sources again with the same classes."
            )
        classes = longer
    for data in stores:
        _check_classes(data, classes)
    return classes


def neighbors_of(sources: list[Source], kinds: list[str], cutoffs: dict[str, float]) -> dict[str, float]:
    """Mean number of neighbours of a node, per kind of graph."""
    return {kind: mean_neighbors(sources, kind, cutoffs[kind]) for kind in kinds}


def coarse_of(
    sources: list[Source], kinds: list[str], cutoffs: dict[str, float], coarse_cutoffs: dict[str, float]
) -> dict[str, dict[str, float]]:
    """The coarse level in a model's description: cutoffs, mean children and mean neighbours of coarse nodes, per
    kind.
    """
    means = {kind: coarse_means(sources, kind, cutoffs[kind], coarse_cutoffs[kind]) for kind in kinds}
    return {
        "cutoffs": {kind: coarse_cutoffs[kind] for kind in kinds},
        "mean_children": {kind: children for kind, (children, _) in means.items()},
        "mean_neighbors": {kind: neighbors for kind, (_, neighbors) in means.items()},
    }
