"""True mass and transverse momentum: read from files, regressed as invariant corrections, beside no correction."""

import numpy as np
import pytest
import torch

from sciml.data.checks import check_record
from sciml.data.graph_dataset import LoadedBatch
from sciml.data.source import Source
from sciml.errors import BadRecord
from sciml.evaluate.measure import baseline_predictions, measure_numbers
from sciml.evaluate.predict import Columns
from sciml.graph import collate
from sciml.ingest.ingest import ingest
from sciml.models.model import Model, build_model
from sciml.objectives.supervised import Supervised, Term
from sciml.physics import lorentz
from tests.helpers import lorentz_transform, random_jet
from tests.small import describe_model, graph_of, outputs


def model_of(drawn: bool) -> Model:
    torch.manual_seed(0)
    description = describe_model(("jets",))
    description["heads"] = {"jet_kinematics": {"hidden": 8}}
    model = build_model(description).double()
    for parameter in model.parameters():
        if drawn and not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def jets(number: int) -> list[dict]:
    rng = np.random.default_rng(0)
    found = []
    for index in range(number):
        record = random_jet(rng, particles=6, mass=40.0 + 20 * index)
        total = np.asarray(record["momenta"], np.float64).sum(axis=0)
        mass, pt = np.sqrt(total[0] ** 2 - (total[1:] ** 2).sum()), np.hypot(*total[1:3])
        found.append({**record, "true_mass": 0.9 * mass, "true_pt": 1.05 * pt})
    return found


def test_without_training_the_measured_values_come_back():
    records = jets(4)
    found = outputs(model_of(drawn=False), "jets", *(graph_of(record, "jets") for record in records))
    np.testing.assert_allclose(found["true_mass"], [r["true_mass"] / 0.9 for r in records], rtol=1e-5)
    np.testing.assert_allclose(found["true_pt"], [r["true_pt"] / 1.05 for r in records], rtol=1e-6)


def test_boosts_change_nothing_where_the_spurions_are_boosted_too():
    model, generator = model_of(drawn=True), torch.Generator().manual_seed(0)
    for record in jets(3):
        moved, spurions = lorentz_transform(record, lorentz.random_boost(3.0, generator))
        before = outputs(model, "jets", graph_of(record, "jets"))
        after = outputs(model, "jets", graph_of(moved, "jets", spurions=spurions))
        plain = outputs(model_of(drawn=False), "jets", graph_of(record, "jets"))
        for name in ("true_mass", "true_pt"):
            torch.testing.assert_close(after[name], before[name], rtol=1e-8, atol=0)
            assert abs(float(before[name] / plain[name]) - 1) > 1e-3  # the network did change something


def test_a_common_factor_is_learned():
    model = model_of(drawn=False).train()
    batch = collate([graph_of(record, "jets") for record in jets(4)])
    loss = Supervised({name: Term(1.0, "mse") for name in ("true_mass", "true_pt")})
    loaded = LoadedBatch(batch, "jets", {"true_mass": 4.0, "true_pt": 4.0}, ())
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(40):
        optimizer.zero_grad()
        value, shares = loss(model, model(batch, "jets", create_graph=True), loaded)
        if step == 0:
            assert float(shares["true_mass"].detach()) == pytest.approx(np.log(0.9) ** 2, rel=1e-3)
            assert float(shares["true_pt"].detach()) == pytest.approx(np.log(1.05) ** 2, rel=1e-3)
        value.backward()
        optimizer.step()
    assert float(value.detach()) < 1e-4


def test_generated_jets_of_a_published_file_give_the_labels(shared_data, tmp_path):
    import pyarrow.parquet as pq

    path = shared_data / "jets" / "JetClassII_example.parquet"
    table = pq.read_table(path, columns=["genjet_pt", "genjet_eta", "genjet_energy"]).to_pydict()
    store = ingest(path, tmp_path / "s")
    pt, eta, energy = (np.array(table[name], np.float64) for name in table)
    has = store.has("true_pt")
    assert has.sum() > 90
    assert np.array_equal(np.flatnonzero(has), np.flatnonzero((pt > 0) & (energy > pt * np.cosh(eta))))
    for index in np.flatnonzero(has)[:20]:
        assert store[index]["true_pt"] == pytest.approx(pt[index], rel=1e-6)
        assert store[index]["true_mass"] ** 2 == pytest.approx(
            energy[index] ** 2 - (pt[index] * np.cosh(eta[index])) ** 2, rel=1e-3
        )
    rows = np.flatnonzero(store.has("true_mass"))
    labels = np.array([store[int(row)]["true_mass"] for row in rows], np.float64)
    columns = Columns(labels, labels, store.sizes[rows], rows)
    measured = baseline_predictions("true_mass", Source(store, 0), columns, {})
    found = measure_numbers("true_mass", columns, measured)["true_mass"]
    assert found["mae"] == 0.0
    assert found["response"] == 1.0
    assert 0.8 < found["baseline_response"] < 1.2  # a detector changes masses a little
    assert 0.01 < found["baseline_resolution"] < 0.5


def test_impossible_labels_are_refused():
    with pytest.raises(BadRecord, match=r"true_mass: -1 GeV, expected more than 0"):
        check_record({**jets(1)[0], "true_mass": -1.0}, "hep")
