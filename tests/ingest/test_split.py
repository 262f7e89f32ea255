"""Splits: no group on two sides, shares kept, the sentence says what was done; the verb writes parts or nothing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.cli import main
from sciml.data.store import Store, StoreWriter, Subset
from sciml.errors import UserError
from sciml.ingest.groups import Together, groups_of
from sciml.ingest.ingest import ingest
from sciml.ingest.split import split_records
from tests.data.examples import molecule
from tests.ingest.test_homology import families
from tests.small import jets_store, molecules_store


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
    parts, sentence = split_records(Groups(groups), [0.8, 0.1, 0.1], seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    seen = [{groups[index] for index in part} for part in parts]
    assert sum(map(len, seen)) == len(set(groups))
    assert "split by trajectory" in sentence


def test_shares_are_kept_with_many_groups():
    groups = np.random.default_rng(0).integers(0, 200, 2000).astype(str)
    parts, _ = split_records(Groups(groups), [0.9, 0.1], 0)
    assert abs(len(parts[1]) / 2000 - 0.1) < 0.01


def test_large_groups_do_not_flood_the_small_part():
    parts, _ = split_records(Groups(["a"] * 38 + ["b"] * 18 + ["c", "d", "e"]), [0.9, 0.1], 0)
    assert [len(part) for part in parts] == [56, 3]


def test_records_of_their_own_groups_are_split_at_random():
    source = Groups(map(str, range(1000)))
    parts, sentence = split_records(source, [0.95, 0.05], 0)
    assert [len(part) for part in parts] == [950, 50]
    assert "at random" in sentence
    assert np.array_equal(parts[1], split_records(source, [0.95, 0.05], 0)[0][1])
    assert not np.array_equal(parts[1], split_records(source, [0.95, 0.05], 1)[0][1])


def test_one_trajectory_is_cut_into_blocks():
    parts, sentence = split_records(Groups(["run1"] * 100), [0.9, 0.1], 0)
    assert parts[1].tolist() == list(range(90, 100))
    assert "blocks" in sentence


def test_zero_share_stays_empty():
    parts, _ = split_records(Groups("abcdefghij"), [0.9, 0.1, 0.0], 0)
    assert [len(part) for part in parts] == [9, 1, 0]


@pytest.mark.parametrize(
    ("groups", "fractions", "match"),
    [
        (
            ["a"],
            [0.9, 0.1],
            r"data: the part train would be empty: it should get 90% of 1 record in 1 group \(by trajectory\), and",
        ),
        (["a", "b"], [0.9, 0.2], "split: fractions .* expected numbers of 0 or more that sum to 1"),
    ],
)
def test_impossible_splits(groups, fractions, match):
    with pytest.raises(UserError, match=match):
        split_records(Groups(groups), fractions, 0)


def test_stores_and_subsets(tmp_path):
    with StoreWriter(tmp_path / "s", "materials", "t") as writer:
        for seed in range(30):
            writer.add({**molecule(4, seed), "group": f"g{seed % 10}"})
    store = writer.close()
    parts, _ = split_records(store, [0.8, 0.2], 0)
    assert not set(Subset(store, parts[0]).groups) & set(Subset(store, parts[1]).groups)
    again, _ = split_records(Subset(store, parts[0]), [0.5, 0.5], 0)
    assert sum(map(len, again)) == len(parts[0])


def proteins_file(path, families_count=6, size=3):
    """Backbones of related sequences as JSON, all of one straight shape; returns the family of each."""
    sequences = families(np.random.default_rng(0), families_count, size)
    letters = np.array([*"ACDEFGHIKLMNPQRSTVWY"])
    entries = []
    for index, sequence in enumerate(sequences):
        start = 3.8 * np.arange(len(sequence))[:, None, None] * np.array([1.0, 0, 0])
        coordinates = start + np.array([[0, 0, 0], [1.4, 0, 0], [2.0, 1.4, 0], [1.5, 2.4, 0]])
        entries.append({"name": f"p{index}", "seq": "".join(letters[sequence]), "coords": coordinates.tolist()})
    path.write_text(json.dumps(entries))
    return np.arange(families_count).repeat(size)


def test_the_verb_keeps_homologs_together_and_writes_stores(tmp_path, capsys):
    family = proteins_file(tmp_path / "all.json")
    words = [f"source={tmp_path / 'all.json'}", f"output={tmp_path / 'parts'}"]
    shares = ["fractions.train=0.5", "fractions.val=0.25", "fractions.test=0.25"]
    assert main(["split", *words, *shares]) == 0
    manifest = json.loads((tmp_path / "parts" / "split.json").read_text())
    found = []
    for name in ("train", "val", "test"):
        store = Store(tmp_path / "parts" / name, verify=True)
        assert store.texts("id") == manifest[name]
        assert store.manifest["metadata"]["split"]["part"] == name
        assert store.manifest["metadata"]["split"]["identity"] == 0.3
        found.append({int(family[int(identifier.partition("#p")[2])]) for identifier in manifest[name]})
    assert set.union(*found) == set(range(6))
    assert sum(map(len, found)) == 6
    assert sum(manifest["records"].values()) == 18
    assert abs(manifest["records"]["train"] - 9) <= 3  # a family is the smallest step
    assert "family of sequences" in capsys.readouterr().out


def test_lists_of_a_split_are_those_that_ingest_takes(tmp_path):
    proteins_file(tmp_path / "all.json")
    words = [f"source={tmp_path / 'all.json'}", f"output={tmp_path / 'parts'}", "write=lists"]
    assert main(["split", *words, "fractions.train=0.5", "fractions.val=0.5", "fractions.test=0.0"]) == 0
    manifest = json.loads((tmp_path / "parts" / "split.json").read_text())
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["split.json"]
    assert "test" not in manifest
    only = f"{tmp_path / 'parts' / 'split.json'}:val"
    assert ingest(tmp_path / "all.json", tmp_path / "val", only=only).texts("id") == manifest["val"]


def test_records_of_a_part_are_those_of_the_source(tmp_path):
    store = molecules_store(tmp_path / "all", records=10)
    assert main(["split", f"source={store.path}", f"output={tmp_path / 'parts'}"]) == 0
    copied = {record["id"]: record for name in ("train", "val", "test") for record in Store(tmp_path / "parts" / name)}
    assert len(copied) == len(store)
    for record in store:
        assert record.keys() == copied[record["id"]].keys()
        for name, value in record.items():
            np.testing.assert_array_equal(value, copied[record["id"]][name])


def test_compositions_and_structures_stay_together(tmp_path):
    """Frames of two crystals of one element and of a molecule, hot and strained, each a group whatever their order."""
    from ase.build import bulk
    from ase.build import molecule as molecule_of

    rng = np.random.default_rng(0)
    kinds = [bulk("Si", "diamond", 5.43), bulk("Si", "bcc", 3.1), molecule_of("CH3CH2OH"), molecule_of("CH3OCH3")]
    with StoreWriter(tmp_path / "s", "materials", "t") as writer:
        for index in range(32):
            atoms = kinds[index % 4].copy()
            if atoms.pbc.any():
                atoms = atoms.repeat((1, 1, 1 + index % 2) if index % 4 else 1)
                atoms.set_cell(atoms.cell[:] * (1 + rng.uniform(-0.03, 0.03)), scale_atoms=True)
            atoms.positions += rng.normal(scale=0.02, size=(len(atoms), 3))
            record = {"types": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell[:], "pbc": atoms.pbc}
            assert writer.add({**record, "id": f"r{index}", "group": f"r{index}"})
    store = writer.close()
    by_structure = groups_of(store, "structure")
    assert by_structure.number == 4
    assert all(len(set(by_structure.owner[kind::4])) == 1 for kind in range(4))
    by_composition = groups_of(store, "composition")
    assert by_composition.number == 2  # silicon; ethanol and its isomer
    parts, sentence = split_records(store, [0.5, 0.25, 0.25], 0, by="structure")
    assert [len(part) for part in parts] == [16, 8, 8]
    assert "split by structure" in sentence


def test_groups_of_the_file_are_never_cut(tmp_path):
    """A trajectory in which a reaction changes the structure holds its structures together."""
    with StoreWriter(tmp_path / "s", "materials", "t") as writer:
        for index in range(12):
            record = molecule(4 + index // 4, seed=index // 4)
            record["types"] = np.full(4 + index // 4, 6)
            assert writer.add({**record, "id": str(index), "group": "run" if index in (3, 4) else str(index)})
    groups = groups_of(writer.close(), "structure")
    assert groups.owner[3] == groups.owner[4]
    assert groups.owner[0] == groups.owner[7]  # and so all that is like either


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["fractions.train=0.9"], "fractions.train \\+ val \\+ test: found 1.1, expected 1"),
        (["by=sequence"], "by: found sequence, but .* holds hep records; use group"),
        (["by=sequences"], "by: found 'sequences', expected"),
        (["source=missing.xyz"], "source: 'missing.xyz' does not exist"),
    ],
)
def test_bad_words_are_refused_by_name(tmp_path, capsys, words, match):
    jets_store(tmp_path / "jets", records=6)
    before = [f"source={tmp_path / 'jets'}"] if not words[0].startswith("source") else []
    assert main(["split", *before, f"output={tmp_path / 'parts'}", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert __import__("re").search(match, error), error
    assert not (tmp_path / "parts").exists()


def test_an_empty_part_is_named_and_nothing_is_written(tmp_path, capsys):
    jets_store(tmp_path / "jets", records=2)
    assert main(["split", f"source={tmp_path / 'jets'}", f"output={tmp_path / 'parts'}"]) == 2
    assert "the part train would be empty" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jets"]


def test_a_folder_that_is_no_split_is_never_replaced(tmp_path, capsys):
    jets_store(tmp_path / "jets", records=20)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "thesis.tex").write_text("x")
    words = ["split", f"source={tmp_path / 'jets'}", f"output={tmp_path / 'parts'}"]
    assert main(words) == 2
    assert main([*words, "overwrite=true"]) == 2
    assert (tmp_path / "parts" / "thesis.tex").exists()
    assert "is no split" in capsys.readouterr().err
    (tmp_path / "parts" / "thesis.tex").unlink()
    (tmp_path / "parts").rmdir()
    assert main(words) == 0
    assert main([*words, "overwrite=true", "seed=5"]) == 0
    assert json.loads((tmp_path / "parts" / "split.json").read_text())["seed"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jets", "parts"]


def test_stores_together_are_one_list_of_records(tmp_path):
    stores = [molecules_store(tmp_path / name, records=number, seed=number) for name, number in (("a", 3), ("b", 5))]
    together = Together(stores)
    assert len(together) == 8
    everything = list(together)
    for index in range(8):
        np.testing.assert_array_equal(together[index]["positions"], everything[index]["positions"])
    assert [part.tolist() for part in together.of_each(np.array([0, 2, 3, 7]))] == [[0, 2], [0, 4]]
    with pytest.raises(IndexError, match="a and b has 8 records"):
        together[8]
