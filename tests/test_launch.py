"""Several ranks that torchrun starts, and the process that writes for all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sciml.errors import UserError
from sciml.launch import first_process
from sciml.train.process import check_launch
from tests.small import molecules_store

WORDS = (
    "model=tiny", "model.channels=4", "model.radial.hidden=[8]", "heads.energy.hidden=8", "data.val_fraction=0.25",
    "data.batch.atoms.max_graphs=3", "data.bins_per_step=2", "trainer.max_steps=3", "trainer.log_every=1",
    "trainer.progress=false", "trainer.threads=1", "logger=disabled", "strategy=ddp", "trainer.devices=2",
)  # fmt: skip


def test_torchrun_starts_the_ranks(tmp_path: Path) -> None:
    store = molecules_store(tmp_path / "molecules").path
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29573"]
    command = [*launcher, "-m", "sciml", "train", f"train={store}", f"run_dir={tmp_path / 'run'}", *WORDS]
    kept = {key: value for key, value in os.environ.items() if not key.endswith("RANK")}
    done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3], "one rank writes, once"
    assert (tmp_path / "run" / "package" / "weights.safetensors").is_file()
    assert done.stdout.count("report  ") == 1


@pytest.mark.slow
def test_two_nodes_train_together(tmp_path: Path) -> None:
    """Two launchers, each as on a machine of its own."""
    store = molecules_store(tmp_path / "molecules").path
    nodes = ("strategy=ddp", "trainer.devices=1", "trainer.nodes=2")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--master-addr", "127.0.0.1", "--master-port", "29574", "--node-rank"]
    words = [f"train={store}", f"run_dir={tmp_path / 'run'}", *WORDS[:-2], *nodes]
    kept = {key: value for key, value in os.environ.items() if not key.endswith("RANK")}
    commands = [[*launcher, str(rank), "-m", "sciml", "train", *words] for rank in range(2)]
    started = [subprocess.Popen(command, env=kept, stdout=subprocess.PIPE, text=True) for command in commands]
    told = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert [text.count("report  ") for text in told] == [1, 0], "one rank writes"


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "refusal"),
    [
        ({}, 2, 1, None),
        ({}, 2, 2, "nothing has started processes on other machines"),
        ({"NODE_RANK": "0"}, 2, 2, None),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4"}, 2, 2, None),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4"}, 2, 1, "torchrun has started 4 processes"),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, 4, 2, None),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, 4, 1, "SLURM has started 8 processes"),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "mine"}, 2, 1, "SLURM has started 1 processes"),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, 2, 1, None),
    ],
)
def test_what_was_launched_is_what_was_asked_for(
    variables: dict[str, str], devices: int, nodes: int, refusal: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NODE_RANK", "TORCHELASTIC_RUN_ID", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if refusal is None:
        check_launch(devices, nodes)
    else:
        with pytest.raises(UserError, match=refusal):
            check_launch(devices, nodes)


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "LOCAL_RANK": "1"}, False),
    ],
)
def test_one_process_writes(variables: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert first_process() is first
