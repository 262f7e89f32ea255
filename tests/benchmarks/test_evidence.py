"""The benchmarks of training runs: what is finished is not repeated, and tables say what the runs found."""

import dataclasses
import importlib
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sciml.config import configure
from sciml.data.store import Store
from sciml.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the benchmarks, which import each other as scripts do."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("cells", "parts", "transfer", "ablation", "width", "nve", "compiled", "readme")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture
def trained(bench: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Training replaced by one that leaves the files of a run; returns the folders that were trained."""
    folders: list[str] = []

    def train(config: Any) -> int:
        run = Path(config.run_dir)
        folders.append(run.name)
        print("a word of the run")
        if config.seed == 13:
            raise UserError("step 3: loss is nan; lower optimizer.learning_rate.")
        (run / "evaluation").mkdir()
        (run / "checkpoints").mkdir()
        lines = [{"step": 1, "train/loss": 2.0}, {"step": 2, "val/loss": 0.25}, {"step": 4, "val/loss": 0.5}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        targets = {"forces": {"mae": 0.25}, "label": {"signals": {"top": {"auc": 0.9}}}}
        (run / "evaluation" / "metrics.json").write_text(json.dumps({"targets": targets, "stores": {}}))
        return 0

    monkeypatch.setattr(bench.cells, "train", train)
    return folders


def test_a_finished_cell_is_read_and_not_trained_again(bench: Any, trained: list[str], tmp_path: Path) -> None:
    words = ["train=samples:jets", "trainer.max_steps=4"]
    first = bench.cells.run_cell(tmp_path / "a", words)
    assert (first["steps"], first["validation_loss"]) == (4, 0.5)
    assert first["targets"]["forces"]["mae"] == 0.25
    assert "a word of the run" in (tmp_path / "a" / "log.txt").read_text()
    assert bench.cells.run_cell(tmp_path / "a", words) == first
    assert trained == ["a"]
    best = bench.cells.run_cell(tmp_path / "b", [*words, "trainer.publish=best"])
    assert best["validation_loss"] == 0.25
    with pytest.raises(SystemExit, match="other settings"):
        bench.cells.run_cell(tmp_path / "a", [*words, "seed=1"])


def test_an_unfinished_cell_starts_again(bench: Any, trained: list[str], tmp_path: Path) -> None:
    (tmp_path / "a" / "evaluation").mkdir(parents=True)
    with pytest.raises(UserError):
        bench.cells.run_cell(tmp_path / "a", ["train=samples:jets", "seed=13"])
    bench.cells.run_cell(tmp_path / "a", ["train=samples:jets"])
    assert trained == ["a", "a"]


def test_a_cell_that_was_stopped_goes_on_from_its_checkpoint(
    bench: Any, trained: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    finish, asked = bench.cells.train, []

    def train(config: Any) -> int:
        asked.append((config.resume, config.trainer.segment_time))
        checkpoints = Path(config.run_dir) / "checkpoints"
        if len(asked) == 1:
            (checkpoints / "step=2").mkdir(parents=True)
            return 143
        shutil.rmtree(checkpoints)
        return finish(config)

    monkeypatch.setattr(bench.cells, "train", train)
    words = ["train=samples:jets", "trainer.max_steps=4"]
    assert bench.cells.run_segment(tmp_path / "a", words, ["trainer.segment_time=00:00:01"]) is None
    with pytest.raises(SystemExit, match="other settings"):
        bench.cells.run_segment(tmp_path / "a", [*words, "seed=1"])
    found = bench.cells.run_segment(tmp_path / "a", words)
    assert asked == [(False, "00:00:01"), (True, None)]
    assert (found["words"], found["segments"], found["steps"]) == (words, 2, 4)
    assert found["seconds"] >= 0.0
    assert bench.cells.finished(tmp_path / "a", words) == found


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_time_of_a_segment_that_was_killed_is_not_made_up(
    bench: Any, trained: list[str], tmp_path: Path, monkeypatch: Any, checkpoint: bool
) -> None:
    words, folder = ["train=samples:jets"], tmp_path / "a"
    finish = bench.cells.train
    (folder / "checkpoints" / ("step=2" if checkpoint else "nothing")).mkdir(parents=True)
    (folder / "segments.json").write_text(json.dumps({"words": words, "seconds": [1.0, None]}))

    def train(config: Any) -> int:
        assert config.resume == checkpoint  # without one all is done anew, and the time is that of the whole training
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return finish(config)

    monkeypatch.setattr(bench.cells, "train", train)
    found = bench.cells.run_segment(folder, words)
    assert (found["segments"], found["seconds"] is None) == ((3, True) if checkpoint else (1, False))


def test_values_and_their_text(bench: Any) -> None:
    assert bench.cells.value_at({"label": {"signals": {"top": {"auc": 0.9}}}}, "label.signals.top.auc") == 0.9
    assert bench.cells.mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert bench.cells.mean_and_deviation([1.0]) == (1.0, None)
    assert bench.cells.text_of(12.34, 0.56, 1) == "12.3 ± 0.6"
    assert bench.cells.text_of(12.34, None, 0) == "12"


def test_parts_share_no_group_and_fractions_are_nested(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench.parts, "DOMAINS", {"materials": ("metals",)})
    bench.parts.write_parts(tmp_path, bench.transfer.SHARES)
    parts = {part: Store(tmp_path / "metals" / part) for part in bench.transfer.SHARES}
    assert sum(map(len, parts.values())) == len(Store(bench.parts.SAMPLES / "metals"))
    groups = [set(part.groups) for part in parts.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    bench.parts.write_fractions(tmp_path, "training", (0.05, 0.5, 1.0), (0, 1))
    ids = {
        (fraction, seed): {record["id"] for record in Store(tmp_path / "metals" / f"training-{fraction}-{seed}")}
        for fraction in ("0.05", "0.5", "1")
        for seed in (0, 1)
    }
    assert ids["0.05", 0] < ids["0.5", 0] < ids["1", 0] == ids["1", 1]
    assert ids["0.5", 0] != ids["0.5", 1]
    assert len(ids["0.5", 0]) == math.ceil(0.5 * len(parts["training"]))


def test_the_first_records_bring_every_element(bench: Any) -> None:
    store = Store(bench.parts.SAMPLES / "metals")
    every = {int(z) for record in store for z in record["types"]}
    order = bench.parts.shuffled(store, np.arange(len(store)), seed=3)
    assert sorted(order) == list(range(len(store)))
    assert {int(z) for index in order[: len(every)] for z in store[int(index)]["types"]} == every


def case_row(domain: str, start: str, seed: int, value: float, fraction: float = 0.5) -> dict[str, Any]:
    measures = {"forces MAE, meV/Å": value, "energy MAE, meV/atom": 2 * value}
    row = {"domain": domain, "fraction": fraction, "seed": seed, "start": start, "seconds": 10.0 + seed}
    return {**row, "measures": measures}


def test_the_table_of_transfer_has_means_and_deviations_over_seeds(bench: Any, tmp_path: Path) -> None:
    rows = [case_row("materials", "scratch", seed, 0.1 + 0.02 * seed) for seed in (0, 1)]
    rows += [case_row("materials", "joint", 0, 0.05)]
    forces, energies = bench.transfer.table(rows)
    assert forces["scratch"] == {
        "mean": pytest.approx(0.11),
        "deviation": pytest.approx(0.02 / math.sqrt(2)),
        "seeds": 2,
        "seconds": 10.5,
    }
    assert forces["joint"]["deviation"] is None
    assert energies["scratch"]["mean"] == pytest.approx(0.22)
    header, row, _ = bench.transfer.text([forces, energies])
    assert len(header) == len(row)
    assert row == ["materials", "forces MAE, meV/Å (lower is better)", "50%", "110 ± 14", "", "50", ""]
    bench.transfer.plot([forces, energies], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_later_seed_takes_the_learning_rate_of_the_first(bench: Any) -> None:
    settings = bench.transfer.Settings()
    first, *_ = bench.transfer.cases(settings)
    rows = [{**case_row(first.domain, first.start, 0, 1.0, first.fraction), "learning_rate": 0.0015}]
    later = dataclasses.replace(first, seed=1)
    assert bench.transfer.rates_of(settings, later, rows) == [0.0015]
    for other in ({"start": "joint"}, {"fraction": 1.0}, {"domain": "hep"}):
        assert bench.transfer.rates_of(settings, dataclasses.replace(later, **other), rows) == [*settings.rates]


def test_transfer_goes_on_from_a_table_of_the_same_settings(bench: Any, tmp_path: Path) -> None:
    settings = dataclasses.asdict(bench.transfer.Settings())
    head = {"recipe": "pretrain_base", "settings": settings, "machine": {"cores": 2}}
    path = tmp_path / "transfer.json"
    assert bench.transfer.found_before(path, head) == []
    bench.transfer.write_result(path, {**head, "rows": [{"seed": 0}]})
    assert bench.transfer.found_before(path, {**head, "machine": {"cores": 4}}) == [{"seed": 0}]
    assert bench.transfer.found_before(path, {**head, "recipe": "other"}) == []


def test_every_training_of_the_table_is_a_run_of_its_own(bench: Any, trained: list[str], tmp_path: Path) -> None:
    settings = bench.transfer.Settings()
    cases = bench.transfer.cases(settings)
    assert len(cases) == len({case.name for case in cases}) == 3 * 3 * 3 * 4
    options = SimpleNamespace(runs=tmp_path, recipe="quickstart", threads=1)
    for case in cases[:8]:
        configured = configure("train", bench.transfer.words(settings, options, case, 0.005))
        kinds = [kind for kind, bins in configured.data.bins_per_step.model_dump().items() if bins]
        assert tuple(kinds) == bench.transfer.KINDS[case.domain]
        assert (configured.model.name == "transformer") == (case.start == "transformer")
        assert (configured.trainer.max_steps, configured.trainer.max_time) == (settings.steps, None)


def test_the_better_learning_rate_is_chosen_by_validation(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    asked = []

    def run_cell(folder: Path, words: list[str]) -> dict[str, Any]:
        asked.append((folder.name, [word for word in words if word.startswith("init=")]))
        loss = 0.1 if folder.name == "rate-0.0015" else 0.2
        targets = {"forces": {"mae": loss}, "energy_per_atom": {"mae": 1.0}}
        return {"validation_loss": loss, "steps": 5, "seconds": 1.0, "targets": targets}

    monkeypatch.setattr(bench.transfer, "run_cell", run_cell)
    options = SimpleNamespace(runs=tmp_path, recipe="quickstart", threads=1)
    case = bench.transfer.Case("materials", 0.25, 0, "joint")
    row = bench.transfer.run_case(bench.transfer.Settings(), options, case, (0.005, 0.0015))
    assert (row["learning_rate"], row["measures"]["forces MAE, meV/Å"]) == (0.0015, 0.1)
    assert asked[0] == ("joint-0", [])
    assert asked[1:] == [(f"rate-{r}", [f"init={tmp_path / 'pretraining' / 'joint-0'}"]) for r in ("0.005", "0.0015")]


def test_the_ablation_switches_one_part_at_a_time(bench: Any, tmp_path: Path) -> None:
    variants = bench.ablation.variants()
    parts = ("coarse level", "reciprocal space", "spurions", "product")
    assert list(variants) == ["whole", *(f"without {part}" for part in parts)]
    words = bench.ablation.words(bench.ablation.Settings(), tmp_path, 0, 1)
    configured = {name: configure("train", [*words, *switches]).model for name, switches in variants.items()}
    assert configured["whole"].spurions
    assert configured["whole"].correlation == 3
    assert configured["whole"].coarse_layers == 1
    assert configured["whole"].reciprocal.charges == 4
    assert configured["without coarse level"].coarse_layers == 0
    assert configured["without reciprocal space"].reciprocal.charges == 0
    assert not configured["without spurions"].spurions
    assert configured["without product"].correlation == 1
    assert configure("train", words).trainer.max_seconds == 240.0


def test_the_table_of_the_ablation_compares_with_the_whole_model_of_the_same_seed(bench: Any, tmp_path: Path) -> None:
    errors = {("whole", 0): 1.0, ("whole", 1): 2.0, ("without product", 0): 1.5, ("without product", 1): 2.0}
    rows = [
        {"variant": variant, "seed": seed, "steps": 100, "measures": dict.fromkeys(bench.ablation.MEASURES, error)}
        for (variant, seed), error in errors.items()
    ]
    whole, without = bench.ablation.table(rows)
    assert whole["measures"]["jets, cross-entropy"]["ratio"] == 1.0
    assert without["measures"]["jets, cross-entropy"]["ratio"] == 1.25
    header, _, row = bench.ablation.text([whole, without])
    assert len(header) == len(row)
    assert row[:2] == ["without product", "100"]
    assert row[4] == "1.750 ± 0.354 (1.25x)"
    bench.ablation.plot([whole, without], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_summary_of_widths_charges_the_rate_of_the_reference(bench: Any, tmp_path: Path) -> None:
    losses = {(32, 0.01): 1.0, (32, 0.02): 2.0, (64, 0.01): 3.0, (64, 0.02): 1.5, (128, 0.01): None, (128, 0.02): 1.0}
    rows = [
        {"rule": rule, "channels": width, "learning_rate": rate, "loss": loss}
        for rule in bench.width.RULES
        for (width, rate), loss in losses.items()
    ]
    summary = bench.width.summary(rows, 32)
    table = {row["channels"]: row for row in summary if row["rule"] == bench.width.RULES[0]}
    assert (table[32]["best_rate"], table[32]["cost"]) == (0.01, 1.0)
    assert (table[64]["best_rate"], table[64]["chosen_rate"], table[64]["cost"]) == (0.02, 0.01, 2.0)
    assert (table[128]["best_rate"], table[128]["cost"]) == (0.02, None)
    header, *lines = bench.width.text(summary)
    assert lines[1] == ["64", "0.02", "2.00", "0.02", "2.00"]
    assert lines[2][2] == "diverges"
    assert len(header) == 5
    bench.width.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_readme_takes_the_table_of_the_benchmark_and_leaves_out_what_is_not_there(
    bench: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(bench.readme, "RESULTS", tmp_path)
    assert "Learning rate" not in bench.readme.render()
    (tmp_path / "width.json").write_text(json.dumps({"text": [["channels", "a"], ["32", "1.00"]]}))
    assert "| channels | a |\n| --- | --- |\n| 32 | 1.00 |" in bench.readme.render()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transfer", "ablation", "width"])
def test_the_small_version_runs_from_end_to_end(name: str, bench: Any, tmp_path: Path) -> None:
    words = ["--small", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / f"{name}.json")]
    benchmark = getattr(bench, name)
    assert benchmark.main(words) == 0
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert result["table"]
    assert (tmp_path / f"{name}.png").stat().st_size > 1000
    files = sorted((tmp_path / "runs").rglob("cell.json"))
    times = [file.stat().st_mtime for file in files]
    assert benchmark.main(words) == 0
    assert [file.stat().st_mtime for file in files] == times
    assert json.loads((tmp_path / f"{name}.json").read_text())["table"] == result["table"]


@pytest.mark.slow
def test_small_nve_runs_are_certified(bench: Any, tmp_path: Path, shared_data: Path) -> None:
    words = ["--small", "--runs", str(tmp_path)]
    assert bench.nve.main(words) in (0, 1)  # what two steps taught conserves energy or not
    found = json.loads((tmp_path / "nve.json").read_text())
    assert [row["subject"] for row in found["rows"]] == ["ethanol", "silicon, 64 atoms"]
    assert "0.004 ps" in bench.readme.tables.written(found)


@pytest.mark.parametrize("kind", ["atoms", "jets", "residues"])
def test_the_steps_that_are_compared_run_on_the_embedded_samples(bench: Any, monkeypatch: Any, kind: str) -> None:
    """A compiled step in miniature: the eager one stands in for it."""
    monkeypatch.setattr(bench.compiled, "GRAPHS", {kind: 1})
    monkeypatch.setattr(
        bench.compiled, "compiled_forward", lambda model: lambda batch, kind: model(batch, kind, create_graph=True)
    )
    row = bench.compiled.measure(kind, "tiny", 1, "cpu")
    assert row["edges"] > 0
    assert row["gradient_difference"] == 0.0
