"""A target by configuration alone, from a column of a raw file to a package; labels that do not fit are refused."""

import html
import json

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule

import sciml
from sciml.config import configure
from sciml.data.graph_dataset import GraphDataset
from sciml.data.source import Source
from sciml.data.store import Store, StoreWriter
from sciml.data.targets import Target, described_targets
from sciml.errors import UserError
from sciml.ingest.formats import Options
from sciml.ingest.ingest import open_data
from sciml.physics.tensors import to_cartesian
from sciml.train.adapt.merge import merged_description
from sciml.train.labels import check_classes_seen, check_labelled, check_targets, target_facts
from sciml.train.sources import Splits
from sciml.verbs.evaluate import evaluate
from sciml.verbs.train import train
from tests.helpers import random_molecule, random_peptide

HEADS = {
    "polarizability": {"name": "target", "irreps": "0e+2e", "unit": "Å^3", "extensive": True, "column": "alpha"},
    "dipole": {"name": "target", "level": "fine", "irreps": "1o"},
    "phase": {"name": "target", "classes": ["solid", "liquid"]},
}


def frames(records=12):
    rng = np.random.default_rng(0)
    for index in range(records):
        record = random_molecule(rng, atoms=5, elements=(1, 6, 8))
        atoms = ase.Atoms(record["types"], record["positions"])
        outer = record["positions"].T @ record["positions"] + len(atoms) * np.eye(3)
        atoms.info = {"alpha": outer, "phase": ("solid", "liquid")[index % 2], "energy": float(index)}
        atoms.info["config_type"] = ("bulk", "surface", "surface")[index % 3]
        atoms.arrays["dipole"] = record["positions"] - record["positions"].mean(axis=0)
        atoms.arrays["dipole"][0] = np.nan  # an atom without a label
        yield atoms


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.extxyz"
    ase.io.write(path, list(frames()), format="extxyz")
    return path


def _word(option):
    return f"{option[0]}: {json.dumps(option[1], ensure_ascii=False)}"


def words(file, run, heads=HEADS):
    changed = [f"heads.{key}={{{', '.join(map(_word, options.items()))}}}" for key, options in heads.items()]
    losses = [f"objective.others.{key}={{weight: 1.0, loss: mse}}" for key in heads if key != "phase"]
    losses += (
        ["objective.others.phase={weight: 1.0, loss: cross_entropy, class_weights: [1.0, 2.0]}"]
        if "phase" in heads
        else []
    )
    return [
        *(f"train={file}", f"run_dir={run}", "model=tiny", "model.channels=4", "model.radial.hidden=[8]"),
        *("heads.energy=null", "trainer.max_steps=3", "trainer.progress=false", "logger=disabled"),
        *("data.val_fraction=0.4", "optimizer.warmup_steps=1", "uncertainty=8", *changed, *losses),
    ]


def test_targets_are_trained_from_the_columns_of_a_raw_file(file, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(configure("train", words(file, run))) == 0
    package = sciml.load(run)
    assert package.config["model"]["context"]["targets"]["polarizability"]["by_type"].keys() == {"1", "6", "8"}
    found = json.loads((run / "evaluation" / "metrics.json").read_text())["targets"]
    assert found["polarizability"]["unit"] == "Å^3"
    assert found["polarizability"]["mae"] < 1e3
    assert found["phase"]["baseline_accuracy"] >= 0.5
    assert set(found["phase"]["recall"]) <= {"solid", "liquid"}
    said = capsys.readouterr().out
    assert "polarizability MAE" in said
    (line,) = [line for line in said.splitlines() if line.startswith("without calibrated uncertainty: ")]
    assert "polarizability, phase (" in line
    assert line.endswith("validation labels were found, 1 and 8 are needed)")
    assert line[len("without calibrated uncertainty: ") :] in html.unescape((run / "report.html").read_text())
    assert evaluate(configure("evaluate", [f"package={run}", f"store={file}", f"output={tmp_path / 'out'}"])) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["targets"]
    for name, of_a_record in (("polarizability", 6), ("dipole", 4 * 3)):
        kinds = found[name]["by_config_type"]
        assert {kind: values["count"] for kind, values in kinds.items()} == {
            "bulk": 4 * of_a_record, "surface": 8 * of_a_record
        }  # fmt: skip
        total = sum(values["mae"] * values["count"] for values in kinds.values())
        assert total / found[name]["count"] == pytest.approx(found[name]["mae"])
    kinds = found["phase"]["by_config_type"]
    right = sum(values["accuracy"] * values["count"] for values in kinds.values())
    assert right / found["phase"]["count"] == pytest.approx(found["phase"]["accuracy"])
    said = capsys.readouterr().out
    assert "polarizability MAE of surface" in said
    assert "phase accuracy of surface" in said


def test_labels_reach_graphs_as_irreps_with_what_is_missing_left_out(file, tmp_path):
    targets = described_targets(HEADS)
    store = open_data(file, cache_dir=tmp_path / "cache", options=Options(targets=targets))
    dataset = GraphDataset([Source(store, 0, "mine")], {"atoms": 4.0}, targets=targets)
    for index, atoms in enumerate(frames()):
        graph = dataset.graph(0, index, "atoms")
        np.testing.assert_allclose(
            to_cartesian(graph.polarizability[0].numpy(), "0e+2e"), atoms.info["alpha"], rtol=1e-5
        )
        assert graph.dipole[0].isnan().all()
        np.testing.assert_allclose(graph.dipole[1:].numpy(), atoms.arrays["dipole"][1:], atol=1e-5)
        assert graph.phase.tolist() == [index % 2]
    counts = dataset.counts("atoms", 0, np.arange(3))
    assert (counts["polarizability"], counts["dipole"], counts["phase"]) == (18.0, 3 * 3 * 4.0, 3.0)


def test_residues_of_a_graph_have_their_own_labels(tmp_path):
    target = Target("burial", level="coarse", kind="residues")
    record = random_peptide(np.random.default_rng(0), residues=5)
    broken = {key: np.delete(value, 1, axis=0) if len(np.shape(value)) and len(value) == len(record["types"]) else value
              for key, value in record.items()}  # fmt: skip
    with StoreWriter(tmp_path / "store", "biology", "x", targets=[target]) as writer:
        assert writer.add({**broken, "burial": np.arange(5.0)[:, None], "id": "p#0"})
    store = Store(writer.close().path)
    graph = GraphDataset([Source(store, 0)], {"residues": 8.0}, coarse_cutoffs={"residues": 8.0}, targets=[target])
    labels = graph.graph(0, 0, "residues").burial
    kept = 5 - len({int(record["parent"][1])})
    assert labels.shape == (kept, 1)
    assert labels[:, 0].tolist() == [float(i) for i in range(5) if i != int(record["parent"][1])]


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        (
            "heads.x={name: target, irreps: 1e}",
            "heads.x.irreps: found '1e' in '1e', expected degrees of natural parity",
        ),
        ("heads.x={name: target, levl: fine}", "heads.x.levl: this key is not known.*did you mean level"),
        ("heads.x={name: target, level: atom}", "heads.x.level: found 'atom', expected one of graph, fine, coarse"),
        ("heads.x={name: target, kind: jets, irreps: 1o}", "heads.x: found 1o of level graph for jets"),
        ("heads.x={name: target, classes: [a]}", "heads.x.classes: found .*expected the names of two classes"),
        ("heads.x={name: target, level: fine, extensive: true}", "heads.x.extensive: found true"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_torch_is_loaded(word, problem):
    with pytest.raises(UserError, match=problem):
        configure("train", ["train=samples:metals", word])


def test_labels_of_another_shape_or_name_are_refused_by_name(file, tmp_path):
    wrong = {"dipole": {**HEADS["dipole"], "irreps": "0e+2e"}}
    with pytest.raises(UserError, match=r"mine.extxyz#0: dipole: shape \(3,\), expected 3x3"):
        train(configure("train", words(file, tmp_path / "a", wrong)))
    with pytest.raises(UserError, match=r"no frame has the key 'gap' of the target gap.*heads.gap.column=KEY"):
        train(configure("train", words(file, tmp_path / "b", {"gap": {"name": "target"}})))
    assert not (tmp_path / "a" / "package").exists()


def test_files_that_may_lack_a_target_are_read_without_it(file, tmp_path, capsys):
    """Replayed and evaluated files are of other tasks."""
    targets = (*described_targets(HEADS), Target("gap"))
    store = open_data(file, cache_dir=tmp_path, options=Options(targets=targets, may_lack_targets=True))
    assert store.has("polarizability").all()
    assert not store.has("gap").any()
    assert "read without it: " in capsys.readouterr().out
    with pytest.raises(UserError, match="no frame has the key 'gap' of the target gap"):
        open_data(file, cache_dir=tmp_path, options=Options(targets=targets))


def test_replay_joins_a_new_target_and_needs_no_column_for_it(file, tmp_path, capsys):
    plain = tmp_path / "old.extxyz"
    old = list(frames())
    for atoms in old:
        atoms.info = {"gap": 1.0}
        del atoms.arrays["dipole"]
    ase.io.write(plain, old, format="extxyz")
    base = {"gap": {"name": "target", "unit": "eV"}}
    assert train(configure("train", words(plain, tmp_path / "base", base))) == 0
    new = {"phase": HEADS["phase"]}
    replay = [f"adapt.replay.stores=[{plain}]", "adapt.replay.fraction=0.5", f"init={tmp_path / 'base' / 'package'}"]
    assert train(configure("train", [*words(file, tmp_path / "run", new), *replay])) == 0
    assert "replay: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("head", "loss", "said"),
    [
        ("phase", "huber", "found huber, but the target phase has classes; expected cross_entropy"),
        ("polarizability", "cross_entropy", "has numbers; expected huber or mae or mse"),
    ],
)
def test_a_loss_of_numbers_is_not_one_of_classes(file, tmp_path, head, loss, said):
    given = words(file, tmp_path / "run", {head: HEADS[head]})[:-1]
    with pytest.raises(UserError, match=rf"objective.others.{head}.loss: .*{said}"):
        train(configure("train", [*given, f"objective.others.{head}={{weight: 1.0, loss: {loss}}}"]))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_stores_with_another_unit_or_without_the_target_are_refused(file, tmp_path):
    store = open_data(file, cache_dir=tmp_path / "cache", options=Options(targets=described_targets(HEADS)))
    source = Source(store, 0, "mine")
    other = Target("polarizability", irreps="0e+2e", unit="bohr^3")
    with pytest.raises(
        UserError, match=r"heads.polarizability asks for this target, but its unit is Å\^3, expected bohr"
    ):
        check_targets([source], [other])
    with pytest.raises(UserError, match=r"heads.gap: no training record has this target"):
        check_labelled([source], Target("gap"))


def test_class_weights_of_another_number_than_classes_are_refused_before_training(file, tmp_path):
    given = words(file, tmp_path / "run", {"phase": HEADS["phase"]})
    given[-1] = given[-1].replace("[1.0, 2.0]", "[1.0, 2.0, 3.0]")
    with pytest.raises(
        UserError, match=r"objective.others.phase.class_weights: found 3, expected 2 .* solid, liquid in"
    ):
        train(configure("train", given))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_pseudo_labels_do_not_stand_for_labels_that_the_data_lack(file, tmp_path):
    base = {"gap": {"name": "target", "unit": "eV", "column": "energy"}}
    assert train(configure("train", words(file, tmp_path / "base", base))) == 0
    store = open_data(file, cache_dir=tmp_path / "cache")
    given = words(store.path, tmp_path / "run", base)
    given += [f"init={tmp_path / 'base'}", "adapt.replay.fraction=0.5", "adapt.replay.pseudo_labels=true"]
    given.append(f"adapt.replay.stores={file}")
    with pytest.raises(UserError, match=r"heads.gap: no training record has this target"):
        train(configure("train", given))
    assert not list((tmp_path / "run").glob("data/pseudo-*"))  # nothing was predicted before


def test_a_class_that_is_not_trained_on_is_refused_by_name(file, tmp_path):
    targets = described_targets(HEADS)
    store = open_data(file, cache_dir=tmp_path / "cache", options=Options(targets=targets))
    from sciml.data.store import Subset

    solid, both = Source(Subset(store, [0, 2]), 0, "solid"), Source(Subset(store, [0, 1]), 0, "both")
    check_classes_seen(Splits([both], [solid], [solid], []), targets, [])
    with pytest.raises(UserError, match=r"mine.extxyz.*have the class 'liquid' of phase, but none that is trained on"):
        check_classes_seen(Splits([solid], [solid], [both], []), targets, [])


def test_a_class_that_is_tested_alone_is_refused_before_training(file, tmp_path):
    solid = [atoms for atoms in frames() if atoms.info["phase"] == "solid"]
    ase.io.write(tmp_path / "solid.extxyz", solid, format="extxyz")
    given = words(tmp_path / "solid.extxyz", tmp_path / "run", {"phase": HEADS["phase"]})
    with pytest.raises(UserError, match=r"mine.extxyz.*have the class 'liquid' of phase, but none that is trained on"):
        train(configure("train", [*given, f"test={file}"]))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_extensive_target_starts_from_its_composition_fit(file, tmp_path):
    with StoreWriter(tmp_path / "store", "materials", "x", targets=[Target("sum", extensive=True)]) as writer:
        for index, atoms in enumerate(frames()):
            record = {"types": atoms.numbers, "positions": atoms.positions, "id": f"m#{index}"}
            value = (
                2.0 * (atoms.numbers == 1).sum() - 5.0 * (atoms.numbers == 6).sum() + 1.0 * (atoms.numbers == 8).sum()
            )
            assert writer.add({**record, "sum": np.array([value])})
    sources, target = [Source(writer.close(), 0)], Target("sum", extensive=True)
    facts = target_facts(sources, target)
    assert {number: round(values[0], 3) for number, values in facts["by_type"].items()} == {
        "1": 2.0,
        "6": -5.0,
        "8": 1.0,
    }
    assert isinstance(torch.tensor(facts["scale"]).item(), float)
    known = {"by_type": {"1": [2.5], "6": [-5.0], "9": [7.0]}}  # of a package that has not met oxygen
    beside = target_facts(sources, target, known)["by_type"]
    assert beside["1"] == [2.5]
    assert beside["6"] == [-5.0]
    assert beside["8"] != facts["by_type"]["8"]


def test_an_extensive_vector_has_a_scale_and_nothing_by_type(tmp_path):
    target = Target("dipole", irreps="1o", extensive=True)
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "store", "materials", "x", targets=[target]) as writer:
        for index, atoms in enumerate(frames()):
            record = {"types": atoms.numbers, "positions": atoms.positions, "id": f"m#{index}"}
            assert writer.add({**record, "dipole": rng.normal(size=3)})
    facts = target_facts([Source(writer.close(), 0)], target)
    assert all(values == [] for values in facts["by_type"].values())
    assert 0 < facts["scale"] < 1


def test_an_element_that_is_tested_alone_is_refused_where_there_are_no_energies(tmp_path):
    for name, symbols in (("train", ("H2O", "CH4")), ("test", ("SH2",))):
        made = [molecule(symbol) for symbol in symbols for _ in range(4)]
        for index, atoms in enumerate(made):
            atoms.info = {"gap": float(index)}
        ase.io.write(tmp_path / f"{name}.extxyz", made, format="extxyz")
    given = words(tmp_path / "train.extxyz", tmp_path / "run", {"gap": {"name": "target"}})
    with pytest.raises(UserError, match=r"test.extxyz\): element S is not in the training data, which has H, C, O"):
        train(configure("train", [*given, f"test={tmp_path / 'test.extxyz'}"]))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("change", [{"unit": "meV"}, {"irreps": "1o"}, {"level": "fine"}])
def test_a_target_of_the_package_is_not_trained_on_as_another(file, tmp_path, change):
    base = {"gap": {"name": "target", "unit": "eV", "column": "energy"}}
    assert train(configure("train", words(file, tmp_path / "base", base))) == 0
    package = sciml.load(tmp_path / "base")
    description = json.loads(json.dumps(package.config["model"]))
    assert merged_description(package, description)["heads"].keys() == {"gap"}
    description["heads"]["gap"] |= change
    ((key, value),) = change.items()
    with pytest.raises(UserError, match=rf"heads.gap: .* but there its {key} is \w+, expected {value}; give labels"):
        merged_description(package, description)
