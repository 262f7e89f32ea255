"""The README is true: its example runs as written, its tables are those of the results files, its names exist."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs_as_written(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(import ase.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "BFGS" in done.stdout
    assert (tmp_path / "runs" / "metals" / "report.html").is_file()


def test_the_module_of_one_s_own_is_ingested_trained_and_evaluated_as_written(tmp_path: Path) -> None:
    (module,) = re.findall(r"```python\n(# gaps\.py\n.*?)```", README, re.DOTALL)
    (project,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (commands,) = re.findall(r"```bash\n(sciml ingest .*?)```", README, re.DOTALL)
    site = tmp_path / "site"
    info = site / "gaps-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "gaps.py").write_text(module, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gaps\nVersion: 1.0\n", encoding="utf-8")
    groups = tomllib.loads(project)["project"]["entry-points"].items()
    lines = [line for group, names in groups for line in (f"[{group}]", *(f"{k} = {v}" for k, v in names.items()))]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rng = np.random.default_rng(0)
    with open(tmp_path / "mine.xyz", "w", encoding="utf-8") as file:
        for _ in range(20):
            length = rng.uniform(0.9, 1.1)
            file.write(f"2\nProperties=species:S:1:pos:R:3 gap={8.0 - length}\nO 0 0 0\nH 0 0 {length}\n")
    quick = "sciml train model=tiny trainer.max_steps=3 trainer.log_every=1 trainer.progress=false logger=disabled "
    places = (str(Path(sys.executable).parent), os.environ["PATH"])
    environment = {**os.environ, "PYTHONPATH": str(site), "PATH": os.pathsep.join(places)}
    done = subprocess.run(
        ["bash", "-euc", commands.replace("sciml train ", quick)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    training = [json.loads(line) for line in (tmp_path / "runs" / "gaps" / "metrics.jsonl").read_text().splitlines()]
    assert sum("train/gap" in line for line in training) == 3
    measured = json.loads((tmp_path / "errors" / "metrics.json").read_text())["targets"]
    assert set(measured) == {"gap"}
    assert measured["gap"]["count"] == 20


def test_words_with_brackets_are_quoted_for_the_shell() -> None:
    """zsh reads [a,b] as a pattern, every shell splits {a: b} at the space."""
    commands = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    commands += re.findall(r"(?<!`)`([a-z.]+=[^`\n]*|'[a-z.]+=[^`\n]*|sciml [a-z][^`\n]*)`", README)
    assert len(commands) > 10
    for command in commands:
        assert not re.search(r"[\[\]{}()]", re.sub(r"'[^']*'|#.*", "", command)), command


def test_the_tables_are_those_of_the_results() -> None:
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "readme.py", "--check"], check=False)
    assert done.returncode == 0, "run python benchmarks/readme.py"


PATHS = sorted(set(re.findall(r"`((?:sciml|scripts|configs|benchmarks|kernels)/[\w./]*)`", README)))


@pytest.mark.parametrize("path", PATHS)
def test_every_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", re.findall(r"experiment=(\w+)", README))
def test_every_recipe_exists(name: str) -> None:
    assert name in ("mine", "NAME") or (ROOT / "configs" / "experiment" / f"{name}.yaml").is_file()
