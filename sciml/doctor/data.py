"""The data of a training: records that occur twice, labels that are missing or far out, rare elements."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sciml.data.datamodule import Data, Source, source_names
from sciml.data.records import Record, targets
from sciml.data.statistics import OUTLIER, composition, energies_less_references
from sciml.data.store import base_indices
from sciml.doctor.finding import Finding, ok, problem, warning
from sciml.errors import UserError
from sciml.ingest.audit import Audit
from sciml.train.sources import Splits

LOOKED_AT = 200_000  # records of a source whose content is compared and whose forces are read
RARE = 10  # records with an element, below which it is hardly learned
SHARED = 0.01  # of a store twice, above which it is said aloud
CONTENT = ("types", "positions", "cell", "charge", "spin", "momenta", "residue_types")


def examine_data(splits: Splits, context: dict[str, Any], weighted: dict[str, float]) -> list[Finding]:
    """What is wrong with the sources of training and validation.

    ``context`` is that of the model, with the reference energies; ``weighted`` {target: weight} of the loss.
    """
    found: list[Finding] = []
    names = source_names(splits.train)
    for name, source in zip(names, splits.train, strict=True):
        found += [records(name, source.data), labels(name, source.data, weighted), *_units(name, source.data)]
        if source.data.base != "hep":
            references = context["references"].get(context["datasets"][source.dataset], {})
            found += [*_energies(name, source.data, references), *_forces(name, source.data)]
            found += elements(name, source.data)
    return [*found, twice(names, splits.train), leaked(splits)]


def records(name: str, data: Data) -> Finding:
    """How many records there are, and how many were refused when they were ingested."""
    refused = data.manifest["counts"]["quarantined"]
    text = f"{name}: {len(data):,} records of {data.domain} to train on, level of theory {data.dataset!r}"
    if refused:
        return warning("records", f"{text}; {refused:,} were refused at ingestion", f"read {data.path}/quarantine.jsonl")
    return ok("records", text)


def labels(name: str, data: Data, weighted: dict[str, float]) -> Finding:
    """Which part of the records has each target, and whether the loss asks for it."""
    shares = {target: float(data.has(target).mean()) for target in targets(data.domain)}
    listed = ", ".join(f"{target} {share:.0%}" for target, share in shares.items() if share) or "none"
    unused = [target for target, share in shares.items() if share and not weighted.get(target)]
    text = f"{name}: {listed}"
    if unused:
        one = unused[0]
        return warning(
            "labels", f"{text}; {', '.join(unused)} have no weight in the loss", f"set objective.{one}.weight to learn it"
        )
    return ok("labels", text)


def _units(name: str, data: Data) -> list[Finding]:
    """Whether lengths and forces have the size that nature has."""
    if data.base == "hep":
        return []
    audit = Audit()
    for index in _spread(len(data), 200):
        audit.observe(data[int(index)])
    try:
        said = audit.verdict(name, "Å", "eV")
    except UserError as error:
        return [problem("units", str(error), "ingest the source again with its units")]
    return [warning("units", text, "ingest the source again with its units") for text in said] or [
        ok("units", f"{name}: distances and forces have the size that nature has")
    ]


def _energies(name: str, data: Data, references: dict[str, float]) -> list[Finding]:
    """Energies per atom far from those of the rest, after the reference energies."""
    labelled = np.flatnonzero(data.has("energy"))
    if not len(labelled) or not references:
        return []
    left = energies_less_references(data, references)
    far = np.abs(left - np.median(left))
    return _outliers("energies", name, data, labelled, far, "eV/atom")


def _forces(name: str, data: Data) -> list[Finding]:
    """Records with a force far above those of the rest."""
    labelled = np.flatnonzero(data.has("forces"))
    if not len(labelled):
        return []
    chosen = labelled[_spread(len(labelled), LOOKED_AT)]
    largest = np.array([np.linalg.norm(data[int(index)]["forces"], axis=1).max() for index in chosen])
    return _outliers("forces", name, data, chosen, largest, "eV/Å")


def _outliers(check: str, name: str, data: Data, chosen: np.ndarray, values: np.ndarray, unit: str) -> list[Finding]:
    """``values`` (n,) of the records ``chosen``: more than OUTLIER times the typical one is far out."""
    typical = float(np.median(values))
    far = np.flatnonzero(values > max(OUTLIER * typical, 1e-6))
    text = f"{name}: typically {typical:.3g} {unit}, at most {values.max():.3g}"
    if not len(far):
        return [ok(check, text)]
    worst = data[int(chosen[np.argmax(values)])].get("id", int(chosen[np.argmax(values)]))
    advice = "look at it, and leave it out where it is an error (a huber loss bears a few)"
    return [warning(check, f"{text}; {len(far):,} records are {OUTLIER:g} times typical, the worst is {worst}", advice)]


def elements(name: str, data: Data) -> list[Finding]:
    """How many elements there are, and which of them hardly any record has."""
    from ase.data import chemical_symbols

    store, indices = base_indices(data)
    selected = np.zeros(len(store), bool)
    selected[indices] = True
    counts = (composition(store, selected) > 0).sum(axis=0)
    present = np.flatnonzero(counts)
    rare = [f"{chemical_symbols[number]} ({counts[number]})" for number in present if counts[number] < RARE]
    text = f"{name}: {', '.join(chemical_symbols[number] for number in present)}"
    if rare:
        return [
            warning("elements", f"{text}; few records have {', '.join(rare)}", "add records with them, or leave them out")
        ]
    return [ok("elements", text)]


def twice(names: Sequence[str], sources: Sequence[Source]) -> Finding:
    """Records of the same content within a source."""
    shares = {}
    for name, source in zip(names, sources, strict=True):
        found = digests(source.data)
        shares[name] = 1.0 - len(set(found)) / max(len(found), 1)
    worst = max(shares, key=lambda name: shares[name])
    if shares[worst] > SHARED:
        text = f"{worst}: {shares[worst]:.1%} of its records occur more than once"
        return warning("duplicates", text, "ingest each file once")
    return ok("duplicates", f"at most {shares[worst]:.1%} of the records of a source occur more than once")


def leaked(splits: Splits) -> Finding:
    """Records of validation or test that are in the training data too: their errors say nothing."""
    seen = {digest for source in splits.train for digest in digests(source.data)}
    held_out = {id(source): source for source in (*splits.validation, *splits.test)}.values()
    checked = [digest for source in held_out for digest in digests(source.data)]
    number = sum(digest in seen for digest in checked)
    if number:
        text = f"{number:,} of {len(checked):,} held-out records are in the training data too"
        return problem("held out", text, "leave them out of train, or give val and test that are not in it")
    return ok("held out", f"none of {len(checked):,} held-out records is in the training data")


def digests(data: Data) -> list[bytes]:
    """A digest of the content of up to LOOKED_AT records spread over the data; labels and names are no part of it."""
    return [_digest(data[int(index)]) for index in _spread(len(data), LOOKED_AT)]


def _digest(record: Record) -> bytes:
    hashed = hashlib.blake2b(digest_size=12)
    for key in CONTENT:
        if key in record:
            hashed.update(np.ascontiguousarray(record[key]).tobytes())
    return hashed.digest()


def _spread(number: int, most: int) -> np.ndarray:
    """Indices below ``number``, at most ``most`` of them, evenly spread."""
    return np.arange(number) if number <= most else np.unique(np.linspace(0, number - 1, most).astype(int))
