"""Are the labels of new data in the units of the package? Told by what the package gives for the same structures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sciml.data.source import Source
from sciml.data.statistics import elements_of
from sciml.errors import UserError
from sciml.evaluate.verify.systems import embedded_sources
from sciml.models.model import Model
from sciml.package import Package
from sciml.train.adapt.agreement import RECORDS, STIFFNESS, agreements
from sciml.train.adapt.replay import with_known_elements
from sciml.train.sources import where
from sciml.units import factor

LEAST_RECORDS = 8  # of each of many sources
NEAR = 1.2  # a factor this near to that of a unit tells the unit
ALIGNED = {"forces": 0.5, "stress": 0.9, "energies": 0.9}
"""Cosine of predictions and labels from which on their factor tells of units."""
UNITS = {
    "forces": ("kcal/mol", "kJ/mol", "meV", "hartree", "hartree/bohr", "rydberg", "rydberg/bohr"),
    "stress": ("GPa", "kbar"),
    "energies": ("kcal/mol", "kJ/mol", "meV", "hartree", "rydberg"),
}
_WORDS = {
    "forces": ("point as those", "are", "they", "were", "eV"),
    "stress": ("varies as that", "is", "it", "was", "eV/Å^3"),
    "energies": ("vary as those", "are", "they", "were", "eV"),
}


def judges_of_units(model: Model, package: Package, description: dict[str, Any]) -> tuple[dict[int, str], list[str]]:
    """{index: name} of the levels of theory whose forces can tell of units, and sentences on the others: those that are
    wrong for embedded records of that level with elements that the package knows, as of one that was hardly trained.
    """
    judges, notes = dict(enumerate(package.datasets)), []
    for source in embedded_sources(package):
        data, level = source.data, source.dataset
        if judges.get(level) != data.dataset or not data.serves("atoms").any():
            continue
        own = with_known_elements(source, package)
        found = agreements(model, description, [own], level, LEAST_RECORDS).get("forces") if own else None
        if found and (found.cosine < ALIGNED["forces"] or not STIFFNESS[0] <= found.factor <= STIFFNESS[1]):
            notes.append(
                f"units are not checked by the level of theory {judges.pop(level)!r}: the forces that the package "
                "gives for embedded structures of that level are not near theirs"
            )
    return judges, notes


def check_units_of(
    model: Model, description: dict[str, Any], sources: Sequence[Source], levels: dict[int, str]
) -> list[str]:
    """Compare forces and stress of every source, or energies where it has no forces, with those of the one of
    ``levels`` {index: name} that they agree with most.

    Raises UserError where they differ by the factor of a unit; returns a sentence on each that differs by more than
    stiffness otherwise, or by its sign. A model that does not agree has not learned such data, and its factor tells
    nothing.
    """
    warnings = []
    records = max(LEAST_RECORDS, RECORDS // max(1, len(sources)))
    for source in sources:
        of_levels = {level: agreements(model, description, [source], level, records) for level in levels}
        knowing = {level for level, name in levels.items() if _knows(source, description["context"], name)}
        for name in UNITS:
            found = {level: each[name] for level, each in of_levels.items() if name in each}
            if name != "forces":  # these tell a structure atom by atom, the others need more to rely on
                found = {level: each for level, each in found.items() if level in knowing}
            has_forces = any("forces" in each for each in of_levels.values())
            if not found or (name == "energies" and has_forces):
                continue
            level = max(found, key=lambda one: abs(found[one].cosine))
            agreement, told = found[level], f"that the package gives at its level of theory {levels[level]!r}"
            if agreement.cosine <= -ALIGNED["stress"] and name == "stress":
                warnings.append(
                    f"{where(source.data)}: its stress has the opposite sign of the one {told}; here stress is "
                    "positive under tension, as ASE's, and VASP's and virials are the other way round"
                )
            if agreement.cosine < ALIGNED[name] or STIFFNESS[0] <= agreement.factor <= STIFFNESS[1]:
                continue
            as_those, are, *_ = _WORDS[name]
            said = (
                f"{where(source.data)}: its {name} {as_those} {told}, but {are} {agreement.factor:.3g} times as large: "
            )
            if likely := _likely_unit(name, agreement.factor):
                raise UserError(f"{said}{likely}, or train on as it is with adapt.parity=false.")
            warnings.append(
                f"{said}units or levels of theory may be mixed up, or the package has learned too little of such data"
            )
    return warnings


def _knows(source: Source, context: dict[str, Any], name: str) -> bool:
    """Whether a level of theory had energies of every element of a source."""
    return {str(number) for number in elements_of(source.data)} <= set(context["references"].get(name, {}))


def _likely_unit(name: str, found: float) -> str | None:
    """What unit makes labels about ``found`` times as large as they should be, if one does, and what to do."""
    units = UNITS[name]
    guesses = {(unit, False): 1 / factor(unit) for unit in units} | {(unit, True): factor(unit) for unit in units}
    unit, converted = guess = min(guesses, key=lambda one: abs(np.log(found / guesses[one])))
    if abs(np.log(found / guesses[guess])) > np.log(NEAR):
        return None
    _, are, they, were, ours = _WORDS[name]
    size = f"(a factor of {guesses[guess]:.4g})"
    if converted:
        said = f"{they} {were} probably converted from {unit}, though {they} {were} in {ours} {size}"
        return f"{said}; ingest the file that {they} came from"
    per_length = "/" in unit.removesuffix("/mol")
    key = "stress_unit" if name == "stress" else "forces_unit" if per_length else "energy_unit"
    return f"{they} {are} probably in {unit} rather than {ours} {size}; ingest the file with {key}={unit}"
