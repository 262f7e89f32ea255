"""Fixtures for every test."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of reference data that is not part of the project; skips where it is absent."""
    root = os.environ.get("SCIML_SHARED") or Path(__file__).resolve().parents[2] / "shared"
    folder = Path(root) / "data"
    if not folder.is_dir():
        pytest.skip(f"reference data are not in {folder}; set SCIML_SHARED to the folder that holds data/")
    return folder
