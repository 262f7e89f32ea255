"""One finished run that the tests of this folder read; they copy what they change."""

import shutil
from pathlib import Path

import pytest

from sciml.verbs.train import train
from tests.small import stores, train_config

STEPS = 6


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A folder with three stores and ``run``: six joint steps, checkpoints after three and six."""
    folder = stores(tmp_path_factory.mktemp("finished"))
    assert train(train_config(folder, "trainer.checkpoint_every=3", "trainer.val_every=3")) == 0
    return folder


@pytest.fixture
def workplace(finished, tmp_path) -> Path:
    """A copy of the finished run and its stores."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))
