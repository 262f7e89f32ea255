"""Which records belong together, so that a split that keeps them together is free of leaks."""

import itertools
from collections.abc import Iterator, Sequence
from math import gcd
from typing import NamedTuple

import numpy as np

from sciml.data.neighbors import neighbors
from sciml.data.records import UNKNOWN_RESIDUE, Record
from sciml.data.store import Store, Subset
from sciml.errors import UserError
from sciml.ingest.audit import nearest_distances
from sciml.ingest.homology import connected, homologous_groups

_WORD = {"materials": "trajectory", "hep": "event", "biology": "sequence"}
_REACH = 2.5  # nearest-neighbour distances
_BINS, _WIDTH = 30, 0.12  # of the distances in units of the nearest one
_ALIKE = 0.25  # of the norm of a fingerprint


class Groups(NamedTuple):
    """The group (n,) of every record, 0, 1, ...; what a group is, in a word; and how it was found."""

    owner: np.ndarray
    word: str
    how: str

    @property
    def number(self) -> int:
        """How many groups there are."""
        return int(self.owner.max(initial=-1)) + 1


class Together:
    """Several stores of one domain as one list of records, to be split together."""

    def __init__(self, stores: Sequence[Store | Subset]) -> None:
        self.stores, self.base = stores, stores[0].base
        self.path = stores[0].path.with_name(" and ".join(store.path.name for store in stores))
        self.groups = [name for store in stores for name in store.groups]

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Record]:
        return itertools.chain.from_iterable(self.stores)

    def __getitem__(self, index: int) -> Record:
        for store in self.stores:
            if index < len(store):
                return store[index]
            index -= len(store)
        raise IndexError(f"{self.path.name} has {len(self)} records")

    def of_each(self, chosen: np.ndarray) -> list[np.ndarray]:
        """The ``chosen`` indices by store, counted within it."""
        ends = np.cumsum([len(store) for store in self.stores])
        return [
            chosen[(chosen >= end - len(store)) & (chosen < end)] - (end - len(store))
            for end, store in zip(ends, self.stores, strict=True)
        ]


def groups_of(source: Store | Subset | Together, by: str = "auto", identity: float = 0.3) -> Groups:
    """Group the records of ``source``: a store, a part of one, or several together.

    Those of one trajectory, event or sequence are in one group whatever ``by`` is.
    ``group``: by trajectory, event or sequence, as the file tells them. ``sequence``: homologous proteins, see
    :mod:`sciml.ingest.homology`. ``composition``: of one reduced formula. ``structure``: of one reduced formula and
    alike distances between neighbours, so frames and strained cells of one crystal or molecule. ``auto``: sequence
    for proteins, else group. Raises UserError where the records have nothing of the kind.
    """
    if by == "auto":
        by = "sequence" if source.base == "biology" else "group"
    _, own = np.unique(np.array(source.groups), return_inverse=True)
    own = own.reshape(-1)
    if by == "group":
        return Groups(own, _WORD[source.base], "as the source names them")
    if (by == "sequence") != (source.base == "biology") or source.base == "hep":
        raise UserError(
            f"by: found {by}, but {source.path} holds {source.base} records; use group"
            + {"materials": ", composition or structure.", "hep": ".", "biology": " or sequence."}[source.base]
        )
    if by == "sequence":
        records, labels, how = _homologs(source, identity)
    else:
        records, labels, how = (_compositions if by == "composition" else _structures)(source)
    # Groups of the source and those found are the nodes of a graph, records its edges.
    edges = zip(own[records].tolist(), (labels + own.max() + 1).tolist())
    joined = connected(edges, int(own.max() + labels.max(initial=0) + 2))[own]
    _, owner = np.unique(joined, return_inverse=True)
    return Groups(owner.reshape(-1), "family of sequences" if by == "sequence" else by, how)


def _homologs(source: Store | Subset | Together, identity: float) -> tuple[np.ndarray, np.ndarray, str]:
    """The record and the family of every chain."""
    records, chains = [], []
    for index, record in enumerate(source):
        for chain in np.unique(record["chain"]):
            sequence = np.asarray(record["residue_types"])[np.asarray(record["chain"]) == chain]
            if (sequence != UNKNOWN_RESIDUE).any():  # a ligand is a chain too
                records.append(index)
                chains.append(sequence)
    labels, how = homologous_groups(chains, identity)
    return np.array(records, dtype=int), labels, f"{how}, {identity:.0%} identity"


def _compositions(source: Store | Subset | Together) -> tuple[np.ndarray, np.ndarray, str]:
    """The records, and the reduced formula of each as a number."""
    formulas: dict[tuple[int, ...], int] = {}
    labels = [formulas.setdefault(_formula(record), len(formulas)) for record in source]
    return np.arange(len(source)), np.array(labels), "by reduced formula"


def _formula(record: Record) -> tuple[int, ...]:
    """Elements and their smallest whole numbers."""
    elements, counts = np.unique(np.asarray(record["types"]), return_counts=True)
    return (*elements.tolist(), *(counts // gcd(*counts.tolist())).tolist())


def _structures(source: Store | Subset | Together) -> tuple[np.ndarray, np.ndarray, str]:
    """The records, and the structure of each as a number: those alike in a chain of likeness share one."""
    _, formulas, _ = _compositions(source)
    labels, count = np.full(len(source), -1), 0
    for formula in range(formulas.max() + 1):
        members = np.flatnonzero(formulas == formula)
        prints = np.stack([fingerprint(source[int(index)]) for index in members])
        norms = np.linalg.norm(prints, axis=1)
        while (free := np.flatnonzero(labels[members] < 0)).size:
            waiting = [int(free[0])]
            labels[members[waiting]] = count
            while waiting:
                one = waiting.pop()
                free = np.flatnonzero(labels[members] < 0)
                away = np.linalg.norm(prints[free] - prints[one], axis=1)
                near = free[away <= _ALIKE * np.maximum(norms[free], norms[one])]
                labels[members[near]] = count
                waiting += near.tolist()
            count += 1
    return np.arange(len(source)), labels, "by reduced formula and alike distances between neighbours"


def fingerprint(record: Record) -> np.ndarray:
    """Smeared numbers of neighbours per atom by distance, by pair of elements: the same for a scaled, turned or
    repeated structure, a little changed by heat and strain.

    Distances are in units of the mean distance to the nearest neighbour, up to 2.5.
    """
    types, positions = np.asarray(record["types"]), np.asarray(record["positions"], np.float64)
    cell, pbc = record.get("cell", np.zeros((3, 3))), record.get("pbc", np.zeros(3, bool))
    elements, kinds = np.unique(types, return_inverse=True)
    table = np.zeros((len(elements), len(elements), _BINS))
    nearest = _mean_nearest(positions, cell, pbc)
    if nearest is not None:
        senders, receivers, shifts = neighbors(positions, cell, pbc, _REACH * nearest)
        vectors = positions[senders] - positions[receivers] + shifts @ np.asarray(cell, np.float64)
        distances = np.linalg.norm(vectors, axis=1) / nearest
        centres = np.linspace(0.5, _REACH, _BINS)
        envelope = 1 - (distances / _REACH) ** 2  # pairs come in at the reach without a step
        weights = np.exp(-0.5 * ((distances[:, None] - centres) / _WIDTH) ** 2) * envelope[:, None]
        np.add.at(table, (kinds[receivers], kinds[senders]), weights)
    return np.ravel(table) / len(types)


def _mean_nearest(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> float | None:
    """Mean distance of an atom to its nearest neighbour, Å; None for a lone atom."""
    found = nearest_distances(positions, cell, pbc)
    return float(found[np.isfinite(found)].mean()) if np.isfinite(found).any() else None
