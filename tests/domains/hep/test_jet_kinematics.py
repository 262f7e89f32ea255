"""True mass and transverse momentum: read from files, regressed as invariant corrections, beside no correction."""

import json

import numpy as np
import pytest
import torch

from sciml.config import configure
from sciml.data.checks import check_record
from sciml.data.graph_dataset import LoadedBatch
from sciml.data.source import Source
from sciml.data.store import StoreWriter
from sciml.errors import BadRecord, UserError
from sciml.evaluate.measure import baseline_predictions, measure_numbers
from sciml.evaluate.predict import Columns
from sciml.graph import collate
from sciml.ingest.generate.smeared_jets import write
from sciml.ingest.ingest import ingest
from sciml.models.model import Model, build_model
from sciml.objectives.supervised import Supervised, Term
from sciml.physics import lorentz
from sciml.verbs.train import train
from tests.helpers import lorentz_transform, random_jet
from tests.small import describe_model, graph_of, jets_store, outputs, train_config


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


def test_a_jet_without_true_values_takes_no_part_in_the_gradient():
    model = model_of(drawn=True)
    records = jets(3)
    bare = {key: value for key, value in records[2].items() if not key.startswith("true")}
    loss = Supervised({name: Term(1.0, "huber") for name in ("true_mass", "true_pt")})
    gradients = []
    for chosen in (records[:2], [*records[:2], bare]):
        model.zero_grad()
        batch = collate([graph_of(record, "jets") for record in chosen])
        loaded = LoadedBatch(batch, "jets", {"true_mass": 2.0, "true_pt": 2.0}, ())
        loss(model, model(batch, "jets", create_graph=True), loaded)[0].backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for found, expected in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_smeared_jets_have_the_mass_and_transverse_momentum_of_the_true_ones(tmp_path):
    source = jets_store(tmp_path / "true", records=4)
    for true, jet in zip(source, write(source.path, tmp_path / "smeared", seed=0), strict=True):
        total = np.asarray(true["momenta"], np.float64).sum(axis=0)
        assert jet["true_mass"] ** 2 == pytest.approx(total[0] ** 2 - (total[1:] ** 2).sum(), rel=1e-3)
        assert jet["true_pt"] == pytest.approx(np.hypot(*total[1:3]), rel=1e-6)


def test_the_recipe_trains_both_on_jets_of_which_some_have_no_true_values(tmp_path, capsys):
    source = write(jets_store(tmp_path / "true", records=24).path, tmp_path / "smeared", seed=0)
    with StoreWriter(tmp_path / "half", "hep", "toy", metadata={"classes": source.manifest["classes"]}) as writer:
        for index, jet in enumerate(source):
            assert writer.add({k: v for k, v in jet.items() if index % 2 or k not in ("true_mass", "true_pt")})
    writer.close()
    small = ("model.channels=4", "model.radial.hidden=[8]", "heads.jet_kinematics.hidden=8")
    quick = ("trainer.max_steps=4", "trainer.max_time=null", "trainer.progress=false", "trainer.log_every=1")
    batches = ("data.val_fraction=0.3", "data.test_fraction=0.3", "data.batch.jets.max_graphs=4", "logger=disabled")
    words = (f"train={tmp_path / 'half'}", f"run_dir={tmp_path / 'run'}", *small, *quick, *batches)
    assert train(configure("train", ["experiment=jet_kinematics", *words])) == 0
    printed = capsys.readouterr().out
    assert "left out" not in printed
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())["targets"]
    for name in ("true_mass", "true_pt"):
        losses = [line[f"train/{name}"] for line in lines if f"train/{name}" in line]
        assert len(losses) == 4
        assert np.isfinite(losses).all()
        assert {"response", "resolution", "baseline_resolution"} <= found[name].keys()
        assert f"{name} MAE" in printed


def test_the_head_alone_is_trained_or_refused(tmp_path):
    jets_store(tmp_path / "bare")
    words = ("heads.jet_kinematics={hidden: 8}", "objective.label.weight=0")
    with pytest.raises(UserError, match=r"heads.jet_kinematics: no jet .* true_mass or true_pt.*jet_kinematics=null"):
        train(train_config(tmp_path, *words, stores=("bare",)))
    write(tmp_path / "bare", tmp_path / "smeared", seed=0)
    assert train(train_config(tmp_path, *words, "trainer.max_steps=2", stores=("smeared",))) == 0
    assert "train/true_mass" in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_head_of_which_the_loss_knows_nothing_is_refused_before_files_are_read(tmp_path):
    words = ("heads.affinity={name: target, kind: jets}",)
    with pytest.raises(
        UserError, match=r"heads.affinity: the loss has no term for affinity.*objective.others.affinity="
    ):
        train(train_config(tmp_path, *words, stores=("nowhere",)))
