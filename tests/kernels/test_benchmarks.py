"""The benchmark of the kernels tells right from wrong before it tells fast from slow."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import sciml_kernels

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "kernels"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the benchmark, which import each other as scripts do."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("problems", "providers", "measure", "limits", "child", "report", "run")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def answer(bench: Any, key: str, provider: str = "ours") -> dict[str, Any]:
    """What the process of a provider says, at a tiny size."""
    problem = bench.problems.REGISTRY[key]
    tiny = problem.describe("tiny")
    payload = {"provider": provider, "device": "cpu", "repeats": 1, "hardware": False}
    expected = bench.run.expected(problem, "tiny")
    found: dict[str, Any] = bench.child.answer({**payload, **dict.fromkeys(("tiny", "gate", "plain"), tiny),
                                                "expected": expected})  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("key", "provider"),
    [("1", "ours"), ("1", "e3nn"), ("5", "ours"), ("6", "ours"), ("6", "e3nn"), ("small-radial", "ours"),
     ("small-radial", "unfused"), ("embedding", "definition")],
)  # fmt: skip
def test_what_is_right_is_timed(key: str, provider: str, bench: Any) -> None:
    found = answer(bench, key, provider)
    assert found["correct"], found
    assert list(found["ms"]) == ["forward", "backward", "double"]
    assert min(found["ms"].values()) > 0
    assert found["memory"]["saved_MB"] > 0


Conv = Callable[..., Tensor]


def wrong_value(x: Tensor, y: Tensor, w: Tensor, conv: Conv) -> Tensor:
    return conv(x, y, 1.001 * w)


def wrong_gradient(x: Tensor, y: Tensor, w: Tensor, conv: Conv) -> Tensor:
    """The value is right, the gradient to y 1 % too large."""
    return conv(x, y + 0.01 * (y - y.detach()), w)


def wrong_second_derivative(x: Tensor, y: Tensor, w: Tensor, conv: Conv) -> Tensor:
    """Value and first derivatives are right."""
    return conv(x, y, w + 0.01 * (w - w.detach()).square())


def not_a_number(x: Tensor, y: Tensor, w: Tensor, conv: Conv) -> Tensor:
    return conv(x, y, w * torch.tensor([math.nan] + [1.0] * (w.shape[1] - 1)))


@pytest.mark.parametrize("broken", [wrong_value, wrong_gradient, wrong_second_derivative, not_a_number])
def test_what_is_wrong_is_not_timed(broken: Callable[..., Tensor], bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = sciml_kernels.conv

    def conv(x: Tensor, y: Tensor, w: Tensor, edges: Any, spec: Any, backend: str = "auto") -> Tensor:
        if backend == "reference":
            return right(x, y, w, edges, spec, backend)
        return broken(x, y, w, lambda *leaves: right(*leaves, edges, spec, backend))

    monkeypatch.setattr(sciml_kernels, "conv", conv)
    found = answer(bench, "1")
    assert not found["correct"]
    assert set(found) == {"error", "correct"}
    row = {"problem": "1", "name": "MACE-medium", "skipped": {}}
    row |= bench.run.summary({"ours": found, "e3nn": answer(bench, "1", "e3nn")}, {}, "cpu")
    assert not row["correct"]
    assert "ratio" not in row
    assert "WRONG" in bench.report.lines(row)


def test_who_cannot_run_here_says_why(bench: Any) -> None:
    python, reason = bench.providers.PROVIDERS["openequivariance"].interpreter("cpu")
    assert (python, reason) == (None, "it has kernels for GPUs only")
    absent = bench.providers.Provider(lambda instance: None, ("no_such_module",), "nobody")
    assert absent.interpreter("cpu") == (
        None,
        "no .venv-nobody in this checkout, and no_such_module is not installed",
    )


def test_limits_of_an_h200(bench: Any) -> None:
    """By hand: 250,000 edges of 10 x 128 weights and 16 harmonics, 5,000 nodes of 4 x 128 in and 40 x 128 out."""
    plain = bench.problems.REGISTRY["1"].describe("gpu")
    numbers = 250_000 * (1280 + 16) + 5000 * 128 * (4 + 40)
    assert bench.limits.smallest_traffic(plain)["forward"] == 4 * numbers
    least = bench.limits.limits(plain, "cuda", bench.limits.COPY_BYTES, bench.limits.FLOPS)
    assert least["forward"] == pytest.approx(0.33, abs=0.01)
    assert least["forward"] < least["backward"] < least["double"]
    radial = bench.problems.REGISTRY["1-radial"].describe("gpu")
    product = 2e3 * 250_000 * 64 * 1280 / bench.limits.FLOPS
    assert bench.limits.limits(radial, "cuda", bench.limits.COPY_BYTES, bench.limits.FLOPS)["forward"] > product


def test_the_plot_and_the_table_show_what_was_measured(bench: Any, tmp_path: Path) -> None:
    times = dict.fromkeys(bench.measure.PASSES, 2.0)
    memory = {"peak_MB": 3.0, "saved_MB": 1.0}
    ours = {"error": 1e-7, "correct": True, "ms": times, "memory": memory, "copy_GBps": 10.0, "product_GFLOPps": 100.0}
    more = {"peak_MB": 6.0, "saved_MB": 5.0}
    peer = {"error": 2e-7, "correct": True, "ms": dict.fromkeys(times, 8.0), "memory": more}
    plain = bench.problems.REGISTRY["6"].describe("tiny")
    row = {"problem": "6", "name": "harmonics", "skipped": {"mace": "it has no such thing"}}
    row |= bench.run.summary({"ours": ours, "e3nn": peer}, plain, "cpu")
    assert (row["peer"], row["ratio"], row["ratios"]["double"]) == ("e3nn", 4.0, 4.0)
    assert row["memory_ratios"] == {"peak_MB": 2.0, "saved_MB": 5.0}
    text = bench.report.lines(row)
    assert "4.0x" in text
    assert "not measured: it has no such thing" in text
    bench.report.plot({"rows": [row]}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
