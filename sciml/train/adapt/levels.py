"""New elements and new levels of theory: they start from what the base model knows that is nearest to them."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from sciml.data.graph_dataset import GraphDataset
from sciml.data.records import MAX_ELEMENT
from sciml.data.source import Source
from sciml.data.statistics import elements_of, fit_reference_energies
from sciml.data.store import Subset
from sciml.errors import UserError
from sciml.evaluate.verify.systems import embedded_sources
from sciml.graph import collate
from sciml.models.model import Model
from sciml.package import Package
from sciml.train.adapt.parity import knows_elements
from sciml.train.sources import where
from sciml.units import factor

RECORDS = 200  # of a level of theory, for the offsets: a fit of a few numbers
LEAST_RECORDS = 8  # of each of many sources
STIFFNESS = (0.2, 5.0)  # of a level of theory relative to another: more is no matter of scale
ALIGNED = 0.5  # cosine of predicted and labelled forces from which on their factor tells of units
UNITS = ("kcal/mol", "kJ/mol", "meV", "hartree", "hartree/bohr", "rydberg", "rydberg/bohr")
NEAR = 1.2  # a factor this near to that of a unit tells the unit
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


class Agreement(NamedTuple):
    """How a level of theory explains labels: ``misfit``, the mean squared error [(eV/Å)^2] of its forces times
    ``stiffness``; ``factor``, which makes it least, and the ``cosine`` of forces and labels. Without forces the misfit
    is the variance of the energies per atom that the level leaves, beyond their mean.
    """

    misfit: float
    factor: float = 1.0
    cosine: float = 0.0

    @property
    def stiffness(self) -> float:
        """The factor within ``STIFFNESS``."""
        return float(np.clip(self.factor, *STIFFNESS))


def adopt_levels(
    model: Model, package: Package, description: dict[str, Any], sources: Sequence[Source], check_units: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """Start every new level of theory as the known one that explains its labels best, with shifted references.

    It takes the embedding of that one, and its scale times the factor that brings the first forces nearest to the
    labels: one level of theory is stiffer than another. The reference energies of the elements that a level has not
    had before are fitted, robustly, to what the interaction energy of the model leaves of the labels; fitted to the
    labels alone, the interaction would be counted twice. Returns the description with the new scales and references,
    and sentences on what was done. Raises UserError, with ``check_units``, where the forces of a source point as those
    of a known level do and are as many times theirs as another unit would make them.
    """
    head = next((head for head in model.heads.values() if hasattr(head, "references")), None)
    if head is None or "atoms" not in package.kinds:
        return description, []
    context = {key: dict(description["context"][key]) for key in ("references", "scales")}
    judges, notes = _judges_of_units(model, package, description) if check_units else ({}, [])
    for index, name in enumerate(description["context"]["datasets"]):
        before = package.config["model"]["context"]["references"].get(name, {})
        fresh = [number for number in context["references"].get(name, {}) if number not in before]
        mine = [source for source in sources if source.dataset == index and source.data.serves("atoms").any()]
        new = [source for source in mine if not source.replayed]
        if index in judges and before:
            notes += _check_units(model, description, new, {index: name})
        if not fresh or not mine:
            continue
        if name not in package.datasets:
            candidates = _levels_with_energies(package, mine[0].data.domain)
            if candidates:
                if telling := {one: judges[one] for one in candidates if one in judges}:
                    notes += _check_units(model, description, new, telling)
                agreements = {one: _agreement(model, description, mine, one) for one in candidates}
                nearest = min(candidates, key=lambda one: agreements[one].misfit)
                known, stiffness = package.datasets[nearest], agreements[nearest].stiffness
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


def _agreement(
    model: Model, description: dict[str, Any], sources: Sequence[Source], level: int, most: int = RECORDS // 4
) -> Agreement:
    """How a known ``level`` explains the labels of sources, of at most ``most`` records."""
    pairs, energies = [], []
    for graph in _graphs(model, description, sources, level, most):
        predictions = _predict(model, graph)
        known = graph.forces.isfinite()
        pairs.append(torch.stack([predictions["forces"][known], graph.forces[known]]).double())
        energies.append((graph.energy - predictions["interaction_energy"]) / len(graph.types))
    predicted, labels = torch.cat(pairs, dim=1) if pairs else torch.zeros(2, 0)
    if len(labels):
        own, product = float(predicted.square().sum()), float((predicted * labels).sum())
        norms = np.sqrt(own * float(labels.square().sum()))
        found = Agreement(0.0, product / own if own else 1.0, product / norms if norms else 0.0)
        return found._replace(misfit=float((found.stiffness * predicted - labels).square().mean()))
    left = torch.cat(energies) if energies else torch.zeros(0)
    return Agreement(float(left.double().var(unbiased=False)) if len(left) else 0.0)


def _judges_of_units(model: Model, package: Package, description: dict[str, Any]) -> tuple[dict[int, str], list[str]]:
    """{index: name} of the levels of theory whose forces can tell of units, and sentences on the others: those that are
    wrong for embedded records of that level with elements that the package knows, as of one that was hardly trained.
    """
    judges, notes = dict(enumerate(package.datasets)), []
    for source in embedded_sources(package):
        data, level = source.data, source.dataset
        if data.base != "materials" or judges.get(level) != data.dataset:
            continue
        own = Subset(data, [index for index, record in enumerate(data) if knows_elements(record, package)])
        found = _agreement(model, description, [Source(own, level)], level, LEAST_RECORDS) if len(own) else None
        if found and (found.cosine < ALIGNED or not STIFFNESS[0] <= found.factor <= STIFFNESS[1]):
            notes.append(
                f"units are not checked by the level of theory {judges.pop(level)!r}: the forces that the package "
                "gives for embedded structures of that level are not near theirs"
            )
    return judges, notes


def _check_units(
    model: Model, description: dict[str, Any], sources: Sequence[Source], levels: dict[int, str]
) -> list[str]:
    """Compare the forces of every source with those of the one of ``levels`` {index: name} that they point along most.

    Raises UserError where they differ by the factor of a unit; returns a sentence on each that differs by more than
    stiffness otherwise. A model whose forces point elsewhere has not learned such data, and its factor tells nothing.
    """
    warnings = []
    records = max(LEAST_RECORDS, RECORDS // 4 // max(1, len(sources)))
    for source in sources:
        agreements = {level: _agreement(model, description, [source], level, records) for level in levels}
        level = max(levels, key=lambda one: agreements[one].cosine)
        found = agreements[level]
        if found.cosine < ALIGNED or STIFFNESS[0] <= found.factor <= STIFFNESS[1]:
            continue
        said = (
            f"{where(source.data)}: its forces point as those that the package gives at its level of theory "
            f"{levels[level]!r}, but are {found.factor:.3g} times as large: "
        )
        if likely := _likely_unit(found.factor):
            raise UserError(
                f"{said}{likely}; ingest the file with its energy_unit, or train on as it is with adapt.parity=false."
            )
        warnings.append(
            f"{said}units or levels of theory may be mixed up, or the package has learned too little of such data"
        )
    return warnings


def _likely_unit(found: float) -> str | None:
    """What unit makes forces about ``found`` times as large as they should be, if one does."""
    guesses = {f"they are probably in {unit} rather than eV": 1 / factor(unit) for unit in UNITS}
    guesses |= {f"they were probably converted from {unit}, though they were in eV": factor(unit) for unit in UNITS}
    guess = min(guesses, key=lambda one: abs(np.log(found / guesses[one])))
    near = abs(np.log(found / guesses[guess])) <= np.log(NEAR)
    return f"{guess} (a factor of {guesses[guess]:.4g})" if near else None


def _fit_references(
    model: Model, description: dict[str, Any], sources: Sequence[Source], level: int, fresh: list[str]
) -> dict[str, float]:
    """{"Z": eV} of the ``fresh`` elements, from the energies that known references and the interaction leave."""
    references: Any = next(head.references for head in model.heads.values() if hasattr(head, "references"))
    columns = [int(number) for number in fresh]
    counts, rest = [], []
    for graph in _graphs(model, description, sources, level, RECORDS):
        composition = np.bincount(graph.types.numpy(), minlength=MAX_ELEMENT + 1)
        if not bool(graph.energy.isfinite().all()) or not composition[columns].any():
            continue
        others = composition.copy()
        others[columns] = 0
        known = float((references[level] * torch.from_numpy(others)).sum())
        counts.append(composition[columns])
        rest.append(float(graph.energy[0]) - float(_predict(model, graph)["interaction_energy"][0]) - known)
    if not counts:
        return {}
    fitted = fit_reference_energies(np.array(counts), np.array(rest))
    return dict(zip(fresh, fitted.tolist(), strict=True))


def _graphs(model: Model, description: dict[str, Any], sources: Sequence[Source], level: int, most: int) -> list[Any]:
    """Labelled graphs of atoms at a level of theory, at most ``most``, spread over the sources."""
    coarse = description.get("coarse", {}).get("cutoffs")
    dataset = GraphDataset(list(sources), description["cutoffs"], coarse_cutoffs=coarse, far_field=model.far_field)
    found = []
    for index, source in enumerate(sources):
        labelled = source.data.serves("atoms") & (source.data.has("energy") | source.data.has("forces"))
        records = np.flatnonzero(labelled)
        number = min(len(records), max(1, most // len(sources)))
        for place in np.unique(np.linspace(0, len(records) - 1, number).astype(int)) if number else ():
            graph = dataset.graph(index, int(records[place]), "atoms").clone()
            graph.dataset = torch.tensor([level])
            found.append(graph)
    return found


def _predict(model: Model, graph: Any) -> dict[str, Tensor]:
    with torch.no_grad():
        return model(collate([graph]), "atoms")
