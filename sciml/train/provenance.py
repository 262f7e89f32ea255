"""What made a run: command, versions, commit, data and machine."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sciml.data.source import Source
from sciml.data.store import base_indices

DISTRIBUTIONS = ("sciml", "torch", "lightning", "e3nn", "torch-geometric", "triton", "numpy", "ase", "vesin")


def provenance(sources: list[Source]) -> dict[str, Any]:
    """Return plain data: command line, time, versions, commit of the checkout, hash of every whole store, machine."""
    stores = [base_indices(source.data)[0] for source in sources]
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version_of(name) for name in DISTRIBUTIONS} | {"python": platform.python_version()},
        "commit": _commit(Path(__file__).resolve().parents[1]),
        "data": {str(store.path): store.data_hash for store in stores},
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": _gpu()},
    }


def version_of(name: str) -> str | None:
    """The version of an installed distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(folder: Path) -> str | None:
    """Commit of the checkout of sciml whose package is ``folder``, with ``+`` when it has changes.

    None outside one: a package installed into an environment that lies in another project's checkout, or in that of
    sciml itself, is not what is committed there.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != folder.parent or not _is_own(Path(top) / "pyproject.toml"):
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    return commit and commit + ("+" if _git(folder, "status", "--porcelain", "-uno") else "")


def _is_own(project: Path) -> bool:
    """Whether ``project`` is the pyproject.toml of sciml."""
    try:
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["name"] == "sciml"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
