"""Uncertainties: those of a linear model exactly, rising away from the training data, kept in a package, in ASE."""

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.special import expit

from sciml.data.packing import Budget
from sciml.data.source import Source
from sciml.data.store import Subset
from sciml.evaluate.reliability import write_reliability
from sciml.evaluate.uncertainty import (
    Rigidity,
    Rows,
    calibrate,
    captured,
    features_of,
    fit,
    labelled_rows,
    reliability,
    softened,
    to_tensors,
)
from sciml.export.ase import SciMLCalculator
from sciml.graph import collate
from sciml.models.model import build_model
from sciml.package import Package, load, save
from tests.helpers import random_molecule
from tests.small import KINDS, describe_model, graph_of, jets_store, molecules_store, random_model

BUDGETS = {kind: Budget(max_graphs=4) for kind in KINDS}


def gaussian_rows(number, noise, seed, far=1.0):
    """Labels of a linear model with noise whose deviation follows the features."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(number, 1, 4, dtype=torch.float64, generator=generator) * far
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    predictions = (features[:, 0] * weights).sum(dim=1)
    error = (
        noise
        * features[:, 0].square().sum(dim=1).sqrt()
        * torch.randn(number, dtype=torch.float64, generator=generator)
    )
    return Rows(features, predictions, predictions + error, torch.ones(number, dtype=torch.float64))


def test_errors_that_follow_the_rigidity_are_told_right():
    training, validation, test = (gaussian_rows(2000, 0.1, seed) for seed in range(3))
    found = reliability(test, calibrate({"y": training}, {"y": validation})["y"])
    assert found["rms_ratio"] == pytest.approx(1.0, abs=0.06)
    assert found["within_one"] == pytest.approx(0.683, abs=0.03)
    assert found["within_two"] == pytest.approx(0.954, abs=0.02)
    for sigma, error in zip(found["uncertainty"], found["error"], strict=True):
        assert error == pytest.approx(sigma, rel=0.25)


def test_the_variance_is_that_of_the_formula():
    training, validation = gaussian_rows(50, 0.1, 0), gaussian_rows(50, 0.1, 1)
    rigidity = calibrate({"y": training}, {"y": validation})["y"]
    features = training.features[:, 0]
    inverse = torch.linalg.inv(features.T @ features)
    ratio = rigidity.inverse / inverse
    assert float(ratio.std() / ratio.mean().abs()) < 1e-3  # proportional up to the smallest ridge
    assert rigidity.variance(10.0 * training.features)[0] == pytest.approx(
        100.0 * float(rigidity.variance(training.features)[0])
    )


def test_classes_of_an_overconfident_model_are_softened():
    rng = np.random.default_rng(0)

    def rows(number):
        features = torch.from_numpy(rng.standard_normal((number, 1, 3)))
        logit = features[:, 0, 0]
        labels = torch.from_numpy((rng.random(number) < expit(logit.numpy())).astype(np.int64))
        logits = 4.0 * torch.stack([-logit / 2, logit / 2], dim=1)
        return Rows(features, logits, labels, torch.ones(number))

    training, validation, test = rows(3000), rows(3000), rows(3000)
    rigidity = calibrate({"c": training}, {"c": validation})["c"]
    found = reliability(test, rigidity)
    assert found["calibration_error_softened"] < 0.6 * found["calibration_error_plain"]
    variances = rigidity.variance(test.features)
    assert torch.equal(softened(test.predictions, variances).argmax(1), test.predictions.argmax(1))


@pytest.fixture
def model_and_sources(tmp_path):
    atoms = Source(molecules_store(tmp_path / "molecules", records=24), 0, "molecules")
    jets = Source(jets_store(tmp_path / "jets", records=24), 1, "jets")
    return random_model(torch.float32), [atoms, jets]


def test_features_times_the_last_layer_are_the_prediction(model_and_sources):
    model, _ = model_and_sources
    batch = collate(
        [graph_of(random_molecule(np.random.default_rng(i), atoms=4 + i), "atoms", torch.float32) for i in range(3)]
    )
    with captured(model, "atoms") as found:
        predictions = model(batch, "atoms")
    features = features_of(found, "energy", batch)[:, 0]
    last = model.heads["energy"].readout[-1]
    weights = torch.cat([last.weight[0], last.bias]).double()
    torch.testing.assert_close(features @ weights, predictions["interaction_energy"].detach(), rtol=1e-5, atol=1e-5)


def test_a_package_keeps_its_uncertainties_and_ase_tells_them(model_and_sources, tmp_path):
    model, sources = model_and_sources
    description = describe_model()
    rigidities, without = fit(model, sources, sources, description, BUDGETS, 24)
    assert rigidities.keys() == {"energy", "label"}
    assert without == (
        "without calibrated uncertainty: forces, stress (not linear in the inputs of a last layer); "
        "residue_types (0 training and 0 validation labels were found, 1 and 8 are needed)"
    )
    assert fit(model, sources, sources, description, BUDGETS, 0) == ({}, "")
    config = {"model": description, "datasets_of_domain": {"materials": ["first"]}}
    path = save(tmp_path / "package", model, config, "card", to_tensors(rigidities))
    package = load(path)
    for name, rigidity in rigidities.items():
        assert torch.equal(package.uncertainty[name], rigidity.inverse)
    record = random_molecule(np.random.default_rng(9), atoms=5)
    atoms = Atoms(record["types"], record["positions"])
    atoms.calc = SciMLCalculator(package, "first")
    sigma = atoms.calc.get_property("energy_uncertainty", atoms)
    row = next(iter(labelled_rows(model, sources[:1], description, BUDGETS, 1).values()))
    assert sigma > 0
    assert float(rigidities["energy"].variance(row.features)[0].sqrt()) > 0
    plain = SciMLCalculator(Package(model, package.config, path), "first")
    assert "energy_uncertainty" not in plain.implemented_properties
    (path / "uncertainty.safetensors").write_bytes(b"damaged")
    with pytest.raises(Exception, match="does not match its hash"):
        load(path)


def test_a_rigidity_of_tensors_does_not_turn_with_space():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 3, 4, dtype=torch.float64, generator=generator)
    matrix = torch.randn(4, 4, dtype=torch.float64, generator=generator)
    rigidity = Rigidity(matrix @ matrix.T)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))[0]
    turned = torch.einsum("ij,rjc->ric", rotation, features)
    torch.testing.assert_close(rigidity.variance(turned), rigidity.variance(features))


@pytest.mark.parametrize("level", ["graph", "fine"])
def test_scalars_count_beside_tensors(level):
    """Of mixed irreps, features times weights are every component of the prediction, the scalars too."""
    description = describe_model(("atoms",))
    options = {"irreps": "0e+2e", "level": level, "extensive": level == "graph", "hidden": 8, "channels": 4}
    description["heads"]["alpha"] = {"name": "target", **options}
    description["context"]["targets"] = {"alpha": {"scale": 3.0}}
    torch.manual_seed(0)
    model = build_model(description).double().eval()
    records = [random_molecule(np.random.default_rng(i), atoms=4 + i) for i in range(3)]
    batch = collate([graph_of(record, "atoms") for record in records])
    with captured(model, "atoms") as found:
        predictions = model(batch, "atoms")["alpha"].detach()
    features = features_of(found, "alpha", batch)
    last = model.heads["alpha"].readout[-1]
    weights = torch.cat([last.weight[0], last.bias, torch.full((4,), 0.5)]).double().detach()
    torch.testing.assert_close(features @ weights, predictions)


def test_too_few_validation_labels_are_told(model_and_sources, tmp_path):
    model, sources = model_and_sources
    few = [Source(Subset(sources[0].data, np.arange(7)), 0, "few"), sources[1]]
    rigidities, without = fit(model, sources, few, describe_model(), BUDGETS, 24)
    assert rigidities.keys() == {"label"}
    assert "energy (24 training and 7 validation labels were found, 1 and 8 are needed)" in without


def test_an_uncertainty_of_other_features_is_told(model_and_sources, tmp_path):
    """Features of mixed irreps were fewer once: packages of that time are measured without them."""
    model, sources = model_and_sources
    description = describe_model()
    tensors = to_tensors(fit(model, sources, sources, description, BUDGETS, 24)[0])
    tensors["energy"] = tensors["energy"][:4, :4]
    told, plot = write_reliability(model, tensors, sources, description, BUDGETS, tmp_path / "out")
    assert "uncertainty of energy: the package holds that of an earlier version, train again" in told
    assert "uncertainty of label: calibration error" in told
    assert plot.is_file()


@pytest.mark.parametrize("errors", [[0.0, 0.2, 0.4], [0.0, 0.0, 0.0]])
def test_a_bin_without_error_is_drawn(errors, tmp_path):
    """Predictions of an isolated atom are exact where symmetry makes them zero."""
    from sciml.evaluate import reliability
    from sciml.evaluate.plots import figure

    drawing, axes = figure(3, 3, 1)
    reliability._draw(axes[0], "dipole", {"uncertainty": [0.0, 0.1, 0.5], "error": errors}, "e Å")
    assert axes[0].get_xlabel() == "RMS uncertainty / e Å"
    drawing.savefig(tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size
