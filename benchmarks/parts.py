"""The embedded data cut into stores for training, validation and test, the same for every run of a benchmark."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sciml.data.store import Store, Subset
from sciml.ingest.split import copy_records, split_records
from sciml.schema import SAMPLES

DOMAINS = {"materials": ("molecules", "silicon", "lithium", "metals"), "hep": ("jets",), "biology": ("peptides",)}
REFERENCE = Path(os.environ.get("SCIML_SHARED", Path(__file__).parents[2] / "shared")) / "data"
SEED = 0  # of the cut: one for all runs, whose own seeds choose weights, batches and the share of the labels


def write_parts(
    folder: Path, shares: Mapping[str, float], records: int | None = None, domains: Sequence[str] | None = None
) -> None:
    """Write ``folder``/<store>/<part> for every embedded store (of ``domains``) and {part: share} of its records.

    Cut by trajectory, event or sequence. ``records`` limits every part. Parts that are there already stay.
    """
    for name in (name for domain in domains or DOMAINS for name in DOMAINS[domain]):
        store = Store(SAMPLES / name)
        indices, _ = split_records(store, list(shares.values()), SEED)
        for part, chosen in zip(shares, indices, strict=True):
            write_records(store, shuffled(store, chosen, SEED)[:records], folder / name / part)


def write_fractions(folder: Path, part: str, fractions: Sequence[float], seeds: Sequence[int]) -> None:
    """Write ``folder``/<store>/<part>-<fraction>-<seed>: of every part a fraction, nested for one seed."""
    for name in (name for names in DOMAINS.values() for name in names):
        store = Store(folder / name / part)
        for seed in seeds:
            order = shuffled(store, np.arange(len(store)), seed)
            for fraction in fractions:
                share = order[: math.ceil(fraction * len(order))]
                write_records(store, share, folder / name / f"{part}-{fraction:g}-{seed}")


def shuffled(store: Store | Subset, indices: np.ndarray, seed: int) -> np.ndarray:
    """``indices`` in a random order in which records with an element or a label that is new come first.

    A model can only predict elements and classes that it was trained on, however few its records are.
    """
    seen: set[tuple[str, int]] = set()
    first, later = [], []
    for index in np.random.default_rng(seed).permutation(indices):
        record = store[int(index)]
        labels = [record["label"]] if "label" in record else []
        brought = {*(("type", int(t)) for t in record["types"]), *(("label", int(label)) for label in labels)}
        (later if brought <= seen else first).append(int(index))
        seen |= brought
    return np.array(first + later)


def stores(folder: Path, domains: Sequence[str], part: str, *others: Path) -> str:
    """The stores of a part, and ``others``, as the value of a key of the configuration."""
    paths = [*(folder / name / part for domain in domains for name in DOMAINS[domain]), *others]
    return f"[{','.join(map(str, paths))}]"


def write_records(store: Store, indices: np.ndarray, path: Path) -> None:
    """A store of its own with the records ``indices``, where it is not there yet."""
    if (path / "manifest.json").exists():
        return
    copy_records(Subset(store, np.sort(indices)), path, {}, overwrite=True)
