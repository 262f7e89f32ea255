"""Leak-free parts of a data set: frames of one trajectory, jets of one event, models of one sequence stay together.

Neighbouring frames of a trajectory are near copies; a random split across them reports an error that is too good.
"""

from collections.abc import Sequence

import numpy as np

from sciml.data.store import Store, Subset
from sciml.errors import UserError

_WHAT = {"materials": "trajectory", "hep": "event", "biology": "sequence"}


def split_by_group(source: Store | Subset, fractions: Sequence[float], seed: int) -> tuple[list[np.ndarray], str]:
    """Return one sorted index array per fraction, and a sentence that says how the records were divided.

    ``fractions`` sum to 1. Whole groups are dealt out, the largest first and equal ones in a random order (Philox of
    ``seed``), so no group is on two sides. Where every record is its own group the split is random; a single group is
    one trajectory and is cut into blocks in time order. Raises UserError when a part that was asked for stays empty.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise UserError(f"split: fractions {list(fractions)} found, expected numbers of 0 or more that sum to 1.")
    names = np.array(source.groups)
    keys, owner = np.unique(names, return_inverse=True)
    generator = np.random.Generator(np.random.Philox(seed))
    word = _WHAT[source.base]
    if len(keys) == len(names):
        order = generator.permutation(len(names))
        parts = np.split(order, _cuts(shares, len(names)))
        sentence = f"split at random, record by record: no {word} in the file holds more than one record"
    elif len(keys) == 1:
        parts = np.split(np.arange(len(names)), _cuts(shares, len(names)))
        sentence = f"split in file order into blocks: all {len(names)} records belong to one {word}, {str(keys[0])!r}"
    else:
        parts = _deal(owner, len(keys), shares, generator)
        sentence = f"split by {word}: {len(names)} records of {len(keys)} groups, none on two sides"
    parts = [np.sort(part) for part in parts]
    for part, share in zip(parts, shares):
        if share > 0 and not len(part):
            raise UserError(
                f"{source.path}: {len(names)} records in {len(keys)} groups cannot be divided {list(fractions)}; give "
                "a validation file with val=, or more data."
            )
    sizes = " + ".join(str(len(part)) for part in parts)
    return parts, f"{source.path.name}: {sentence} ({sizes})."


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
