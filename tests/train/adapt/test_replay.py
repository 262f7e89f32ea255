"""Replay gets its share of the draws and its labels from where it says; forgetting is measured on what it leaves."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import sciml
from sciml.config import configure
from sciml.data.packing import Budget
from sciml.data.sampler import Stream, with_share
from sciml.data.source import Source
from sciml.data.store import Store, StoreWriter, Subset
from sciml.data.targets import Target
from sciml.errors import UserError
from sciml.models.model import build_model
from sciml.package import Package
from sciml.train.adapt.finetuning import FineTuning
from sciml.train.adapt.forgetting import retained_sources, text
from sciml.train.adapt.replay import divided, limited, pseudo_labelled, replay_sources
from sciml.verbs.publish import GAINED
from sciml.verbs.train import train
from tests.helpers import random_molecule, random_peptide
from tests.small import describe_model, graph_of, jets_store, molecules_store, outputs, random_model, train_config

BUDGETS = {kind: Budget(max_graphs=4) for kind in ("atoms", "jets", "residues")}


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_replayed_stores_get_their_share_of_the_draws(temperature):
    sizes, replayed = [40, 900, 100], [False, True, True]
    factors = with_share(sizes, temperature, [1.0, 1.0, 2.0], replayed, 0.3)
    nodes = [np.ones(size, int) for size in sizes]
    order = Stream("atoms", nodes, nodes, Budget(max_graphs=8), 0, temperature, factors).order(0)
    drawn = np.bincount(order[:, 0], minlength=3)
    assert drawn[1:].sum() / drawn.sum() == pytest.approx(0.3, abs=0.002)
    weights = np.array([900, 100]) ** (1 / temperature) * [1, 2]
    assert drawn[1] / drawn[2] == pytest.approx(weights[0] / weights[1], rel=0.05)


def test_without_new_or_replayed_records_of_a_kind_nothing_is_shared():
    assert with_share([0, 10], 1.0, [1.0, 2.0], [False, True], 0.3) == [1.0, 2.0]
    assert with_share([10, 0], 1.0, [1.0, 2.0], [False, True], 0.3) == [1.0, 2.0]


def test_what_measures_forgetting_is_never_replayed(tmp_path):
    source = Source(molecules_store(tmp_path / "store", records=20), 0, "store")
    replayed, retained = ({r["id"] for r in divided(source, part, 100).data} for part in (False, True))
    assert len(replayed | retained) == 20
    assert not replayed & retained
    assert [record["id"] for record in limited(source, 3).data] == ["m#0", "m#9", "m#19"]


@pytest.fixture
def package(tmp_path):
    config = {"model": describe_model(), "elements": [1, 6, 7, 8, 29]}
    config["datasets_of_domain"] = {"materials": ["second"], "hep": ["first"]}
    return Package(random_model(torch.float32), config, tmp_path)


def test_pseudo_labels_are_what_the_base_model_says_of_records_that_it_can_read(package, tmp_path):
    atoms = Source(molecules_store(tmp_path / "structures", records=24, dataset="unheard"), 0, "structures")
    found = pseudo_labelled(atoms, package, tmp_path / "data", BUDGETS)
    assert found.data.dataset == "second"
    assert found.dataset == 1
    readable = [r for r in atoms.data if set(r["types"].tolist()) <= set(package.config["elements"])]
    assert [r["id"] for r in found.data] == [r["id"] for r in readable]
    for record in found.data:
        expected = outputs(package.model, "atoms", graph_of(record, "atoms", torch.float32))
        assert record["energy"] == pytest.approx(float(expected["energy"][0]), abs=1e-4)
        np.testing.assert_allclose(record["forces"], expected["forces"].numpy(), atol=1e-5)
        assert ("stress" in record) == bool(np.all(record["pbc"]))
    made = (found.data.path / "manifest.json").stat().st_mtime_ns
    again = pseudo_labelled(atoms, package, tmp_path / "data", BUDGETS)
    assert (again.data.path / "manifest.json").stat().st_mtime_ns == made  # computed once
    jets = Source(jets_store(tmp_path / "jets", records=6), 0, "jets")
    for record in pseudo_labelled(jets, package, tmp_path / "data", BUDGETS).data:
        logits = outputs(package.model, "jets", graph_of(record, "jets", torch.float32, dataset=0))["label"]
        assert record["label"] == int(logits.argmax())


def test_pseudo_labels_have_no_energy_where_the_level_lacks_a_reference(package, tmp_path):
    references = package.config["model"]["context"]["references"]["second"]
    package.config["elements"] = [int(number) for number in references]
    del references["6"]
    atoms = Source(molecules_store(tmp_path / "structures", records=24, dataset="unheard"), 0, "structures")
    found = pseudo_labelled(atoms, package, tmp_path / "data", BUDGETS).data
    carbon = [6 in record["types"] for record in found]
    assert 0 < sum(carbon) < len(found)
    assert ["energy" not in record for record in found] == carbon
    assert all("forces" in record for record in found)


def test_pseudo_labels_tell_residue_types_that_a_structure_lacks(package, tmp_path):
    with StoreWriter(tmp_path / "peptides", "biology", "unheard") as writer:
        for index in range(3):
            record = random_peptide(np.random.default_rng(index), residues=4, labelled=False)
            record["residue_types"] = np.array([3, 20, 20, 7])
            assert writer.add({**record, "id": f"p#{index}", "group": f"p{index}"})
    peptides = Source(writer.close(), 0, "peptides")
    found = pseudo_labelled(peptides, package, tmp_path / "data", BUDGETS)
    assert len(found.data) == 3
    for before, record in zip(peptides.data, found.data, strict=True):
        logits = outputs(package.model, "residues", graph_of(before, "residues", torch.float32, dataset=found.dataset))
        expected = logits["residue_types"].argmax(dim=1).tolist()
        assert record["residue_types"].tolist() == [3, *expected[1:3], 7]


def test_pseudo_labels_have_the_own_targets_of_the_package_and_none_of_the_store(tmp_path):
    description = describe_model(kinds=("atoms",))
    description["heads"]["dipole"] = {"name": "target", "irreps": "1o", "unit": "e Å", "hidden": 8}
    description["heads"]["site"] = {"name": "target", "level": "fine", "classes": ["a", "b", "c"], "hidden": 8}
    torch.manual_seed(0)
    config = {"model": description, "elements": list(range(1, 119)), "datasets_of_domain": {"materials": ["second"]}}
    package = Package(build_model(description).eval(), config, tmp_path)
    with StoreWriter(
        tmp_path / "store", "materials", "x", targets=[Target("gap", unit="eV"), Target("site")]
    ) as writer:
        for index in range(4):
            record = random_molecule(np.random.default_rng(index))
            assert writer.add({**record, "id": f"m#{index}", "group": f"g{index}", "gap": [1.0], "site": [2.0]})
    found = pseudo_labelled(Source(writer.close(), 0, "store"), package, tmp_path / "data", BUDGETS)
    assert len(found.data) == 4
    assert [(target.name, target.unit, target.classes) for target in found.data.targets] == [
        ("dipole", "e Å", ()),
        ("site", "", ("a", "b", "c")),
    ]
    for record in found.data:
        expected = outputs(package.model, "atoms", graph_of(record, "atoms", torch.float32))
        np.testing.assert_allclose(record["dipole"], expected["dipole"][0].numpy(), atol=1e-5)
        assert record["site"].tolist() == expected["site"].argmax(dim=1).tolist()
        assert "gap" not in record


def test_what_cannot_be_labelled_is_told_without_the_advice_that_was_taken(package, tmp_path):
    package.config["elements"] = [92]
    store = molecules_store(tmp_path / "structures")
    options = SimpleNamespace(fraction=0.5, pseudo_labels=True, stores=[str(store.path)], records=10)
    with pytest.raises(UserError, match=r"can label no record of adapt.replay.stores: .*elements U; give") as refused:
        replay_sources(options, package, [], Store, tmp_path / "data", BUDGETS)
    assert "pseudo_labels=true" not in str(refused.value)


def test_replay_without_a_fraction_is_refused():
    for word in ("adapt.replay.stores=samples:metals", "adapt.replay.pseudo_labels=true"):
        with pytest.raises(UserError, match=r"adapt.replay.*with fraction=0, expected a fraction above 0"):
            configure("train", ["train=samples:metals", "init=somewhere", word])


def test_a_run_tells_what_was_gained_and_forgotten_beside_one_from_scratch(workplace, capsys):
    molecules_store(workplace / "new", dataset="other", records=10, seed=5)
    shutil.move(workplace / "run", workplace / "old")
    words = (f"init={workplace / 'old'}", f"adapt.replay.stores=[{workplace / 'molecules'},{workplace / 'jets'}]")
    words = (
        *words,
        "adapt.replay.fraction=0.5",
        "adapt.from_scratch=true",
        "trainer.max_steps=2",
        "adapt.retained.records=2",
    )
    config = train_config(workplace, *words, stores=("new",))
    assert train(config) == 0
    run = workplace / "run"
    rows = json.loads((run / "evaluation" / "adaptation.json").read_text())
    by = {(row["part"], row["store"], row["measure"]): row for row in rows}
    assert {part for part, _, _ in by} == {"new", "retained"}
    assert by["new", "new", "forces MAE"]["scratch"] != by["new", "new", "forces MAE"]["after"]
    retained = by["retained", "molecules", "forces MAE"]
    # What the base model had before: measured again here from its package.
    base = sciml.load(workplace / "old")
    held = divided(Source(Store(workplace / "molecules"), 0), True, 2)
    errors = [
        np.abs(
            outputs(base.model, "atoms", graph_of(r, "atoms", torch.float32, dataset=0, cutoff=5.0))["forces"]
            - r["forces"]
        )
        for r in held.data
    ]
    assert retained["before"] == pytest.approx(float(torch.cat(errors).mean()), rel=1e-4)
    assert retained["after"] != retained["before"]
    assert by["retained", "jets", "label accuracy"]
    said = capsys.readouterr()
    assert "replay: 10 records of molecules" in said.err
    assert text(rows) in said.out
    assert GAINED in (run / "report.html").read_text()
    assert sciml.load(run / "from_scratch").config["model"]["backbone"] == base.config["model"]["backbone"]
    data = {entry["name"] for entry in sciml.load(run).config["data"]}
    assert data == {"new", "replay-molecules", "replay-jets"}


def test_retained_records_are_none_that_are_replayed_and_of_known_elements(package, tmp_path):
    store = molecules_store(tmp_path / "store", records=20, dataset="second")
    other = molecules_store(tmp_path / "other", records=20, dataset="second", seed=5)
    package.config["elements"] = sorted({int(number) for one in (store, other) for r in one for number in r["types"]})
    stores = {str(one.path): one for one in (store, other)}

    def options(retained, fraction=0.5):
        return SimpleNamespace(
            retained=SimpleNamespace(stores=retained, records=100),
            replay=SimpleNamespace(stores=[str(store.path)], fraction=fraction, pseudo_labels=False),
        )

    replayed = {r["id"] for r in divided(Source(store, 1, "store"), False, 100).data}
    (kept,) = retained_sources(options([str(store.path)]), package, stores.__getitem__)
    assert len(kept.data)
    assert not {r["id"] for r in kept.data} & replayed
    (whole,) = retained_sources(options([str(other.path)]), package, stores.__getitem__)
    assert len(whole.data) == 20
    (whole,) = retained_sources(options([str(store.path)], fraction=0.0), package, stores.__getitem__)
    assert len(whole.data) == 20
    package.config["elements"] = [2]
    with pytest.raises(UserError, match="other: element .* is not in the training data"):
        retained_sources(options([str(other.path)]), package, stores.__getitem__)
    assert retained_sources(options(None), package, stores.__getitem__) == []


def test_forgetting_of_own_levels_is_measured_on_what_the_package_was_trained_on(package, tmp_path):
    run = tmp_path / "run"
    store = molecules_store(run / "data" / "mine-0123", records=20, dataset="second")
    gone = {"elsewhere/mine-0123": store.data_hash, "elsewhere/lost": "0" * 64}
    (run / "provenance.jsonl").write_text('{"data": {}}\n' + json.dumps({"data": gone}) + "\n")
    package = Package(package.model, package.config, run / "package")
    package.config["elements"] = sorted({int(number) for record in store for number in record["types"]})
    options = SimpleNamespace(
        retained=SimpleNamespace(stores=None, records=8),
        replay=SimpleNamespace(stores=None, fraction=0.0, pseudo_labels=False),
    )
    (found,) = retained_sources(options, package, Store)
    assert (len(found.data), found.dataset, found.data.dataset) == (8, 1, "second")
    again = Source(Subset(store, np.arange(15)), 1, "mine")
    assert retained_sources(options, package, Store, [again]) == []
    other = molecules_store(tmp_path / "other", records=10, dataset="second", seed=3)
    assert len(retained_sources(options, package, Store, [Source(other, 1, "other")])) == 1
    package.config["datasets_of_domain"] = {"materials": ["first"]}
    assert retained_sources(options, package, Store) == []


def test_what_no_step_draws_is_not_replayed_and_told(package, tmp_path, capsys):
    with StoreWriter(tmp_path / "jets", "hep", "first", metadata={"classes": ["qcd", "top", "w"]}) as writer:
        for record in jets_store(tmp_path / "toy", records=8):
            assert writer.add(record)
    jets = writer.close()
    atoms = molecules_store(tmp_path / "atoms", records=24, dataset="second")
    stores = {str(store.path): store for store in (jets, atoms)}

    def options(pseudo_labels: bool, *given: Store) -> SimpleNamespace:
        replay = {"stores": [str(store.path) for store in given], "fraction": 0.3, "records": 100}
        return SimpleNamespace(
            retained=SimpleNamespace(stores=None, records=0),
            replay=SimpleNamespace(**replay, pseudo_labels=pseudo_labels),
        )

    def replayed(options: SimpleNamespace, *drawn: str) -> list[str]:
        splits = SimpleNamespace(train=[], test=[])
        FineTuning(package, options, splits, stores.__getitem__, tmp_path, BUDGETS, drawn)
        return [source.name for source in splits.train]

    why = "nothing of jets, since no step has such graphs; data.bins_per_step.jets=1 draws them"
    for pseudo_labels in (False, True):
        assert replayed(options(pseudo_labels, jets, atoms), "atoms") == ["replay-atoms"]
        assert f"replay: {why}" in capsys.readouterr().err
        assert not list((tmp_path / "data").glob("pseudo-jets*"))  # nor labelled
    assert replayed(options(False, jets, atoms), "atoms", "jets") == ["replay-jets", "replay-atoms"]
    with pytest.raises(UserError, match=f"found nothing to replay, {why}"):
        replayed(options(False, jets), "atoms")
