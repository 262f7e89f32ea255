"""Commands in processes of their own that start at once, to be sent real signals."""

import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sciml.launch import end_with_parent

_IMPORTED = ["sciml.verbs.train", "sciml.doctor.faults.saves", "sciml.doctor.faults.signals"]
"""What takes seconds to import: a server does it once, and every process is a fork of it."""


def start(
    command: list[str],
    output: Path,
    environment: dict[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> BaseProcess:
    """Start ``sciml COMMAND`` after ``prepare()``, which a process can be sent: a function of a module.

    What it prints goes to the file ``output``.
    """
    return start_function(_run, command, output, environment or {}, prepare)


def start_function(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a function of a module, with arguments that a process can be sent."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    process = context.Process(target=_child, args=(function, arguments))
    process.start()
    return process


def start_ranks(
    ranks: int, command: list[str], output: Path, prepare: Callable[[], None] | None = None
) -> list[BaseProcess]:
    """Start a process per rank, as torchrun does; rank N prints to ``output`` with the suffix ``.N``."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    processes = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "faults"}
        environment = {name: str(value) for name, value in {**place, **meeting}.items()}
        processes.append(start(command, output.with_suffix(f".{rank}"), environment, prepare))
    return processes


def _child(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    end_with_parent()  # the server, which ends with the process that asked for this one
    function(*arguments)


def _run(command: list[str], output: Path, environment: dict[str, str], prepare: Callable[[], None] | None) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    os.environ.update(environment)
    if prepare is not None:
        prepare()
    sys.argv = ["sciml", *command]
    runpy.run_module("sciml.cli", run_name="__main__")


@contextmanager
def ended(processes: Iterable[BaseProcess]) -> Iterator[None]:
    """Kill what is left of ``processes`` at the end."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def wait_until(condition: Callable[[], bool], processes: Iterable[BaseProcess], seconds: float = 300.0) -> None:
    """Wait for ``condition``; raises RuntimeError when a process ends before, or after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        gone = [process for process in processes if process.exitcode is not None]
        if gone or time.monotonic() > end:
            raise RuntimeError(f"a process left with {gone[0].exitcode}" if gone else f"nothing in {seconds:.0f} s")
        time.sleep(0.02)


def codes(processes: Iterable[BaseProcess], seconds: float = 300.0) -> list[int | None]:
    """The exit codes of processes that end within ``seconds``, None for those that do not."""
    end = time.monotonic() + seconds
    found = []
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        found.append(process.exitcode)
    return found


def has_step(run: Path, step: int) -> Callable[[], bool]:
    """Whether ``metrics.jsonl`` of a run has come to ``step``."""
    path = run / "metrics.jsonl"
    return lambda: path.exists() and f'"step": {step},' in path.read_text(encoding="utf-8")


def loaders_of(parent: int) -> list[int]:
    """The children of a process that run its own command: those that it forked to load data."""
    found = []
    command = Path(f"/proc/{parent}/cmdline").read_bytes()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            above = int(status.read_text().rpartition(")")[2].split()[1])
            if above == parent and (status.parent / "cmdline").read_bytes() == command:
                found.append(int(status.parent.name))
        except OSError:  # gone in the meantime
            continue
    return found
