"""The benchmark of fine-tuning: every cell is a configuration, tables say what the cells found, a small one runs."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sciml.config import configure
from sciml.evaluate import plots

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def finetune(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, which imports its neighbours as scripts do."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("finetune")


def test_every_cell_is_a_configuration_and_pairs_take_the_same_time(finetune: Any, tmp_path: Path) -> None:
    settings = replace(finetune.Settings(), seeds=(3,), label_counts=(40,))
    options = SimpleNamespace(runs=tmp_path, threads=1)
    found = {cell.name: cell for cell in finetune.cells(settings, options, tmp_path / "base", finetune.TABLES)}
    assert len(found) == 16
    configs = {name: configure("train", cell.words) for name, cell in found.items()}
    assert {config.trainer.max_time for config in configs.values()} == {"00:01:00"}
    for table in finetune.MEASURES:
        base, scratch, faster = (configs[f"{table}-{start}-3"] for start in ("base", "scratch-1", "scratch-3"))
        assert (base.init, scratch.init) == (str(tmp_path / "base"), None)
        assert (base.train, base.test, base.optimizer) == (scratch.train, scratch.test, scratch.optimizer)
        assert scratch.model.channels == 32
        assert faster.optimizer.learning_rate == pytest.approx(3.0 * scratch.optimizer.learning_rate)
    assert configs["strategies-lora-40-3"].adapt.name == "lora"
    assert configs["strategies-40-scratch-3-3"].train == configs["strategies-lora-40-3"].train
    assert configs["strategies-40-scratch-3-3"].init is None
    assert configs["lithium-replay-3"].adapt.replay.fraction == settings.replay
    assert configs["lithium-alone-3"].adapt.replay.fraction == 0.0
    assert configs["lithium-replay-3"].init == str(tmp_path / "lithium-si-3")


def row(table: str, start: str, seed: int, value: float, after: float = 2.0) -> dict[str, Any]:
    kept = [{"part": "retained", "store": "a", "measure": "forces MAE", "before": 1.0, "after": after}]
    targets = {"forces": {"rmse": value}, "energy_per_atom": {"mae": value / 10}}
    facts = {"table": table, "start": start, "seed": seed, "labels": 20, "seconds": 10.0, "trained": 1234}
    facts["validation_loss"] = value
    return {**facts, "targets": targets, "adaptation": kept}


def test_the_tables_have_means_and_deviations_over_seeds(finetune: Any) -> None:
    rows = [row("silicon", "base", seed, 0.1 + 0.02 * seed) for seed in (0, 1)]
    rows += [row("silicon", "scratch", 0, value) for value in (0.4, 0.3, 0.5)]  # of which validation takes the second
    rows += [row("strategies", "lora", 0, 0.2, after=1.5), row("lithium", "replay", 0, 0.2, after=1.2)]
    rows += [row("strategies", "scratch", 0, 0.3) | {"adaptation": []}]
    tables = finetune.text(rows)
    assert set(tables) == {"silicon", "strategies", "lithium"}
    assert tables["silicon"][1:] == [
        ["base", "20", "110.0 ± 14.1", "11.00 ± 1.41", "10", "2"],
        ["scratch", "20", "300.0", "30.00", "10", "1"],
    ]
    assert tables["strategies"][1:] == [
        ["lora", "20", "200.0", "1,234", "1.50", "10", "1"],
        ["scratch", "20", "300.0", "1,234", "", "10", "1"],
    ]
    assert tables["lithium"][1] == ["replay", "200.0", "1.20", "10", "1"]
    assert "*lithium*" in importlib.import_module("readme_tables").several({"text": tables})


def test_the_curves_have_every_count_that_was_measured_and_a_line_one_colour(finetune: Any, tmp_path: Path) -> None:
    rows = [row("silicon", start, seed, 0.2 + 0.1 * seed) for start in ("base", "scratch") for seed in (0, 1)]
    rows += [row("strategies", start, 0, 0.1) | {"labels": n} for start in ("full", "lora") for n in (10, 40)]
    rows += [row("strategies", "scratch", 0, 0.4) | {"labels": 10, "adaptation": []}]
    jets = row("jets", "base", 0, 0.1) | {"labels": 500}
    rows += [jets | {"targets": {"label": {"signals": {"top": {"auc": 0.9}}}}}]
    found = finetune.curves(rows)
    silicon = found["Si: forces RMSE / meV/Å"]
    assert silicon["from the base"] == {10: [100.0], 20: pytest.approx([200.0, 300.0]), 40: [100.0]}
    assert silicon["from random weights"] == {10: [400.0], 20: pytest.approx([200.0, 300.0])}
    assert found["base tasks: forces MAE after / before"]["from the base, low rank"] == {10: [2.0], 40: [2.0]}
    assert found["jets: AUC top / qcd"] == {"from the base": {500: [0.9]}}
    assert not any(name.startswith("proteins") for name in found)
    drawn: list[Any] = []
    plain = plots.figure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "figure", lambda *size: drawn.append(plain(*size)) or drawn[-1])
        assert plots.learning_curves(found, tmp_path / "curves.png").stat().st_size > 5000
    of_line: dict[str, set[str]] = {}
    for axis, lines in zip(drawn[0][1], found.values(), strict=True):
        for name, bars in zip(lines, axis.containers, strict=True):
            of_line.setdefault(name, set()).add(bars.lines[0].get_color())
            assert len(bars.lines[0].get_xdata()) == len(lines[name])
    assert {len(colours) for colours in of_line.values()} == {1}
    assert len(set.union(*of_line.values())) == 3


@pytest.mark.slow
def test_a_small_benchmark_runs_and_goes_on_where_it_was(finetune: Any, tmp_path: Path, shared_data: Path) -> None:
    words = ["--small", "--runs", str(tmp_path), "--tables", "silicon,strategies,lithium"]
    assert finetune.main(words) == 0
    found = json.loads((tmp_path / "finetune.json").read_text())
    assert found["complete"]
    assert set(found["text"]) == {"silicon", "strategies", "lithium"}
    assert (tmp_path / "finetune.png").stat().st_size > 5000
    assert (tmp_path / "finetune_parity.png").stat().st_size > 5000
    assert found["text"]["lithium"][1][2]
    made = (tmp_path / "silicon-base-0" / "cell.json").stat().st_mtime_ns
    assert finetune.main(words) == 0
    assert (tmp_path / "silicon-base-0" / "cell.json").stat().st_mtime_ns == made


def test_a_table_that_there_is_not_is_named(finetune, tmp_path):
    with pytest.raises(SystemExit, match="--tables: there is no table X; give one or more of silicon"):
        finetune.main(["--small", "--tables", "X", "--runs", str(tmp_path)])
