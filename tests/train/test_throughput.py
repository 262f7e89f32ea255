"""Throughput, profiles and the mirror of the metrics."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sciml.data.graph_dataset import LoadedBatch
from sciml.evaluate.cost import measure
from sciml.graph import collate
from sciml.train.loggers import build_loggers, reachable
from sciml.train.throughput import CLOCKED, PASSES, PASSES_WITH_FORCES, DataClock, Throughput, peak_flops
from sciml.verbs.train import train
from tests.helpers import random_jet, random_molecule
from tests.small import graph_of, random_model, stores, train_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps on two kinds of graph that is profiled."""
    folder = stores(tmp_path_factory.mktemp("throughput"))
    words = ("trainer.max_steps=8", "trainer.profile=true", "trainer.val_every=8", "data.workers=1")
    assert train(train_config(folder, *words, stores=("molecules", "jets"))) == 0
    return folder / "run"


def test_every_line_of_training_tells_how_fast_it_was(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == list(range(1, 9))
    for line in training:
        assert set(CLOCKED) <= set(line)
        assert line["edges_per_second"] > line["graphs_per_second"] > line["steps_per_second"] > 0
        assert 0 < line["model_flops_utilisation"] < 1
        assert 0 <= line["data_wait"] < 1
        assert line["peak_flops_per_second"] > 1e8


def test_a_profile_is_a_trace_and_a_table(run):
    trace = json.loads((run / "profile" / "trace.json").read_text())
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert "Optimizer.step#AdamW.step" in names
    assert any("aten::" in name for name in names)
    assert "Self CPU" in (run / "profile" / "table.txt").read_text()


def test_operations_are_those_of_the_model_times_its_passes():
    """On a batch that was not counted itself: linear in nodes and edges."""
    generator = np.random.default_rng(0)
    model = random_model(torch.float32)
    module = SimpleNamespace(model=model, compiled=False, split=False)
    for kind, make, passes in (("atoms", random_molecule, PASSES_WITH_FORCES), ("jets", random_jet, PASSES)):
        batches = [
            LoadedBatch(collate([graph_of(make(generator), kind, torch.float32) for _ in range(number)]), kind, {}, ())
            for number in (2, 5)
        ]
        counted = Throughput()
        counted.before(module, batches[0])
        model(batches[0].batch, kind, create_graph=True)
        counted.after(module, batches[0])
        assert counted._operations == pytest.approx(passes * measure(model, batches[0].batch, kind).flops)
        counted.restart(None, 0)
        counted.before(module, batches[1])
        counted.after(module, batches[1])
        assert counted._operations == pytest.approx(passes * measure(model, batches[1].batch, kind).flops, rel=0.02)


def test_the_clock_of_the_data_stands_still_otherwise():
    clock = DataClock()
    clock.start("[_TrainingEpochLoop].train_dataloader_next")
    clock.stop("[_TrainingEpochLoop].train_dataloader_next")
    waited = clock.waited
    assert waited > 0
    clock.start("run_training_batch")
    clock.stop("run_training_batch")
    assert clock.waited == waited


def test_a_peak_leaves_the_random_numbers_alone():
    state = torch.get_rng_state()
    assert peak_flops(torch.device("cpu"), torch.float32) > 1e8
    assert torch.equal(torch.get_rng_state(), state)


class Answers(BaseHTTPRequestHandler):
    """A server that knows nothing."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def test_an_answer_is_an_answer_whatever_it_says():
    server = HTTPServer(("127.0.0.1", 0), Answers)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    assert reachable(address)
    thread.join()
    server.server_close()
    assert not reachable(address)
    assert not reachable("not an address")


def test_online_without_an_account_is_offline(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sciml.train.loggers.reachable", lambda server: True)
    for name in ("WANDB_API_KEY",):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    options = SimpleNamespace(wandb="online", project="sciml")
    (logger,) = build_loggers(options, "mine", tmp_path / "run")
    assert logger._offline
    assert "not logged in" in capsys.readouterr().err
    assert build_loggers(SimpleNamespace(wandb="disabled", project="sciml"), "mine", tmp_path) == []
