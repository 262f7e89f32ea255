"""The training-step benchmark for a GPU, in a miniature on the CPU."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ase.io
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from sciml.data.graph_dataset import LoadedBatch
from sciml.graph import collate
from sciml.models import backbone
from sciml.models.model import floating_inputs_to
from sciml.objectives.supervised import Supervised
from sciml_kernels import Edges

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the benchmark, which import each other as scripts do."""
    monkeypatch.syspath_prepend(str(PEERS))
    names = ("stepping", "structures", "workers", "ours", "gpu_step")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def training(bench: Any, rate: float = 0.1) -> Any:
    """A small model with a force loss, at fixed positions."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    positions = torch.randn(5, 3, requires_grad=True)

    def loss() -> torch.Tensor:
        (forces,) = torch.autograd.grad(model(positions).sum(), positions, create_graph=True)
        return (forces - 1.0).square().mean()

    return bench.stepping.Training(model, torch.optim.Adam(model.parameters(), lr=rate), loss, 10.0)


def test_a_compiled_step_follows_the_eager_one(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # the compiler itself: tests/models
    found = bench.stepping.every_mode(lambda: training(bench), "cpu", 2)["highest"]
    assert found["modes"]["captured"] == {"skipped": "graphs are captured on a GPU only"}
    eager, compiled = (found["modes"][name] for name in ("eager", "compiled"))
    assert eager["losses"] == compiled["losses"]
    assert eager["losses"][-1] < eager["losses"][0]
    assert len(eager["seconds"]) == 2


def test_a_mode_that_learns_something_else_is_not_counted(bench: Any) -> None:
    right = {"losses": [1.0], "median_seconds": 2.0}
    assert bench.stepping.best({"eager": right, "compiled": {"losses": [1.1], "median_seconds": 1.0}}) == "eager"
    assert bench.stepping.best({"eager": right, "captured": {"losses": [1.0001], "median_seconds": 1.0}}) == "captured"
    assert bench.stepping.best({"eager": right, "compiled": {"skipped": "no"}}) == "eager"


def test_sides_are_compared_on_one_graph(bench: Any) -> None:
    def side(seconds: float, edges: int = 7) -> dict[str, Any]:
        mode = {"median_seconds": seconds, "peak_memory_mib": 100 * seconds}
        tried = {"highest": {"modes": {"eager": mode}, "mode": "eager"}}
        return {"precisions": tried, "atoms": 10, "edges": edges, "mean_length": 3.0}

    sides = {"ours": side(1.0), "cuequivariance": side(4.0), "openequivariance": {"skipped": "not here"}}
    found = bench.gpu_step.comparison(sides)["highest"]
    assert (found["peer"], found["speedup"], found["peak_memory_ratio"]) == ("cuequivariance", 4.0, 4.0)
    with pytest.raises(ValueError, match="different graphs"):
        bench.gpu_step.comparison(sides | {"cuequivariance": side(4.0, edges=8)})


def test_who_cannot_run_here_says_why(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench.gpu_step, "CHECKOUT", tmp_path)
    assert bench.gpu_step.interpreter("openequivariance", "cpu") == (None, "it has kernels for GPUs only")
    python, reason = bench.gpu_step.interpreter("cuequivariance", "gpu")
    assert python is None
    assert reason == "no .venv-cuequivariance in this checkout (make it with `gpu_step.py setup`)"


def test_the_structure_has_five_thousand_atoms(bench: Any) -> None:
    a, b, c = bench.gpu_step.CELLS
    assert 2 * a * b * c == 5000


def test_our_step_in_miniature(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole loss, forces included, goes through torch.compile without a break and learns the same."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend="aot_eager", **options))
    bench.structures.write_alloy(tmp_path / "alloy.xyz", (2, 2, 2))
    files = {"structure": tmp_path / "alloy.xyz", "result": tmp_path / "found.json"}
    options = argparse.Namespace(**files, device="cpu", channels=8, repeats=1, modes=bench.stepping.MODES)
    before = torch._dynamo.config.trace_autograd_ops
    try:
        found = bench.ours.run_modes(options)
    finally:
        torch._dynamo.config.trace_autograd_ops = before
    modes = found["precisions"]["highest"]["modes"]
    assert "losses" in modes["compiled"], modes
    assert modes["compiled"]["losses"] == pytest.approx(modes["eager"]["losses"], rel=1e-4)
    assert (found["atoms"], found["device"]) == (16, {})
    assert json.loads(files["result"].read_text()) == found, "written after every mode"


def test_our_step_never_waits_for_a_gpu(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without data reading a number is an error; a step that reads one could not be captured."""
    monkeypatch.setattr(backbone, "Edges", lambda *tables, **_: Edges(*tables, validate=False))  # as on a GPU
    bench.structures.write_alloy(tmp_path / "alloy.xyz", (2, 2, 2))
    structure = ase.io.read(tmp_path / "alloy.xyz")
    batch = floating_inputs_to(collate([bench.ours.atoms_graph(structure, 5.0)]), torch.float32)
    model = bench.ours.build(structure, len(batch.senders), channels=8)
    loaded = LoadedBatch(batch, "atoms", {"energy": 1.0, "forces": 48.0}, ((0, 0),))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(mode.from_tensor(parameter.detach())))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, mode.from_tensor(buffer))
        batch.apply(mode.from_tensor)
        loss, _ = Supervised(bench.ours.TERMS)(model, model(loaded.batch, "atoms", create_graph=True), loaded)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    assert isinstance(loss, FakeTensor)
    assert isinstance(norm, FakeTensor)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
def test_the_command_in_miniature(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--sides", "ours", "openequivariance", "--cells", "2", "2", "2", "--channels", "8"]
    command = [sys.executable, PEERS / "gpu_step.py", *words, "--repeats", "1", "--output", tmp_path / "found.json"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["comparison"]["highest"]["mode"]["ours"] in ("eager", "compiled")
    assert found["openequivariance"] == {"skipped": "it has kernels for GPUs only"}
    assert found["comparison"]["highest"]["atoms_per_second"]["ours"] > 0
