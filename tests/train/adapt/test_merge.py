"""Fine-tuning keeps what the package knows, and says what it does not take from the configuration."""

import json
import shutil

import pytest
import torch

import sciml
from sciml import build
from sciml.config import configure
from sciml.models.model import build_model
from sciml.package import Package
from sciml.train.adapt.merge import (
    copy_weights,
    heads_of_package,
    ignored_settings,
    merged_baselines,
    merged_description,
)
from sciml.verbs.evaluate import evaluate
from sciml.verbs.train import train
from tests.small import ALL_SCALES, COARSE_CUTOFFS, describe_model, molecules_store, random_model, train_config


@pytest.fixture
def package(tmp_path):
    model = random_model(torch.float32)
    return Package(model, {"model": describe_model(), "baselines": {}}, tmp_path)


def test_after_fine_tuning_the_old_stores_are_measured_still(workplace, capsys):
    molecules_store(workplace / "new", dataset="other", seed=5)
    shutil.move(workplace / "run", workplace / "old")
    words = ("trainer.max_steps=1", f"init={workplace / 'old'}", "model.channels=8", "data.cutoff.atoms=4.5")
    assert train(train_config(workplace, *words, stores=("new",))) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "the given ones are ignored" in line]
    assert len(said) == 1
    assert "model.channels=8 (4)" in said[0]
    assert "data.cutoff.atoms=4.5" in said[0]
    old, new = sciml.load(workplace / "old").config, sciml.load(workplace / "run").config
    assert new["datasets_of_domain"] == {**old["datasets_of_domain"], "materials": ["first", "other"]}
    assert new["baselines"] == old["baselines"]
    stores = ",".join(str(workplace / name) for name in ("molecules", "jets", "peptides", "new"))
    config = configure(
        "evaluate", [f"package={workplace / 'run'}", f"store=[{stores}]", f"output={workplace / 'out'}", "device=cpu"]
    )
    assert evaluate(config) == 0
    found = json.loads((workplace / "out" / "metrics.json").read_text())
    assert set(found["stores"]) == {"molecules", "jets", "peptides", "new"}


def test_references_are_merged_per_element_and_the_package_wins(package):
    new = describe_model()
    new["context"]["references"] = {"first": {"1": 99.0, "92": -7.0}, "third": {"1": 5.0}}
    merged = merged_description(package, new)["context"]["references"]
    assert merged["first"] == {**describe_model()["context"]["references"]["first"], "92": -7.0}
    assert merged["third"] == {"1": 5.0}
    assert merged["second"] == describe_model()["context"]["references"]["second"]


def test_types_new_to_an_extensive_target_bring_what_was_fitted_of_them(tmp_path):
    old, new = describe_model(kinds=("atoms",)), describe_model(kinds=("atoms",))
    for described, by_type in ((old, {"1": [2.0], "6": [3.0]}), (new, {"1": [5.0], "8": [-4.0]})):
        described["heads"]["volume"] = {"name": "target", "extensive": True}
        described["context"]["targets"] = {"volume": {"scale": 1.0, "shift": [0.0], "by_type": by_type}}
    package = Package(build_model(old), {"model": old}, tmp_path)
    merged = merged_description(package, new)
    model = build_model(merged)
    copy_weights(model, package, merged["context"]["classes"])
    assert model.heads["volume"].by_type[[1, 6, 8, 9], 0].tolist() == [2.0, 3.0, -4.0, 0.0]


def test_a_kind_that_the_package_has_not_brings_its_own_cutoffs_and_means(tmp_path):
    old = describe_model(kinds=("atoms",), **ALL_SCALES)
    package = Package(random_model(torch.float32, kinds=("atoms",), **ALL_SCALES), {"model": old}, tmp_path)
    new = describe_model(kinds=("residues",), **ALL_SCALES)
    for other in (new, new["coarse"]):
        other["mean_neighbors"]["atoms"] = 99.0
    merged = merged_description(package, new)
    model, fresh = build_model(merged), build_model(describe_model(kinds=("atoms", "residues"), **ALL_SCALES))
    copy_weights(model, package, merged["context"]["classes"])
    assert merged["coarse"]["cutoffs"] == {kind: COARSE_CUTOFFS[kind] for kind in ("atoms", "residues")}
    for name, expected in fresh.named_buffers():
        if name.startswith("backbone"):
            assert torch.equal(dict(model.named_buffers())[name], expected), name


def test_baselines_of_the_new_data_count_and_the_old_fill_the_gaps(package):
    package.config["baselines"] = {"residue_counts": [1.0] * 20, "mass_windows": {"top": 170.0}}
    bare = {"residue_counts": [0.0] * 20, "mass_windows": {}}
    assert merged_baselines(package, bare) == package.config["baselines"]
    found = merged_baselines(package, {"residue_counts": [2.0] * 20, "mass_windows": {"w": 80.0}})
    assert found == {"residue_counts": [2.0] * 20, "mass_windows": {"w": 80.0}}


@pytest.mark.parametrize(("classes", "kept"), [(["qcd", "w", "top", "z"], [0, 2, 1]), (["a", "b", "c"], [])])
def test_classes_keep_the_rows_of_their_names_and_new_ones_start_anew(package, capsys, classes, kept):
    new = describe_model()
    new["context"]["classes"] = classes
    model, description = build.initial_model(new, package)
    assert description["context"]["classes"] == classes
    what = "qcd, w, top keep what was learned of them" if kept else "their head starts anew"
    assert f"the classes are now {', '.join(classes)}, the package has qcd, top, w: {what}" in capsys.readouterr().err
    head, old = model.heads["jet_class"].readout, package.model.heads["jet_class"].readout
    for row, before in enumerate(kept):
        assert torch.equal(head[-1].weight[row], old[-1].weight[before])
        assert head[-1].bias[row] == old[-1].bias[before]
    assert torch.equal(head[0].weight, old[0].weight) == bool(kept)
    energy, known = model.heads["energy"].state_dict(), package.model.heads["energy"].state_dict()
    assert all(torch.equal(energy[name], known[name]) for name in energy)


def test_the_first_of_the_known_classes_keep_their_head(package):
    new = describe_model()
    new["context"]["classes"] = ["qcd", "top"]
    description = merged_description(package, new)
    assert description["context"]["classes"] == ["qcd", "top", "w"]
    assert copy_weights(random_model(torch.float32, seed=1), package, description["context"]["classes"]) == []


def test_only_settings_that_differ_are_said_to_be_ignored(package):
    assert ignored_settings(package, describe_model()) == []
    other = describe_model(channels=8, radial={"basis": 9, "hidden": [8]})
    other["cutoffs"]["jets"] = 1.5
    assert ignored_settings(package, other) == [
        "model.channels=8 (4)",
        "data.cutoff.jets=1.5 (2.5)",
        "model.radial.basis=9 (6)",
    ]


def test_heads_keep_the_options_of_the_package_where_none_are_given():
    known = {
        "energy": {"hidden": 8, "repulsion": True, "charges": 2},
        "jet_class": {"hidden": 8},
        "site": {"name": "target", "level": "fine", "irreps": "1o", "column": "theirs"},
        "direct": {"name": "direct_forces", "hidden": 8},
    }
    given = {
        "energy": {"hidden": 64, "charges": 0},
        "jet_class": {"hidden": 32},
        "site": {"name": "target", "classes": ["a", "b"]},
        "direct": {"name": "energy", "hidden": 64},
    }
    defaults = {"energy": {"hidden": 64}, "jet_class": {"hidden": 64}}
    completed, taken = heads_of_package(given, known, defaults)
    assert completed == {
        "energy": {"hidden": 8, "repulsion": True, "charges": 0},
        "jet_class": {"hidden": 32},
        "site": {"name": "target", "level": "fine", "classes": ["a", "b"]},
        "direct": {"name": "energy", "hidden": 64},
    }
    assert taken == ["heads.energy.hidden=8", "heads.energy.repulsion=True", "heads.site.level=fine"]


def test_a_package_with_repulsion_is_tuned_with_it_and_resumed(tmp_path, capsys):
    molecules_store(tmp_path / "molecules")
    words = ("trainer.max_steps=2", "heads.energy.repulsion=true", "heads.energy.dispersion={radius: 6.0, scale: 0.75}")
    assert train(train_config(tmp_path, *words, stores=("molecules",))) == 0
    shutil.move(tmp_path / "run", tmp_path / "old")
    molecules_store(tmp_path / "new", dataset="other", seed=5)
    capsys.readouterr()
    words = (f"init={tmp_path / 'old'}", "trainer.max_steps=2", "heads.energy.hidden=64", "uncertainty=0")
    config = train_config(tmp_path, *words, stores=("new",))
    assert train(config) == 0
    said = capsys.readouterr().err
    assert "since only defaults were given: heads.energy.dispersion=" in said
    assert "heads.energy.hidden=8" in said
    assert "before the first update the model gives what" in said
    head = sciml.load(tmp_path / "run").config["model"]["heads"]["energy"]
    assert head == sciml.load(tmp_path / "old").config["model"]["heads"]["energy"]
    assert train(config.model_copy(update={"resume": True})) == 0


def test_a_head_that_is_given_other_options_is_meant_to_differ(tmp_path, capsys):
    molecules_store(tmp_path / "molecules")
    assert (
        train(train_config(tmp_path, "trainer.max_steps=1", "heads.energy.repulsion=true", stores=("molecules",))) == 0
    )
    shutil.move(tmp_path / "run", tmp_path / "old")
    words = (f"init={tmp_path / 'old'}", "trainer.max_steps=1", "heads.energy.repulsion=false", "uncertainty=0")
    assert train(train_config(tmp_path, *words, stores=("molecules",))) == 0
    assert sciml.load(tmp_path / "run").config["model"]["heads"]["energy"] == {"hidden": 8, "repulsion": False}
