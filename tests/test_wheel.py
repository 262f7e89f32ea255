"""An installed wheel works outside the checkout: nothing that a user needs stays behind."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("sciml", "kernels", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment["OMP_NUM_THREADS"] = "1"
    result = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, so that no build folder appears in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, folder / "source", cwd=folder)
    (built,) = folder.glob("sciml-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Install the wheel into a fresh environment that borrows the dependencies of this one; returns its folder."""
    folder = wheel.parent / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=wheel.parent)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A path file adds the folder but does not run the path files in it, so the editable install stays out of sight.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ("--no-deps", "--no-index", "--quiet")
    run(
        sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", *options, wheel, cwd=wheel.parent
    )
    return folder


def test_the_wheel_holds_configs_and_samples(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in (ROOT / "configs").rglob("*.yaml"):
        assert f"sciml/configs/{file.relative_to(ROOT / 'configs')}" in names
    for package, folder in (("sciml", ROOT / "sciml"), ("sciml_kernels", ROOT / "kernels" / "sciml_kernels")):
        for file in folder.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".pyc":
                assert f"{package}/{file.relative_to(folder)}" in names
    assert not any(name.startswith(("tests/", "benchmarks/", "configs/")) for name in names)


def test_the_command_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    assert "train" in run(installed / "bin" / "sciml", "--help", cwd=tmp_path).stdout
    assert "quickstart" in run(installed / "bin" / "sciml", "train", "--help", cwd=tmp_path).stdout
    code = "import sciml, sciml_kernels; print(sciml.__file__, sciml_kernels.__file__)"
    for file in run(installed / "bin" / "python", "-c", code, cwd=tmp_path).stdout.split():
        assert Path(file).is_relative_to(installed)


def test_a_few_steps_of_training_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    words = ("experiment=quickstart", "trainer.max_steps=3", "trainer.progress=false", "logger=disabled")
    run(installed / "bin" / "sciml", "train", *words, "run_dir=run (1)", cwd=tmp_path)
    assert list((tmp_path / "run (1)").rglob("weights.safetensors"))
    assert (tmp_path / "run (1)" / "metrics.jsonl").stat().st_size > 0
