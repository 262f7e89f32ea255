"""Every kernel of the benchmark problems, compiled ahead of time at the default configuration."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sciml_kernels import Spec, SymmetricSpec, aot, triton_source
from sciml_kernels.trilinear import gpu, triton, tuned
from sciml_kernels.trilinear.emit import FIRST_ORDER, PASSES
from sciml_kernels.trilinear.parts import WARP, Config, choose_walk
from sciml_kernels.trilinear.tuned import default

HARMONICS = "0e+1o+2e+3o"
PROBLEMS = {
    1: ("128x0e+128x1o", HARMONICS, HARMONICS),
    2: ("128x0e+128x1o+128x2e", HARMONICS, HARMONICS),
    4: ("128x0e+64x1e+32x2e+32x3e", "0e+1e+2e+3e", "0e+1e+2e+3e"),
}
MOST_SECONDS = 10.0
MOST_LINES = 1050

SUMS = {
    "sum_rows": {"rows": "*fp32", "order": "*i64", "pieces": "*i64", "out": "*fp32", "dim": "i32"},
    "join_pieces": {"out": "*fp32", "pieces": "*i64", "nodes": "i64", "dim": "i32"},
}


def check(spec: Spec, name: str, target: str, dtype: torch.dtype = torch.float32, product: bool = False) -> None:
    """All kernels of a pass: no spill, short source, short compilation."""
    terms, wants = PASSES[name]
    walk = "rows" if product else choose_walk(spec, terms, wants, by_sender=True)
    warp = 64 if target.startswith("gfx") else WARP
    for kernel in gpu.build(spec, dtype, walk, terms, wants, default(terms, wants), warp).kernels:
        types = gpu.signature(kernel.text, dtype)
        found = aot.report(kernel.function, types, {}, target, kernel.warps)
        assert found.spills == 0, found
        assert found.seconds < MOST_SECONDS, found
        assert len(kernel.text.source.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_problem_1(name: str, target: str) -> None:
    check(Spec.separate(*PROBLEMS[1]), name, target)


def test_double_backward_of_problem_1() -> None:
    check(Spec.separate(*PROBLEMS[1]), "double", "sm_90")


@pytest.mark.slow
@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_kernel(problem: int, name: str, target: str) -> None:
    check(Spec.separate(*PROBLEMS[problem]), name, target)


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSES)
def test_outputs_summed_over_paths(name: str) -> None:
    """Paths share output slots, and the last layer's few outputs are walked by sender."""
    check(Spec.summed(*PROBLEMS[1]), name, "sm_90")
    check(Spec.summed("128x0e+128x1o", HARMONICS, "0e"), name, "sm_90")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["fp64", "bf16"])
def test_other_precisions(dtype: torch.dtype) -> None:
    for name in PASSES:
        check(Spec.summed("32x0e+32x1o", "0e+1o", "0e+1o"), name, "sm_90", dtype)


def test_numbers_of_double_precision_are_not_rounded() -> None:
    from triton import compile as triton_compile
    from triton.compiler import ASTSource

    spec = Spec.summed("32x1o", "1o", "2e")
    (kernel,) = gpu.build(spec, torch.float64, "receiver", FIRST_ORDER, "g", default(FIRST_ORDER, "g")).kernels
    types = gpu.signature(kernel.text, torch.float64)
    text = triton_compile(ASTSource(kernel.function, types, {}, {}), target=aot._target("sm_90")).asm["ttir"]
    assert "f32" not in text
    numbers = {float(number) for number in re.findall(r"constant (-?[\d.]+) : f64", text)}
    assert numbers == {value for path in spec.paths for *_, value in path.entries}


def test_what_runs_is_what_is_tuned_and_compiled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The passes of a loss on forces are those of PASSES by every letter: kernels and configurations go by these."""
    from sciml_kernels import Edges, conv, conv_radial
    from sciml_kernels.convolution_radial import library as radial
    from sciml_kernels.convolution_radial.passes import PASSES as RADIAL
    from sciml_kernels.trilinear import cpu

    ran: list[tuple[object, str]] = []

    def recorded(launch: Callable[..., Any]) -> Callable[..., Any]:
        def record(key: str, arrays: Any, tables: Any, terms: Any, wants: str) -> Any:
            ran.append((terms, wants))
            return launch(key, arrays, tables, terms, wants)

        return record

    monkeypatch.setattr(cpu, "launch", recorded(cpu.launch))
    monkeypatch.setitem(radial._LAUNCH, "cpu", recorded(radial._LAUNCH["cpu"]))
    spec, edges = Spec.summed("4x0e+4x1o", "0e+1o", "0e+1o"), Edges(torch.tensor([1, 0]), torch.tensor([0, 1]), 2)
    x, y = torch.randn(2, spec.dim_x, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    w, h = torch.randn(2, spec.dim_w, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    weight = torch.randn(3, spec.dim_w, requires_grad=True)
    for operation, inputs, passes in (
        (lambda: conv(x, y, w, edges, spec, backend="cpu"), (x, y, w), PASSES),
        (lambda: conv_radial(x, y, h, weight, edges, spec, backend="cpu"), (x, y, h), RADIAL),
    ):
        out = operation()
        cotangent = torch.randn_like(out, requires_grad=True)
        first = torch.autograd.grad(out, inputs, cotangent, create_graph=True)
        torch.cat([gradient.flatten() for gradient in first]).square().sum().backward()
        assert ran == [*passes.values()]
        ran.clear()


def test_offsets_have_64_bits() -> None:
    """No pointer of a convolution moves by a 32-bit number that depends on a node, an edge or a channel."""
    from triton import compile as triton_compile
    from triton.compiler import ASTSource

    for name, (terms, wants) in PASSES.items():
        spec = Spec.summed("32x0e+32x1o", "0e+1o", "0e+1o")
        walk = choose_walk(spec, terms, wants, by_sender=True)
        for kernel in gpu.build(spec, torch.float32, walk, terms, wants, default(terms, wants)).kernels:
            types = gpu.signature(kernel.text, torch.float32)
            text = triton_compile(ASTSource(kernel.function, types, {}, {}), target=aot._target("sm_90")).asm["ttir"]
            moves = re.findall(r"tt\.addptr %\w+, (%\w+) : .*, (?:tensor<\d+x)?(i\d+)", text)
            narrow = [offset for offset, width in moves if width != "i64" and not offset.startswith("%c")]
            assert moves, name
            assert not narrow, (name, narrow)


def test_products() -> None:
    spec = Spec.summed("128x0e+128x1o", "128x0e+128x1o", "0e+1o", y_channels=True, ordered=True)
    for name in PASSES:
        check(spec, name, "sm_90", product=True)


@pytest.mark.slow
@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize("name", PASSES)
def test_symmetric_contraction(name: str, target: str) -> None:
    """Problem 5: every product of the chain."""
    for step in SymmetricSpec("128x0e+128x1o", "0e+1o", 3).steps:
        check(step, name, target, product=True)


@pytest.mark.parametrize("name", SUMS)
def test_sums_of_rows(name: str) -> None:
    from sciml_kernels.trilinear import sums

    constants = {"BLOCK": gpu.BLOCK, **({"TILE": gpu.TILE, "GATHER": True} if name == "sum_rows" else {})}
    for target in aot.TARGETS:
        assert aot.report(getattr(sums, name), SUMS[name], constants, target).spills == 0


def test_measured_configurations_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, (terms, wants) = Spec.separate(*PROBLEMS[1]), PASSES["backward"]
    name = tuned.entry(spec.key, torch.float32, "receiver", terms, wants)
    (tmp_path / "some_gpu.json").write_text(json.dumps({"configurations": {name: {"values": 80, "warps": 2}}}))
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    tuned.measured.cache_clear()
    assert tuned.config("some_gpu", spec.key, torch.float32, "receiver", terms, wants) == Config(80, 2)
    assert tuned.config("another_gpu", spec.key, torch.float32, "receiver", terms, wants) == default(terms, wants)
    assert tuned.config("some_gpu", spec.key, torch.float64, "receiver", terms, wants) == default(terms, wants)
    tuned.measured.cache_clear()


def test_tuning_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "kernels" / "tune.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "tune.py measures on a GPU, and torch finds none here.\n")


def test_the_source_of_a_kernel_says_what_it_is() -> None:
    spec = Spec.separate(*PROBLEMS[1])
    (kernel,) = gpu.build(spec, torch.float32, "receiver", FIRST_ORDER, "g", default(FIRST_ORDER, "g")).kernels
    assert kernel.text.source.startswith(f"# {spec.key}")
    assert triton_source.write(kernel.text.source, triton.NAME).read_text() == kernel.text.source
