"""What made a run: command, versions, commit, data and machine."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sciml.data.datamodule import Source

DISTRIBUTIONS = ("sciml", "torch", "lightning", "e3nn", "torch-geometric", "triton", "numpy", "ase", "vesin")


def provenance(sources: list[Source]) -> dict[str, Any]:
    """Return plain data: command line, time, versions, commit of the checkout, hash of every store, machine."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in DISTRIBUTIONS} | {"python": platform.python_version()},
        "commit": _commit(),
        "data": {str(source.data.path): source.data.data_hash for source in sources},
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": _gpu()},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that the package lies in, with ``+`` when it has changes; None outside one."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


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
