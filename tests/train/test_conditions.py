"""Precisions, terms without weight, machines that lack what is asked for, folders that hold no run, and signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sciml
from sciml.errors import UserError
from sciml.files import write_text
from sciml.train import run as run_module
from sciml.train.checkpoint import checkpoints_in, read_checkpoint
from sciml.train.resume import check_resumed, resume_point
from sciml.train.run import _validation_interval
from sciml.verbs.evaluate import evaluate
from sciml.verbs.train import train
from tests.small import train_config

OF_KIND = {"atoms": "molecules", "jets": "jets", "residues": "peptides"}


@pytest.fixture
def place(finished, tmp_path) -> Path:
    """The three stores without a run."""
    for name in OF_KIND.values():
        shutil.copytree(finished / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("kind", OF_KIND)
@pytest.mark.parametrize(("precision", "steps"), [("64", 1), ("bf16-mixed", 2)])
def test_every_kind_trains_in_every_precision(place, kind, precision, steps):
    words = (f"trainer.precision={precision}", f"trainer.max_steps={steps}", "optimizer.gradient_clip=1.0")
    words += tuple(f"data.bins_per_step.{other}=0" for other in OF_KIND if other != kind)
    assert train(train_config(place, *words, stores=(OF_KIND[kind],))) == 0
    weights = load_file(place / "run" / "package" / "weights.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    expected = torch.float64 if precision == "64" else torch.float32
    assert {value.dtype for name, value in weights.items() if "readout" in name} == {expected}


def test_a_head_whose_targets_have_no_weight_is_left_out(place):
    words = ("trainer.max_steps=1", "objective.label.weight=0", "objective.residue_types.weight=0")
    assert train(train_config(place, *words)) == 0
    model = sciml.load(place / "run").config["model"]
    assert (list(model["heads"]), model["kinds"]) == (["energy"], ["atoms"])


def test_heads_without_any_weight_are_refused(place):
    words = ("heads.energy=null", "heads.residue_type=null", "objective.label.weight=0")
    with pytest.raises(UserError, match=r"objective: no target of the heads jet_class, .* has a weight above 0"):
        train(train_config(place, *words))


def test_a_package_s_kind_without_weight_is_not_trained(finished, place):
    words = (f"init={finished / 'run'}", "trainer.max_steps=1", "objective.label.weight=0")
    assert train(train_config(place, *words)) == 0
    assert "train/label" not in (place / "run" / "metrics.jsonl").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_a_sentence_before_data_are_read(finished, place):
    with pytest.raises(UserError, match=r"trainer\.accelerator: found gpu, but torch finds no GPU"):
        train(train_config(place, "trainer=gpu", "trainer.max_steps=1", stores=("absent",)))
    from sciml.config import configure

    with pytest.raises(UserError, match=r"^device: found gpu, but torch finds no GPU"):
        evaluate(configure("evaluate", [f"package={finished / 'run'}", "store=absent", "device=gpu"]))
    assert not (place / "run").exists()


def test_kernels_that_are_not_possible_are_a_sentence_before_data_are_read(place, monkeypatch):
    monkeypatch.setattr("sciml_kernels.backends.no_compiler", lambda: "no C++ compiler was found")
    with pytest.raises(UserError, match=r"^model\.backend: 'cpu' is not possible, no C\+\+ compiler was found; use"):
        train(train_config(place, "model.backend=cpu", stores=("absent",)))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"^model\.backend: .*triton"):
            train(train_config(place, "model.backend=triton", "trainer.accelerator=auto", stores=("absent",)))


def test_a_radial_network_without_hidden_layers_is_refused(place):
    with pytest.raises(UserError, match=r"model\.radial\.hidden: found \[\]"):
        train_config(place, "model.radial.hidden=[]")


def test_another_configuration_is_not_resumed(workplace):
    words = ("trainer.checkpoint_every=3", "trainer.val_every=3", "resume=true")
    with pytest.raises(UserError, match=r"^optimizer\.learning_rate: found 0\.5, but the run in .* with 0\.003"):
        train(train_config(workplace, *words, "optimizer.learning_rate=0.5"))
    with pytest.raises(UserError, match=r"^train: found \['jets'\]"):
        train(train_config(workplace, *words, stores=("jets",)))
    changed = train_config(workplace, *words, "trainer.segment_time=00:10:00", "trainer.log_every=7")
    check_resumed(workplace / "run", changed.model_dump())


def test_resuming_without_a_checkpoint_says_that_it_starts_afresh(place, capsys):
    words = ("resume=true", "trainer.max_steps=1", "data.bins_per_step.jets=0", "data.bins_per_step.residues=0")
    assert train(train_config(place, *words, stores=("molecules",))) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "afresh" in line]
    assert len(said) == 1


def test_what_a_failed_command_left_behind_is_no_run(tmp_path):
    (tmp_path / "data" / "ingested").mkdir(parents=True)
    assert resume_point(tmp_path, resume=False) is None
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match="holds a run already"):
        resume_point(tmp_path, resume=False)


def test_validations_are_no_more_than_asked_for():
    data, options = SimpleNamespace(micro_batches_per_step=3), SimpleNamespace(val_every=None, ranks=1)
    module = SimpleNamespace(total_steps=19, validations=10)
    assert _validation_interval(module, data, options) == 6


def test_validation_is_timed_where_the_trainer_computes(place, monkeypatch):
    """Lightning leaves the module on the CPU after a fit."""
    moved, seen = [], []
    original = run_module.Module.to
    monkeypatch.setattr(run_module.Module, "to", lambda self, *a, **k: (moved.append(a), original(self, *a, **k))[1])
    monkeypatch.setattr(run_module, "_synchronize", lambda device: seen.append(device.type))
    words = ("trainer.max_steps=null", "trainer.max_time=00:00:20", "data.bins_per_step.residues=0")
    config = train_config(place, *words, "data.bins_per_step.jets=0", stores=("molecules",))
    monkeypatch.setattr(run_module, "fit", lambda *a, **k: False)
    monkeypatch.setattr("sciml.verbs.train.fit", lambda *a, **k: False)
    assert train(config) == 143
    assert (torch.device("cpu"),) in moved
    assert seen == ["cpu", "cpu"]


def test_a_text_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    file = tmp_path / "metrics.json"
    write_text(file, "old é\n")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sciml.files.os.fsync", fail)
        with pytest.raises(OSError, match="No space"):
            write_text(file, "new\n")
    assert file.read_text(encoding="utf-8") == "old é\n"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def started(place: Path, *words: str) -> subprocess.Popen:
    """A real training process that has logged a step."""
    config = (
        "train=[molecules,jets]",
        "run_dir=run",
        "model=tiny",
        "model.channels=4",
        "model.radial.hidden=[8]",
        "data.val_fraction=0.25",
        "data.batch.atoms.max_graphs=3",
        "data.batch.jets.max_graphs=3",
        "optimizer.warmup_steps=2",
        "trainer.max_steps=100000",
        "trainer.val_every=100000",
        "trainer.progress=false",
        "trainer.log_every=1",
        "logger=disabled",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "sciml.cli", "train", *config, *words],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    file = place / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (file.exists() and '"step": 3' in file.read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_termination_finishes_the_step_saves_and_leaves_with_143(place):
    process = started(place)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143, error
    assert "resume=true" in error
    assert "Traceback" not in error
    last = json.loads((place / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    (checkpoint,) = checkpoints_in(place / "run" / "checkpoints")
    assert read_checkpoint(checkpoint)["global_step"] == last
    assert not (place / "run" / "package").exists()


def test_an_interrupt_by_hand_leaves_with_130(place):
    process = started(place)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=240)[1]
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert error.rstrip().endswith("sciml: interrupted")


def test_jets_are_estimated_from_their_edges(place):
    """At a short cutoff the edges of a jet are fewer than its pairs."""
    from sciml.data.source import Source, mean_neighbors
    from sciml.data.store import Store

    source = Source(Store(place / "jets"), 0)
    graphs = [source.domain.graph(record, "jets", 1.2) for record in source.data]
    expected = sum(len(graph.senders) for graph in graphs) / sum(len(graph.types) for graph in graphs)
    assert mean_neighbors([source], "jets", 1.2) == pytest.approx(expected, rel=0.05)
    nodes, edges = source.costs("jets", 2.5)
    assert np.array_equal(edges, nodes * (nodes - 1))
    assert (source.costs("jets", 1.2)[1] < edges).any()
    assert not source.costs("atoms", 5.0)[0].any()
