"""The bytes that the doctor counts, held against those that torch's allocator hands out."""

import gc
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sciml import build
from sciml.doctor.memory import LiveBytes, Memory, _linear, batches_held, estimate, held_bytes, saves_on_the_way
from sciml.ingest.ingest import open_data
from sciml.models.recompute import recompute_blocks
from sciml.train.module import Module
from sciml.train.sources import open_splits
from sciml.train.writer import Writer
from sciml.verbs.train import train
from tests.small import jets_store, molecules_store, train_config

WITHIN = 0.1
WORDS = (
    "model.channels=16",
    "data.batch.atoms.max_graphs=12",
    "data.batch.jets.max_graphs=12",
    "data.cache_mib=0",
    "trainer.max_steps=2",
    "trainer.val_every=2",
)


def allocated(record: Any) -> int:
    """The most bytes at once by the events of the allocator itself."""
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(sizes).max())


def test_live_bytes_are_those_of_the_allocator():
    def work() -> torch.Tensor:
        weights = torch.ones(300, 300, requires_grad=True)
        hidden = [torch.tanh(torch.ones(500, 300) @ weights)]
        for _ in range(5):
            hidden.append(torch.sin(hidden[-1]).view(-1)[:150_000].view(500, 300))
        sum(one.sum() for one in hidden).backward()
        return weights.grad

    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = work()
    with LiveBytes() as counted:
        other = work()
        assert counted.live == other.untyped_storage().nbytes()
        del other
        assert counted.live == 0
    assert counted.peak == pytest.approx(allocated(record), rel=0.01)
    assert kept.shape == (300, 300)


def built(config: Any) -> tuple[Module, Any]:
    """What training would build from a configuration."""
    splits = open_splits(config, open_data, [])
    description = build.describe(config, splits, [splits.train[0].data.dataset, "toy"])
    model, description = build.initial_model(description, None)
    if config.trainer.recompute:
        recompute_blocks(model)
    data = build.build_data(config, splits, description, model.far_field)
    return Module(model, build.build_objective(config.objective.terms), config.optimizer, total_steps=0), data


def estimated(config: Any, device: str = "cpu") -> Memory:
    module, data = built(config)
    return estimate(module, data, config, torch.device(device))


def trained(config: Any, monkeypatch: Any) -> int:
    """The most bytes that the allocator hands out in a whole training run, as if disks were slow: a checkpoint is not
    written before somebody waits for it.
    """
    waited = threading.Event()
    write, wait = Writer.write, Writer.wait

    def late(self: Writer, *parts: Any) -> None:
        assert waited.wait(300.0)
        waited.clear()
        write(self, *parts)

    def waits(self: Writer, seconds: float | None = None) -> None:
        if self._thread is not None:
            waited.set()
        wait(self, seconds)

    monkeypatch.setattr(Writer, "write", late)
    monkeypatch.setattr(Writer, "wait", waits)
    monkeypatch.setattr("sciml.verbs.train.publish", lambda *_: None)  # what comes after training
    monkeypatch.setattr("sciml.train.throughput.peak_flops", lambda *_: 1e9)  # its matrices are larger than this model
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        assert train(config) == 0
    return allocated(record)


@pytest.mark.parametrize(
    ("store", "words"),
    [
        ("molecules", ()),
        ("jets", ()),
        ("molecules", ("trainer.checkpoint_every=1",)),
        ("molecules", ("data.bins_per_step.atoms=2", "trainer.max_steps=4", "trainer.val_every=4")),  # two epochs
        ("molecules", ("trainer.recompute=true",)),
        pytest.param(
            "molecules", ("model=small", "model.channels=64", "trainer.checkpoint_every=1"), marks=pytest.mark.slow
        ),
        pytest.param(
            "jets", ("model=small", "model.channels=64", "trainer.checkpoint_every=1"), marks=pytest.mark.slow
        ),
    ],
)
def test_the_estimate_is_what_a_training_takes(store, words, tmp_path, monkeypatch):
    """A whole training run: its data, its moments, its moving average, its checkpoints and Lightning's part."""
    make = {"molecules": molecules_store, "jets": jets_store}[store]
    make(tmp_path / store, records=60)
    config = train_config(tmp_path, *WORDS, *words, stores=(store,))
    memory = estimated(config)
    found = trained(config, monkeypatch)
    assert memory.activations > max(memory.weights, memory.copies) or "model=small" in words, "it is the larger part"
    assert memory.total == pytest.approx(found, rel=WITHIN)

    saved = max((tmp_path / "run" / "checkpoints").rglob("*"), key=lambda path: path.stat().st_size)
    assert memory.checkpoint == pytest.approx(saved.stat().st_size, rel=WITHIN)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_the_estimate_is_what_a_training_takes_on_a_gpu(precision, tmp_path, monkeypatch):
    monkeypatch.setattr("sciml.verbs.train.publish", lambda *_: None)
    monkeypatch.setattr("sciml.train.throughput.peak_flops", lambda *_: 1e12)
    words = ("model.channels=64", "trainer.accelerator=gpu", f"trainer.precision={precision}")
    molecules_store(tmp_path / "molecules", records=60)
    config = train_config(tmp_path, *WORDS, *words, stores=("molecules",))
    memory = estimated(config, "cuda")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert train(config) == 0
    assert memory.total == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=WITHIN)


def test_bytes_are_linear_in_nodes_and_edges():
    rows = [(10, 100), (20, 240), (20, 120)]
    values = [7 * nodes + 3 * edges for nodes, edges in rows]
    assert _linear(rows, values, np.array([[100.0, 2000.0]])) == pytest.approx([6700.0])
    assert (_linear(rows, [100, 240, 119], np.array([[1e6, 1.0]])) >= 0).all(), "nothing counts negative"


def test_bytes_of_the_model_are_told_from_those_of_graphs():
    rows = [(10, 100), (20, 240), (20, 120)]
    values = [5000 + 7 * nodes + 3 * edges for nodes, edges in rows]
    assert _linear(rows, values, np.array([[100.0, 2000.0]])) == pytest.approx([11_700.0])
    one = [(10, 100), (10, 60)]  # a single graph, at two densities
    assert _linear(one, [370, 250], np.array([[10.0, 100.0]])) == pytest.approx([370.0])


def test_what_the_ranks_share_is_counted_once():
    size = 1000
    parts = {"trained": size, "averages": size, "ranks": 4}
    assert held_bytes(size, size, size, "single", 1) == (4 * size, size)
    assert held_bytes(size, strategy="ddp", **parts) == (5 * size, size)
    assert held_bytes(size, strategy="zero1", **parts) == (2 * size + 2 * size / 4, size)
    assert held_bytes(size, strategy="zero2", **parts) == (2 * size + 2 * size / 4, size / 4)
    assert held_bytes(size, strategy="fsdp2", **parts) == (4 * size / 4, size / 4)
    assert held_bytes(size, 0, 0, "single", 1) == (size, 0), "what is frozen has neither gradients nor moments"


def test_how_many_micro_batches_are_held_at_once():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert batches_held(1, False, cpu) == 2, "Lightning fetches one ahead"
    assert batches_held(3, False, gpu) == 1, "which waits in the memory of the machine"
    assert batches_held(3, True, gpu) == 3, "a step that may be split keeps its own"


def test_a_copy_is_held_where_steps_follow_on_a_save():
    def options(**changed: Any) -> SimpleNamespace:
        return SimpleNamespace(**{"checkpoint_every": None, "val_every": None, "max_steps": 10, **changed})

    assert saves_on_the_way(options()), "ten validations a run"
    assert saves_on_the_way(options(max_steps=None, checkpoint_every=1000))
    assert not saves_on_the_way(options(val_every=10))
    assert saves_on_the_way(options(val_every=10, checkpoint_every=5))
