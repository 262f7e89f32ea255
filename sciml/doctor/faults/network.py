"""A network that is not there."""

import json
import socket
import time
from pathlib import Path
from typing import Any

from sciml.doctor.faults.commands import SHORT_RUN, sciml
from sciml.doctor.faults.row import Row
from sciml.train.throughput import CLOCKED

STEPS = 3
WAIT = 60.0  # seconds that an absent server may cost


def fault_19_wandb_unreachable(folder: Path) -> Row:
    """Weights & Biases is to be sent to while its server is down, or takes connections and never answers."""
    words = ("train", *SHORT_RUN[:-1], f"trainer.max_steps={STEPS}")
    key = {"WANDB_API_KEY": 40 * "0", "WANDB_SILENT": "true"}
    begin = time.monotonic()
    without = sciml(folder, *words, "logger=disabled", f"run_dir={folder / 'without'}")
    usual = time.monotonic() - begin
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        ports = {"closed": closed.getsockname()[1], "silent": silent.getsockname()[1]}
        closed.close()
        codes, extra = {}, 0.0
        for name, port in ports.items():
            begin = time.monotonic()
            server = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", **key}
            codes[name] = sciml(folder, *words, "logger=online", f"run_dir={folder / name}", **server).returncode
            extra = max(extra, time.monotonic() - begin - usual)
    lines = {name: _lines(folder / name) for name in ("without", *ports)}
    same = lines["without"] == lines["closed"] == lines["silent"] and bool(lines["without"])
    kept = sum(bool(list((folder / name / "wandb").glob("offline-run-*/*.wandb"))) for name in ports)
    passed = without.returncode == 0 and set(codes.values()) == {0} and same and kept == 2 and extra < WAIT
    return Row(
        19,
        "logger=online while the server of Weights & Biases is down, and while it never answers",
        f"the run ends as without it, within {WAIT:.0f} s more, and is kept on disk to be sent later",
        f"exit codes {', '.join(map(str, codes.values()))}, metrics {'the same' if same else 'differ'}, "
        f"{kept} of 2 kept for wandb sync, at most {max(extra, 0.0):.0f} s more",
        passed,
    )


def _lines(run: Path) -> list[dict[str, Any]]:
    """What ``metrics.jsonl`` of a run says of learning, without what depends on the clock."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCKED} for line in lines]
