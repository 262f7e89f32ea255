"""Runs by every objective: stores without labels, losses per store and domain, resuming with noise to the same bits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sciml
from sciml import build
from sciml.config import configure
from sciml.data.store import StoreWriter
from sciml.errors import UserError
from sciml.train.checkpoint import remove
from sciml.train.throughput import CLOCKED
from sciml.train.validation import validation_lines
from sciml.verbs.train import train
from tests.helpers import random_jet, random_molecule
from tests.small import molecules_store, peptides_store, train_config

EVERY = (
    "objective.denoise.weight.atoms=1.0",
    "objective.denoise.weight.residues=0.5",
    "objective.denoise.fraction=0.5",
    "objective.masked.weight.atoms=0.2",
    "objective.masked.weight.jets=0.3",
    "objective.masked.fraction=0.5",
)
STORES = ("molecules", "structures", "jets", "peptides")
KEPT = ("trainer.checkpoint_every=2", "trainer.val_every=2", "trainer.max_steps=4")


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A folder with ``run``, trained on molecules with labels, and on molecules, jets and peptides without any."""
    folder = tmp_path_factory.mktemp("pretrained")
    rng = np.random.default_rng(3)
    molecules_store(folder / "molecules")
    peptides_store(folder / "peptides", labelled=False)
    with StoreWriter(folder / "structures", "materials", "second") as writer:
        for index in range(8):
            record = {k: v for k, v in random_molecule(rng, atoms=6).items() if k not in ("energy", "forces")}
            assert writer.add({**record, "id": f"s#{index}", "group": f"s{index}"})
    writer.close()
    with StoreWriter(folder / "jets", "hep", "toy") as writer:
        for index in range(8):
            record = {key: value for key, value in random_jet(rng, particles=6).items() if key != "label"}
            assert writer.add({**record, "id": f"j#{index}", "group": f"j{index}"})
    writer.close()
    assert train(train_config(folder, *EVERY, *KEPT, stores=STORES)) == 0
    return folder


def test_stores_without_any_label_train_by_denoising_and_masked_types(pretrained):
    training = [line for line in lines(pretrained / "run") if "train/loss" in line]
    assert len(training) == 4
    for target in ("energy", "forces", "residue_types", "noise_atoms", "noise_residues", "masked_atoms", "masked_jets"):
        assert any(line.get(f"train/{target}", 0.0) > 0 for line in training), target
    package = sciml.load(pretrained / "run")
    assert set(package.config["model"]["heads"]) == {
        *("energy", "residue_type"),
        *("denoise_atoms", "denoise_residues", "masked_atoms", "masked_jets"),
    }
    assert package.kinds == ["atoms", "jets", "residues"]


def test_the_losses_of_stores_and_domains_are_the_parts_of_the_whole(pretrained):
    """Weighted by their labels, which the validation's batches hold, the means of the stores are the whole mean."""
    config = train_config(pretrained, *EVERY, stores=STORES)
    splits = build.open_splits(config, lambda path: build.open_data(path), [])
    data = build.build_data(config, splits, build.describe(config, splits, ["first", "second", "toy", "amber"]))
    counts: dict[tuple[str, str], float] = {}
    for kind in data.kinds:
        for index, source in enumerate(splits.validation):
            records = np.flatnonzero(source.data.serves(kind))
            for target, number in data.validation.counts(kind, index, records).items():
                counts[source.name, target] = counts.get((source.name, target), 0.0) + number
    found = [line for line in lines(pretrained / "run") if "val/loss" in line][-1]
    whole = {name.removeprefix("val/") for name in found if name.count("/") == 1} - {"loss"}
    assert {"energy", "noise_atoms", "masked_atoms"} <= whole
    for target in whole:
        parts = {name: counts.get((name, target), 0.0) for name in STORES}
        means = {name: found[f"val/store/{name}/{target}"] for name, number in parts.items() if number}
        total = sum(parts[name] * mean for name, mean in means.items()) / max(sum(parts.values()), 1.0)
        assert total == pytest.approx(found[f"val/{target}"], rel=1e-5), target
        assert not [name for name, number in parts.items() if not number and f"val/store/{name}/{target}" in found]
    assert found["val/domain/materials/energy"] == pytest.approx(found["val/energy"], rel=1e-5)


def test_samples_are_corrupted_only_where_a_head_learns_of_it(pretrained):
    dropped = [f"heads.{name}=null" for name in ("denoise_atoms", "masked_jets", "jet_class")]
    config = train_config(pretrained, *EVERY, *dropped, stores=STORES)
    splits = build.open_splits(config, lambda path: build.open_data(path), [])
    description = build.describe(config, splits, ["first", "second", "toy", "amber"])
    found = {corruption.target for corruption in build.build_corruptions(config.objective, description["heads"])}
    assert found == {"noise_residues", "masked_atoms"}


@pytest.mark.parametrize("group", ["direct", "long_range"])
def test_every_group_of_heads_serves_pretraining(group):
    recipe = "experiment=pretrain_base"
    default, other = (build.weighted_heads(configure("train", [recipe, *more])) for more in ((), (f"heads={group}",)))
    assert other == default


def test_a_run_with_noise_resumes_to_the_same_bits(pretrained, tmp_path):
    folder = Path(shutil.copytree(pretrained, tmp_path / "copy"))
    remove(folder / "run" / "checkpoints" / "step=000000004")
    shutil.rmtree(folder / "run" / "package")
    assert train(train_config(folder, *EVERY, *KEPT, "resume=true", stores=STORES)) == 0
    first, second = (load_file(one / "run" / "package" / "weights.safetensors") for one in (pretrained, folder))
    assert all(torch.equal(first[name], second[name]) for name in first)
    before, after = (
        [{k: v for k, v in line.items() if k not in CLOCKED} for line in lines(one / "run")]
        for one in (pretrained, folder)
    )
    assert before == after


def test_a_pretrained_model_starts_supervised_training_where_it_stood(pretrained):
    """Fine-tuning on labels alone keeps the objectives' heads, and before its first step the model is the package's."""
    config = train_config(pretrained, f"init={pretrained / 'run'}", stores=("molecules",))
    splits = build.open_splits(config, lambda path: build.open_data(path), ["first", "second", "toy", "amber"])
    package = sciml.load(pretrained / "run")
    description = build.describe(config, splits, list(package.datasets))
    model, description = build.initial_model(description, package)
    assert "denoise_atoms" in description["heads"]
    old, new = package.model.state_dict(), model.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_jets_without_labels_are_refused_only_where_nothing_else_is_learned_of_them(pretrained):
    words = ("data.bins_per_step={atoms: 0, jets: 1, residues: 0}",)
    config = train_config(pretrained, *words, stores=("jets",))
    splits = build.open_splits(config, lambda path: build.open_data(path), [])
    with pytest.raises(UserError, match="no jet has a label"):
        build.describe(config, splits, ["toy"])
    masked = train_config(pretrained, *words, "objective.masked.weight.jets=1.0", stores=("jets",))
    assert list(build.describe(masked, splits, ["toy"])["heads"]) == ["masked_jets"]


def test_the_validation_is_told_for_all_data_and_for_each_of_several_stores():
    values = {"val/loss": 3.0, "val/energy": 1.0, "val/store/a/energy": 0.5, "val/domain/materials/energy": 1.0}
    assert validation_lines(values) == [("", "energy 1  loss 3")]
    told = validation_lines({**values, "val/store/b/energy": 1.5})
    assert told == [("", "energy 1  loss 3"), ("of a: ", "energy 0.5"), ("of b: ", "energy 1.5")]
