"""The data of a training: what ``sciml audit`` finds in its stores, labels, elements, and what is held out."""

import numpy as np

from sciml import registry
from sciml.data.records import targets
from sciml.data.source import Data, Source, source_names
from sciml.data.statistics import composition
from sciml.data.store import Store, base_indices
from sciml.doctor.finding import Finding, Verdict, ok, problem, warning
from sciml.ingest.findings import SHOWN, audit, shared_records
from sciml.schema.objective import Objective
from sciml.train.sources import Splits

AUDITED = 20_000  # records, above which an audit is left to a command of its own
COMPARED = 200_000  # records, above which held-out data are not compared with the training data
RARE = 10  # records with an element, below which it is hardly learned
VERDICTS: dict[str, Verdict] = {"error": "problem", "warning": "warning", "note": "ok"}


def examine_data(splits: Splits, weighted: dict[str, float]) -> list[Finding]:
    """What is wrong with the sources of training and validation; ``weighted`` {target: weight in the loss}
    of what the heads learn.
    """
    found: list[Finding] = []
    for name, source in zip(source_names(splits.train), splits.train, strict=True):
        found += [records(name, source.data), labels(name, source.data, weighted)]
        if source.data.base != "hep":
            found.append(elements(name, source.data))
    stores = {str(store.path): store for store in (base_indices(source.data)[0] for source in splits.train)}
    for store in stores.values():
        found += audited(store)
    return [*found, held_out(splits)]


def records(name: str, data: Data) -> Finding:
    """How many records there are to train on."""
    return ok("records", f"{name}: {len(data):,} of {data.domain} to train on, level of theory {data.dataset!r}")


def labels_of(data: Data) -> list[str]:
    """Everything that a record of the data may have to learn from."""
    return [*targets(data.domain), *(target.name for target in data.targets)]


def labels(name: str, data: Data, weighted: dict[str, float]) -> Finding:
    """Which part of the records has each target, and whether something learns it."""
    shares = {target: float(data.has(target).mean()) for target in labels_of(data)}
    listed = ", ".join(f"{target} {share:.0%}" for target, share in shares.items() if share) or "none"
    unused = [target for target, share in shares.items() if share and not weighted.get(target)]
    if unused:
        text = f"{name}: {listed}; nothing learns {', '.join(unused)}"
        return warning("labels", text, how_to_learn(unused[0], data))
    return ok("labels", f"{name}: {listed}")


def how_to_learn(target: str, data: Data) -> str:
    """The keys that make a training learn a target."""
    own = next((one for one in data.targets if one.name == target), None)
    if own is None and target in Objective.model_fields:
        heads = [key for key in registry.BUILTIN["heads"] if target in registry.resolve("heads", key).facts(key, {})[1]]
        return f"to learn it, have a head for it ({' or '.join(heads)}) and {term_of(target)}.weight above 0"
    loss = "cross_entropy" if own and own.classes else "huber"
    return f"to learn it, give it a head and '{term_of(target)}={{weight: 1.0, loss: {loss}}}'"


def term_of(target: str) -> str:
    """The key of a target's term of the loss."""
    return f"objective.{target}" if target in Objective.model_fields else f"objective.others.{target}"


def elements(name: str, data: Data) -> Finding:
    """Which elements there are, and which of them hardly any record has."""
    from ase.data import chemical_symbols

    store, indices = base_indices(data)
    selected = np.zeros(len(store), bool)
    selected[indices] = True
    counts = (composition(store, selected) > 0).sum(axis=0)
    present = np.flatnonzero(counts)
    rare = [f"{chemical_symbols[number]} ({counts[number]})" for number in present if counts[number] < RARE]
    text = f"{name}: {', '.join(chemical_symbols[number] for number in present)}"
    if rare:
        text += f"; few records have {', '.join(rare)}"
        return warning("elements", text, "add records with them, or leave theirs out")
    return ok("elements", text)


def audited(store: Store) -> list[Finding]:
    """The findings of ``sciml audit``: duplicates, outliers of energies and forces, units, classes, refused records."""
    command = f"sciml audit source={store.path}"
    if len(store) > AUDITED:
        return [ok("audit", f"{store.path.name} has {len(store):,} records, which takes long: run {command} once")]
    found = []
    for one in audit(store):
        ids = f" (such as {', '.join(one.records[:SHOWN])})" if one.records else ""
        advice = "" if VERDICTS[one.level] == "ok" else f"look at {command}, and leave such records out"
        found.append(Finding(one.check, VERDICTS[one.level], f"{store.path.name}: {one.text}{ids}", advice))
    return found or [ok("audit", f"{store.path.name}: nothing is wrong with its {len(store):,} records")]


def held_out(splits: Splits) -> Finding:
    """Whether records of validation or test are in the training data too: their errors would say nothing."""
    apart = list({id(source): source for source in (*splits.validation, *splits.test)}.values())
    if sum(len(source.data) for source in (*splits.train, *apart)) > COMPARED:
        return ok("held out", "too many records to compare here: sciml audit source=TRAIN against=TEST does")
    for source in apart:
        for other in splits.train:
            if leaked := _shared(source, other):
                advice = "leave them out of train, or give val and test that are not in it"
                return problem("held out", f"{source.name}: {leaked}", advice)
    return ok("held out", f"none of {sum(len(source.data) for source in apart):,} records is in the training data")


def _shared(source: Source, other: Source) -> str:
    """A sentence on what two sources share, empty where they share nothing."""
    if source.data.base != other.data.base:
        return ""
    found = shared_records(source.data, other.data)
    return "; ".join(f"{one.text} (such as {', '.join(one.records[:SHOWN])})" for one in found)
