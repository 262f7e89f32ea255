"""Short real runs: what a run leaves behind, resuming to the bit, starting from a package, budgets of time."""

import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

import sciml
from sciml import build
from sciml.errors import UserError
from sciml.graph import KINDS
from sciml.train import run as run_module
from sciml.train.budget import TimeLimit
from sciml.train.checkpoint import (
    checkpoints_in,
    package_of_checkpoint,
    read_checkpoint,
    remove,
    step_of,
    validation_losses,
)
from sciml.train.module import Module
from sciml.train.throughput import CLOCKED
from sciml.verbs.train import train
from tests.helpers import random_crystal
from tests.small import graph_of, molecules_store, outputs, train_config

RESUMABLE = ("trainer.checkpoint_every=3", "trainer.val_every=3")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "package" / "weights.safetensors")


def checkpoint(run: Path, step: int) -> dict:
    return read_checkpoint(run / "checkpoints" / f"step={step:09d}")


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_is_a_model_with_the_weights_that_are_published(finished):
    run = finished / "run"
    for path in (run, run / "checkpoints", run / "checkpoints" / "step=000000006"):
        found = package_of_checkpoint(path)
        assert same(dict(found.model.state_dict()), weights(run)), path
        assert found.path.name == "step=000000006"
    published = sciml.load(run).config
    assert found.config == {key: published[key] for key in ("model", "datasets_of_domain")}
    assert package_of_checkpoint(finished) is None


def test_a_checkpoint_without_a_description_is_refused(finished, tmp_path):
    stored = checkpoint(finished / "run", 6)
    del stored["package"]
    torch.save(stored, tmp_path / "step=000000006.ckpt")
    with pytest.raises(UserError, match="does not describe its model"):
        package_of_checkpoint(tmp_path)


def test_a_run_folder_holds_everything(finished):
    run = finished / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 6
    assert [step_of(path) for path in checkpoints_in(run / "checkpoints")] == [6, 3]
    assert (run / "checkpoints" / "latest").read_text() == "step=000000006\n"
    assert {p.name for p in (run / "evaluation").iterdir()} >= {"metrics.json", "parity.png"}
    facts = json.loads((run / "provenance.jsonl").read_text())
    assert set(facts) >= {"command", "versions", "commit", "data", "machine", "started"}
    assert set(facts["data"]) == {str(finished / name) for name in ("molecules", "jets", "peptides")}
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in facts["data"].values())
    package = sciml.load(run)
    assert package.kinds == ["atoms", "jets", "residues"]
    assert package.datasets == ["first", "toy", "amber"]
    assert package.config["units"]["forces"] == "eV/Å"
    assert package.config["elements"] == [1, 6, 7, 8, 14, 29]
    assert "level of theory amber" in (run / "package" / "MODEL_CARD.md").read_text()


def test_the_report_is_one_page_without_outside_files(finished):
    page = (finished / "run" / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", page)
    assert not re.findall(r"<script|<link|@import|url\(|https?://", page)
    assert page.count("data:image/png;base64,") >= 3
    assert "forces MAE" in page


def test_metrics_have_every_target_once_a_step(finished):
    found = lines(finished / "run")
    training = [line for line in found if "train/loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in found if "val/loss" in line] == [3, 6]
    for line in training:
        targets = {name: value for name, value in line.items() if name.startswith("train/") and name != "train/loss"}
        assert {"train/energy", "train/forces", "train/label", "train/residue_types"} <= set(targets)
        assert all(math.isfinite(value) for value in targets.values())
        assert line["train/loss"] == pytest.approx(sum(targets.values()))


def test_joint_training_moves_every_head_and_the_backbone(finished):
    first, last = (checkpoint(finished / "run", step)["state_dict"] for step in (3, 6))
    still = [name for name in first if first[name].is_floating_point() and torch.equal(first[name], last[name])]
    moved = set(first) - set(still)
    for head in ("energy", "jet_class", "residue_type"):
        assert {n for n in first if n.startswith(f"model.heads.{head}.readout")} <= moved
    # What no record touches keeps its value: charge and spin (all neutral singlets) and constants.
    assert {n.removeprefix("model.") for n in still} <= {
        "backbone.embedding.charge",
        "backbone.embedding.spin",
        "backbone.cutoffs",
        "backbone.mean_neighbors",
        "backbone.coarse.cutoffs",
        "backbone.coarse.mean_children",
        "backbone.coarse.mean_neighbors",
        "heads.energy.references",
        "heads.energy.scales",
        "heads.energy.spreads",
    }


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(finished, workplace):
    shutil.move(workplace / "run", workplace / "first")
    assert train(train_config(workplace, *RESUMABLE)) == 0
    assert same(weights(workplace / "run"), weights(finished / "run"))
    shutil.rmtree(workplace / "run")
    assert train(train_config(workplace, "seed=1")) == 0
    assert not same(weights(workplace / "run"), weights(finished / "run"))


def test_a_run_lost_after_three_steps_resumes_to_the_same_bits(finished, workplace):
    run = workplace / "run"
    remove(run / "checkpoints" / "step=000000006")
    shutil.rmtree(run / "package")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "trai')  # the line at which the process was killed
    assert train(train_config(workplace, *RESUMABLE, "resume=true")) == 0
    assert same(weights(run), weights(finished / "run"))
    old, new = (checkpoint(folder / "run", 6) for folder in (finished, workplace))
    assert same(old["state_dict"], new["state_dict"])
    assert old["optimizer_states"][0]["state"].keys() == new["optimizer_states"][0]["state"].keys()
    for index, state in old["optimizer_states"][0]["state"].items():
        assert all(torch.equal(state[key], new["optimizer_states"][0]["state"][index][key]) for key in state)
    training = [line["step"] for line in lines(run) if "train/loss" in line]
    assert training == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines(run) if "val/loss" in line] == [3, 6]
    for before, after in zip(lines(finished / "run"), lines(run), strict=True):
        assert {k: v for k, v in before.items() if k not in CLOCKED} == {
            k: v for k, v in after.items() if k not in CLOCKED
        }


@pytest.mark.parametrize("micro_batches", [9, 10, 11])
def test_segments_join_to_the_same_bits_wherever_time_runs_out(finished, workplace, monkeypatch, capsys, micro_batches):
    """Three micro-batches make a step: the limit strikes at the end of a step and inside of one."""

    class Limit(TimeLimit):
        def __init__(self, seconds, start):
            super().__init__(1e9, start)
            self.seen = 0

        def on_train_batch_end(self, *arguments):
            self.seen += 1
            if self.seen == micro_batches:
                self.seconds = -1.0
            super().on_train_batch_end(*arguments)

    shutil.rmtree(workplace / "run")
    monkeypatch.setattr(run_module, "TimeLimit", Limit)
    segment = (*RESUMABLE, "trainer.segment_time=01:00:00")
    assert train(train_config(workplace, *segment)) == 143
    assert "resume=true" in capsys.readouterr().err
    assert not (workplace / "run" / "package").exists()
    stored = read_checkpoint(checkpoints_in(workplace / "run" / "checkpoints")[0])
    assert stored["total_steps"] == 6
    assert stored["global_step"] == -(-micro_batches // 3)
    monkeypatch.undo()
    assert train(train_config(workplace, *RESUMABLE, "resume=true")) == 0
    assert same(weights(workplace / "run"), weights(finished / "run"))
    assert [line["step"] for line in lines(workplace / "run") if "train/loss" in line] == [1, 2, 3, 4, 5, 6]


def test_resuming_a_finished_run_trains_no_further(finished, workplace):
    assert train(train_config(workplace, *RESUMABLE, "resume=true")) == 0
    assert same(weights(workplace / "run"), weights(finished / "run"))


@pytest.mark.parametrize(("loss", "step"), [(-1.0, 3), (1e9, 6)])
def test_the_weights_of_the_lowest_validation_loss_are_published_where_wanted(workplace, capsys, loss, step):
    first = workplace / "run" / "checkpoints" / "step=000000003" / "manifest.json"
    first.write_text(json.dumps(json.loads(first.read_text()) | {"validation_loss": loss}))
    assert train(train_config(workplace, *RESUMABLE, "trainer.publish=best", "resume=true")) == 0
    expected = package_of_checkpoint(workplace / "run" / "checkpoints" / f"step={step:09d}").model.state_dict()
    assert same(weights(workplace / "run"), dict(expected))
    assert ("the weights of step 3 are published, of validation loss -1" in capsys.readouterr().err) == (step == 3)


def test_a_validation_that_the_last_step_owes_is_made_up_for(finished, workplace, monkeypatch):
    """SIGTERM during the last step: saved without its validation, which the resumed run makes, and notes."""
    shutil.rmtree(workplace / "run")
    plain = Module.training_step

    def told_to_end(module, *arguments):
        if module.trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(module, *arguments)

    monkeypatch.setattr(Module, "training_step", told_to_end)
    assert train(train_config(workplace, *RESUMABLE)) == 143
    monkeypatch.undo()
    assert train(train_config(workplace, *RESUMABLE, "resume=true")) == 0
    assert same(weights(workplace / "run"), weights(finished / "run"))
    found, expected = ([li for li in lines(folder / "run") if "val/loss" in li] for folder in (workplace, finished))
    assert [line["step"] for line in found] == [line["step"] for line in expected] == [3, 6]
    losses = validation_losses(workplace / "run" / "checkpoints")
    assert {step_of(path) for path in losses} == {3, 6}


def test_more_steps_of_a_resumed_run_are_not_silently_left_out(workplace, capsys):
    assert train(train_config(workplace, *RESUMABLE, "trainer.max_steps=9", "resume=true")) == 0
    assert "trainer.max_steps=9: the run keeps the 6 steps that its schedule" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_not_overwritten(workplace):
    before = weights(workplace / "run")
    with pytest.raises(UserError, match=r"holds a run already; give another folder, or resume=true"):
        train(train_config(workplace))
    assert same(weights(workplace / "run"), before)


def test_a_budget_of_time_becomes_a_number_of_steps_that_is_stored(workplace, monkeypatch, capsys):
    """Steps are timed once; schedule, checkpoint and a resumed run all follow the number."""
    shutil.rmtree(workplace / "run")
    clock = SimpleNamespace(seconds=lambda: 7.0, graphs_per_step=lambda: dict.fromkeys(KINDS, 0.0))
    monkeypatch.setattr(run_module, "_time_steps", lambda *a, **k: (clock, 0.5))
    monkeypatch.setattr(run_module, "SAFETY", 1.0)
    budget = ("trainer.max_steps=null", "trainer.max_time=00:01:45", "optimizer.final_fraction=0.1")
    assert train(train_config(workplace, *budget, "trainer.checkpoint_every=6", stores=("molecules",))) == 0
    stored = read_checkpoint(checkpoints_in(workplace / "run" / "checkpoints")[-1])
    steps = stored["total_steps"]
    assert steps in (12, 13, 14)  # (105 s - the start - 10 * 0.5 s) / 7 s
    assert "7000 ms" in capsys.readouterr().err
    found = lines(workplace / "run")
    assert max(line["step"] for line in found) == steps
    rates = {line["step"]: line["learning_rate"] for line in found if "learning_rate" in line}
    assert rates[steps] == pytest.approx(0.1 * 0.003)
    monkeypatch.setattr(run_module, "_time_steps", lambda *a, **k: pytest.fail("timed twice"))
    for path in checkpoints_in(workplace / "run" / "checkpoints")[:-1]:
        remove(path)
    resumed = (*budget, "trainer.checkpoint_every=6", "resume=true")
    before = weights(workplace / "run")
    assert train(train_config(workplace, *resumed, stores=("molecules",))) == 0
    assert same(weights(workplace / "run"), before)


@pytest.mark.slow
def test_a_real_budget_of_time_is_kept(workplace):
    import time

    shutil.rmtree(workplace / "run")
    start = time.perf_counter()
    budget = ("trainer.max_steps=null", "trainer.max_time=00:00:30")
    assert train(train_config(workplace, *budget, stores=("molecules",))) == 0
    assert 10 < time.perf_counter() - start < 60
    assert lines(workplace / "run")[-1]["step"] >= 10


def test_init_starts_from_the_weights_of_a_package(finished, workplace, capsys):
    """With a learning rate of nothing the outputs stay those of the package; its levels of theory come first, and a new
    one starts as one of them.
    """
    molecules_store(workplace / "new", dataset="other", seed=5)
    shutil.move(workplace / "run", workplace / "old")
    still = ("optimizer.learning_rate=1e-12", "trainer.max_steps=1", f"init={workplace / 'old'}")
    assert train(train_config(workplace, *still, stores=("new",))) == 0
    old, new = sciml.load(workplace / "old"), sciml.load(workplace / "run")
    assert new.datasets == ["first", "toy", "amber", "other"]
    assert set(new.config["model"]["heads"]) == {"energy", "jet_class", "residue_type"}
    assert "starting from" in capsys.readouterr().err
    import numpy as np

    graph = graph_of(random_crystal(np.random.default_rng(0)), "atoms", torch.float32, dataset=0)
    first, second = outputs(old.model, "atoms", graph), outputs(new.model, "atoms", graph)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-5)
    embedding = new.model.backbone.embedding.dataset.weight
    assert any(torch.allclose(embedding[3], known, rtol=1e-4, atol=1e-6) for known in embedding[:3])
    known = old.config["model"]["context"]["references"]
    assert {k: v for k, v in new.config["model"]["context"]["references"].items() if k in known} == known


def test_the_initial_model_has_the_outputs_of_its_package_to_the_bit(finished):
    import numpy as np

    package = sciml.load(finished / "run")
    model, description = build.initial_model(package.config["model"], package)
    assert description == package.config["model"]
    for p, q in zip(model.parameters(), package.model.parameters(), strict=True):
        assert torch.equal(p, q)
    graph = graph_of(random_crystal(np.random.default_rng(0)), "atoms", torch.float32, dataset=0)
    first, second = outputs(package.model, "atoms", graph), outputs(model.eval(), "atoms", graph)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_loss_that_is_no_number_ends_the_run_with_a_sentence(workplace):
    """Nothing is published, and every line of the metrics is JSON that other programs can read."""
    shutil.rmtree(workplace / "run")
    with pytest.raises(UserError, match=r"step \d+: \S+ is nan, .*lower optimizer\.learning_rate"):
        train(train_config(workplace, "optimizer.learning_rate=1e30", "optimizer.warmup_steps=0"))
    assert not (workplace / "run" / "package").exists()
    text = (workplace / "run" / "metrics.jsonl").read_text()
    assert all(math.isfinite(value) for line in text.splitlines() for value in json.loads(line).values())
