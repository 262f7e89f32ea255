"""New elements and new levels of theory: they start from what the base model knows that is nearest to them."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sciml.data.records import MAX_ELEMENT
from sciml.data.source import Source
from sciml.data.statistics import elements_of, fit_reference_energies
from sciml.models.model import Model
from sciml.package import Package
from sciml.train.adapt.agreement import explained, labelled_graphs, predict
from sciml.train.adapt.label_units import check_units_of, judges_of_units

RECORDS = 200  # of a level of theory, for the offsets: a fit of a few numbers
_NOBLE = (2, 10, 18, 36, 54, 86, 118)


def start_new_elements(model: Model, package: Package, sources: Sequence[Source]) -> dict[int, list[int]]:
    """Give the elements of ``sources`` that the package does not know the mean embedding of the two that are nearest in
    the periodic table; the random one that it has was never trained. Returns {new element: those}.
    """
    known = [int(number) for number in package.config.get("elements", [])]
    found = {number for source in sources if source.data.base != "hep" for number in elements_of(source.data)}
    table = _embedding(model, "types")
    new = {number: nearest_elements(number, known) for number in sorted(found - set(known))} if known else {}
    if table is not None:
        for number, near in new.items():
            with torch.no_grad():
                table.weight[number] = table.weight[near].mean(dim=0)
    return new


def nearest_elements(number: int, known: Sequence[int], most: int = 2) -> list[int]:
    """The ``known`` elements that are nearest in the periodic table, by group first; a single one in the same group."""
    period, group = _place(number)

    def distance(other: int) -> tuple[float, int]:
        other_period, other_group = _place(other)
        return abs(period - other_period) + 3.0 * abs(group - other_group), abs(number - other)

    near = sorted(known, key=distance)[:most]
    return near[:1] if _place(near[0])[1] == group else near


def _place(number: int) -> tuple[int, int]:
    """Period and group (1 to 18) of an element; lanthanides and actinides count as group 3."""
    period = bisect_left(_NOBLE, number)
    before = _NOBLE[period - 1] if period else 0
    left, right = number - before, _NOBLE[period] - number
    if right == 0:
        return period + 1, 18
    return period + 1, left if left <= 2 else max(3, 18 - right)


def adopt_levels(
    model: Model,
    package: Package,
    description: dict[str, Any],
    sources: Sequence[Source],
    check_units: bool = True,
    measured: Sequence[Source] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Start every new level of theory as the known one that explains its labels best, with shifted references.

    It takes the embedding of that one, and its scale times the factor that brings the first forces nearest to the
    labels: one level of theory is stiffer than another. The reference energies of the elements that a level has not
    had before are fitted, robustly, to what the interaction energy of the model leaves of the labels; fitted to the
    labels alone, the interaction would be counted twice. Returns the description with the new scales and references,
    and sentences on what was done. Raises UserError, with ``check_units``, where the labels of a source, or of one of
    those to be ``measured``, agree with a known level but for the factor of a unit, see ``check_units_of``.
    """
    head = next((head for head in model.heads.values() if hasattr(head, "references")), None)
    if head is None or "atoms" not in package.kinds:
        return description, []
    context = {key: dict(description["context"][key]) for key in ("references", "scales")}
    judges, notes = judges_of_units(model, package, description) if check_units else ({}, [])
    for index, name in enumerate(description["context"]["datasets"]):
        before = package.config["model"]["context"]["references"].get(name, {})
        fresh = [number for number in context["references"].get(name, {}) if number not in before]
        mine = of_atoms(sources, index)
        new = [source for source in mine if not source.replayed]
        files = {source.data.path for source in new}
        new += [one for one in of_atoms(measured, index) if one.data.path not in files]
        if index in judges and before:
            notes += check_units_of(model, description, new, {index: name})
        if not fresh or not mine:
            continue
        if name not in package.datasets:
            candidates = _levels_with_energies(package, mine[0].data.domain)
            if candidates:
                if telling := {one: judges[one] for one in candidates if one in judges}:
                    notes += check_units_of(model, description, new, telling)
                found = {one: explained(model, description, mine, one) for one in candidates}
                nearest = min(candidates, key=lambda one: found[one].misfit)
                known, stiffness = package.datasets[nearest], found[nearest].stiffness
                _take_level(model, nearest, index, stiffness)
                context["scales"][name] = float(cast(Tensor, head.scales)[index])
                notes.append(
                    f"the new level of theory {name!r} starts as {known!r}, with {stiffness:.2f} times its forces and "
                    "reference energies of its own"
                )
        offsets = _fit_references(model, description, mine, index, fresh)
        if offsets:
            context["references"][name] = {**context["references"][name], **offsets}
            for other in model.heads.values():
                if isinstance(references := getattr(other, "references", None), Tensor):
                    for number, energy in offsets.items():
                        references[index, int(number)] = energy
    return {**description, "context": {**description["context"], **context}}, notes


def of_atoms(sources: Sequence[Source], level: int) -> list[Source]:
    """Those of the sources that have atoms and are of a level of theory."""
    return [source for source in sources if source.dataset == level and source.data.serves("atoms").any()]


def _levels_with_energies(package: Package, domain: str) -> list[int]:
    """Indices of the levels of theory with energies: those of a domain, else all."""
    references = package.config["model"]["context"]["references"]
    of_domain = package.config.get("datasets_of_domain", {}).get(domain, [])
    names = [name for name in package.datasets if references.get(name)]
    return [package.datasets.index(name) for name in names if name in of_domain or not of_domain]


def _take_level(model: Model, known: int, new: int, factor: float) -> None:
    """Copy the row of the embedding, and the scale times ``factor``, of a level of theory."""
    table = _embedding(model, "dataset")
    with torch.no_grad():
        if table is not None:
            table.weight[new] = table.weight[known]
        for head in model.heads.values():
            if isinstance(scales := getattr(head, "scales", None), Tensor):
                scales[new] = factor * scales[known]


def _embedding(model: Model, name: str) -> nn.Embedding | None:
    found = getattr(getattr(model.backbone, "embedding", None), name, None)
    return found if isinstance(found, nn.Embedding) else None


def _fit_references(
    model: Model, description: dict[str, Any], sources: Sequence[Source], level: int, fresh: list[str]
) -> dict[str, float]:
    """{"Z": eV} of the ``fresh`` elements, from the energies that known references and the interaction leave."""
    references: Any = next(head.references for head in model.heads.values() if hasattr(head, "references"))
    columns = [int(number) for number in fresh]
    counts, rest = [], []
    for graph in labelled_graphs(model, description, sources, level, RECORDS):
        composition = np.bincount(graph.types.numpy(), minlength=MAX_ELEMENT + 1)
        if not bool(graph.energy.isfinite().all()) or not composition[columns].any():
            continue
        others = composition.copy()
        others[columns] = 0
        known = float((references[level] * torch.from_numpy(others)).sum())
        counts.append(composition[columns])
        rest.append(float(graph.energy[0]) - float(predict(model, graph)["interaction_energy"][0]) - known)
    if not counts:
        return {}
    fitted = fit_reference_energies(np.array(counts), np.array(rest))
    return dict(zip(fresh, fitted.tolist(), strict=True))
