"""Replay: records of what a base model knows, mixed into its fine-tuning, with true labels or its own.

Labels of the base model's own (learning without forgetting, Li & Hoiem, 2017) serve where the pretraining data cannot
be had: structures are given, or those of the embedded samples or of the new data are taken.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sciml.data.classes import Relabelled, class_names
from sciml.data.graph_dataset import GraphDataset, evaluation_loader
from sciml.data.packing import Budget
from sciml.data.records import Record, targets
from sciml.data.source import Source, source_names
from sciml.data.store import Store, StoreWriter, Subset, is_store
from sciml.errors import UserError
from sciml.evaluate.verify.systems import embedded_sources
from sciml.files import file_sha256
from sciml.ingest.split import split_records
from sciml.package import Package
from sciml.train.adapt.parity import known_dataset
from sciml.train.sources import Open, evaluation_sources, joined

RETAINED = 0.2  # of the groups of a store that serves both, the part that measures what was forgotten
STRUCTURES = ("atoms", "jets")  # kinds whose labels a base model can give


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
) -> list[Source]:
    """What ``options``, the section adapt.replay of the configuration, mixes into the ``training`` sources.

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
    if options.pseudo_labels:
        parts = [
            labelled for part in parts if (labelled := pseudo_labelled(part, package, folder, budgets)) is not None
        ]
    if not parts:
        raise UserError(
            f"adapt.replay: found nothing to replay, no embedded sample has a level of theory of {package.path} "
            f"({', '.join(package.datasets)}); give adapt.replay.stores=FILES, or adapt.replay.pseudo_labels=true."
        )
    names = source_names(parts)
    return [Source(part.data, part.dataset, f"replay-{name}", True) for part, name in zip(parts, names, strict=True)]


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
    """The structures of a source with labels by the base model: energies, forces and stresses of atoms, the likeliest
    class of jets. Records with elements that the base does not know are left out; None where none is left.
    """
    origin = Source(source.data, _level(source, package), source.name)
    kinds = [kind for kind in STRUCTURES if kind in package.kinds and source.data.serves(kind).any()]
    readable = np.array([_readable(record, source.data.base, package) for record in source.data])
    if not kinds or not readable.any():
        return None
    origin.data = Subset(source.data, np.flatnonzero(readable))
    key = hashlib.sha256(f"{origin.data.data_hash}{_weights_hash(package)}".encode()).hexdigest()[:12]
    path = folder / f"pseudo-{source.name}-{key}"
    if not is_store(path):
        _write(path, origin, kinds, package, budgets)
    return Source(Store(path), origin.dataset, source.name)


def _level(source: Source, package: Package) -> int:
    name = source.data.dataset
    of_domain = package.config.get("datasets_of_domain", {}).get(source.data.domain, [])
    return (
        package.datasets.index(name)
        if name in of_domain
        else known_dataset(Source(source.data, len(package.datasets)), package)
    )


def _readable(record: Record, base: str, package: Package) -> bool:
    return base == "hep" or set(np.asarray(record["types"]).tolist()) <= set(package.config.get("elements", []))


def _weights_hash(package: Package) -> str:
    file = package.path / "weights.safetensors"
    return file_sha256(file) if file.is_file() else ""


def _write(path: Path, source: Source, kinds: list[str], package: Package, budgets: dict[str, Budget]) -> None:
    """Predict every record once and write it, without the labels that it had, as a store."""
    labels: dict[int, dict[str, Any]] = {}
    description = package.config["model"]
    coarse = description.get("coarse", {}).get("cutoffs")
    dataset = GraphDataset([source], description["cutoffs"], coarse_cutoffs=coarse, far_field=package.model.far_field)
    for loaded in evaluation_loader(dataset, kinds, budgets):
        with torch.no_grad():
            predictions = package.model(loaded.batch, loaded.kind)
        for row, (_, record) in enumerate(loaded.items):
            labels[record] = _labels(predictions, row, loaded.batch.ptr)
    fields = set(targets(source.data.domain)) - {"residue_types"}
    metadata = {"classes": description["context"]["classes"], "source": f"labels by {package.path}"}
    name = package.datasets[source.dataset]
    try:
        with StoreWriter(path, source.data.domain, name, metadata=metadata if "jets" in kinds else {}) as writer:
            for index, given in sorted(labels.items()):
                record = {key: value for key, value in source.data[index].items() if key not in fields}
                writer.add({**record, **given})
    except UserError:
        if not is_store(path):  # another process made it in the meantime
            raise


def _labels(predictions: dict[str, torch.Tensor], row: int, ptr: torch.Tensor) -> dict[str, Any]:
    """The labels of one graph of a batch."""
    if "label" in predictions:
        return {"label": int(predictions["label"][row].argmax())}
    found: dict[str, Any] = {}
    if "energy" in predictions:
        found["energy"] = float(predictions["energy"][row])
        found["forces"] = predictions["forces"][ptr[row] : ptr[row + 1]].double().numpy()
    if "stress" in predictions and bool(predictions["stress"][row].isfinite().all()):
        found["stress"] = predictions["stress"][row].double().numpy()
    return found
