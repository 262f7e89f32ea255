"""Regressed four-momenta conserve the total in every frame and precision, follow Lorentz transformations, and learn."""

import numpy as np
import pytest
import torch

from sciml.data.graph_dataset import LoadedBatch
from sciml.data.packing import Budget
from sciml.data.source import Source
from sciml.data.store import StoreWriter
from sciml.evaluate.uncertainty import Rigidity, calibrate, captured, features_of, labelled_rows, reliability
from sciml.graph import collate
from sciml.ingest.generate.smeared_jets import smear
from sciml.models.model import Model, build_model
from sciml.objectives.supervised import Supervised, Term
from sciml.physics import lorentz
from tests.domains.hep.jets import LIGHT, embedded_jets, energy_over_mass
from tests.helpers import boost, check_equivariance, lorentz_transform, random_jet, random_rotation, relative_rms
from tests.small import describe_model, graph_of

EPS = torch.finfo(torch.float64).eps


def model_of(dtype=torch.float64, drawn=True) -> Model:
    torch.manual_seed(0)
    description = describe_model(("jets",))
    description["heads"] = {"four_momenta": {"hidden": 8}}
    model = build_model(description)
    for parameter in model.parameters():
        if drawn and not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.3)
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def smeared(seed=0, **options):
    return next(smear([random_jet(np.random.default_rng(seed), **options)], seed))


def regress(model, *records, **options):
    graphs = [graph_of(record, "jets", model.dtype, **options) for record in records]
    batch = collate(graphs)
    return model(batch, "jets")["true_momenta"].detach(), batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_the_given_totals_and_masses_the_measured_ones(dtype):
    model = model_of(dtype)
    records = [smeared(seed, mass=mass, particles=5 + seed) for seed, mass in enumerate((0.1, 3.0, 80.0, 200.0))]
    records += [random_jet(np.random.default_rng(9))]  # no total given: that of its own momenta
    found, batch = regress(model, *records)
    assert found.dtype == torch.float64
    totals = torch.zeros(5, 4, dtype=torch.float64).index_add(0, batch.batch, found)
    given = [record.get("total_momentum", record["momenta"].sum(axis=0)) for record in records]
    energy = np.array(given)[:, :1]
    assert np.abs((totals.numpy() - np.array(given)) / energy).max() < 1e-12
    assert (found[:, 0] > 0).all()
    gamma = batch.frame[:, 0] / lorentz.mass_squared(batch.frame).sqrt()
    rounding = 20 * EPS * (gamma[batch.batch] * batch.frame[batch.batch, 0]).square()
    difference = (lorentz.mass_squared(found) - lorentz.mass_squared(batch.momenta)).abs()
    assert (difference <= rounding)[batch.batch > 0].all()  # those of the first do not fit into 0.1 GeV
    assert (lorentz.mass_squared(found) >= -rounding).all()
    assert relative_rms(found, batch.momenta) > 0.05  # the network did change something


def test_without_training_conserving_momenta_come_back():
    found, batch = regress(model_of(drawn=False), random_jet(np.random.default_rng(0)))
    torch.testing.assert_close(found, batch.momenta, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_rotations_reflections_and_permutations(dtype, tolerance):
    model = model_of(dtype)
    graph = graph_of(smeared(), "jets", dtype)

    def predict(sample):
        return {"true_momenta": model(collate([sample]), "jets")["true_momenta"].detach()}

    check_equivariance(predict, graph, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("gamma", [1.5, 10.0])
def test_lorentz_transformations_of_the_input_transform_the_output(dtype, tolerance, gamma):
    model, generator = model_of(dtype), torch.Generator().manual_seed(0)
    for record in [*embedded_jets(8), smeared(mass=LIGHT), smeared(mass=30.0)]:
        rotation = lorentz.lorentz_of_rotation(random_rotation(generator))
        matrix = lorentz.random_boost(gamma, generator) @ rotation
        moved, spurions = lorentz_transform(record, matrix)
        first, _ = regress(model, record)
        second, _ = regress(model, moved, spurions=spurions)
        within = max(tolerance, 1e3 * 20 * EPS * energy_over_mass(record, moved) ** 2)
        assert relative_rms(second, first @ matrix.T) < within
        total = np.asarray(moved.get("total_momentum", moved["momenta"].sum(axis=0)))
        assert np.abs(second.sum(dim=0).numpy() - total).max() < 1e-11 * total[0]


def test_degenerate_jets_conserve_too():
    model = model_of()
    for momenta in ([[5.0, 3.0, 4.0, 0.0]], [[5.0, 0.0, 0.0, 5.0], [2.0, 0.0, 0.0, 2.0]], [[0.14, 0.0, 0.0, 0.0]]):
        record = {"types": np.full(len(momenta), 3), "momenta": np.array(momenta)}
        found, _ = regress(model, record)
        np.testing.assert_allclose(found.sum(dim=0), np.sum(momenta, axis=0), rtol=0, atol=1e-12)


def test_the_loss_is_the_same_in_every_frame_and_absent_labels_take_no_part():
    model, generator = model_of(), torch.Generator().manual_seed(1)
    objective = Supervised({"true_momenta": Term(1.0, "mse")})

    def loss(*graphs):
        batch = collate(graphs)
        micro_batch = LoadedBatch(batch, "jets", {"true_momenta": 1.0}, ())
        return objective(model, model(batch, "jets", create_graph=True), micro_batch)[0]

    record = smeared()
    moved, spurions = boost(record, 5.0, generator)
    graph, other = graph_of(record, "jets"), graph_of(random_jet(np.random.default_rng(3)), "jets")
    value = loss(graph)
    assert float(value.detach()) > 0
    torch.testing.assert_close(loss(graph_of(moved, "jets", spurions=spurions)), value, rtol=1e-8, atol=0)
    torch.testing.assert_close(loss(graph, other), value, rtol=1e-12, atol=0)
    loss(graph, other).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert sum(float(g.abs().sum()) for g in gradients) > 0
    assert all(g.isfinite().all() for g in gradients)


def test_smearing_keeps_masses_directions_and_the_mean():
    true = [random_jet(np.random.default_rng(seed), particles=60) for seed in range(40)]
    measured = list(smear(true, 0))
    ratios = np.concatenate([m["momenta"][:, 0] / t["momenta"][:, 0] for m, t in zip(measured, true)])
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.02)
    first, before = measured[0]["momenta"], true[0]["momenta"]
    unit = [p[:, 1:] / np.linalg.norm(p[:, 1:], axis=1, keepdims=True) for p in (first, before)]
    np.testing.assert_allclose(unit[0], unit[1], atol=1e-6)
    np.testing.assert_array_equal(measured[0]["true_momenta"], before)
    np.testing.assert_allclose(measured[0]["total_momentum"], before.sum(axis=0))
    again = list(smear(true, 0))
    np.testing.assert_array_equal(again[3]["momenta"], measured[3]["momenta"])
    kinds, energies = np.array([1, 2, 3, 2]), np.array([100.0, 100.0, 1.0, 1e-4])
    from sciml.ingest.generate.smeared_jets import resolutions

    np.testing.assert_allclose(resolutions(energies, kinds), [0.01, np.hypot(0.08, 0.05), np.hypot(0.1, 0.01), 1.0])


def test_uncertainties_see_the_change_with_the_last_layer():
    """Features are the derivatives of the prediction in the rest frame with the stretch and the biases of vectors."""
    model = model_of()
    last = model.heads["four_momenta"].readout[-1]
    records = [smeared(seed, mass=mass, particles=number) for seed, mass, number in ((0, 80.0, 4), (1, 5.0, 3))]
    batch = collate([graph_of(record, "jets", model.dtype) for record in records])
    with captured(model, "jets") as found:
        predictions = model(batch, "jets")["true_momenta"]
    features = features_of(found, "true_momenta", batch)
    compared = model.heads["four_momenta"].compared("true_momenta", predictions, batch)
    assert features.shape == (7, 4, last.in_features + last.out_features)
    for row in range(7):
        for component in range(4):
            gradients = torch.autograd.grad(compared[row, component], [last.weight, last.bias], retain_graph=True)
            expected = torch.cat([gradients[0][0], gradients[1]])
            torch.testing.assert_close(features[row, component], expected, rtol=1e-7, atol=1e-9)
    sums = features[:4].sum(dim=0)  # the total does not change
    assert sums.abs().max() < 1e-9 * features[:4].abs().max()


def test_a_jet_of_one_particle_does_not_count_for_uncertainties(tmp_path):
    """Its momentum is the total, whatever the last layer is."""
    with StoreWriter(tmp_path / "jets", "hep", "first") as writer:
        for seed in range(12):
            record = smeared(seed, mass=80.0, particles=4)
            if seed == 5:
                record |= {key: values[:1] for key, values in record.items() if np.shape(values)[:1] == (4,)}
                record["total_momentum"] = record["true_momenta"][0]
            assert writer.add({**record, "id": f"j#{seed}", "group": f"j{seed}"})
    source, description = Source(writer.close(), 0, "jets"), describe_model(("jets",))
    description["heads"] = {"four_momenta": {"hidden": 8}}
    rows = labelled_rows(model_of(), [source], description, {"jets": Budget(max_graphs=4)}, 100)["true_momenta"]
    assert len(rows.labels) == 11 * 4
    found = reliability(rows, calibrate({"p": rows}, {"p": rows})["p"])
    assert 0.5 < found["rms_ratio"] < 2.0


def test_uncertainties_of_momenta_are_the_same_in_every_frame():
    model, generator, seen = model_of(), torch.Generator().manual_seed(1), []
    record = smeared(0, mass=80.0, particles=6)
    moved, spurions = boost(record, 5.0, generator)
    for graph in (graph_of(record, "jets"), graph_of(moved, "jets", spurions=spurions)):
        batch = collate([graph])
        with captured(model, "jets") as found:
            model(batch, "jets")
        features = features_of(found, "true_momenta", batch)
        seen.append(Rigidity(torch.eye(features.shape[2], dtype=torch.float64)).variance(features))
    torch.testing.assert_close(*seen, rtol=1e-6, atol=0)
