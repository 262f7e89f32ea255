"""Accuracy on a GPU: every cell is a configuration, a call that is too short goes on, a small one runs."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sciml.config import configure
from sciml.errors import UserError
from sciml.verbs.train import train

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
DIGEST = "0123456789ab"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, which imports its neighbours as scripts do."""
    monkeypatch.syspath_prepend(str(FOLDER / "peers"))
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("gpu_accuracy")


def found_row(recipe: str, start: str, error: float) -> dict[str, Any]:
    errors = {target: {"mae": error, "rmse": 2 * error} for target in ("energy", "forces")}
    facts = {"recipe": recipe, "start": start, "words": [], "steps": 12345, "seconds": 401.6, "segments": 1}
    return {**facts, "parameters": 1000000, "test_configurations": 10, "errors": errors}


def test_every_cell_is_a_configuration_and_all_take_the_same_time(bench: Any, tmp_path: Path) -> None:
    options = SimpleNamespace(device="gpu", threads=2, minutes=6.25)
    further = ["train=train.xyz", "val=val.xyz", "test=test.xyz"]
    configs = {}
    for cell in bench.cells(bench.Settings(), options, DIGEST):
        init = [f"init={tmp_path}"] if cell.start == "base" else []
        segment = f"trainer.segment_time={bench.duration(0.5)}"
        configs[cell.name] = configure("train", [*cell.words, *further, *init, segment])
    starts = ("scratch", f"base-{DIGEST}")
    assert list(configs) == [f"{recipe}-{start}" for recipe in ("rmd17_ethanol", "threebpa") for start in starts]
    for config in configs.values():
        assert (config.trainer.max_time, config.trainer.segment_seconds) == ("00:06:15", 30.0)
        assert (config.trainer.accelerator, config.trainer.threads) == ("gpu", 2)
    for recipe in bench.RECIPES:
        scratch, base = (configs[f"{recipe}-{start}"] for start in starts)
        assert (scratch.name, scratch.init, base.init) == (recipe, None, str(tmp_path))
        assert (scratch.optimizer.learning_rate, base.optimizer.learning_rate) == (0.005, 0.002)
        assert (scratch.data, scratch.objective, scratch.heads) == (base.data, base.objective, base.heads)


def test_a_base_has_cells_of_its_own_and_none_without_it(bench: Any) -> None:
    options = SimpleNamespace(device="cpu", threads=1, minutes=1.0)
    cells = list(bench.cells(bench.SMALL, options, None))
    assert [cell.name for cell in cells] == ["rmd17_ethanol-scratch", "threebpa-scratch"]
    small = configure("train", [*cells[0].words, "train=train.xyz"])
    assert (small.trainer.max_time, small.trainer.max_steps, small.model.channels) == (None, 20, 24)


def test_the_tables_have_what_is_published_and_say_what_is_not_measured(bench: Any) -> None:
    sizes = {recipe: {"training": 950, "test": 1000} for recipe in bench.RECIPES}
    rows = [found_row("rmd17_ethanol", "base", 0.003), found_row("threebpa", "scratch", 0.01) | {"seconds": None}]
    ethanol, threebpa = bench.text(rows, sizes).values()
    assert ethanol[1][:2] == ["sciml, from random weights", "not measured"]
    assert ethanol[2] == ["sciml, from the base model", "3.0", "3.0", "6.0", "6.0", "1,000,000", "12,345", "402"]
    assert ethanol[3] == ["MACE", "0.4", "2.1", "", "", "", "", ""]
    assert threebpa[1][-1] == "unknown"
    assert ["MACE, at 1200 K", "", "", "29.8", "62.0", "", "", ""] in threebpa
    assert {len(line) for lines in (ethanol, threebpa) for line in lines} == {8}
    tables = importlib.import_module("readme_tables")
    written = tables.gpu_accuracy({"text": bench.text(rows, sizes), "note": bench.NOTE})
    assert "*rMD17 ethanol: 950 configurations to train on, 1,000 to test on*" in written
    assert "Batatia" in written


def test_the_readme_says_that_nothing_is_measured_without_the_file(
    bench: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    readme = importlib.import_module("readme")
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert re.search(r"about six minutes each on a GPU\*\*\n\nNot measured yet\.", readme.render())


def test_it_refuses_without_a_gpu(bench: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main([]) == 2
    assert capsys.readouterr().err == (
        "gpu_accuracy.py: torch finds no GPU here; --device cpu --small runs a miniature on the CPU.\n"
    )


@pytest.fixture
def trained(bench: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Training replaced by one that stops the first time that it is asked for a cell; returns what was asked for."""
    asked: list[str] = []
    targets = {target: {"mae": 0.25, "rmse": 0.5, "count": 10} for target in ("energy", "forces")}

    def run_segment(folder: Path, words: Any, further: Any) -> dict[str, Any] | None:
        stopped = folder.name not in asked
        asked.append(folder.name)
        assert any(re.fullmatch(r"trainer.segment_time=00:\d\d:\d\d", word) for word in further)
        if stopped:
            return None
        folder.mkdir(parents=True)
        found = {"words": list(words), "steps": 4, "seconds": 2.0, "segments": 2, "targets": targets}
        (folder / "cell.json").write_text(json.dumps(found))
        return found

    sizes = {"training": 8, "test": 8}
    monkeypatch.setattr(bench, "run_segment", run_segment)
    monkeypatch.setattr(bench, "data_words", lambda recipe, folder, frames: [f"train={recipe}.xyz"])
    monkeypatch.setattr(bench, "configurations", lambda words: sizes)
    monkeypatch.setattr(bench, "load", lambda path: None)
    monkeypatch.setattr(bench, "parameters_of", lambda package: 100)
    return asked


def test_a_call_ends_with_75_until_all_is_measured(bench: Any, trained: list[str], tmp_path: Path) -> None:
    words = ["--device", "cpu", "--small", "--runs", str(tmp_path)]
    result = tmp_path / "gpu_accuracy_cpu.json"
    assert bench.main(words) == os.EX_TEMPFAIL
    assert trained == ["rmd17_ethanol-scratch"]  # after a stop nothing else is begun
    assert not result.exists()
    assert bench.main(words) == os.EX_TEMPFAIL  # the first is finished, the second stopped
    assert trained[1:] == ["rmd17_ethanol-scratch", "threebpa-scratch"]
    assert json.loads(result.read_text())["not_measured"] == [
        "rmd17_ethanol, from the base model",
        "threebpa, from random weights",
        "threebpa, from the base model",
    ]
    assert bench.main(words) == 0
    assert trained[3:] == ["threebpa-scratch"]  # what is finished is not trained again
    assert bench.main(words) == 0
    assert len(trained) == 4
    found = json.loads(result.read_text())
    assert [row["recipe"] for row in found["rows"]] == ["rmd17_ethanol", "threebpa"]
    assert found["rows"][0]["errors"]["forces"] == {"mae": 0.25, "rmse": 0.5}
    assert str(tmp_path) not in result.read_text()


def test_too_little_time_begins_no_further_training(bench: Any, trained: list[str], tmp_path: Path) -> None:
    trained.extend(["rmd17_ethanol-scratch", "threebpa-scratch"])  # so that neither is stopped
    options = bench.parse(["--device", "cpu", "--runs", str(tmp_path), "--output", str(tmp_path / "result.json")])
    assert bench.measure(bench.Settings(), options, time.monotonic() + 80.0) == ["threebpa from random weights"]
    assert trained[2:] == ["rmd17_ethanol-scratch"]
    assert bench.measure(bench.Settings(), options, time.monotonic() - 1.0) == []  # the first always gets some time


def test_a_mistake_is_a_sentence(bench: Any, trained: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def run_segment(*_: Any) -> None:
        raise UserError("train: no such file.")

    monkeypatch.setattr(bench, "run_segment", run_segment)
    assert bench.main(["--device", "cpu", "--small", "--runs", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "gpu_accuracy.py: train: no such file.\n"


@pytest.mark.slow
def test_a_small_run_is_stopped_by_its_segment_and_completed(tmp_path: Path, shared_data: Path) -> None:
    for name in ("3bpa", "rmd17_ethanol"):
        if not (shared_data / name).is_dir():
            pytest.skip(f"{shared_data / name} is not here")
    base = tmp_path / "base"  # it knows neither the elements nor the level of theory
    words = ["train=samples:metals", "model=tiny", "trainer.max_steps=2", "trainer.max_time=null", "uncertainty=0"]
    assert train(configure("train", [*words, f"run_dir={base}", "logger=disabled", "trainer.progress=false"])) == 0
    command = [sys.executable, str(FOLDER / "gpu_accuracy.py"), "--device", "cpu", "--small", "--base", str(base)]
    command += ["--runs", str(tmp_path / "runs")]
    environment = {**os.environ, "SCIML_SHARED": str(shared_data.parent)}

    def call(*more: str) -> tuple[int, str]:
        done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    code, said = call("--segment", "0.01")
    assert code == 75, said
    assert "run the same command again" in said
    assert not (tmp_path / "runs" / "gpu_accuracy_cpu.json").exists()
    code, said = call()
    assert code == 0, said
    found = json.loads((tmp_path / "runs" / "gpu_accuracy_cpu.json").read_text())
    assert [row["start"] for row in found["rows"]] == ["scratch", "base"] * 2
    assert [row["segments"] for row in found["rows"]] == [2, 1, 1, 1]
    assert {row["steps"] for row in found["rows"]} == {20}
    assert all(row["errors"][target]["rmse"] > 0 for row in found["rows"] for target in ("energy", "forces"))
    assert found["not_measured"] == []
    assert str(tmp_path) not in json.dumps(found)
