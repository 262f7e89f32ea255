"""scripts/environment: the second call starts at once, and an interpreter is found where it is named."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INTERPRETER = """#!/usr/bin/env bash
echo "$*" >>calls
[[ ! -f broken ]]
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what scripts/environment reads and a .venv whose python notes its calls, installing nothing."""
    for name in ("pyproject.toml", "setup.py", "constraints.txt", "scripts/environment"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(INTERPRETER)
    python.chmod(0o755)
    return tmp_path


def bash(folder: Path, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-c", f"source scripts/environment; {command}"]
    variables = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_the_second_call_installs_nothing_and_starts_at_once(checkout: Path) -> None:
    first = bash(checkout, "prepare hep,dev")
    assert first.returncode == 0, first.stderr
    installed = calls(checkout)
    assert any("-c constraints.txt" in call and "-e .[hep,dev]" in call for call in installed)
    start = time.perf_counter()
    second = bash(checkout, "prepare hep,dev; echo ready")
    assert time.perf_counter() - start < 5.0
    assert (second.stdout, second.returncode) == ("ready\n", 0)
    assert calls(checkout) == installed


@pytest.mark.parametrize("change", ["pyproject.toml", "setup.py", "constraints.txt", "extras", "place"])
def test_a_change_of_what_is_installed_installs_again(checkout: Path, change: str) -> None:
    bash(checkout, "prepare dev")
    before = len(calls(checkout))
    if change == "place":
        checkout = checkout.rename(checkout.with_name("moved"))
    elif change != "extras":
        with open(checkout / change, "a") as file:
            file.write("# changed\n")
    assert bash(checkout, f"prepare {'bio' if change == 'extras' else 'dev'}").returncode == 0
    assert len(calls(checkout)) > before


def test_an_installation_that_failed_is_tried_again(checkout: Path) -> None:
    (checkout / "broken").touch()
    assert bash(checkout, "prepare dev").returncode != 0
    assert not (checkout / ".venv" / "sciml-stamp").exists()
    (checkout / "broken").unlink()
    assert bash(checkout, "prepare dev").returncode == 0
    assert (checkout / ".venv" / "sciml-stamp").exists()


def test_an_interpreter_may_lie_in_a_folder_with_spaces(checkout: Path) -> None:
    python = checkout / "my programs" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    assert bash(checkout, "find_python", SCIML_PYTHON=str(python)).stdout == f"{python}\n"
    refused = bash(checkout, "find_python", SCIML_PYTHON="no such python")
    assert refused.returncode == 2
    assert "SCIML_PYTHON" in refused.stderr
