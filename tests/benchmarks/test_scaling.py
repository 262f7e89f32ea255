"""The benchmark of several ranks: even loads, a projection that follows its formulas, and a small run of it."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, which imports its neighbours as scripts do."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("scaling")


@pytest.mark.parametrize("ranks", [2, 8, 512])
def test_ranks_have_even_loads_and_plans_are_soon_made(scaling: Any, ranks: int) -> None:
    found = scaling.loads(ranks, steps=1)
    assert 1.0 <= found["mean"] <= found["largest"] < 1.05
    assert found["seconds_to_plan_a_step"] < 5.0  # 0.3 on a quiet machine


def test_efficiency_falls_with_ranks_and_parameters_and_is_one_where_nothing_is_sent(scaling: Any) -> None:
    rows = scaling.project({"8": {"mean": 1.0}, "1024": {"mean": 1.0}})
    assert {row["strategy"] for row in rows} == set(scaling.STRATEGIES)
    for row in rows:
        assert 0.0 < row["efficiency"]["1024"] < row["efficiency"]["8"] <= 1.0
    small, large = (
        next(row["efficiency"]["1024"] for row in rows if row["strategy"] == "ddp" and row["parameters"] == size)
        for size in (1e6, 1e8)
    )
    assert large < small
    (uneven, *_) = scaling.project({"8": {"mean": 2.0}})
    assert uneven["efficiency"]["8"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
def test_a_small_run_sends_what_the_formula_says(tmp_path: Path) -> None:
    script = [sys.executable, str(FOLDER / "scaling.py"), "--small", "--steps", "2", "--runs", str(tmp_path)]
    subprocess.run(script, check=True, timeout=1200)
    measured = json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8"))["measured"]
    assert measured["single on 1"]["bytes_sent_per_step"] == 0
    ddp = measured["ddp on 2"]
    assert ddp["bytes_by_formula"] <= ddp["bytes_sent_per_step"] < 1.5 * ddp["bytes_by_formula"]
