"""``sciml split``: leak-free parts of a data set, written as stores or as lists of records.

Neighbouring frames of a trajectory are near copies, homologous proteins have one fold: a random split across them
reports an error that is too good. What belongs together is found by :mod:`sciml.ingest.groups`.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.store import Store, StoreWriter, Subset
from sciml.errors import UserError
from sciml.files import write_text
from sciml.ingest.groups import Groups, Together, groups_of
from sciml.ingest.ingest import open_data

PARTS = ("train", "val", "test")
MANIFEST = "split.json"


def run(config: Any) -> int:
    """Split ``config.source`` into parts under ``config.output``; the keys are those of configs/split.yaml."""
    source = config.source[0] if len(config.source) == 1 else config.source
    store = open_data(source)
    fractions = config.fractions.model_dump()
    groups = groups_of(store, config.by, config.identity)
    parts, sentence = divide(store, groups, list(fractions.values()), config.seed, ", ".join(config.source))
    chosen = {name: part for name, part, share in zip(fractions, parts, fractions.values()) if share > 0}
    facts = {"by": config.by, "identity": config.identity, "seed": config.seed, "fractions": fractions}
    manifest = {**facts, **_facts(store, groups, chosen), "sentence": sentence}
    write(store, chosen, manifest, Path(config.output), config.write == "stores", config.overwrite)
    print(sentence)
    for name, part in chosen.items():
        where = Path(config.output) / name if config.write == "stores" else f"{Path(config.output) / MANIFEST}:{name}"
        print(f"  {name:<6}{len(part):>10,} records, {len(part) / len(store):.1%}  {where}")
    return 0


def split_records(
    source: Store | Subset | Together, fractions: Sequence[float], seed: int, by: str = "auto", identity: float = 0.3
) -> tuple[list[np.ndarray], str]:
    """Return one sorted index array per fraction, and a sentence that says how the records were divided.

    ``fractions`` sum to 1 and are those of PARTS; ``by`` and ``identity`` as of :func:`groups_of`. Raises UserError
    when a part that was asked for stays empty.
    """
    return divide(source, groups_of(source, by, identity), fractions, seed)


def divide(
    source: Store | Subset | Together, groups: Groups, fractions: Sequence[float], seed: int, given: str = ""
) -> tuple[list[np.ndarray], str]:
    """Deal out whole groups, the largest first and equal ones in a random order (Philox of ``seed``); see above. What
    is said names the source as it was ``given``.

    Where every record is its own group the split is random; a single trajectory is cut into blocks in time order.
    """
    shares, total = np.asarray(fractions, dtype=np.float64), len(groups.owner)
    if (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise UserError(f"split: fractions {list(fractions)} found, expected numbers of 0 or more that sum to 1.")
    generator = np.random.Generator(np.random.Philox(seed))
    cut = groups.number == 1 and groups.word == "trajectory"
    if groups.number == total:
        parts = np.split(generator.permutation(total), _cuts(shares, total))
        sentence = f"split at random, record by record: no {groups.word} in the file holds more than one record"
    elif cut:
        parts = np.split(np.arange(total), _cuts(shares, total))
        name = source.groups[0]
        sentence = f"split in file order into blocks: all {total} records belong to one {groups.word}, {name!r}"
    else:
        parts = _deal(groups.owner, groups.number, shares, generator)
        sentence = (
            f"split by {groups.word} ({groups.how}): {total} records of {groups.number} groups, none on two sides"
        )
    parts = [np.sort(part) for part in parts]
    for name, part, share in zip(PARTS, parts, shares):
        if share > 0 and not len(part):
            size = f"{_counted(total, 'record')} in {_counted(groups.number, 'group')} (by {groups.word})"
            raise UserError(
                f"{given or source.path}: the part {name} would be empty: it should get {share:.0%} of {size}, and no "
                "group may be on two sides; give the part as a file of its own, more data, or another fraction."
            )
    sizes = " + ".join(str(len(part)) for part in parts)
    return parts, f"{given or source.path.name}: {sentence} ({sizes})."


def write(
    store: Store,
    parts: Mapping[str, np.ndarray],
    manifest: Mapping[str, Any],
    output: Path,
    stores: bool,
    overwrite: bool = False,
) -> None:
    """Write the folder ``output``: ``split.json`` and, with ``stores``, a store per part; whole or not at all.

    ``split.json`` holds ``manifest`` and the ids of the records of each part under the part's name, which
    ``sciml ingest only=split.json:PART`` reads. Raises UserError where ``output`` is there and is not to be replaced.
    """
    if output.exists():
        if not overwrite:
            raise UserError(f"{output}: the output exists already; choose another one or pass overwrite=true.")
        if output.is_symlink() or not (output / MANIFEST).is_file():
            raise UserError(f"{output}: the output exists and is no split, so it is not replaced; choose another one.")
    partial = output.with_name(f"{output.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        for name, part in parts.items() if stores else ():
            facts = {key: value for key, value in manifest.items() if key != "groups"} | {"part": name}
            copy_records(Subset(store, part), partial / name, {"split": facts})
        ids = store.texts("id")
        lists = {name: [ids[index] for index in part] for name, part in parts.items()}
        write_text(partial / MANIFEST, json.dumps({**manifest, **lists}, indent=1, ensure_ascii=False) + "\n")
        if output.exists():
            shutil.rmtree(output)
        os.rename(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_records(source: Store | Subset, path: Path, metadata: Mapping[str, Any], overwrite: bool = False) -> Store:
    """Write the records of ``source`` as a store of their own, with its licence, source, classes and ``metadata``."""
    manifest = source.manifest
    kept = {key: manifest[key] for key in ("classes", "licence", "source", "description") if key in manifest}
    every = {**manifest.get("metadata", {}), **kept, **metadata}
    with StoreWriter(
        path, source.domain, source.dataset, metadata=every, overwrite=overwrite, targets=source.targets
    ) as writer:
        for record in source:
            if not writer.add(record):
                raise UserError(
                    f"{source.path}: {writer.quarantine[-1]['id']}: {writer.quarantine[-1]['reason']}; the store was "
                    "written by another version, ingest the source again."
                )
        return writer.close()


def _facts(store: Store, groups: Groups, parts: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What was split and what came out, as plain data."""
    return {
        "source": store.manifest.get("source") or store.path.name,
        "data_hash": store.data_hash,
        "group": groups.word,
        "how": groups.how,
        "records": {name: len(part) for name, part in parts.items()},
        "groups": {name: len(np.unique(groups.owner[part])) for name, part in parts.items()},
    }


def _counted(number: int, noun: str) -> str:
    """As "1 record" or "3 records"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _cuts(shares: np.ndarray, total: int) -> np.ndarray:
    """Where to cut ``total`` records; a part that is asked for gets at least one while there are enough."""
    counts = np.floor(shares * total + 0.5).astype(int)
    counts[shares > 0] = np.maximum(counts[shares > 0], 1)
    counts[int(np.argmax(shares))] += total - counts.sum()
    return np.cumsum(np.maximum(counts, 0))[:-1]


def _deal(owner: np.ndarray, groups: int, shares: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Deal groups, large ones first, each to the part that is furthest below its share.

    Large first, because a large group that comes last would flood a small part.
    """
    sizes = np.bincount(owner, minlength=groups)
    missing = shares * len(owner)
    part_of = np.empty(groups, int)
    order = generator.permutation(groups)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        part = int(np.argmax(np.where(shares > 0, missing, -np.inf)))
        part_of[group] = part
        missing[part] -= sizes[group]
    return [np.flatnonzero(part_of[owner] == part) for part in range(len(shares))]
