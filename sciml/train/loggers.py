"""Weights & Biases as a mirror of ``metrics.jsonl``: offline unless asked otherwise, and never in the way."""

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from sciml.train.process import first_process
from sciml.train.progress import say

PATIENCE = 5.0  # seconds to wait for the server before the run begins
UPLOAD = 60.0  # seconds to wait for the last lines to be sent at the end; what is left stays on disk
SERVER = "https://api.wandb.ai"


def build_loggers(options: Any, name: str, folder: Path) -> list[Logger]:
    """The loggers of a run in ``folder``; ``options`` are those of the section ``logger``.

    Online without a server or an account is offline, which is said once. Each segment of a resumed run is a run of its
    own there, in one group: offline runs of one name would overwrite each other.
    """
    if options.wandb == "disabled":
        return []
    import wandb

    online = options.wandb == "online" and first_process() and _ready(folder)
    return [
        WandbLogger(
            project=options.project,
            name=name,
            group=folder.name,
            save_dir=str(folder),
            offline=not online,
            settings=wandb.Settings(init_timeout=2 * PATIENCE, finish_timeout=UPLOAD, finish_timeout_raises=False),
        )
    ]


def _ready(folder: Path) -> bool:
    """Whether the server answers and knows who we are; says what to do later where not."""
    import wandb

    server = os.environ.get("WANDB_BASE_URL", SERVER)
    later = f"logging offline; send it later with: wandb sync {folder / 'wandb'}/offline-run-*"
    if not reachable(server):
        say(f"wandb: {server} does not answer, {later}")
        return False
    if not wandb.api.api_key:
        say(f"wandb: not logged in to {server} (wandb login), {later}")
        return False
    return True


def reachable(server: str) -> bool:
    """Whether anything answers there, through the proxies of the environment."""
    try:
        urllib.request.urlopen(server, timeout=PATIENCE).close()
    except urllib.error.HTTPError:  # an answer, if not a friendly one
        return True
    except (OSError, ValueError):
        return False
    return True
