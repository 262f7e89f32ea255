"""What a fine-tuning gained on the new task and what it forgot of the old ones: the same records, both models."""

import json
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from sciml.data.classes import Relabelled, class_names
from sciml.data.records import targets
from sciml.data.source import Source
from sciml.data.store import base_indices, is_store
from sciml.files import write_text
from sciml.package import Package
from sciml.train.adapt.replay import divided, known_sources, limited, with_known_elements
from sciml.train.sources import Open, check_far_field, check_known, joined, known_elements

NEW, RETAINED = "new", "retained"
MEASURES = {
    "mae": "MAE",
    "cross_entropy": "cross-entropy",
    "accuracy": "accuracy",
    "recovery": "recovery",
}
"""Metrics of an evaluation that the table shows, of those that a target has."""
MOST = 100  # records of a test set that the table of both is measured on, where no forgetting is
HIGHER = ("accuracy", "recovery", "AUC")
Measure = Callable[[list[Source], list[str] | None], dict[str, dict[str, dict[str, Any]]]]
"""Metrics of sources by a model; with classes, of what it tells among these alone."""


def retained_sources(options: Any, package: Package, open_store: Open, training: Sequence[Source] = ()) -> list[Source]:
    """The records of base tasks that ``options``, the section adapt of the configuration, measures forgetting on.

    Those of adapt.retained.stores, else of the replay stores, else of the embedded samples at a level of theory that
    the package has, with elements that it knows; of what is replayed too, a part that never is. Levels without embedded
    samples have the data of the run that made the package, where they are there still and not the new ``training``
    data. Raises UserError where stores that were given hold what the package does not know.
    """
    retained, replay = options.retained, options.replay
    if not retained.records:
        return []
    given = retained.stores or (None if replay.pseudo_labels else replay.stores)
    sources = known_sources(given, package, open_store)
    check_far_field(sources, package.model.far_field)
    if not retained.stores:
        parts = [divided(source, True, retained.records) for source in sources]
        if not given:
            new = {base_indices(one.data)[0].data_hash for one in training}
            earlier = _earlier_sources(package, open_store, sources, new)
            parts += [limited(source, retained.records) for source in earlier]
        return [
            known for part in parts if part is not None and (known := with_known_elements(part, package)) is not None
        ]
    of_atoms = [source for source in sources if source.data.base != "hep"]
    check_known(of_atoms, package.config["model"]["context"], known_elements([], package))
    replayed = _replayed(replay, package, open_store)
    found = [
        divided(source, True, retained.records)
        if source.data.data_hash in replayed
        else limited(source, retained.records)
        for source in sources
    ]
    return [source for source in found if source is not None]


def _earlier_sources(
    package: Package, open_store: Open, embedded: Sequence[Source], new: Collection[str]
) -> list[Source]:
    """What the run that made the package was trained on, of its levels of theory that no ``embedded`` source has; but
    for ``new`` hashes, of data that are trained on again.
    """
    run, known = package.path.parent, package.config.get("datasets_of_domain", {})
    file = run / "provenance.jsonl"
    data = json.loads(file.read_text(encoding="utf-8").splitlines()[-1])["data"] if file.is_file() else {}
    covered, found = {(one.data.domain, one.data.dataset) for one in embedded}, []
    for path, digest in data.items():
        place = next((place for place in (Path(path), run / "data" / Path(path).name) if is_store(place)), None)
        if place is None or digest in new:
            continue
        store = open_store(str(place))
        own = store.dataset in known.get(store.domain, []) and (store.domain, store.dataset) not in covered
        if own and store.data_hash == digest:
            found.append(Source(store, package.datasets.index(store.dataset), place.name))
    return found


def _replayed(replay: Any, package: Package, open_store: Open) -> set[str]:
    """Hashes of the stores that are replayed."""
    if not replay.fraction:
        return set()
    if replay.stores:
        return {open_store(path).data_hash for path in joined(replay.stores)}
    return {source.data.data_hash for source in known_sources(None, package, open_store)}


class Forgetting:
    """Measures the same sources with the model before the first update and after the last; writes it to ``folder``.

    ``test`` are sources of the new task, ``retained`` those of the base tasks.
    """

    def __init__(self, test: Sequence[Source], retained: Sequence[Source], records: int, folder: Path) -> None:
        self.sources = {
            NEW: [s for source in test if (s := limited(source, records or MOST))],
            RETAINED: list(retained),
        }
        self.folder = folder
        self.classes: list[str] | None = None

    def keep_classes(self, package: Sequence[str], classes: Sequence[str]) -> list[str]:
        """Measure the jets of base tasks over those classes of the ``package`` that the model, which tells ``classes``,
        has still; with fewer than two of them there is nothing to tell. Returns sentences on what is left out.
        """
        shared = [name for name in package if name in classes]
        self.classes = kept = shared if len(shared) > 1 else []
        notes, retained = [], []
        for source in self.sources[RETAINED]:
            if source.data.base == "hep" and source.data.has("label").any():
                found = class_names(source.data)
                source = Source(Relabelled(source.data, kept), source.dataset, source.name)
                if not found or set(found) - set(kept):
                    notes.append(_left_out(source, [name for name in found if name not in kept], kept))
            if _labelled(source):
                retained.append(source)
        self.sources[RETAINED] = retained
        return notes

    def compare(self, untrained: Measure, trained: Measure, scratch: dict[str, Any] | None = None) -> str:
        """Measure the model that training started from and the trained one; returns the table of both, with the metrics
        of a model trained from ``scratch`` on the new data beside them. Writes ``adaptation.json``: its rows.
        """
        before, after = (
            {
                part: measure(sources, self.classes if part == RETAINED else None)
                for part, sources in self.sources.items()
                if sources
            }
            for measure in (untrained, trained)
        )
        rows = [
            {"part": part, "store": store, "measure": name, "unit": unit, "before": first, "after": after_value}
            for part in after
            for store, name, unit, first, after_value in _pairs(before[part], after[part])
        ]
        if scratch is not None:
            values = {(store, name): value for store, name, _, value in _measures(scratch)}
            for row in rows:
                if row["part"] == NEW:
                    row["scratch"] = values.get((str(row["store"]), str(row["measure"])))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "adaptation.json", json.dumps(rows, indent=1) + "\n")
        return text(rows)


def _labelled(source: Source) -> bool:
    """Whether a record has anything to be measured on."""
    names = [*targets(source.data.domain), *(target.name for target in source.data.targets)]
    return any(source.data.has(name).any() for name in names)


def _left_out(source: Source, lost: list[str], kept: list[str]) -> str:
    jets = f"jets of the classes {', '.join(lost)}" if lost else "jets, whose classes have no names"
    name = source.name or source.data.path
    if kept:
        return f"{name}: what is forgotten is measured without {jets}, which package and model do not both have"
    return f"{name}: what is forgotten of classes is not measured on its {jets}: package and model share less than two"


def _measures(stores: dict[str, dict[str, dict[str, Any]]]) -> list[tuple[str, str, str, float]]:
    """(store, measure, unit, value) of everything that the table can show."""
    found = []
    for store, measured in stores.items():
        for target, values in measured.items():
            for key, name in MEASURES.items():
                if isinstance(values.get(key), int | float):
                    unit = "" if key in HIGHER else values.get("unit", "")
                    found.append((store, f"{target} {name}", unit, float(values[key])))
            for signal, pair in values.get("signals", {}).items():
                found.append((store, f"AUC {signal} / {values['background']}", "", float(pair["auc"])))
    return [entry for entry in found if math.isfinite(entry[3])]


def _pairs(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str, str, float | None, float]]:
    first = {(store, name): value for store, name, _, value in _measures(before)}
    return [(store, name, unit, first.get((store, name)), value) for store, name, unit, value in _measures(after)]


def text(rows: list[dict[str, Any]]) -> str:
    """The table for people: the new task, then the tasks of the base model."""
    scratch = any("scratch" in row for row in rows)
    header = [
        "",
        "store",
        "measure",
        "before",
        "after",
        "after / before",
        *(["from scratch"] if scratch else []),
        "unit",
    ]
    lines = [header]
    for row in rows:
        before, after = row["before"], row["after"]
        ratio = f"{after / before:.2f}" if before and "MAE" in row["measure"] else ""
        cells = [f"{value:.4g}" if value is not None else "" for value in (before, after)]
        beside = [f"{row['scratch']:.4g}" if row.get("scratch") is not None else ""] if scratch else []
        part = "new task" if row["part"] == NEW else "base task"
        lines.append([part, row["store"], row["measure"], *cells, ratio, *beside, row["unit"]])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
