"""The kernels install alone, without sciml, and their README is true."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from e3nn import o3

import sciml_kernels
from sciml_kernels import Spec, channel_major, component_major, from_e3nn

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
README = (KERNELS / "README.md").read_text()
EXAMPLES = {
    "every function": re.search(r"One example of each:\n\n```python\n(.*?)```", README, re.DOTALL),
    "e3nn": re.search(r"```python\n(import torch\nfrom e3nn.*?)```", README, re.DOTALL),
}

SMALL_RUN = """
import sys, torch, sciml_kernels
from sciml_kernels import Edges, Spec, conv
spec = Spec.summed("2x0e+2x1o", "0e+1o", "0e+1o")
edges = Edges(torch.tensor([0, 1]), torch.tensor([1, 1]), 2)
conv(torch.ones(2, 4, 2), torch.ones(2, 4), torch.ones(2, len(spec.paths), 2), edges, spec)
assert "sciml" not in sys.modules
print(sciml_kernels.__file__)
"""


def run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_alone_in_a_fresh_environment(tmp_path: Path) -> None:
    shutil.copytree(KERNELS, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "environment", cwd=tmp_path)
    python = tmp_path / "environment" / "bin" / "python"
    (packages,) = (tmp_path / "environment").glob("lib/python*/site-packages")
    # Borrows torch, e3nn and setuptools; path files in the folder, such as that of an editable sciml, do not run.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, tmp_path / "kernels", cwd=tmp_path)
    assert Path(run(python, "-c", SMALL_RUN, cwd=tmp_path).strip()).is_relative_to(packages)
    for file in (tmp_path / "kernels" / "sciml_kernels").rglob("*"):
        if file.is_file():
            assert (packages / file.relative_to(tmp_path / "kernels")).is_file(), file.name
    (terms,) = packages.glob("sciml_kernels-*.dist-info/licenses/LICENSE")
    assert terms.read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_run_as_written(name: str) -> None:
    example = EXAMPLES[name]
    assert example is not None
    exec(example.group(1), {"__name__": "example"})


def test_every_public_function_has_an_example() -> None:
    code = "".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    functions = [name for name in sciml_kernels.__all__ if name[0].islower()]
    assert [name for name in functions if not re.search(rf"\b{name}\(", code)] == []


def test_links_of_the_readmes_exist() -> None:
    for page in KERNELS.rglob("README.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.parent.name}: {link}"


def test_layouts_are_inverse() -> None:
    irreps = o3.Irreps("3x0e+2x1o+5x2e")
    rows = torch.randn(4, irreps.dim)
    assert torch.equal(channel_major(component_major(rows, irreps), irreps), rows)
    assert torch.equal(component_major(rows, irreps)[:, 3:9].view(4, 3, 2), rows[:, 3:9].view(4, 2, 3).mT)


def test_paths_that_are_no_uvu_are_refused() -> None:
    full = o3.FullyConnectedTensorProduct("2x0e", "0e", "2x0e")
    with pytest.raises(ValueError, match="tensor_product: found a path in mode 'uvw' with weights, expected 'uvu'"):
        from_e3nn(full)


def test_normalisation_of_e3nn_is_in_the_factors() -> None:
    paths = [(0, 0, 0, "uvu", True), (1, 1, 0, "uvu", True)]
    product = o3.TensorProduct("2x0e+2x1o", "0e+1o", "2x0e", paths, shared_weights=False, internal_weights=False)
    spec, factors = from_e3nn(product)
    assert spec == Spec(spec.irreps_x, spec.irreps_y, spec.irreps_out, spec.paths)
    torch.testing.assert_close(factors, torch.full((4,), 0.5**0.5))
