"""Writing a store: checked records to shards in a folder beside the output, renamed into place at the end."""

import json
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from sciml.data.checks import prepare, spacelike
from sciml.data.columns import write_shard
from sciml.data.neighbors import pair_counts
from sciml.data.records import Field, Record, base_of, schema
from sciml.data.targets import Target
from sciml.errors import BadRecord, UserError
from sciml.files import file_sha256, sync, write_text

if TYPE_CHECKING:
    from sciml.data.store import Store

SCHEMA_VERSION = 1
# Å. Pairs are counted at these radii once, so that batches can be packed by edges at any cutoff without geometry.
REFERENCE_RADII: dict[str, tuple[float, ...]] = {"atoms": (3.0, 4.0, 5.0, 6.0), "residues": (4.0, 6.0, 8.0, 10.0)}
COST_FIELDS = (
    Field("_pairs", "graph", "uint32", (4,), role="info"),
    Field("_backbone_nodes", "graph", "uint32", role="info"),
    Field("_backbone_pairs", "graph", "uint32", (4,), role="info"),
)
_BACKBONE = (1, 2, 3, 4)  # codes of N, CA, C, O in records.ATOM_NAMES
_MAX_SHARD_NODES = 8_000_000
_TOP_LEVEL = {"licence": "", "source": "", "description": "", "classes": []}


class StoreWriter:
    """Writes one store atomically: until :meth:`close` returns, ``path`` does not exist (or is the old store).

    ``dataset`` names the level of theory ("gfn2-xtb", "pbe-vasp", ...); ``metadata`` may hold licence, source,
    description, classes (names of the jet labels) and anything else that is plain data; ``targets`` are those that the
    domain's schema does not have. As a context manager it closes
    at the end of the block; on an exception the unfinished folder is removed. Raises UserError when ``path`` exists
    and ``overwrite`` is false, or when it exists and is not a store (that is never deleted).
    """

    def __init__(
        self,
        path: str | Path,
        domain: str,
        dataset: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        shard_size: int = 65536,
        overwrite: bool = False,
        targets: Sequence[Target] = (),
    ) -> None:
        self._targets = tuple(targets)
        self._own = tuple(target.field for target in targets)
        fields = (*schema(domain).values(), *self._own)
        self.path = Path(path)
        self.domain, self.base, self.dataset = domain, base_of(domain), dataset
        self._metadata = dict(metadata or {})
        self._shard_size, self._overwrite = shard_size, overwrite
        self._fields = (*fields, *COST_FIELDS)
        self._records: list[Record] = []
        self._nodes = self._total_nodes = self._added = self._regulated = 0
        self._quarantine: list[dict[str, str]] = []
        self._shards: list[dict[str, Any]] = []
        self._store: Store | None = None
        _check_output(self.path, overwrite)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(self.path)
        self._partial = self.path.with_name(f"{self.path.name}.partial-{socket.gethostname()}-{os.getpid()}")
        if self._partial.exists():
            raise UserError(f"{self.path}: this process is already writing it; close the first StoreWriter.")
        self._partial.mkdir()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    @property
    def quarantine(self) -> list[dict[str, str]]:
        """The refused records so far: {"id", "reason"}."""
        return self._quarantine

    def __len__(self) -> int:
        return self._added

    def add(self, record: Mapping[str, Any]) -> bool:
        """Check ``record`` and take it; a bad one goes to quarantine.jsonl and False is returned."""
        try:
            prepared = prepare(record, self.domain, self._own)
            classes = self._metadata.get("classes")
            if classes and "label" in prepared and int(prepared["label"]) >= len(classes):
                raise BadRecord(f"label: {int(prepared['label'])}, but only {len(classes)} classes are named")
            prepared.update(_costs(prepared, self.base))
        except BadRecord as error:
            self.reject(str(record.get("id", f"record {self._added + len(self._quarantine)}")), str(error))
            return False
        if self.base == "hep":
            self._regulated += int(spacelike(record["momenta"]).sum())
        prepared["id"] = prepared["id"] or str(self._added)
        self._records.append(prepared)
        self._added += 1
        self._nodes += len(prepared["types"])
        if len(self._records) >= self._shard_size or self._nodes >= _MAX_SHARD_NODES:
            self._flush()
        return True

    def reject(self, identifier: str, reason: str) -> None:
        """Quarantine a record that could not even be read."""
        self._quarantine.append({"id": identifier, "reason": reason})

    def abort(self) -> None:
        """Remove everything written so far; the output is as it was before."""
        shutil.rmtree(self._partial, ignore_errors=True)

    def close(self) -> "Store":
        """Write the manifest with its statistics, rename the folder into place and open it.

        Raises UserError when no record was good; nothing is left behind then.
        """
        if self._store is not None:
            return self._store
        from sciml.data.statistics import statistics
        from sciml.data.store import Store

        try:
            self._flush()
            if not self._added:
                first = self._quarantine[0] if self._quarantine else {"id": "none", "reason": "nothing was added"}
                raise UserError(f"{self.path}: no good record; the first refused is {first['id']}: {first['reason']}.")
            if self._quarantine:
                lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in self._quarantine)
                write_text(self._partial / "quarantine.jsonl", lines)
            manifest = self._manifest()
            write_text(self._partial / "manifest.json", _json(manifest))
            manifest["statistics"] = statistics(Store(self._partial))
            manifest["elements"] = manifest["statistics"].pop("elements", [])
            write_text(self._partial / "manifest.json", _json(manifest))
            sync(self._partial)
            self._rename()
        except BaseException:
            self.abort()
            raise
        self._store = Store(self.path)
        return self._store

    def _flush(self) -> None:
        if not self._records:
            return
        file = self._partial / f"shard-{len(self._shards):05d}.arrow"
        write_shard(file, self._records, self._fields)
        sync(file)
        entry = {"file": file.name, "records": len(self._records), "bytes": file.stat().st_size}
        self._shards.append({**entry, "sha256": file_sha256(file)})
        self._total_nodes += self._nodes
        self._records, self._nodes = [], 0

    def _manifest(self) -> dict[str, Any]:
        fields = {
            field.name: {
                "level": field.level,
                "dtype": field.dtype,
                "shape": list(field.shape),
                "unit": field.unit,
                "role": field.role,
            }
            for field in (*schema(self.domain).values(), *self._own)
        }
        counts = {"records": self._added, "fine_nodes": self._total_nodes, "quarantined": len(self._quarantine)}
        if self.base == "hep":
            counts["regulated_constituents"] = self._regulated
        extra = {key: value for key, value in self._metadata.items() if key not in _TOP_LEVEL}
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "domain": self.domain,
            "dataset": self.dataset,
            "units": {f.name: f.unit for f in (*schema(self.domain).values(), *self._own) if f.unit},
            "counts": counts,
            "targets": {target.name: {**target.facts, "kind": target.kind} for target in self._targets},
            "fields": fields,
            "shards": self._shards,
            "metadata": extra,
            "statistics": {},
            **{key: self._metadata.get(key, default) for key, default in _TOP_LEVEL.items()},
        }
        if self.base != "hep":
            manifest["reference_radius"] = REFERENCE_RADII["atoms"][-1]
        return manifest

    def _rename(self) -> None:
        """Move the finished folder into place; the old one is set aside first and comes back if that fails."""
        aside = self.path.with_name(f"{self.path.name}.replaced-{socket.gethostname()}-{os.getpid()}")
        _check_output(self.path, self._overwrite)
        replacing = self.path.exists()
        if replacing:
            os.rename(self.path, aside)
        try:
            os.rename(self._partial, self.path)
        except OSError:
            if replacing:
                os.rename(aside, self.path)
            raise
        sync(self.path.parent)
        if replacing:
            shutil.rmtree(aside)


def _costs(record: Record, domain: str) -> dict[str, np.ndarray]:
    """Count what a graph of this record will cost: pairs at the reference radii, backbone atoms."""
    limit = np.iinfo(np.uint32).max
    nodes = len(record["types"])
    if domain == "hep":
        return {"_pairs": np.full(4, min(nodes * (nodes - 1), limit), np.uint32)}
    positions = record["positions"].astype(np.float64)
    cell, pbc = record.get("cell", np.zeros((3, 3))), record.get("pbc", np.zeros(3, bool))
    counts = {"_pairs": pair_counts(positions, cell, pbc, REFERENCE_RADII["atoms"])}
    if domain == "biology":
        backbone = positions[backbone_atoms(record).reshape(-1)]
        empty = np.zeros(4, np.int64)
        pairs = pair_counts(backbone, cell, pbc, REFERENCE_RADII["residues"]) if len(backbone) else empty
        counts |= {"_backbone_nodes": np.asarray(len(backbone)), "_backbone_pairs": pairs}
    return {name: np.minimum(value, limit).astype(np.uint32) for name, value in counts.items()}


def backbone_atoms(record: Mapping[str, Any]) -> np.ndarray:
    """Return the atom indices (residues, 4) of N, CA, C, O of every residue that has all four, in residue order."""
    parent, names = np.asarray(record["parent"]), np.asarray(record["atom_names"])
    residues = len(record["residue_types"])
    table = np.full((residues, 4), -1, dtype=np.int64)
    for column, code in enumerate(_BACKBONE):
        atoms = np.flatnonzero(names == code)[::-1]  # reversed: of two atoms of one name the first wins
        table[parent[atoms], column] = atoms
    return table[(table >= 0).all(axis=1)]


def _check_output(path: Path, overwrite: bool) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise UserError(f"{path}: the output exists already; choose another one or pass overwrite=true.")
    if path.is_symlink() or not (path / "manifest.json").is_file():
        raise UserError(f"{path}: the output exists and is not a store, so it is not replaced; choose another one.")


def _remove_abandoned(path: Path) -> None:
    """Remove what writers of the same output, killed on this host, left behind."""
    prefix = f"{path.name}.partial-{socket.gethostname()}-"
    for folder in path.parent.iterdir():
        pid = folder.name.removeprefix(prefix)
        if folder.name.startswith(prefix) and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _json(data: Any) -> str:
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
