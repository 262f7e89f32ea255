"""Replay: records of what a base model knows, mixed into its fine-tuning, with true labels or its own.

Labels of the base model's own (learning without forgetting, Li & Hoiem, 2017) serve where the pretraining data cannot
be had: structures are given, or those of the embedded samples or of the new data are taken.
"""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from sciml.data.classes import Relabelled, class_names
from sciml.data.graph_dataset import GraphDataset, evaluation_loader, rows_of_graph
from sciml.data.packing import Budget
from sciml.data.records import UNKNOWN_RESIDUE, Field, Record, kinds, schema
from sciml.data.source import Source, source_names
from sciml.data.statistics import elements_of
from sciml.data.store import Store, StoreWriter, Subset, is_store
from sciml.data.targets import Target, described_targets
from sciml.errors import UserError
from sciml.evaluate.verify.systems import embedded_sources
from sciml.files import file_sha256
from sciml.graph import KINDS, graph_of_rows
from sciml.ingest.split import split_records
from sciml.package import Package
from sciml.train.adapt.parity import known_dataset, knows_elements, without_references
from sciml.train.progress import say
from sciml.train.sources import Open, evaluation_sources, joined

RETAINED = 0.2  # of the groups of a store that serves both, the part that measures what was forgotten


def known_sources(stores: Sequence[str] | None, package: Package, open_store: Open) -> list[Source]:
    """The ``stores``, else the embedded samples whose level of theory the package has."""
    if stores:
        known = package.config.get("datasets_of_domain", {})
        return evaluation_sources(joined(stores), open_store, package.datasets, known)
    found = embedded_sources(package)
    return [source for source in found if package.datasets[source.dataset] == source.data.dataset]


def divided(source: Source, retained: bool, records: int) -> Source | None:
    """The part of a source that is replayed, or the ``retained`` one that never is; at most ``records``, spread over
    it. None where there are none.
    """
    try:
        parts, _ = split_records(source.data, [1.0 - RETAINED, RETAINED], 0)
    except UserError:  # too few records to be divided without a leak
        return None if retained else limited(source, records)
    return limited(Source(Subset(source.data, parts[int(retained)]), source.dataset, source.name), records)


def with_known_elements(source: Source, package: Package) -> Source | None:
    """The records of a source that have no element new to the package; None without any."""
    if source.data.base == "hep" or set(elements_of(source.data)) <= set(package.config.get("elements", [])):
        return source
    known = [index for index, record in enumerate(source.data) if knows_elements(record, package)]
    return Source(Subset(source.data, known), source.dataset, source.name) if known else None


def limited(source: Source, records: int) -> Source | None:
    """At most ``records`` of a source, spread over it; None without any."""
    number = min(records, len(source.data))
    if not number:
        return None
    chosen = np.unique(np.linspace(0, len(source.data) - 1, number).astype(int))
    return Source(Subset(source.data, chosen), source.dataset, source.name)


def replay_sources(
    options: Any,
    package: Package,
    training: Sequence[Source],
    open_store: Open,
    folder: Path,
    budgets: dict[str, Budget],
    drawn: Collection[str] = KINDS,
) -> list[Source]:
    """What ``options``, the section adapt.replay of the configuration, mixes into the ``training`` sources: what has
    kinds of graph that are ``drawn``. The rest is told.

    Pseudo-labels are written once, as stores in ``folder``. Raises UserError where there is nothing to replay.
    """
    if not options.fraction:
        return []
    if not options.pseudo_labels:
        sources = known_sources(options.stores, package, open_store)
    elif options.stores:
        sources = [Source(open_store(path), 0, Path(str(path)).stem) for path in joined(options.stores)]
    else:
        sources = embedded_sources(package) or list(training)
    parts = [part for source in sources if (part := divided(source, False, options.records)) is not None]
    found, reasons = [], []
    for name, part in zip(source_names(parts), parts, strict=True):
        kinds = [kind for kind in KINDS if part.data.serves(kind).any()]
        if set(drawn).isdisjoint(kinds):
            bins = " or ".join(f"data.bins_per_step.{kind}=1" for kind in kinds)
            reasons.append(f"nothing of {name}, since no step has such graphs; {bins} draws them")
            say(f"replay: {reasons[-1]}")
        elif served := pseudo_labelled(part, package, folder, budgets) if options.pseudo_labels else part:
            say(f"replay: {len(served.data)} records of {name}")
            found.append(Source(served.data, served.dataset, f"replay-{name}", True))
    if not found:
        why = reasons[0] if reasons else _nothing(options, package)
        raise UserError(f"adapt.replay: found nothing to replay, {why}.")
    return found


def _nothing(options: Any, package: Package) -> str:
    """Why there is nothing to replay, and what to do."""
    given = "of adapt.replay.stores" if options.stores else "embedded or to train on"
    if options.pseudo_labels:
        known = ", ".join(chemical_symbols[number] for number in package.config.get("elements", [])) or "none"
        return (
            f"{package.path} can label no record {given}: it reads {', '.join(package.kinds)}, and the elements "
            f"{known}; give adapt.replay.stores=FILES with such structures"
        )
    if options.stores:
        return "adapt.replay.stores has no records; give others"
    return (
        f"no embedded sample has a level of theory of {package.path} ({', '.join(package.datasets)}); give "
        "adapt.replay.stores=FILES, or adapt.replay.pseudo_labels=true"
    )


def with_classes_of_all(replayed: Sequence[Source], training: Sequence[Source], package: Package) -> list[Source]:
    """The ``replayed`` sources with the classes of jets of the ``training`` ones and, behind these, what the package
    and they have beside them: new classes are learned next to the known ones.
    """
    own = max((class_names(source.data) for source in training if _tells_classes(source)), key=len, default=[])
    old = [package.config["model"]["context"]["classes"], *(class_names(one.data) for one in replayed)]
    classes = list(dict.fromkeys([*own, *(name for names in old for name in names)]))
    return [
        Source(Relabelled(one.data, classes), one.dataset, one.name, one.replayed)
        if _tells_classes(one) and class_names(one.data) != classes
        else one
        for one in replayed
    ]


def _tells_classes(source: Source) -> bool:
    """Whether some jets have a class that has a name."""
    return source.data.base == "hep" and bool(class_names(source.data)) and bool(source.data.has("label").any())


def pseudo_labelled(source: Source, package: Package, folder: Path, budgets: dict[str, Budget]) -> Source | None:
    """The structures of a source with labels by the base model: every target of its heads that a record can hold, the
    likeliest of classes. Residue types that a record has are a part of its structure and stay, unknown ones are
    labelled where the record has no energy or forces.

    An energy is not given where the base lacks the reference energy of an element at the level that labels. Records of
    which the base can give nothing, such as those with elements that it does not know, are left out; None where none is
    left.
    """
    origin = Source(source.data, _level(source, package), source.name)
    key = hashlib.sha256(f"{origin.data.data_hash}{_weights_hash(package)}".encode()).hexdigest()[:12]
    path = folder / f"pseudo-{source.name}-{key}"
    if not is_store(path):
        labels = _labels(origin, package, budgets)
        if not labels:
            return None
        _write(path, origin, labels, package)
    return Source(Store(path), origin.dataset, source.name)


def _level(source: Source, package: Package) -> int:
    name = source.data.dataset
    of_domain = package.config.get("datasets_of_domain", {}).get(source.data.domain, [])
    return (
        package.datasets.index(name)
        if name in of_domain
        else known_dataset(Source(source.data, len(package.datasets)), package)
    )


def _weights_hash(package: Package) -> str:
    file = package.path / "weights.safetensors"
    return file_sha256(file) if file.is_file() else ""


def _fields(source: Source, package: Package) -> dict[str, Field]:
    """The targets of the package's heads that a store of the source's domain can hold."""
    own = (target.field for target in _own_targets(source, package))
    return {field.name: field for field in (*schema(source.data.domain).values(), *own) if field.role == "target"}


def _own_targets(source: Source, package: Package) -> list[Target]:
    found = described_targets(package.config["model"]["heads"])
    levels = ("graph", "fine", "coarse") if source.data.base == "biology" else ("graph", "fine")
    return [target for target in found if target.kind in kinds(source.data.domain) and target.level in levels]


def _labels(source: Source, package: Package, budgets: dict[str, Budget]) -> dict[int, dict[str, Any]]:
    """{record: {target: its label}} of everything that the base model says of the records that it can read."""
    labels: dict[int, dict[str, Any]] = {}
    fields, description = _fields(source, package), package.config["model"]
    coarse = description.get("coarse", {}).get("cutoffs")
    for kind in (kind for kind in package.kinds if source.data.serves(kind).any()):
        serving = np.flatnonzero(source.data.serves(kind))
        readable = [i for i in serving.tolist() if kind != "atoms" or knows_elements(source.data[i], package)]
        part = Source(Subset(source.data, readable), source.dataset, source.name)
        dataset = GraphDataset([part], description["cutoffs"], coarse_cutoffs=coarse, far_field=package.model.far_field)
        levels = package.model.levels(kind)
        for loaded in evaluation_loader(dataset, [kind], budgets) if readable else ():
            with torch.no_grad():
                predictions = package.model(loaded.batch, kind)
            for name in predictions.keys() & fields.keys():
                graphs = graph_of_rows(loaded.batch, predictions[name], levels.get(name))
                for place, (_, index) in enumerate(loaded.items):
                    record = part.data[index]
                    if name in without_references(record["types"], source.dataset, package):
                        continue
                    label = _label(fields[name], predictions[name][graphs == place], record, source.domain, kind)
                    if label is not None:
                        labels.setdefault(readable[index], {})[name] = label
    return labels


def _label(field: Field, predicted: Tensor, record: Record, domain: Any, kind: str) -> np.ndarray | None:
    """The label of one record from the rows of its graph, with none at nodes that the graph has not."""
    classes = field.dtype.startswith("int")
    values = (predicted.argmax(dim=1) if classes else predicted.double()).numpy()
    if not np.isfinite(values).all():  # stress without a cell
        return None
    if field.level == "graph":
        return values[0]
    if field.name == "residue_types":
        filled = np.array(record["residue_types"])
        chosen = rows_of_graph(field.level, domain, record, kind)
        filled[chosen] = np.where(filled[chosen] == UNKNOWN_RESIDUE, values, filled[chosen])
        return filled
    size = len(record["types"] if field.level == "fine" else record["residue_types"])
    filled = np.full((size, *values.shape[1:]), -1 if classes else np.nan)
    filled[rows_of_graph(field.level, domain, record, kind)] = values
    return filled


def _write(path: Path, source: Source, labels: dict[int, dict[str, Any]], package: Package) -> None:
    """Write the records of ``labels`` with these, and without those that they had, as a store."""
    domain, own = source.data.domain, _own_targets(source, package)
    structure = {field.name for field in schema(domain).values() if field.role != "target" or field.required}
    metadata = {"source": f"labels by {package.path}"}
    if source.data.base == "hep":
        metadata["classes"] = package.config["model"]["context"]["classes"]
    try:
        with StoreWriter(path, domain, package.datasets[source.dataset], metadata=metadata, targets=own) as writer:
            for index, given in sorted(labels.items()):
                record = {key: value for key, value in source.data[index].items() if key in structure}
                if "energy" in given or "forces" in given:  # made with the residue types that the record has
                    given = {key: value for key, value in given.items() if key != "residue_types"}
                writer.add({**record, **given})
    except UserError:
        if not is_store(path):  # another process made it in the meantime
            raise
