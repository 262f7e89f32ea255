"""A run goes on with another number of ranks, and from ZeRO to one process, equal to rounding."""

from pathlib import Path

import pytest
import torch

from sciml.doctor.faults.processes import codes, ended, start_ranks
from sciml.doctor.faults.small import STEPS, checkpoint, copied_up_to, metrics, train_here, words
from sciml.train.checkpoint import read_checkpoint

BINS = "data.bins_per_step=2"


def train_ranks(folder: Path, strategy: str, *overrides: str) -> None:
    """Train on two ranks."""
    command = ["train", *words(folder, BINS, "trainer.devices=2", f"strategy={strategy}", *overrides)]
    ranks = start_ranks(2, command, folder / "output")
    with ended(ranks):
        left = codes(ranks, 400.0)
    assert left == [0, 0], "\n".join(file.read_text()[-2000:] for file in folder.glob("output.*"))


def assert_same_to_rounding(first: Path, second: Path) -> None:
    states = [read_checkpoint(checkpoint(folder, STEPS)) for folder in (first, second)]
    for name, value in states[0]["state_dict"].items():
        torch.testing.assert_close(states[1]["state_dict"][name], value, rtol=1e-4, atol=1e-6)
    moments = [state["optimizer_states"][0]["state"] for state in states]
    assert moments[0].keys() == moments[1].keys()
    for index, moment in moments[0].items():
        torch.testing.assert_close(moments[1][index]["exp_avg"], moment["exp_avg"], rtol=1e-3, atol=1e-6)
    lines = [[(line["step"], "val/loss" in line) for line in metrics(folder)] for folder in (first, second)]
    assert lines[0] == lines[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A folder with a run on one rank."""
    folder = tmp_path_factory.mktemp("alone")
    assert train_here(folder, BINS) == 0
    return folder


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("zero2", marks=pytest.mark.slow)])
def test_one_rank_and_two_go_on_from_each_other(alone, tmp_path, strategy):
    """Three of four steps on one rank and the last on two; then the first on two ranks and the others on one."""
    folder = copied_up_to(alone, tmp_path / "two", 3)
    train_ranks(folder, strategy, "resume=true")
    assert_same_to_rounding(alone, folder)
    train_ranks(tmp_path / "first", strategy)
    back = copied_up_to(tmp_path / "first", tmp_path / "back", 1)
    assert train_here(back, BINS, "resume=true") == 0
    assert_same_to_rounding(alone, back)
