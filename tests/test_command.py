"""The command line as a first user meets it: a raw file trained and evaluated, wandb without network, early words."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

NOWHERE = "http://127.0.0.1:9"  # nothing listens there
WORDS = ("model=tiny", "heads.energy.hidden=8", "trainer.max_steps=1", "trainer.progress=false")


def sciml(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a verb without a network and without an account."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE)
    environment = {**kept, **proxies, "WANDB_BASE_URL": NOWHERE, "NETRC": str(folder / "netrc")}
    command = [sys.executable, "-m", "sciml.cli", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def write_xyz(path: Path, frames: int, seed: int) -> None:
    """Stretched water in trajectories of six frames, with energies and forces of springs between O and H."""
    rng = np.random.default_rng(seed)
    lines = []
    for index in range(frames):
        bonds = np.array([[0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]) + 0.05 * rng.normal(size=(2, 3))
        lengths = np.linalg.norm(bonds, axis=1, keepdims=True)
        forces = -30.0 * (lengths - 0.96) * bonds / lengths
        energy = 15.0 * float(((lengths - 0.96) ** 2).sum()) - 470.0
        lines += ["3", f'Properties=species:S:1:pos:R:3:forces:R:3 energy={energy} pbc="F F F" traj_id={index // 6}']
        rows = zip("OHH", [np.zeros(3), *bonds], [-forces.sum(axis=0), *forces], strict=True)
        lines += [" ".join([symbol, *map(str, position), *map(str, force)]) for symbol, position, force in rows]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with water.xyz, other.xyz and ``run``, one step on water.xyz with the loggers of a first user."""
    folder = tmp_path_factory.mktemp("command")
    write_xyz(folder / "water.xyz", 24, seed=0)
    write_xyz(folder / "other.xyz", 6, seed=1)
    done = sciml(folder, "train", "train=water.xyz", "run_dir=run", "logger=default", "data.val_fraction=0.25", *WORDS)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_raw_file_trains_and_the_split_is_said(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = trained
    assert "water.xyz: not a store, ingesting it on the fly into run/data/" in done.stdout
    split = "split by trajectory (as the source names them): 24 records of 4 groups, none on two sides (18 + 6"
    assert split in done.stderr
    assert (folder / "run" / "package" / "weights.safetensors").is_file()
    assert (folder / "run" / "report.html").is_file()


def test_a_raw_file_is_evaluated(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = trained
    done = sciml(folder, "evaluate", "package=run/package", "store=other.xyz", "output=errors")
    assert done.returncode == 0, done.stderr
    assert "forces MAE" in done.stdout
    targets = json.loads((folder / "errors" / "metrics.json").read_text())["targets"]
    found = {name: (row["count"], row["unit"]) for name, row in targets.items()}
    assert found == {"energy": (6, "eV"), "energy_per_atom": (6, "eV/atom"), "forces": (54, "eV/Å")}
    assert all(0 < row["mae"] <= row["rmse"] < np.inf for row in targets.values())


def test_wandb_is_offline_unless_asked_otherwise(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = trained
    (run,) = (folder / "run" / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))


def test_the_first_line_comes_within_ten_seconds(tmp_path: Path) -> None:
    """Also where the machine is busy: it takes a tenth of a second on a quiet one."""
    command = [sys.executable, "-m", "sciml.cli", "train", "experiment=quickstart", "logger=disabled", *WORDS]
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        assert run.stdout is not None
        line = run.stdout.readline()
        seconds = time.perf_counter() - start
        run.kill()
    assert line.startswith("sciml ")
    assert seconds < 10.0
