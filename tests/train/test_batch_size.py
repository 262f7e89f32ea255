"""The limits of a micro-batch grow with what they gain, and a run keeps what was found."""

import pytest
import torch
import yaml

from sciml.data.datamodule import DataModule
from sciml.data.packing import Budget
from sciml.data.source import Source
from sciml.train import batch_size
from sciml.train.batch_size import find_budgets, with_budgets
from sciml.verbs.train import train
from tests.small import CUTOFFS, molecules_store, random_model, train_config

BUDGET = Budget(max_graphs=1, max_nodes=16, max_edges=100)


class Machine:
    """Stands for a training pass: a fixed cost and one per edge, and memory per edge."""

    def __init__(self, monkeypatch, fixed: float, memory: int, limit: int | None = None) -> None:
        self.sizes: list[int] = []
        monkeypatch.setattr(batch_size, "_free_memory", lambda device: 10**6)
        monkeypatch.setattr(batch_size, "_training_pass", self._pass)
        monkeypatch.setattr(batch_size, "_measure", self._measured)
        self.fixed, self.memory, self.limit = fixed, memory, limit

    def _pass(self, module, batch, device, autocast):
        self.sizes.append(len(batch.batch.senders))

    def _measured(self, training_pass, device):
        training_pass()
        if self.limit is not None and self.sizes[-1] > self.limit:
            raise torch.OutOfMemoryError
        return self.fixed + 1e-3 * self.sizes[-1], self.memory * self.sizes[-1]


@pytest.fixture
def data(tmp_path):
    sources = [Source(molecules_store(tmp_path / "molecules", records=64), 0)]
    return DataModule(sources, sources, ["atoms"], CUTOFFS, {"atoms": BUDGET}, {"atoms": 1}, 1.0, 0, 0)


@pytest.fixture
def module():
    class Holder:
        model = random_model(torch.float32, kinds=("atoms",))

    return Holder()


def grown(module, data) -> float:
    """How many times the budget was taken."""
    found = find_budgets(module, data, "cpu", autocast=False)["atoms"]
    times = found.max_edges / BUDGET.max_edges
    assert (found.max_graphs, found.max_nodes) == (times * BUDGET.max_graphs, times * BUDGET.max_nodes)
    return times


def test_what_is_no_faster_is_not_worth_its_memory(monkeypatch, module, data):
    Machine(monkeypatch, fixed=0.0, memory=1)
    assert grown(module, data) == 1
    Machine(monkeypatch, fixed=1.0, memory=1)
    assert grown(module, data) > 4


def test_memory_ends_the_growth(monkeypatch, module, data):
    free = Machine(monkeypatch, fixed=100.0, memory=1)
    unbounded = grown(module, data)
    largest = max(free.sizes)
    Machine(monkeypatch, fixed=100.0, memory=int(0.7 * 10**6 / largest * 4))
    assert grown(module, data) < unbounded
    Machine(monkeypatch, fixed=100.0, memory=1, limit=largest // 4)
    assert grown(module, data) < unbounded


def test_the_growth_ends_with_the_data(monkeypatch, module, data):
    machine = Machine(monkeypatch, fixed=100.0, memory=1)
    grown(module, data)
    assert len(machine.sizes) <= 9
    assert not any(parameter.grad is not None for parameter in module.model.parameters())


def test_a_run_keeps_the_limits_that_it_found(workplace, monkeypatch):
    """They stand in the configuration of the run, and a resumed run takes them from there."""
    seen = []

    def found(module, data, device, autocast):
        seen.append("measured")
        return {kind: Budget(2, 50, 900) for kind in data.kinds}

    monkeypatch.setattr("sciml.verbs.train.find_budgets", found)
    monkeypatch.setattr("sciml.verbs.train.publish", lambda *args: None)
    words = ("data.find_batch=true", f"run_dir={workplace / 'found'}", "trainer.max_steps=2", "trainer.val_every=2")
    config = train_config(workplace, *words[:1], *words[2:])
    config = type(config).model_validate({**config.model_dump(), "run_dir": str(workplace / "found")})
    assert train(config) == 0
    stored = yaml.safe_load((workplace / "found" / "config.yaml").read_text())
    assert stored["data"]["batch"]["atoms"] == {"max_graphs": 2, "max_nodes": 50, "max_edges": 900}
    again = type(config).model_validate({**config.model_dump(), "resume": True})
    assert train(again) == 0
    assert seen == ["measured"]
    assert with_budgets(config, stored["data"]["batch"]).data.batch.atoms.max_edges == 900
