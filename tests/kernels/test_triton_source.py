"""Generated Triton source: written once, never trusted blindly, interpreted in tests and compiled without a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from sciml_kernels import aot, backends, cache, triton_source
from tests.kernels.interpreted import interpreted

SOURCE = """import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def scale(x, out, rows: tl.int64, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, 2 * tl.load(x + at, mask=at < rows), mask=at < rows)
"""
SIGNATURE = {"x": "*fp32", "out": "*fp32", "rows": "i64"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_triton_is_possible_here() -> None:
    assert backends.no_triton() == ""


@interpreted
def test_interpreted_in_a_process_of_its_own() -> None:
    assert backends.interpreting()
    x = torch.arange(100.0)
    out = torch.full_like(x, float("nan"))
    triton_source.load(SOURCE, "scale")[(2,)](x, out, 100, BLOCK=64)
    assert torch.equal(out, 2 * x)


def test_the_process_of_the_tests_does_not_interpret() -> None:
    assert os.environ.get("TRITON_INTERPRET") != "1"


def test_source_names_the_file_and_is_what_runs(folder: Path) -> None:
    triton_source.load(SOURCE, "scale")
    (path,) = folder.iterdir()
    assert path.read_text() == SOURCE
    triton_source.load(SOURCE.replace("2 *", "3 *"), "scale")
    assert len(list(folder.iterdir())) == 2
    path.write_text("raise SystemExit")
    triton_source.load(SOURCE, "scale")
    assert path.read_text() == SOURCE


@pytest.mark.parametrize("target", aot.TARGETS)
def test_compiled_without_a_gpu_once(target: str, folder: Path) -> None:
    function = triton_source.load(SOURCE, "scale")
    first = aot.report(function, SIGNATURE, {"BLOCK": 512}, target)
    assert (first.spills, first.shared) == (0, 0)
    assert 4 <= first.registers <= 64
    assert aot.report(function, SIGNATURE, {"BLOCK": 512}, target) == first
    assert len(list(folder.glob("*.json"))) == 1
    aot.report(function, SIGNATURE, {"BLOCK": 512}, target, num_warps=8)
    assert len(list(folder.glob("*.json"))) == 2


def test_bad_targets_and_functions() -> None:
    function = triton_source.load(SOURCE, "scale")
    with pytest.raises(ValueError, match=r"target: found 'h200', expected e\.g\. one of sm_80"):
        aot.report(function, SIGNATURE, {"BLOCK": 512}, "h200")
    with pytest.raises(ValueError, match="function: found function, expected a triton.jit function"):
        aot.report(cache.folder, SIGNATURE, {"BLOCK": 512}, "sm_90")
