"""Start the command line as the ranks of one job, or several commands one after another in the same ranks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, sys
from sciml.cli import main
exec(sys.argv[2])
for words in json.loads(sys.argv[1]):
    code = main(words)
    if code:
        sys.exit(code)
"""
"""Imports and the connections between the ranks take longer than the short runs of a test: several share them."""


def start_ranks(ranks: int, commands: list[list[str]], folder: Path, prelude: str = "") -> list[subprocess.Popen]:
    """Start ``ranks`` processes in ``folder``, each of which runs the ``commands`` (words after ``sciml``) in turn.

    ``prelude`` is Python that each runs before, which breaks something on purpose. What a rank prints goes to
    ``rank-N.out`` and ``rank-N.err``. One rank is a process without any others.
    """
    port = _free_port()
    return [_start(rank, ranks, port, commands, folder, prelude) for rank in range(ranks)]


def run_ranks(
    ranks: int, commands: list[list[str]], folder: Path, prelude: str = "", timeout: float = 600.0
) -> list[int]:
    """Run the commands in ``ranks`` processes and return their exit codes; kills what is left after ``timeout`` s."""
    processes = start_ranks(ranks, commands, folder, prelude)
    try:
        return [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()


def errors_of(folder: Path) -> str:
    """The ends of what the ranks printed as errors."""
    return "\n".join(file.read_text(errors="replace")[-3000:] for file in sorted(folder.glob("rank-*.err")))


def _start(rank: int, ranks: int, port: int, commands: list[list[str]], folder: Path, prelude: str) -> subprocess.Popen:
    own = {"LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"}
    environment = {name: value for name, value in os.environ.items() if name not in own} | {"OMP_NUM_THREADS": "1"}
    if ranks > 1:
        environment |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with open(folder / f"rank-{rank}.out", "w") as out, open(folder / f"rank-{rank}.err", "w") as errors:
        words = [sys.executable, "-c", PROGRAM, json.dumps(commands), prelude]
        return subprocess.Popen(words, cwd=folder, env=environment, stdout=out, stderr=errors)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
