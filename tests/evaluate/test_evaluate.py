"""The numbers of ``metrics.json`` are those of a direct computation; the verb takes raw files and refuses others."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols

import sciml
from sciml import registry
from sciml.config import configure
from sciml.data.graph_dataset import GraphDataset
from sciml.data.sampler import MicroBatch
from sciml.data.source import Source
from sciml.data.store import Store, StoreWriter
from sciml.errors import UserError
from sciml.evaluate.plots import MOST_NAMES, figure, write_plots
from sciml.evaluate.predict import Columns
from sciml.evaluate.report import write_report
from sciml.evaluate.run import Evaluation
from sciml.evaluate.table import text_table
from sciml.files import file_sha256
from sciml.models.model import build_model
from sciml.package import FILES, Package, save
from sciml.train.card import package_config
from sciml.verbs.evaluate import evaluate
from tests.helpers import ELEMENTS
from tests.small import CLASSES, describe_model, jets_store, molecules_store, outputs, peptides_store


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a package of random weights and stores of the levels of theory it knows."""
    folder = tmp_path_factory.mktemp("evaluate")
    stores = [molecules_store(folder / "first"), molecules_store(folder / "second", dataset="second", seed=1)]
    stores += [jets_store(folder / "jets"), peptides_store(folder / "peptides")]
    description = describe_model()
    description["context"]["datasets"] = ["first", "second", "toy", "amber"]
    torch.manual_seed(0)
    model = build_model(description)
    sources = [Source(store, index, store.path.name) for index, store in enumerate(stores)]
    baselines = {"residue_counts": [1.0] * 20, "mass_windows": {"top": 100.0, "w": 80.0}}
    save(folder / "package", model, package_config(description, sources, baselines), "# card\n")
    return folder


def measured(place: Path, output: Path, *stores: str, **settings: str) -> dict:
    words = [f"package={place / 'package'}", f"store=[{','.join(map(str, stores))}]", f"output={output}"]
    assert evaluate(configure("evaluate", [*words, "device=cpu", *(f"{k}={v}" for k, v in settings.items())])) == 0
    return json.loads((output / "metrics.json").read_text())


def direct(package: Package, store: Store, index: int, kind: str) -> list[tuple[dict, dict]]:
    """(record, predictions) of every record, one graph at a time."""
    result = []
    for record in store:
        cutoff = package.config["model"]["cutoffs"][kind]
        graph = registry.resolve("domains", store.domain).graph(record, kind, cutoff)
        graph.dataset = torch.tensor([index])
        result.append((record, {n: v.numpy() for n, v in outputs(package.model, kind, graph).items()}))
    return result


def test_errors_of_energies_forces_and_stress_are_right(place, tmp_path):
    found = measured(place, tmp_path / "out", place / "first", place / "second")
    assert set(found) == {"targets", "stores"}
    assert set(found["stores"]) == {"first", "second"}
    package = sciml.load(place / "package")
    everything = {"energy": [], "energy_per_atom": [], "forces": [], "stress": []}
    for index, name in enumerate(("first", "second")):
        errors = {key: [] for key in everything}
        for record, predicted in direct(package, Store(place / name), index, "atoms"):
            energy = predicted["energy"] - record["energy"]
            errors["energy"].append(energy)
            errors["energy_per_atom"].append(energy / len(record["types"]))
            errors["forces"].append((predicted["forces"] - record["forces"]).ravel())
            if "stress" in record:
                errors["stress"].append((predicted["stress"] - record["stress"]).ravel())
        for target, values in errors.items():
            joined = np.concatenate(values)
            everything[target].append(joined)
            check(found["stores"][name][target], joined)
    for target, values in everything.items():
        check(found["targets"][target], np.concatenate(values))
    units = {target: values["unit"] for target, values in found["targets"].items()}
    assert units == {"energy": "eV", "energy_per_atom": "eV/atom", "forces": "eV/Å", "stress": "eV/Å^3"}


def check(found: dict, errors: np.ndarray) -> None:
    assert found["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-4)
    assert found["rmse"] == pytest.approx(np.sqrt(np.square(errors).mean()), rel=1e-4)
    assert found["count"] == errors.size


def test_errors_of_elements_and_configuration_types(place, tmp_path):
    """Each is the error of the rows of that kind alone, and all together are the whole."""
    with StoreWriter(tmp_path / "typed", "materials", "first") as writer:
        for index, record in enumerate(Store(place / "first")):
            kind = {"config_type": ("bulk", "surface")[index % 2]} if index < 10 else {}
            assert writer.add({**record, **kind})
    found = measured(place, tmp_path / "out", tmp_path / "typed", plots="false")["targets"]
    package = sciml.load(place / "package")
    pairs = direct(package, Store(tmp_path / "typed"), 0, "atoms")
    types = np.concatenate([record["types"] for record, _ in pairs])
    errors = np.concatenate([predicted["forces"] - record["forces"] for record, predicted in pairs])
    by_element = found["forces"]["by_element"]
    assert set(by_element) == {chemical_symbols[number] for number in set(types.tolist())}
    for symbol, values in by_element.items():
        check(values, errors[types == chemical_symbols.index(symbol)])
    counts = [values["count"] for values in by_element.values()]
    assert sum(counts) == found["forces"]["count"]
    assert counts == sorted(counts, reverse=True)
    by_type = found["energy_per_atom"]["by_config_type"]
    assert {name: values["count"] for name, values in by_type.items()} == {"bulk": 5, "surface": 5}
    energies = [
        (predicted["energy"] - record["energy"]) / len(record["types"])
        for record, predicted in pairs
        if record.get("config_type") == "surface"
    ]
    check(by_type["surface"], np.concatenate(energies))
    assert "by_config_type" not in found["energy"]
    text = text_table({"typed": found})
    assert "forces MAE of" in text
    assert "energy_per_atom MAE of surface" in text


def test_what_too_few_jets_cannot_tell_is_said():
    pair = {"auc": 0.9, "auc_error": 0.01, "rejection_30%": 190.0, "rejection_30%_error": float("nan")}
    label = {"count": 20, "accuracy": 0.8, "accuracy_error": 0.09, "calibration_error": 0.1, "background": "qcd"}
    text = text_table({"jets": {"label": {**label, "signals": {"top": {**pair, "mass_divergence_30%": float("nan")}}}}})
    assert "190.0 ± ? (too few jets)" in text
    assert "0.800 ± 0.090" in text
    assert "nan" not in text
    assert "divergence" not in text


def test_baselines_are_zero_forces_and_the_composition_fit(place, tmp_path):
    found = measured(place, tmp_path / "out", place / "first")["targets"]
    records = list(Store(place / "first"))
    forces = np.concatenate([record["forces"].ravel() for record in records])
    assert found["forces"]["baseline_mae"] == pytest.approx(np.abs(forces).mean(), rel=1e-5)
    references = describe_model()["context"]["references"]["first"]
    sums = [sum(references[str(z)] for z in record["types"]) for record in records]
    energies = np.array([record["energy"] for record in records])
    assert found["energy"]["baseline_mae"] == pytest.approx(np.abs(energies - sums).mean(), rel=1e-5)


def test_jets_and_residues_are_measured_against_direct_logits(place, tmp_path):
    found = measured(place, tmp_path / "out", place / "jets", place / "peptides")["targets"]
    package = sciml.load(place / "package")
    pairs = direct(package, Store(place / "jets"), 2, "jets")
    labels = np.array([record["label"] for record, _ in pairs])
    logits = np.concatenate([predicted["label"] for _, predicted in pairs]).astype(float)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert found["label"]["accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    assert found["label"]["cross_entropy"] == pytest.approx(-log_softmax[np.arange(12), labels].mean(), rel=1e-4)
    assert found["label"]["background"] == CLASSES[0]
    for index, name in enumerate(CLASSES[1:], start=1):
        scores = logits[:, index] - logits[:, 0]
        signal, background = scores[labels == index], scores[labels == 0]
        auc = (signal[:, None] > background).mean() + 0.5 * (signal[:, None] == background).mean()
        assert found["label"]["signals"][name]["auc"] == pytest.approx(auc)
        assert 0 <= found["label"]["signals"][name]["mass_window_auc"] <= 1
    pairs = direct(package, Store(place / "peptides"), 3, "residues")
    labels = np.concatenate([record["residue_types"] for record, _ in pairs])
    known = labels < 20
    assert found["residue_types"]["count"] == known.sum()
    assert found["residue_types"]["baseline_cross_entropy"] == pytest.approx(np.log(20))
    logits = np.concatenate([predicted["residue_types"] for _, predicted in pairs])[known]
    right = (logits.argmax(axis=1) == labels[known]).mean()
    text = text_table({"peptides": {"residue_types": found["residue_types"]}})
    rows = {line.split("  ")[1].strip(): line for line in text.splitlines() if "residue type" in line}
    assert f"{right:.1%}" in rows["residue type recovery"]
    assert f"{np.exp(found['residue_types']['cross_entropy']):.2f} " in rows["residue type perplexity"]
    assert "20.00 (composition)" in rows["residue type perplexity"]
    low, high = found["residue_types"]["difference_low"], found["residue_types"]["difference_high"]
    assert low <= found["residue_types"]["difference"] <= high


def test_residue_types_never_reach_the_model(place, tmp_path):
    """The labels of the held-out residues are hidden from the input: other labels, the same logits."""
    store = Store(place / "peptides")
    dataset = GraphDataset([Source(store, 3)], {"residues": 8.0})
    loaded = dataset[MicroBatch("residues", ((0, 0), (0, 1)), {}, 0, 0)]
    assert (loaded.batch.coarse_types == 0).all()
    assert (loaded.batch.residue_types >= 0).any()


@pytest.mark.parametrize("graphs", [1, 5])
def test_the_size_of_a_batch_does_not_change_the_numbers(place, tmp_path, graphs):
    found = measured(
        place, tmp_path / "out", place / "first", **{"batch.atoms.max_graphs": str(graphs), "plots": "false"}
    )
    expected = measured(place, tmp_path / "other", place / "first", plots="false")
    for target, values in expected["targets"].items():
        assert found["targets"][target]["count"] == values["count"]
        assert found["targets"][target]["mae"] == pytest.approx(values["mae"], rel=1e-4)
    assert not list((tmp_path / "out").glob("*.png"))


def test_several_stores_of_jets_and_proteins_are_measured_together_and_drawn_apart(place, tmp_path):
    jets_store(tmp_path / "more", records=9, seed=3)
    peptides_store(tmp_path / "others", records=5, seed=3)
    found = measured(
        place, tmp_path / "out", place / "jets", tmp_path / "more", place / "peptides", tmp_path / "others"
    )
    for target, key, pair in (
        ("label", "accuracy", ("jets", "more")),
        ("residue_types", "cross_entropy", ("peptides", "others")),
    ):
        one, two = (found["stores"][name][target] for name in pair)
        whole = found["targets"][target]
        assert whole["count"] == one["count"] + two["count"]
        mean = (one["count"] * one[key] + two["count"] * two[key]) / whole["count"]
        assert whole[key] == pytest.approx(mean)
    drawn = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert drawn >= {"roc-jets.png", "roc-more.png", "residues-peptides.png", "residues-others.png"}


def test_nothing_is_written_into_the_package(place, tmp_path):
    shutil.copytree(place / "package", tmp_path / "run" / "package")
    before = sorted(path.name for path in (tmp_path / "run" / "package").iterdir())
    words = [f"package={tmp_path / 'run'}", f"store={place / 'first'}", "device=cpu", "plots=false"]
    assert evaluate(configure("evaluate", words)) == 0
    assert (tmp_path / "run" / "evaluation-first" / "metrics.json").exists()
    assert sorted(path.name for path in (tmp_path / "run" / "package").iterdir()) == before


def test_many_classes_are_drawn_with_a_short_legend(tmp_path, monkeypatch):
    """JetClass has ten classes, other files have more than there are colours."""
    rng = np.random.default_rng(0)
    classes = [f"class {index}" for index in range(23)]
    rows = 230
    values = Columns(rng.normal(size=(rows, 23)), np.arange(rows) % 23, np.full(rows, 5), np.arange(rows))
    legends = []
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda self, handles=(), **options: legends.append(handles))
    paths = write_plots({("jets", "label"): values}, classes, tmp_path, {}, {})
    assert paths == [tmp_path / "roc.png", tmp_path / "reliability.png"]
    assert len(legends[0]) == MOST_NAMES


def test_plots_are_drawn_once_for_files_and_report(tmp_path, monkeypatch):
    drawn = []

    def draw(columns, classes, folder, composition, units):
        drawn.append(folder)
        figure(1.0, 1.0)[0].savefig(folder / "roc-store.png")
        return [folder / "roc-store.png"]

    monkeypatch.setattr("sciml.evaluate.plots.write_plots", draw)
    evaluation = Evaluation({}, {}, {}, [])
    evaluation.write(tmp_path / "evaluation")
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    page = write_report(tmp_path, evaluation, {"model": {}, "data": []}).read_text()
    assert drawn == [tmp_path / "evaluation"]
    assert "Jet classes: store" in page


def test_properties_of_a_package_need_no_store(place, tmp_path):
    """Dimers of the file by the level of theory that is named, in double precision, and nothing else."""
    first, second = (chemical_symbols[number] for number in ELEMENTS[:2])
    curve = {"distances": [0.9, 1.3, 2.0, 4.0], "energies": [1.0, -2.0, -1.0, 0.0]}
    (tmp_path / "dimers.json").write_text(json.dumps({"diatomics": {f"{first}-{second}": curve}}))
    words = [f"package={place / 'package'}", f"properties={tmp_path / 'dimers.json'}", f"output={tmp_path / 'out'}"]
    assert evaluate(configure("evaluate", [*words, "device=cpu", "dataset=second"])) == 0
    (found,) = json.loads((tmp_path / "out" / "properties.json").read_text())["diatomics"].values()
    calculator = sciml.calculator(place / "package", dataset="second", dtype=torch.float64)
    atoms = Atoms([first, second], positions=np.zeros((2, 3)), calculator=calculator)
    energies = []
    for distance in curve["distances"]:
        atoms.positions[1, 2] = distance
        energies.append(atoms.get_potential_energy())
    assert found["curve"]["energies"] == pytest.approx(np.array(energies) - energies[-1], abs=1e-9)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"properties.json", "diatomics.png"}
    with pytest.raises(UserError, match=r"dataset=None: .* give one of them"):
        evaluate(configure("evaluate", words))


def test_denoising_without_its_head_and_evaluation_of_nothing_are_refused(place, tmp_path):
    words = [f"package={place / 'package'}", f"store={place / 'peptides'}", f"output={tmp_path}", "device=cpu"]
    with pytest.raises(UserError, match="denoise_levels: the model has no head that finds noise"):
        evaluate(configure("evaluate", [*words, "denoise_levels=[0.1]", "plots=false"]))
    with pytest.raises(UserError, match="store: found nothing, expected store=FILE_OR_STORE, or properties="):
        configure("evaluate", words[:1])


def test_another_level_of_theory_is_refused(place, tmp_path):
    molecules_store(tmp_path / "other", dataset="pbe")
    with pytest.raises(
        UserError, match=r"its level of theory is 'pbe', the model knows 'first', 'second' for materials"
    ):
        measured(place, tmp_path / "out", tmp_path / "other")
    assert not (tmp_path / "out" / "metrics.json").exists()


def write_xyz(path: Path, frames: int = 5) -> list[Atoms]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(frames):
        grid = np.stack(np.meshgrid(*[np.arange(2)] * 3), axis=-1).reshape(-1, 3)[:5] * 1.6
        atoms = Atoms(rng.choice(ELEMENTS, 5), positions=grid + 0.1 * rng.normal(size=(5, 3)))
        atoms.calc = SinglePointCalculator(atoms, energy=float(rng.normal()) - 30, forces=rng.normal(size=(5, 3)))
        made.append(atoms)
    ase.io.write(path, made, format="extxyz")
    return made


def command(folder: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "sciml.cli", *words], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_verb_takes_a_raw_file_as_users_script_it(place, tmp_path):
    """A file names no level of theory: it is taken for the model's, where that has only one of the domain."""
    shutil.copytree(place / "package", tmp_path / "my package (v=1)")
    package = tmp_path / "my package (v=1)"
    config = json.loads((package / "config.json").read_text())
    config["datasets_of_domain"]["materials"] = ["second"]
    (package / "config.json").write_text(json.dumps(config))
    (package / "hashes.json").write_text(json.dumps({name: file_sha256(package / name) for name in FILES}))
    frames = write_xyz(tmp_path / "test set.xyz")
    done = command(tmp_path, "evaluate", f"package={package}", "store=test set.xyz", "output=errors", "device=cpu")
    assert done.returncode == 0, done.stderr
    assert "forces MAE" in done.stdout
    found = json.loads((tmp_path / "errors" / "metrics.json").read_text())["targets"]
    calculator = sciml.calculator(package, dataset="second")
    differences = []
    for atoms in frames:
        copy = atoms.copy()
        copy.calc = calculator
        differences.append(copy.get_forces() - atoms.get_forces())
    assert found["forces"]["mae"] == pytest.approx(np.abs(differences).mean(), rel=1e-3)
    assert found["forces"]["count"] == 5 * 5 * 3
    assert found["energy"]["count"] == 5


def test_the_verb_refuses_a_file_that_could_be_of_either_level(place, tmp_path):
    write_xyz(tmp_path / "test.xyz")
    done = command(tmp_path, "evaluate", f"package={place / 'package'}", "store=test.xyz", "output=out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "'first', 'second'" in done.stderr
    assert not (tmp_path / "out" / "metrics.json").exists()
