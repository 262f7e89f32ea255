"""Compiled files: shared safely, never trusted blindly, and optional."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sciml_kernels import backends, cache, conv
from tests.kernels.problems import SPECS, edges, inputs

SOURCE = 'extern "C" int answer() { return 42; }'

RACE = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("cache", {cache.__file__!r})  # without torch: quicker
cache = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cache)
print("ready", flush=True)
sys.stdin.readline()
print(cache.load({SOURCE!r}).answer())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    _forget()
    yield
    _forget()


def _forget() -> None:
    backends.no_compiler.cache_clear()
    backends._warn.cache_clear()


def test_folder_is_read_at_every_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.folder() == folder
    monkeypatch.delenv(cache.FOLDER_VARIABLE)
    assert cache.folder() == Path.home() / ".cache" / "sciml_kernels"


def test_two_processes_at_once(folder: Path) -> None:
    pipe = subprocess.PIPE
    racers = [subprocess.Popen([sys.executable, "-c", RACE], stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    assert [racer.communicate(timeout=120)[0] for racer in racers] == ["42\n", "42\n"]
    assert [path.suffix for path in folder.iterdir()] == [".so"]


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
def test_damaged_entry_is_rebuilt(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "good"))
    cache.load(SOURCE)
    (entry,) = (tmp_path / "good").iterdir()
    content = entry.read_bytes()
    (tmp_path / "bad").mkdir()
    damaged = {"truncated": content[: len(content) // 2], "altered": b"\0" * 99 + content[99:], "empty": b""}[damage]
    (tmp_path / "bad" / entry.name).write_bytes(damaged)
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "bad"))
    assert cache.load(SOURCE).answer() == 42
    assert (tmp_path / "bad" / entry.name).stat().st_size == len(content)


def test_source_flags_and_processor_name_the_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.load(SOURCE)
    cache.load(SOURCE.replace("42", "43"))
    monkeypatch.setattr(cache, "FLAGS", (*cache.FLAGS, "-DOTHER"))
    cache.load(SOURCE)
    monkeypatch.setattr(cache, "_processor", lambda: "another")
    cache.load(SOURCE)
    assert len(list(folder.iterdir())) == 4


def test_without_a_compiler(no_compiler: None) -> None:
    """`auto` runs on the reference and says so once; an explicit choice is refused."""
    spec, graph = SPECS["separate"], edges(6, 25)
    arguments = inputs(spec, 6, 25, torch.float64)
    with pytest.warns(UserWarning, match=r"plain-torch reference: no C\+\+ compiler was found") as caught:
        found, _ = (conv(*arguments, graph, spec) for _ in range(2))
    assert len(caught) == 1
    assert torch.equal(found, conv(*arguments, graph, spec, "reference"))
    with pytest.raises(ValueError, match=r"backend: 'cpu' is not possible, no C\+\+ compiler"):
        conv(*arguments, graph, spec, "cpu")


def test_failing_compiler_is_named(folder: Path) -> None:
    with pytest.raises(cache.CompilerError, match=r"failed with: .*error"):
        cache.load("this is no C++")
    assert not list(folder.glob("*"))


def test_torch_s_own_openmp_runtime_is_shared() -> None:
    """Two of them would fight for the same processors."""
    script = """
import torch, sciml_kernels
sciml_kernels.spherical_harmonics(torch.randn(5, 3), 2, backend="cpu")
print(len({line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_other_dtypes_run_on_the_reference() -> None:
    spec, graph = SPECS["separate"], edges(6, 25)
    arguments = inputs(spec, 6, 25, torch.bfloat16)
    backends._warn.cache_clear()
    with pytest.warns(UserWarning, match="plain-torch reference: x is torch.bfloat16, expected float32 or") as caught:
        found, _ = (conv(*arguments, graph, spec) for _ in range(2))
    assert len(caught) == 1
    assert found.dtype == torch.bfloat16
    exact = conv(*(argument.double() for argument in arguments), graph, spec, "reference")
    torch.testing.assert_close(found, exact.bfloat16(), rtol=2**-7, atol=0.0)  # summed in single, rounded once
    with pytest.raises(ValueError, match=r"'cpu' is not possible, x is torch.bfloat16"):
        conv(*arguments, graph, spec, "cpu")
