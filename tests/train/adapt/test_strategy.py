"""What a fine-tuning trains, that it starts at the base model, and that nothing of it but plain weights is left."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import parametrize

import sciml
from sciml import build
from sciml.config import configure
from sciml.data.source import Source
from sciml.data.store import Store, StoreWriter
from sciml.errors import UserError
from sciml.graph import KINDS
from sciml.models.block import Convolution
from sciml.package import Package
from sciml.train.adapt import parity
from sciml.train.adapt.parity import assert_parity, first_difference
from sciml.train.adapt.strategy import (
    LowRank,
    add_low_rank,
    choose_trained,
    learning_rate_factors,
    merge_low_rank,
    stages,
    trained_parameters,
)
from sciml.train.checkpoint import newest_checkpoint, package_of_checkpoint, remove
from sciml.train.optimizer import build_optimizer
from sciml.verbs.train import train
from tests.helpers import random_jet, random_molecule, random_peptide
from tests.small import ALL_SCALES, describe_model, graph_of, molecules_store, outputs, random_model, train_config

OPTIONS = {"name": "full", "blocks": 1, "rank": 2, "alpha": 3.0, "layer_decay": 1.0, "parity": True}
OPTIMIZER = SimpleNamespace(learning_rate=0.01, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8)


def options(**given):
    return SimpleNamespace(**{**OPTIONS, **given})


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_stages_follow_the_computation():
    model = random_model(**{**ALL_SCALES, "layers": 2, "layers_after": 2})
    names = ["embedding", "blocks.0", "blocks.1", "coarse", "blocks.2", "blocks.3"]
    assert stages(model) == [*(f"backbone.{name}" for name in names), "heads"]
    known = tuple(f"{stage}." for stage in stages(model))
    assert all(name.startswith(known) for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", ["frozen", "last_n"])
def test_the_backbone_stays_but_for_the_last_blocks(name):
    model = random_model(torch.float32, **ALL_SCALES)
    choose_trained(model, options(name=name, blocks=2), ["energy"])
    parts = ("heads.energy.", *(("backbone.coarse.", "backbone.blocks.1.") if name == "last_n" else ()))
    assert trained(model) == {key for key, _ in model.named_parameters() if key.startswith(parts)}


def test_heads_without_data_are_not_trained():
    model = random_model(torch.float32)
    choose_trained(model, options(), ["energy"])
    assert not any(name.startswith(("heads.jet_class", "heads.residue_type")) for name in trained(model))
    assert {name for name, _ in model.named_parameters() if name.startswith("backbone")} <= trained(model)


def test_frozen_parameters_have_no_state_and_deeper_layers_a_lower_rate():
    model = random_model(torch.float32)
    choose_trained(model, options(name="last_n"), ["energy"])
    factors = learning_rate_factors(model, 0.5)
    assert factors["heads.energy.readout.0.weight"] == 1.0
    assert factors["backbone.blocks.1.linear_in.weights"] == 0.5
    assert factors["backbone.blocks.0.linear_in.weights"] == 0.25
    assert factors["backbone.embedding.types.weight"] == 0.125
    optimizer = build_optimizer(model, OPTIMIZER, factors=factors)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(trained(model))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == pytest.approx(0.01 * factors[name]), name


@pytest.mark.parametrize("backbone", [ALL_SCALES, {}])
def test_updates_of_low_rank_start_at_zero_and_merge_into_equal_outputs(backbone):
    rng = np.random.default_rng(0)
    records = {
        "atoms": random_molecule(rng, atoms=5),
        "jets": random_jet(rng, particles=6),
        "residues": random_peptide(rng),
    }
    graphs = {kind: graph_of(record, kind) for kind, record in records.items()}
    model = random_model(**backbone)
    names = list(model.state_dict())
    first = {kind: outputs(model, kind, graphs[kind]) for kind in KINDS}
    add_low_rank(model, 2, 3.0)
    updates = [module for module in model.modules() if isinstance(module, LowRank)]
    assert len(updates) > 10
    convolutions = [module for module in model.backbone.modules() if isinstance(module, Convolution)]
    assert convolutions
    assert all(parametrize.is_parametrized(module, "weight") for module in convolutions)
    maps = [update for update in updates if update.order == (1, 0, 2)]
    assert [update.a.shape[0] for update in maps] == [module.weight.shape[1] for module in convolutions]  # paths
    for kind in KINDS:
        assert all(torch.equal(value, first[kind][name]) for name, value in outputs(model, kind, graphs[kind]).items())
    with torch.no_grad():
        for update in updates:
            update.b.normal_(std=0.3)
    moved = {kind: outputs(model, kind, graphs[kind]) for kind in KINDS}
    assert not torch.allclose(moved["atoms"]["forces"], first["atoms"]["forces"])
    merge_low_rank(model)
    assert sorted(model.state_dict()) == sorted(names)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    for kind in KINDS:
        for name, value in outputs(model, kind, graphs[kind]).items():
            torch.testing.assert_close(value, moved[kind][name], rtol=1e-12, atol=1e-12, equal_nan=True)


def test_low_rank_trains_updates_heads_and_embeddings_alone():
    model = random_model(torch.float32)
    every = trained_parameters(model)
    choose_trained(model, options(name="lora"), ["energy"])
    kinds = ("parametrizations", "heads.energy.", "backbone.embedding.types", "domain", "dataset", "coarse_types")
    assert all(any(part in name for part in kinds) for name in trained(model))
    assert not any(name.endswith("original") for name in trained(model))
    assert trained_parameters(model) < every


@pytest.fixture
def package(tmp_path):
    model = random_model(torch.float32)
    store = molecules_store(tmp_path / "store", records=4)
    config = {"model": describe_model(), "elements": store.manifest["elements"]}
    return Package(model, config, tmp_path), [Source(Store(store.path), 0, "store")]


def test_a_model_that_is_its_base_passes_and_one_that_is_not_is_named(package):
    base, sources = package
    model, description = build.initial_model(describe_model(), base)
    assert assert_parity(model, base, sources, description) == 2
    with torch.no_grad():
        model.heads["energy"].readout[0].bias[0] += 1e-3
    with pytest.raises(
        UserError, match=r"energy of m#0 .*difference of .*the package's is heads.energy.readout.0.bias"
    ):
        assert_parity(model, base, sources, description)
    with torch.no_grad():
        model.heads["energy"].readout[0].bias[0] = base.model.heads["energy"].readout[0].bias[0]
        model.backbone.blocks[1].radial.basis.weight.mul_(1.01)
    with pytest.raises(UserError, match=r"fine features of m#0 .*is backbone.blocks.1.radial.basis.weight"):
        assert_parity(model, base, sources, description)


def test_a_new_level_of_theory_is_compared_at_a_known_one(package):
    base, sources = package
    new = describe_model()
    new["context"]["datasets"] = ["first", "second", "third"]
    model, description = build.initial_model(new, base)
    assert assert_parity(model, base, [Source(sources[0].data, 2, "store")], description) == 2


def test_the_column_of_a_file_makes_no_other_head(package):
    base, sources = package
    base.config["model"]["heads"]["energy"] = {**base.config["model"]["heads"]["energy"], "column": "theirs"}
    model, _ = build.initial_model(describe_model(), Package(base.model, {"model": describe_model()}, base.path))
    with torch.no_grad():
        model.heads["energy"].readout[0].bias[0] += 1e-3
    with pytest.raises(UserError, match="energy of m#0"):
        assert_parity(model, base, sources, describe_model())


def test_few_records_are_read_to_find_some_that_the_base_knows(package, monkeypatch):
    base, sources = package
    base.config["elements"] = [92]
    monkeypatch.setattr(parity, "CANDIDATES", 3)
    read = []
    monkeypatch.setattr(Store, "__getitem__", lambda store, index: read.append(index) or {"types": [1]})
    model, description = build.initial_model(describe_model(), base)
    assert assert_parity(model, base, sources, description) == 0
    assert read == [0, 1, 3]  # of four


def test_an_element_without_reference_at_a_known_level_is_compared_without_it(package):
    base, sources = package
    known = base.config["model"]["context"]["references"]["first"]
    base.config["model"]["context"]["references"]["first"] = {k: v for k, v in known.items() if k != "6"}
    new = describe_model()
    new["context"]["references"]["first"]["6"] = 100.0  # what the new data add
    model, description = build.initial_model(new, base)
    assert assert_parity(model, base, sources, description) == 2
    with torch.no_grad():
        model.heads["energy"].readout[0].bias[0] += 1e-3
    with pytest.raises(UserError, match="interaction_energy of m#0"):
        assert_parity(model, base, sources, description)


def test_levels_that_were_added_are_no_difference_from_the_base(package):
    base, _ = package
    new = describe_model()
    new["context"]["datasets"] = ["first", "second", "third"]
    model, _ = build.initial_model(new, base)
    assert first_difference(model, base.model) is None
    with torch.no_grad():
        model.heads["energy"].readout[0].bias[0] += 1e-3
    assert first_difference(model, base.model) == "heads.energy.readout.0.bias"


def test_a_run_stops_before_training_where_the_model_is_not_its_base(tmp_path):
    molecules_store(tmp_path / "molecules")
    assert train(train_config(tmp_path, "trainer.max_steps=1", stores=("molecules",))) == 0
    shutil.move(tmp_path / "run", tmp_path / "old")
    # Forces that are read out need vectors, which the package does not give.
    words = (f"init={tmp_path / 'old'}", "trainer.max_steps=1", "heads.energy={name: direct_forces}", "uncertainty=0")
    with pytest.raises(UserError, match=r"fine features of m#\d+ .*heads that read no higher degrees"):
        train(train_config(tmp_path, *words, stores=("molecules",)))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "package").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("given", "graphs of tasks of the package"),
        ("where they were", "graphs of tasks of the package"),
        ("gone", "was not compared with"),
    ],
)
def test_where_the_base_reads_no_training_record_its_own_tasks_are_compared(tmp_path, capsys, data, said):
    rng = np.random.default_rng(0)
    for name, elements in (("noble", (2, 10)), ("new", (3, 5))):  # of the noble gases no sample is embedded
        with StoreWriter(tmp_path / name, "materials", name) as writer:
            for index in range(12):
                record = random_molecule(rng, atoms=5, elements=elements)
                assert writer.add({**record, "id": f"m#{index}", "group": f"g{index}"})
    assert train(train_config(tmp_path, "trainer.max_steps=1", stores=("noble",))) == 0
    shutil.move(tmp_path / "run", tmp_path / "old")
    words = [f"init={tmp_path / 'old'}", "trainer.max_steps=1", "uncertainty=0"]
    if data != "where they were":
        shutil.move(tmp_path / "noble", tmp_path / "elsewhere")
    words += [f"adapt.retained.stores={tmp_path / 'elsewhere'}"] if data == "given" else []
    assert train(train_config(tmp_path, *words, stores=("new",))) == 0
    assert said in capsys.readouterr().err


def test_what_needs_a_package_is_refused_without_one():
    for word, found in (("adapt=lora", "adapt: found lora"), ("adapt.layer_decay=0.5", "adapt.layer_decay: found 0.5")):
        with pytest.raises(UserError, match=f"{found} without init, expected init=PACKAGE"):
            configure("train", ["train=samples:metals", word])


def test_a_low_rank_run_resumes_to_the_bit_and_publishes_plain_weights(workplace):
    molecules_store(workplace / "new", dataset="first", seed=5)
    shutil.move(workplace / "run", workplace / "old")
    words = (f"init={workplace / 'old'}", "adapt=lora", "adapt.rank=2", "adapt.layer_decay=0.8", "trainer.val_every=2")
    words = (*words, "trainer.checkpoint_every=2", "trainer.max_steps=4", "optimizer.weight_decay=0.1")
    assert train(train_config(workplace, *words, stores=("new",))) == 0
    run = workplace / "run"
    weights, base = (load_file(path / "package" / "weights.safetensors") for path in (run, workplace / "old"))
    assert weights.keys() == base.keys()
    assert not torch.equal(weights["backbone.blocks.0.linear_in.weights"], base["backbone.blocks.0.linear_in.weights"])
    for name in weights:  # heads of other kinds
        if name.startswith(("heads.jet_class", "heads.residue_type")):
            assert torch.equal(weights[name], base[name]), name
    moved = [name for name in weights if name.endswith("convolution.weight") and not name.startswith("heads")]
    assert moved
    assert any(not torch.equal(weights[name], base[name]) for name in moved)
    stored = package_of_checkpoint(run)
    assert "low_rank" not in stored.config
    for name, value in stored.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], msg=name)
    assert "adapt" not in str(sciml.load(run).config)
    shutil.move(run, workplace / "whole")
    shutil.copytree(workplace / "whole", run)
    shutil.rmtree(run / "package")
    remove(newest_checkpoint(run / "checkpoints"))
    assert train(train_config(workplace, *words, "resume=true", stores=("new",))) == 0
    resumed = load_file(run / "package" / "weights.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in resumed.items())
