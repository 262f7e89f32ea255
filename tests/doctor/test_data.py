"""Data that would spoil a training are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sciml.config import configure
from sciml.data.source import Source
from sciml.data.store import Store, StoreWriter, Subset
from sciml.data.targets import Target
from sciml.doctor.data import audited, elements, held_out, labels, records
from sciml.train.sources import Splits
from tests.helpers import random_jet, random_molecule


def store(path: Path, change: Any = None, number: int = 24) -> Store:
    """A store of molecules, each changed by ``change(index, record)``."""
    rng = np.random.default_rng(0)
    with StoreWriter(path, "materials", "first") as writer:
        for index in range(number):
            record = {**random_molecule(rng, atoms=5), "id": f"m#{index}", "group": f"g{index}"}
            assert writer.add(change(index, record) if change else record)
    return writer.close()


HOW_TO_LEARN = "to learn it, have a head for it (energy or direct_forces) and objective.forces.weight above 0"


def of(store: Any, name: str = "mine") -> Source:
    return Source(store, 0, name)


def test_records_and_labels_are_counted(tmp_path):
    data = store(tmp_path / "s")
    assert "mine: 24 of materials" in records("mine", data).found
    asked = labels("mine", data, {"energy": 1.0, "forces": 1.0})
    assert asked.verdict == "ok"
    assert "energy 100%" in asked.found
    unused = labels("mine", data, {"energy": 1.0})
    assert (unused.verdict, unused.advice) == ("warning", HOW_TO_LEARN)


def test_the_advice_names_keys_that_are_there(tmp_path):
    with StoreWriter(tmp_path / "s", "hep", "x", metadata={"classes": ["a", "b"]}, targets=[Target("width")]) as writer:
        for index in range(4):
            jet = {
                **random_jet(np.random.default_rng(index)),
                "id": f"j#{index}",
                "true_mass": 5.0,
                "width": np.ones(1),
            }
            assert writer.add(jet)
    data = writer.close()
    mass = labels("mine", data, {"width": 1.0, "label": 1.0})
    assert "nothing learns true_mass" in mass.found
    assert mass.advice == "to learn it, have a head for it (jet_kinematics) and objective.true_mass.weight above 0"
    own = labels("mine", data, {"true_mass": 1.0, "label": 1.0})
    assert own.advice == "to learn it, give it a head and 'objective.others.width={weight: 1.0, loss: huber}'"
    word = own.advice.partition("'")[2].rstrip("'")
    config = configure(
        "train", ["train=x", "heads.width={name: target, kind: jets}", word, "objective.true_mass.weight=0"]
    )
    assert config.objective.terms["width"]["weight"] == 1.0


def test_half_of_the_labels_are_told(tmp_path):
    def change(index: int, record: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in record.items() if key != "forces" or index % 2}

    assert "forces 50%" in labels("mine", store(tmp_path / "s", change), {"energy": 1.0, "forces": 1.0}).found


def test_a_rare_element_is_named(tmp_path):
    def change(index: int, record: dict[str, Any]) -> dict[str, Any]:
        types = np.array([6, 6, 1, 1, 92 if index == 3 else 1])
        return {**record, "types": types}

    found = elements("mine", store(tmp_path / "s", change))
    assert found.verdict == "warning"
    assert "few records have U (1)" in found.found


def test_what_an_audit_finds_has_a_verdict(tmp_path):
    def change(index: int, record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "forces": record["forces"] + (1e4 if index == 5 else 0.0)}

    found = {one.check: one for one in audited(store(tmp_path / "s", change))}
    assert found["forces"].verdict == "warning"
    assert "m#5" in found["forces"].found
    assert "sciml audit source=" in found["forces"].advice


def test_a_held_out_record_that_was_trained_on_is_a_problem(tmp_path):
    data = store(tmp_path / "s")
    apart = Splits([of(Subset(data, range(20)))], [of(Subset(data, range(20, 24)))], [], [])
    assert held_out(apart).verdict == "ok"
    mixed = Splits([of(Subset(data, range(20)))], [of(Subset(data, range(18, 24)), "val")], [], [])
    found = held_out(mixed)
    assert found.verdict == "problem"
    assert found.found.startswith("val: 2 records are also in")


@pytest.mark.parametrize("limit", ["AUDITED", "COMPARED"])
def test_what_would_take_long_is_left_to_a_command(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(f"sciml.doctor.data.{limit}", 10)
    data = store(tmp_path / "s")
    splits = Splits([of(Subset(data, range(20)))], [of(Subset(data, range(18, 24)))], [], [])
    found = held_out(splits) if limit == "COMPARED" else audited(data)[0]
    assert found.verdict == "ok"
    assert "sciml audit source=" in found.found
