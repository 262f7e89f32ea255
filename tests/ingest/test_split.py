"""Splits: no group on two sides, shares kept, the sentence says what was done."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.store import StoreWriter, Subset
from sciml.errors import UserError
from sciml.ingest.split import split_by_group
from tests.data.examples import molecule


class Groups:
    """What a split needs of a store."""

    def __init__(self, groups):
        from pathlib import Path

        self.groups, self.base, self.path = list(groups), "materials", Path("data")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=30, max_size=200), st.integers(0, 100))
def test_no_group_straddles_and_nothing_is_lost(groups, seed):
    groups = [f"g{group}" for group in groups]
    if len(set(groups)) < 3:
        return
    parts, sentence = split_by_group(Groups(groups), [0.8, 0.1, 0.1], seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    seen = [{groups[index] for index in part} for part in parts]
    assert sum(map(len, seen)) == len(set(groups))
    assert "split by trajectory" in sentence


def test_shares_are_kept_with_many_groups():
    groups = np.random.default_rng(0).integers(0, 200, 2000).astype(str)
    parts, _ = split_by_group(Groups(groups), [0.9, 0.1], 0)
    assert abs(len(parts[1]) / 2000 - 0.1) < 0.01


def test_large_groups_do_not_flood_the_small_part():
    parts, _ = split_by_group(Groups(["a"] * 38 + ["b"] * 18 + ["c", "d", "e"]), [0.9, 0.1], 0)
    assert [len(part) for part in parts] == [56, 3]


def test_records_of_their_own_groups_are_split_at_random():
    source = Groups(map(str, range(1000)))
    parts, sentence = split_by_group(source, [0.95, 0.05], 0)
    assert [len(part) for part in parts] == [950, 50]
    assert "at random" in sentence
    assert np.array_equal(parts[1], split_by_group(source, [0.95, 0.05], 0)[0][1])
    assert not np.array_equal(parts[1], split_by_group(source, [0.95, 0.05], 1)[0][1])


def test_one_trajectory_is_cut_into_blocks():
    parts, sentence = split_by_group(Groups(["run1"] * 100), [0.9, 0.1], 0)
    assert parts[1].tolist() == list(range(90, 100))
    assert "blocks" in sentence


def test_zero_share_stays_empty():
    parts, _ = split_by_group(Groups("abcdefghij"), [0.9, 0.1, 0.0], 0)
    assert [len(part) for part in parts] == [9, 1, 0]


@pytest.mark.parametrize(
    ("groups", "fractions", "match"),
    [
        (["a"], [0.9, 0.1], "data: 1 records in 1 groups cannot be divided"),
        (["a", "b"], [0.9, 0.2], "split: fractions .* expected numbers of 0 or more that sum to 1"),
    ],
)
def test_impossible_splits(groups, fractions, match):
    with pytest.raises(UserError, match=match):
        split_by_group(Groups(groups), fractions, 0)


def test_stores_and_subsets(tmp_path):
    with StoreWriter(tmp_path / "s", "materials", "t") as writer:
        for seed in range(30):
            writer.add({**molecule(4, seed), "group": f"g{seed % 10}"})
    store = writer.close()
    parts, _ = split_by_group(store, [0.8, 0.2], 0)
    assert not set(Subset(store, parts[0]).groups) & set(Subset(store, parts[1]).groups)
    again, _ = split_by_group(Subset(store, parts[0]), [0.5, 0.5], 0)
    assert sum(map(len, again)) == len(parts[0])
