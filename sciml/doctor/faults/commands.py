"""What the faults share: short commands of sciml in processes of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A run of seconds: a model of a few thousand parameters on an embedded sample, one graph a micro-batch.
SHORT_RUN = (
    "train=samples:metals",
    "model=tiny",
    "model.channels=4",
    "model.coarse_layers=0",
    "model.layers_after=0",
    "heads.energy.hidden=8",
    "data.batch.atoms.max_graphs=1",
    "data.val_fraction=0.01",
    "trainer.progress=false",
    "trainer.log_every=1",
    "trainer.threads=1",
    "logger=disabled",
)


def sciml(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of sciml in ``folder`` to its end."""
    command, settings = _command(folder, words, environment)
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


def start(folder: Path, *words: str, **environment: str) -> "subprocess.Popen[str]":
    """Start a command of sciml in ``folder``; its output goes to ``output.txt`` there."""
    command, settings = _command(folder, words, environment)
    with open(folder / "output.txt", "w", encoding="utf-8") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, text=True, **settings)


def _command(folder: Path, words: tuple[str, ...], environment: dict[str, str]) -> tuple[list[str], dict[str, Any]]:
    return [sys.executable, "-m", "sciml", *words], {"cwd": folder, "env": {**os.environ, **environment}}


def wait_for(condition: Callable[[], Any], seconds: float = 300.0) -> Any:
    """Wait until ``condition`` is true and return its value. Raises TimeoutError where it does not come true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise TimeoutError(f"nothing came of it in {seconds:.0f} s")


def last_line(text: str) -> str:
    """The last line of an output, where a refusal stands."""
    return (text.strip().splitlines() or [""])[-1]
