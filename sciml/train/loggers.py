"""Weights & Biases as a mirror of ``metrics.jsonl``: offline unless asked otherwise, and never in the way."""

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from sciml.launch import first_process
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
    if options.wandb == "online" and first_process() and _ready(folder):
        logger = _logger(options, name, folder, offline=False)
        try:
            logger.experiment  # noqa: B018 (the run begins there where it is first asked for)
            return [logger]
        except Exception as error:  # of many kinds: a broken connection, a refused key, a full account
            say(f"wandb: {' '.join(str(error).split())[:200]}; {_later(folder)}")
    return [_logger(options, name, folder, offline=True)]


def _logger(options: Any, name: str, folder: Path, offline: bool) -> WandbLogger:
    import wandb

    settings = wandb.Settings(
        mode="offline" if offline else "online",  # the logger would set a variable, which a second start does not read
        init_timeout=2 * PATIENCE,
        finish_timeout=UPLOAD,
        finish_timeout_raises=False,
    )
    save_dir = str(folder)
    return WandbLogger(
        project=options.project, name=name, group=folder.name, save_dir=save_dir, offline=offline, settings=settings
    )


def _later(folder: Path) -> str:
    return f"logging offline; send it later with: wandb sync {folder / 'wandb'}/offline-run-*"


def _ready(folder: Path) -> bool:
    """Whether the server answers and knows who we are; says what to do later where not."""
    import wandb

    server = os.environ.get("WANDB_BASE_URL", SERVER)
    if not reachable(server):
        say(f"wandb: {server} does not answer; {_later(folder)}")
        return False
    if not wandb.api.api_key:
        say(f"wandb: not logged in to {server} (wandb login); {_later(folder)}")
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
