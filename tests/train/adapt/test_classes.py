"""Fine-tuning to new classes of jets: what is forgotten of the known ones is measured, and they can be replayed."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml

import sciml
from sciml.data.classes import Relabelled
from sciml.data.source import Source
from sciml.data.store import Store, Subset
from sciml.errors import UserError
from sciml.train.adapt.replay import divided
from sciml.train.labels import check_classes_seen
from sciml.train.sources import Splits, context_of
from sciml.verbs.train import train
from tests.small import graph_of, jets_store, outputs, train_config


@pytest.fixture
def workplace(workplace):
    """A finished run as ``old``, which knows the classes qcd, top, w, with 40 of its jets in ``jets``."""
    shutil.move(workplace / "run", workplace / "old")
    shutil.rmtree(workplace / "jets")
    jets_store(workplace / "jets", records=40)
    return workplace


def tuned(workplace, classes, *words):
    """Rows of the table of a fine-tuning of two steps to jets of ``classes``, by (part, measure); forgetting is
    measured on the jets of the base.
    """
    jets_store(workplace / "new", records=16, seed=5, classes=classes)
    words = (f"init={workplace / 'old'}", "trainer.max_steps=2", "uncertainty=0", *words)
    assert train(train_config(workplace, *words, stores=("new",))) == 0
    rows = json.loads((workplace / "run" / "evaluation" / "adaptation.json").read_text())
    return {(row["part"], row["measure"]): row for row in rows}


def test_labels_are_found_by_name_and_other_classes_have_none(tmp_path):
    data = jets_store(tmp_path / "jets", records=9)
    part = Relabelled(Subset(data, [1, 5, 0, 2]), ["w", "new", "qcd"])
    assert [record.get("label") for record in part] == [None, 0, 2, 0]
    assert part.has("label").tolist() == [False, True, True, True]
    assert part.manifest["classes"] == ["w", "new", "qcd"]
    assert data.manifest["classes"] == ["qcd", "top", "w"]


def test_forgetting_is_measured_over_the_classes_that_both_models_have(workplace, capsys):
    rows = tuned(workplace, ["w", "b", "qcd"], f"adapt.retained.stores={workplace / 'jets'}")
    assert rows["new", "label accuracy"]
    assert "jets: what is forgotten is measured without jets of the classes top, which" in capsys.readouterr().err
    for key, path in (("before", "old"), ("after", "run")):
        package = sciml.load(workplace / path)
        names = package.config["model"]["context"]["classes"]
        columns = [names.index(name) for name in ("qcd", "w")]
        entropies = []
        for record in Store(workplace / "jets"):
            if (name := ("qcd", "top", "w")[record["label"]]) != "top":
                graph = graph_of(record, "jets", torch.float32, dataset=package.datasets.index("toy"))
                logits = outputs(package.model, "jets", graph)["label"][0, columns].double()
                entropies.append(-float(logits.log_softmax(0)[("qcd", "w").index(name)]))
        assert len(entropies) == 27
        assert rows["retained", "label cross-entropy"][key] == pytest.approx(np.mean(entropies), rel=1e-4)


@pytest.mark.parametrize("classes", [["a", "b"], ["qcd", "a", "b", "c", "d"]])
def test_what_both_models_cannot_tell_is_left_out_and_said(workplace, capsys, classes):
    rows = tuned(workplace, classes, f"adapt.retained.stores=[{workplace / 'jets'},{workplace / 'molecules'}]")
    assert rows["retained", "forces MAE"]
    assert not any("label" in measure for part, measure in rows if part == "retained")
    assert "jets: what is forgotten of classes is not measured on its jets of the classes" in capsys.readouterr().err


def test_replayed_jets_bring_their_classes_behind_the_new_ones(workplace, capsys):
    words = ("adapt.replay.fraction=0.5", f"adapt.replay.stores={workplace / 'jets'}", "data.val_fraction=0.5")
    rows = tuned(workplace, ["b", "qcd"], *words)
    assert (
        "the classes are now b, qcd, top, w, the package has qcd, top, w: qcd, top, w keep" in capsys.readouterr().err
    )
    package = sciml.load(workplace / "run")
    assert package.config["model"]["context"]["classes"] == ["b", "qcd", "top", "w"]
    held = divided(Source(Store(workplace / "jets"), 0, "jets"), True, 100).data
    right = 0
    for record in held:
        graph = graph_of(record, "jets", torch.float32, dataset=package.datasets.index("toy"))
        right += int(outputs(package.model, "jets", graph)["label"][0, 1:].argmax()) == record["label"]
    assert rows["retained", "label accuracy"]["after"] == pytest.approx(right / len(held))


def test_a_model_from_scratch_has_the_class_weights_of_the_new_classes(workplace):
    words = ("adapt.replay.fraction=0.5", f"adapt.replay.stores={workplace / 'jets'}", "data.val_fraction=0.5")
    words += ("objective.label.class_weights=[1.0,2.0,3.0,4.0]", "adapt.from_scratch=true")
    rows = tuned(workplace, ["b", "qcd"], *words)
    assert rows["new", "label cross-entropy"]["scratch"] is not None
    scratch = yaml.safe_load((workplace / "run" / "from_scratch" / "config.yaml").read_text())
    assert scratch["objective"]["label"]["class_weights"] == [1.0, 2.0]


def test_class_weights_that_lack_the_replayed_classes_are_refused_before_training(workplace):
    words = ("adapt.replay.fraction=0.5", f"adapt.replay.stores={workplace / 'jets'}", "data.val_fraction=0.5")
    with pytest.raises(
        UserError, match=r"objective.label.class_weights: found 2, expected 4 .* b, qcd, top, w in this"
    ):
        tuned(workplace, ["b", "qcd"], *words, "objective.label.class_weights=[1.0,2.0]")
    assert not (workplace / "run" / "config.yaml").exists()


def test_a_comparison_that_fails_does_not_lose_the_model(workplace, monkeypatch):
    def fails(*_):
        raise UserError("nothing to start from")

    monkeypatch.setattr("sciml.verbs.train.from_scratch", fails)
    with pytest.raises(UserError, match="nothing to start from"):
        tuned(workplace, ["b", "qcd"], "adapt.from_scratch=true", "data.val_fraction=0.5")
    assert sciml.load(workplace / "run").config["model"]["context"]["classes"] == ["b", "qcd"]
    assert (workplace / "run" / "report.html").is_file()


def test_classes_that_disagree_are_told_in_a_sentence(tmp_path):
    sources = [
        Source(jets_store(tmp_path / name, classes=classes), 0, name)
        for name, classes in (("one", ["qcd", "top"]), ("two", ["top", "qcd"]))
    ]
    with pytest.raises(
        UserError, match=r"two: its classes are top, qcd, those of another store are qcd, top; expected"
    ):
        context_of(sources, ["toy"])


def test_a_class_that_is_only_replayed_counts_as_seen(tmp_path):
    new = Source(jets_store(tmp_path / "new", classes=["b", "qcd"]), 0, "new")
    old = jets_store(tmp_path / "old", classes=["qcd", "top"])
    replayed = Source(Relabelled(old, ["b", "qcd", "top"]), 0, "old")
    test = Source(jets_store(tmp_path / "test", classes=["b", "qcd", "top", "w"]), 0, "test")
    with pytest.raises(UserError, match="have the class 'w' of label"):
        check_classes_seen(Splits([new, replayed], [new], [test], []), (), [])
    check_classes_seen(Splits([new, replayed], [new], [test], []), (), ["w"])
