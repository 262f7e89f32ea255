"""``sciml audit``: what is wrong with a store, check by check, with the records that show it."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.records import Record, targets
from sciml.data.statistics import OUTLIER, composition, fit_reference_energies
from sciml.data.store import Store, Subset
from sciml.data.targets import stored_targets
from sciml.errors import UserError
from sciml.files import write_text
from sciml.ingest.audit import Audit, nearest_distances
from sciml.ingest.ingest import open_data

SHOWN = 5  # records that are named of each finding
_FEW = 10  # records of a class, below which its error cannot be told
_OVERLAP = 0.5  # of the sum of two covalent radii
_LARGE_FORCE = 50.0  # eV/Å: a bond stretched until it breaks has about 10
_NET_FORCE = 0.02  # of the RMS force, per component and root of the number of atoms
_DIGITS = 3  # of positions in Å and momenta in GeV, in which two records are the same


@dataclass
class Finding:
    """One thing that a check found: a ``level`` (error, warning or note), a sentence, and the ids of some records."""

    check: str
    level: str
    text: str
    records: list[str] = field(default_factory=list)


def run(config: Any) -> int:
    """Print what is wrong with ``config.source``; returns 1 where something makes it unfit to train on."""
    store = _opened(config.source)
    found = audit(store)
    if config.against:
        found += shared_records(store, _opened(config.against))
    for finding in found:
        print(f"{finding.level:<8} {finding.check:<12} {finding.text}")
        if finding.records:
            print(f"{'':<21} such as {', '.join(finding.records[:SHOWN])}")
    errors = sum(finding.level == "error" for finding in found)
    print(f"{store.path}: {len(store):,} records, {errors} errors, {len(found) - errors} warnings and notes")
    if config.output:
        content = {"data_hash": store.data_hash, "findings": [asdict(finding) for finding in found]}
        write_text(Path(config.output), json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 1 if errors else 0


def audit(store: Store) -> list[Finding]:
    """Every finding in a store, the errors first."""
    checks: list[Callable[[Store], Iterator[Finding]]] = [_files, _quarantine, _labels, _groups, _duplicates]
    checks += [_classes] if store.base == "hep" else [_units, _overlaps, _energies, _forces]
    order = ("error", "warning", "note")
    found = [finding for check in checks for finding in check(store)]
    return sorted(found, key=lambda finding: order.index(finding.level))


def shared_records(store: Store | Subset, other: Store | Subset) -> list[Finding]:
    """What two stores that should be apart have in common: records, or groups (trajectories, events, sequences)."""
    if store.base != other.base:
        raise UserError(
            f"against: {other.path} holds {other.base} records, {store.path} {store.base}; give data of one domain."
        )
    known = set(_keys(other))
    ids = store.texts("id")
    same = [ids[index] for index, key in enumerate(_keys(store)) if key in known]
    found = []
    if same:
        found.append(Finding("leak", "error", f"{len(same):,} records are also in {other.path}", same[:SHOWN]))
    groups = set(store.groups) & set(other.groups)
    inside = [ids[index] for index, group in enumerate(store.groups) if group in groups]
    if groups and len(inside) > len(same):
        text = f"{len(groups):,} groups with {len(inside):,} records continue in {other.path}"
        found.append(Finding("leak", "error", text, inside[:SHOWN]))
    return found


def _opened(paths: list[str]) -> Store:
    return open_data(paths[0] if len(paths) == 1 else paths)


def _files(store: Store) -> Iterator[Finding]:
    try:
        Store(store.path, verify=True)
    except UserError as error:
        yield Finding("files", "error", str(error).rstrip("."))


def _quarantine(store: Store) -> Iterator[Finding]:
    number = store.manifest["counts"]["quarantined"]
    if number:
        entries = [json.loads(line) for line in (store.path / "quarantine.jsonl").read_text().splitlines()]
        reasons: dict[str, list[str]] = defaultdict(list)
        for entry in entries:
            reasons[entry["reason"].partition(":")[0]].append(entry["id"])
        for key, ids in reasons.items():
            yield Finding("quarantine", "warning", f"{len(ids):,} records were refused for their {key}", ids[:SHOWN])


def _labels(store: Store) -> Iterator[Finding]:
    names = (*targets(store.domain), *(target.name for target in stored_targets(store.manifest)))
    present = {name: int(store.has(name).sum()) for name in names}
    if not any(present.values()):
        yield Finding("labels", "warning", "no record has any label: it serves pretraining alone")
    for name, number in present.items():
        if 0 < number < len(store):
            yield Finding("labels", "note", f"{name} is missing in {len(store) - number:,} of {len(store):,} records")


def _groups(store: Store) -> Iterator[Finding]:
    number = len(set(store.groups))
    if number == len(store) and store.base == "materials":
        yield Finding(
            "groups",
            "note",
            "no record names its trajectory: frames of one would be split at random (sciml split by=structure or "
            "by=composition keeps alike ones together)",
        )
    if number == 1 and len(store) > 1:
        yield Finding("groups", "warning", "all records are of one group: a split cuts it, so its parts are alike")


def _keys(store: Store | Subset) -> list[str]:
    """What makes records the same: types and coordinates to some digits, not labels."""
    return [_key(record) for record in store]


def _key(record: Record) -> str:
    digest = hashlib.sha256(np.asarray(record["types"]).tobytes())
    for name in ("positions", "momenta", "cell"):
        if name in record:
            rounded = np.round(np.asarray(record[name], np.float64), _DIGITS) + 0.0  # no negative zero
            digest.update(rounded.tobytes())
    return digest.hexdigest()


def _duplicates(store: Store) -> Iterator[Finding]:
    """Records of the same content; worse, with labels that differ."""
    places: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(_keys(store)):
        places[key].append(index)
    ids = store.texts("id")
    several = [members for members in places.values() if len(members) > 1]
    differ = [members for members in several if _contradict([store[index] for index in members])]
    if differ:
        text = f"{len(differ):,} sets of records with the same content have different labels"
        yield Finding("duplicates", "error", text, [" = ".join(ids[i] for i in m[:3]) for m in differ[:SHOWN]])
    if several:
        text = f"{sum(len(members) - 1 for members in several):,} records repeat another one"
        yield Finding("duplicates", "warning", text, [" = ".join(ids[i] for i in m[:3]) for m in several[:SHOWN]])


def _contradict(records: list[Record]) -> bool:
    """Whether records of the same content have another class, or energies apart by more than 1 meV an atom."""
    classes = {int(record["label"]) for record in records if "label" in record}
    energies = [float(record["energy"]) / len(record["types"]) for record in records if "energy" in record]
    return len(classes) > 1 or (len(energies) > 1 and max(energies) - min(energies) > 1e-3)


def _classes(store: Store) -> Iterator[Finding]:
    names, counts = store.manifest["classes"], store.manifest["statistics"]["label_counts"]
    if sum(counts) and not names:
        yield Finding("classes", "error", "labels have no names of classes")
    empty = [name for name, number in zip(names, counts) if number == 0]
    few = [f"{name} ({number})" for name, number in zip(names, counts) if 0 < number < _FEW]
    if empty and sum(counts):
        text = f"{len(empty)} of {len(names)} classes have no record: {', '.join(empty)}"
        yield Finding("classes", "warning", text)
    if few:
        yield Finding("classes", "warning", f"classes with fewer than {_FEW} records: {', '.join(few)}")


def _units(store: Store) -> Iterator[Finding]:
    check = Audit()
    for record in store:
        check.observe(record)
    try:
        for warning in check.verdict(str(store.path), "Å", "eV"):
            yield Finding("units", "warning", warning.partition(": ")[2].rstrip("."))
    except UserError as error:
        yield Finding("units", "error", str(error).partition(": ")[2].rstrip("."))


def _overlaps(store: Store) -> Iterator[Finding]:
    from ase.data import covalent_radii

    close = []
    for record in store:
        radii = covalent_radii[np.asarray(record["types"])]
        distances = nearest_distances(
            np.asarray(record["positions"], np.float64), record.get("cell"), record.get("pbc"), reach=1.0
        )
        # The nearest atom is at least as large as the smallest in the record, so this accuses no right distance.
        if (distances < _OVERLAP * (radii + radii.min())).any():
            close.append((float(distances.min()), record["id"]))
    if close:
        text = f"{len(close):,} records have atoms on top of each other, the nearest at {min(close)[0]:.2f} Å"
        yield Finding("geometry", "warning", text, [name for _, name in sorted(close)[:SHOWN]])


def _energies(store: Store) -> Iterator[Finding]:
    has = store.has("energy")
    if has.sum() < 3:
        return
    counts = composition(store, has)
    energies = np.array([float(store[int(index)]["energy"]) for index in np.flatnonzero(has)])
    references = fit_reference_energies(counts, energies)
    residuals = (energies - counts @ references) / counts.sum(axis=1)
    typical = np.median(np.abs(residuals - np.median(residuals)))
    away = np.abs(residuals - np.median(residuals)) > OUTLIER * max(float(typical), 1e-4)
    if away.any():
        ids, labelled = store.texts("id"), np.flatnonzero(has)
        worst = np.flatnonzero(away)[np.argsort(-np.abs(residuals[away]))]
        text = (
            f"{int(away.sum()):,} energies are more than {OUTLIER:g} typical deviations ({typical:.2g} eV/atom) from "
            f"what their composition tells, the worst by {np.abs(residuals[away]).max():.3g} eV/atom"
        )
        yield Finding("energy", "warning", text, [ids[labelled[index]] for index in worst[:SHOWN]])


def _forces(store: Store) -> Iterator[Finding]:
    large, net, squares, number = [], [], 0.0, 0
    for index in np.flatnonzero(store.has("forces")):
        record = store[int(index)]
        forces = np.asarray(record["forces"], np.float64)
        squares, number = squares + float(np.square(forces).sum()), number + forces.size
        if (worst := float(np.abs(forces).max())) > _LARGE_FORCE:
            large.append((worst, record["id"]))
        net.append((float(np.abs(forces.sum(axis=0)).max()) / np.sqrt(len(forces)), record["id"]))
    if not net:
        return
    if large:
        text = f"{len(large):,} records have forces above {_LARGE_FORCE:g} eV/Å, the largest {max(large)[0]:.3g}"
        yield Finding("forces", "warning", text, [name for _, name in sorted(large, reverse=True)[:SHOWN]])
    rms = np.sqrt(squares / number)
    pushed = sorted((value, name) for value, name in net if value > _NET_FORCE * rms)[::-1]
    if pushed and rms > 0:
        text = (
            f"{len(pushed):,} records have a net force above {_NET_FORCE:.0%} of the RMS ({rms:.2g} eV/Å) per root of "
            "the number of atoms, which no energy of the atoms alone gives"
        )
        yield Finding("forces", "warning", text, [name for _, name in pushed[:SHOWN]])
