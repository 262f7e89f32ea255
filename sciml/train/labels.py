"""What the labels of training tell the heads of targets, and labels that cannot be trained or tested on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sciml.data.records import kinds, schema
from sciml.data.source import Data, Source
from sciml.data.statistics import fit_reference_energies
from sciml.data.store import base_indices
from sciml.data.targets import Target, mismatch
from sciml.errors import UserError
from sciml.graph import NUM_TYPES
from sciml.ingest.formats import carries
from sciml.ingest.ingest import not_carried
from sciml.registry import names, resolve
from sciml.train.sources import Splits, where

RECORDS = 20_000  # more labels do not change means and deviations


def target_facts(sources: list[Source], target: Target, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the labels of a target in the training data, which have some, tell its head, as plain data; see HeadContext.

    ``scale`` the deviation of the components, per fine node where the target is ``extensive``; of scalars ``shift``,
    the mean, or ``by_type`` {atomic number: values}, the composition fit of an extensive target. Types that the facts
    ``known`` of a package tell of keep its values, and those of the others are what these leave.
    """
    labels, counts = [], []
    for source in sources:
        chosen = _labelled(source.data, target)
        records = [source.data[int(index)] for index in chosen[:: max(1, -(-len(chosen) // RECORDS))]]
        labels += [np.atleast_1d(record[target.name]) for record in records]
        counts += [np.bincount(record["types"], minlength=NUM_TYPES) for record in records]
    of_types = (known or {}).get("by_type", {})
    return {} if target.classes else _number_facts(target, labels, np.array(counts), of_types)


def check_labelled(sources: list[Source], target: Target) -> None:
    """Raise UserError where no record of the training ``sources`` has the target, or a store has it otherwise."""
    check_targets(sources, [target])
    if not any(len(_labelled(source.data, target)) for source in sources):
        raise UserError(_no_labels(sources, target))


def _labelled(data: Data, target: Target) -> np.ndarray:
    """Indices of the records that have a target."""
    if target.name not in (own.name for own in data.targets):
        return np.array([], int)
    return np.flatnonzero(data.has(target.name) & data.serves(target.kind))


def _no_labels(sources: list[Source], target: Target) -> str:
    """A sentence on why no training record has a target, and what to do."""
    for source in sources:
        reader = source.data.manifest.get("metadata", {}).get("format")
        known = reader in names("readers") and target.kind in kinds(source.data.domain)
        if known and not carries(resolve("readers", reader), target):
            return (
                f"heads.{target.name}: no training record has this target, and {where(source.data)} cannot: "
                f"{not_carried(reader, target)}; give data with it, or leave the head out."
            )
    return (
        f"heads.{target.name}: no training record has this target; give data with it (heads.{target.name}.column "
        "names the column of a raw file), or leave the head out."
    )


def check_kinds(targets: Sequence[Target], trained: Sequence[str], sources: Sequence[Source]) -> None:
    """Raise UserError where a target is of a kind of graph that is not among those ``trained`` on: the training data do
    not bring it, or it gets no micro-batch.
    """
    for target in targets:
        if target.kind in trained:
            continue
        setting = f"data.bins_per_step.{target.kind}"
        if any(source.data.serves(target.kind).any() for source in sources):
            raise UserError(
                f"heads.{target.name}: the target is of graphs of kind {target.kind}, which the training data bring, "
                f"but {setting}=0 leaves them out; set {setting}=1, or heads.{target.name}.kind to one of "
                f"{', '.join(trained)}."
            )
        raise UserError(
            f"heads.{target.name}.kind: the target is of graphs of kind {target.kind}, but the training data bring "
            f"{', '.join(trained)} alone; set heads.{target.name}.kind to one of them, or leave the head out with "
            f"heads.{target.name}=null."
        )


def _number_facts(
    target: Target, labels: list[np.ndarray], counts: np.ndarray, known: dict[str, list[float]]
) -> dict[str, Any]:
    """Scale, shift and what the types tell beside the ``known``, of numbers."""
    columns = target.scalar_columns
    values = np.concatenate([label.reshape(-1, target.dimension) for label in labels]).astype(np.float64)
    facts: dict[str, Any] = {}
    if target.level == "graph" and target.extensive:
        per_type = np.zeros((len(columns), counts.shape[1]))
        for i, column in enumerate(columns):
            per_type[i] = _per_type(counts, values[:, column], known, i)
        values[:, columns] -= counts @ per_type.T
        values = values / counts.sum(axis=1, keepdims=True)
        present = np.flatnonzero(counts.sum(axis=0)).tolist()
        facts["by_type"] = {str(number): per_type[:, number].tolist() for number in present}
        facts["shift"] = [0.0] * len(columns)
    else:
        facts["shift"] = np.nan_to_num(np.nanmean(values[:, columns], axis=0)).tolist() if columns else []
        values[:, columns] -= facts["shift"]
    squared = values[np.isfinite(values)] ** 2
    facts["scale"] = float(np.sqrt(squared.mean())) or 1.0 if squared.size else 1.0
    return facts


def _per_type(counts: np.ndarray, values: np.ndarray, known: dict[str, list[float]], scalar: int) -> np.ndarray:
    """What every type adds to the ``values`` (records,) of a scalar: the ``known`` stay, the others are fitted."""
    per_type = np.zeros(counts.shape[1])
    for number, found in known.items():
        per_type[int(number)] = found[scalar]
    others = counts.copy()
    others[:, [int(number) for number in known]] = 0
    new = others.any(axis=1)
    if new.any():
        left = values[new] - counts[new] @ per_type
        per_type += fit_reference_energies(others[new], left)
    return per_type


def check_targets(sources: list[Source], targets: Sequence[Target]) -> None:
    """Raise UserError where a store has a target with another level, unit, irreps or classes than a head asks for."""
    for source in sources:
        for target in targets:
            if problem := mismatch(target, source.data.targets):
                raise UserError(
                    f"{where(source.data)}: heads.{target.name} asks for this target, but {problem}; give data that "
                    f"agree, or set heads.{target.name} to what they are."
                )


def check_classes_seen(splits: Splits, targets: Sequence[Target], known: Sequence[str]) -> None:
    """Raise UserError where validation or test records have a class that no training record has.

    ``known`` are classes of graphs that the model knew before; ``targets`` those of a configuration.
    """
    training, others = splits.train, splits.validation + splits.test
    for target in targets:
        if target.classes:
            seen = {index for source in training for index in _classes_in(source.data, target.name)}
            for source in others:
                for index in sorted(_classes_in(source.data, target.name) - seen):
                    raise UserError(_unseen(source.data, target.name, target.classes[index]))
    trained = {name for source in training for name in _jet_classes_in(source.data)}
    for source in others:
        for name in _jet_classes_in(source.data):
            if name not in trained and name not in known:
                raise UserError(_unseen(source.data, "label", name))


def _jet_classes_in(data: Data) -> list[str]:
    """Names of the classes that jets have, in the order of their store."""
    if data.base != "hep" or not data.has("label").any():
        return []
    names = base_indices(data)[0].manifest.get("classes") or []
    return [names[index] for index in sorted(_classes_in(data, "label")) if index < len(names)]


def _classes_in(data: Data, name: str) -> set[int]:
    """The classes that records have in a field."""
    origin, chosen = base_indices(data)
    if name not in (*(own.name for own in data.targets), *schema(data.domain)):
        return set()
    found: set[int] = set()
    for start, columns, length in origin.shards():
        inside = chosen[(chosen >= start) & (chosen < start + length)] - start
        column = columns.get(name)
        if column is not None and column.offsets is None:
            inside = inside if column.present is None else inside[column.present[inside]]
            found |= set(np.unique(column.values[inside]).tolist())
        elif column is not None:
            found |= {value for row in inside.tolist() for value in np.unique(column.get(row)).tolist()}
    return found - {-1}


def _unseen(data: Data, name: str, found: str) -> str:
    return (
        f"{where(data)}: records for validation or test have the class {found!r} of {name}, but none that is trained "
        "on; give training records of it, or leave the others out."
    )
