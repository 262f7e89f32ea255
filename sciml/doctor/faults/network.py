"""A network that is not there."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sciml.doctor.faults.commands import SHORT_RUN, sciml
from sciml.doctor.faults.row import Row
from sciml.train.throughput import CLOCKED

STEPS = 3
WAIT = 60.0  # seconds that an absent server may cost


def fault_19_wandb_unreachable(folder: Path, thorough: bool = False) -> Row:
    """Send to Weights & Biases where nothing listens; thorough: where nobody answers, or answers nonsense."""
    words = ("train", *SHORT_RUN[:-1], f"trainer.max_steps={STEPS}")
    begin = time.monotonic()
    without = sciml(folder, *words, "logger=disabled", f"run_dir={folder / 'without'}")
    usual, extra = time.monotonic() - begin, 0.0
    codes = {}
    servers = {"closed": _closed, **({"silent": _silent, "nonsense": _nonsense} if thorough else {})}
    for name, server in servers.items():
        begin = time.monotonic()
        with server() as port:
            address = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": 40 * "0"}
            codes[name] = sciml(folder, *words, "logger=online", f"run_dir={folder / name}", **address).returncode
        extra = max(extra, time.monotonic() - begin - usual)
    expected = _lines(folder / "without")
    same = bool(expected) and all(_lines(folder / name) == expected for name in servers)
    kept = sum(bool(list((folder / name / "wandb").glob("offline-run-*/*.wandb"))) for name in servers)
    passed = without.returncode == 0 and set(codes.values()) == {0} and same and kept == len(servers) and extra < WAIT
    return Row(
        19,
        f"logger=online while the server of Weights & Biases is {', '.join(servers)}",
        f"the run ends as without it, within {WAIT:.0f} s more, and is kept on disk to be sent later",
        f"exit codes {', '.join(map(str, codes.values()))}, metrics {'the same' if same else 'differ'}, "
        f"{kept} of {len(servers)} kept for wandb sync, at most {max(extra, 0.0):.0f} s more",
        passed,
    )


@contextmanager
def _closed() -> Iterator[int]:
    """A port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield port


@contextmanager
def _silent() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def _nonsense() -> Iterator[int]:
    """A server that answers everything by a page of its own, as some networks do."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


class _Page(BaseHTTPRequestHandler):
    """The same page for everything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Please log in to this network.</html>")

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        return


def _lines(run: Path) -> list[dict[str, Any]]:
    """What ``metrics.jsonl`` of a run says of learning, without what depends on the clock."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCKED} for line in lines]
