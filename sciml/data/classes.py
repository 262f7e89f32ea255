"""Jets whose classes are named and counted otherwise than in their store."""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from sciml.data.records import Record
from sciml.data.source import Data
from sciml.data.store import Subset, base_indices


class Relabelled(Subset):
    """All records of ``data``, whose labels are indices of ``classes``; those of other classes have no label."""

    def __init__(self, data: Data, classes: Sequence[str]) -> None:
        super().__init__(data, np.arange(len(data)))
        self.index = {old: classes.index(name) for old, name in enumerate(class_names(data)) if name in classes}
        self.manifest = {**data.manifest, "classes": list(classes)}

    def __getitem__(self, index: int) -> Record:
        record = super().__getitem__(index)
        if "label" not in record:
            return record
        label = self.index.get(int(record["label"]))
        rest = {name: value for name, value in record.items() if name != "label"}
        return rest if label is None else {**rest, "label": label}

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def has(self, target: str) -> np.ndarray:
        """Return, per record, whether it has the field ``target``; a label of one of the classes."""
        return self._labelled if target == "label" else super().has(target)

    @cached_property
    def _labelled(self) -> np.ndarray:
        return np.isin(stored_labels(self), list(self.index))


def class_names(data: Data) -> list[str]:
    """Names of the classes of jets, none where the data have no names for them."""
    return list(data.manifest.get("classes") or [])


def stored_labels(data: Data) -> np.ndarray:
    """Labels of jets (n,) as the store behind ``data`` counts its classes; -1 where there is none."""
    origin, chosen = base_indices(data)
    labels = np.full(len(origin), -1)
    for start, columns, length in origin.shards():
        if "label" in columns:
            labels[start : start + length] = columns["label"].values
    return np.where(origin.has("label"), labels, -1)[chosen]
