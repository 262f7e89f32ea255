"""A store: a folder of Arrow IPC shards and a manifest, read at random by zero-copy views on the memory map.

One store holds one domain and one level of theory (``dataset``): energies of different methods never mix.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.columns import Column, Shard
from sciml.data.records import Field, Record, base_of, kinds, schema, targets
from sciml.data.statistics import statistics
from sciml.data.targets import Target, stored_targets
from sciml.data.writer import COST_FIELDS, REFERENCE_RADII, SCHEMA_VERSION, StoreWriter
from sciml.errors import UserError
from sciml.files import file_sha256

__all__ = ["Store", "StoreWriter", "Subset", "base_indices", "is_store", "statistics"]

_MANIFEST_KEYS = ("schema_version", "domain", "dataset", "counts", "fields", "shards", "statistics", "units")


def is_store(path: str | Path) -> bool:
    """Return whether ``path`` is a folder with a manifest."""
    return (Path(path) / "manifest.json").is_file()


class Store:
    """Random access to the records of a store folder.

    ``domain`` is the store's domain and ``base`` the built-in one that it is or extends, ``targets`` those of its own.
    ``store[i]`` is a :data:`~sciml.data.records.Record` whose arrays are **read-only views**: copy before changing
    one. ``sizes`` (n,) are fine nodes per record, ``pairs`` (n,) directed pairs within ``manifest["reference_radius"]``
    (n(n - 1) for jets), ``groups`` the trajectory, event or sequence keys. A Store can be pickled: the copy reopens
    the files. Raises UserError when the folder is no store, or a shard is missing, truncated or, with
    ``verify=True``, of another sha256.
    """

    def __init__(self, path: str | Path, verify: bool = False) -> None:
        self.path: Path = Path(path)
        self.manifest: dict[str, Any] = _read_manifest(self.path)
        self.domain: str = self.manifest["domain"]
        self.base: str = base_of(self.domain)
        self.dataset: str = self.manifest["dataset"]
        if verify:
            _verify(self.path, self.manifest)
        self.targets: tuple[Target, ...] = stored_targets(self.manifest)
        own = {target.name: target.field for target in self.targets}
        self._names = [*schema(self.domain), *own]
        fields: dict[str, Field] = {**schema(self.domain), **own, **{field.name: field for field in COST_FIELDS}}
        self._shards = [Shard(_shard_path(self.path, entry), fields) for entry in self.manifest["shards"]]
        for shard, entry in zip(self._shards, self.manifest["shards"], strict=True):
            if shard.length != entry["records"]:
                raise UserError(
                    f"{self.path / entry['file']}: {shard.length} records found, the manifest says {entry['records']}; "
                    "ingest the source again."
                )
        self._starts = np.concatenate([[0], np.cumsum([shard.length for shard in self._shards])]).tolist()
        self._length: int = self._starts[-1]
        self._only = self._shards[0] if len(self._shards) == 1 else None
        self._has: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        if not -self._length <= index < self._length:
            raise IndexError(f"record {index} of {self._length}")
        if index < 0:
            index += self._length
        if self._only is not None:
            return self._only.read(index)
        shard = bisect_right(self._starts, index) - 1
        return self._shards[shard].read(index - self._starts[shard])

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(self._length))

    def __reduce__(self) -> tuple[type["Store"], tuple[Path]]:
        return (Store, (self.path,))

    def shards(self) -> Iterator[tuple[int, dict[str, Column], int]]:
        """Yield (index of the first record, columns, number of records) of each shard, for whole-column work."""
        for start, shard in zip(self._starts, self._shards, strict=False):
            yield start, shard.columns, shard.length

    @cached_property
    def sizes(self) -> np.ndarray:
        """Fine nodes per record, int64 (n,)."""
        return np.concatenate([shard.columns["types"].lengths for shard in self._shards])

    @cached_property
    def pairs(self) -> np.ndarray:
        """Directed pairs within the reference radius per record, int64 (n,)."""
        return self._cost("_pairs")[:, -1]

    @cached_property
    def groups(self) -> list[str]:
        """Trajectory, event or sequence key per record; records of one key must not be split apart."""
        return self.texts("group")

    @property
    def data_hash(self) -> str:
        """sha256 over the sha256 of the shards."""
        return hashlib.sha256("".join(entry["sha256"] for entry in self.manifest["shards"]).encode()).hexdigest()

    def texts(self, name: str) -> list[str]:
        """Return the text field ``name`` of every record, empty where absent."""
        result: list[str] = []
        for shard in self._shards:
            column = shard.columns.get(name)
            result += [""] * shard.length if column is None else [column.text(i) for i in range(shard.length)]
        return result

    def periodic(self) -> np.ndarray:
        """Return, per record, its periodic directions, bool (n, 3); none where the domain has no cells."""
        parts = [
            shard.columns["pbc"].values if "pbc" in shard.columns else np.zeros((shard.length, 3), bool)
            for shard in self._shards
        ]
        return np.concatenate(parts).astype(bool)

    def has(self, target: str) -> np.ndarray:
        """Return, per record, whether it has the field ``target``, bool (n,)."""
        if target not in self._names:
            known = ", ".join(self._names)
            raise UserError(f"{self.path}: {self.domain} records have no field {target!r}; use {known}.")
        if target not in self._has:
            self._has[target] = np.concatenate([shard.present(target) for shard in self._shards])
        return self._has[target]

    def serves(self, kind: str) -> np.ndarray:
        """Return, per record, whether it can become a graph of ``kind``, bool (n,).

        Biology records serve "atoms" where they have energies, forces or a target of graphs of atoms, and "residues"
        where one residue has its whole backbone.
        """
        if kind not in kinds(self.domain):
            return np.zeros(len(self), bool)
        if kind == "residues":
            return self._cost("_backbone_nodes") > 0
        if self.base == "biology":
            labels = ["energy", "forces", *(target.name for target in self.targets if target.kind == "atoms")]
            return np.any([self.has(label) for label in labels], axis=0)
        return np.ones(len(self), bool)

    def costs(self, kind: str, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
        """Return nodes and estimated edges of every record as a graph of ``kind`` with ``cutoff``, int64 (n,) each.

        Pairs are counted at ingestion at a few radii; between them the count follows the volume of the sphere.
        """
        if kind == "jets":
            return self.sizes, self.pairs
        nodes = self._cost("_backbone_nodes") if kind == "residues" else self.sizes
        counts = self._cost("_backbone_pairs" if kind == "residues" else "_pairs")
        return nodes, np.ceil(_interpolate(counts, REFERENCE_RADII[kind], cutoff)).astype(np.int64)

    def _cost(self, name: str) -> np.ndarray:
        return np.concatenate([shard.columns[name].values for shard in self._shards]).astype(np.int64)


class Subset:
    """Part of a store, by record ``indices``, with the same reading interface."""

    def __init__(self, store: "Store | Subset", indices: Sequence[int] | np.ndarray) -> None:
        self.store = store
        self.indices = np.asarray(indices, dtype=np.int64)
        if self.indices.size and (self.indices.min() < 0 or self.indices.max() >= len(store)):
            raise IndexError(f"indices reach {self.indices.max()}, the store has {len(store)} records")
        self.manifest: dict[str, Any] = store.manifest
        self.domain: str = store.domain
        self.base: str = store.base
        self.dataset: str = store.dataset
        self.path: Path = store.path
        self.targets: tuple[Target, ...] = store.targets

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.store[self.indices[index]]

    def __iter__(self) -> Iterator[Record]:
        return (self.store[index] for index in self.indices)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Fine nodes per record."""
        return self.store.sizes[self.indices]

    @cached_property
    def pairs(self) -> np.ndarray:
        """Directed pairs within the reference radius per record."""
        return self.store.pairs[self.indices]

    @cached_property
    def groups(self) -> list[str]:
        """Trajectory, event or sequence key per record."""
        groups = self.store.groups
        return [groups[index] for index in self.indices]

    @property
    def data_hash(self) -> str:
        """sha256 over the store's hash and the indices."""
        return hashlib.sha256(self.store.data_hash.encode() + self.indices.astype("<i8").tobytes()).hexdigest()

    def texts(self, name: str) -> list[str]:
        """Return the text field ``name`` of every record."""
        texts = self.store.texts(name)
        return [texts[index] for index in self.indices]

    def periodic(self) -> np.ndarray:
        """Return, per record, its periodic directions."""
        return self.store.periodic()[self.indices]

    def has(self, target: str) -> np.ndarray:
        """Return, per record, whether it has the field ``target``."""
        return self.store.has(target)[self.indices]

    def serves(self, kind: str) -> np.ndarray:
        """Return, per record, whether it can become a graph of ``kind``."""
        return self.store.serves(kind)[self.indices]

    def costs(self, kind: str, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
        """Return nodes and estimated edges per record; see :meth:`Store.costs`."""
        nodes, edges = self.store.costs(kind, cutoff)
        return nodes[self.indices], edges[self.indices]


def base_indices(store: Store | Subset) -> tuple[Store, np.ndarray]:
    """Return the store behind nested subsets, and the indices in it."""
    indices = np.arange(len(store))
    while isinstance(store, Subset):
        indices = store.indices[indices]
        store = store.store
    return store, indices


def _interpolate(counts: np.ndarray, radii: tuple[float, ...], cutoff: float) -> np.ndarray:
    volumes = np.array([0.0, *(radius**3 for radius in radii)])
    counts = np.concatenate([np.zeros((len(counts), 1)), counts], axis=1)
    if cutoff >= radii[-1]:
        return counts[:, -1] * cutoff**3 / volumes[-1]
    upper = int(np.searchsorted(volumes, cutoff**3, side="left"))
    lower = max(upper - 1, 0)
    weight = (cutoff**3 - volumes[lower]) / (volumes[upper] - volumes[lower])
    return counts[:, lower] + weight * (counts[:, upper] - counts[:, lower])


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give the path of a store made by `sciml ingest`.")
    if not file.is_file():
        raise UserError(f"{path}: not a store, manifest.json is missing; make one with `sciml ingest`.")
    try:
        manifest = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}); ingest the source again.") from None
    missing = [key for key in _MANIFEST_KEYS if key not in manifest] if isinstance(manifest, dict) else ["domain"]
    if missing:
        raise UserError(f"{file}: key {missing[0]!r} is missing; ingest the source again.")
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"{file}: schema_version {manifest['schema_version']} found, this sciml reads {SCHEMA_VERSION}; "
            "ingest the source again."
        )
    try:
        schema(manifest["domain"])
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return manifest


def _shard_path(path: Path, entry: dict[str, Any]) -> Path:
    """Path of a shard; its size is checked here because a map of a truncated file fails only when touched."""
    file = path / Path(entry["file"]).name
    if not file.is_file():
        raise UserError(f"{file}: the shard is missing; ingest the source again.")
    if file.stat().st_size != entry["bytes"]:
        raise UserError(
            f"{file}: {file.stat().st_size} bytes found, the manifest says {entry['bytes']}; the shard is truncated or "
            "changed, ingest the source again."
        )
    return file


def _verify(path: Path, manifest: dict[str, Any]) -> None:
    for entry in manifest["shards"]:
        file = _shard_path(path, entry)
        if file_sha256(file) != entry["sha256"]:
            raise UserError(f"{file}: its sha256 is not the manifest's; the data has changed, ingest the source again.")


def target_coverage(store: Store | Subset) -> dict[str, int]:
    """Return, per target of the domain and of the store's own, how many records have it."""
    names = (*targets(store.domain), *(target.name for target in store.targets))
    return {name: int(store.has(name).sum()) for name in names}
