"""Set up the training process: seeds, threads and the allocator."""

import ctypes
import os
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from sciml.errors import UserError

INTERACTIVE = ("bash", "interactive")  # names of SLURM's jobs in which Lightning starts the ranks itself
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h


def prepare_process(seed: int, threads: int | None) -> None:
    """Seed every generator, set the number of CPU threads and keep freed memory in the process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries draw from the global generator)
    torch.manual_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()


def check_launch(devices: int, nodes: int) -> None:
    """Raise UserError where what started this process has made other ranks than ``devices`` on each of ``nodes``."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:  # of torchrun
        found, launcher = int(environment["WORLD_SIZE"]), "torchrun"
    elif _is_task_of_slurm():
        found, launcher = int(environment["SLURM_NTASKS"]), "SLURM"
    elif nodes > 1 and "NODE_RANK" not in environment:
        raise UserError(
            f"trainer.nodes: found {nodes}, but nothing has started processes on other machines; use scripts/slurm, or "
            "torchrun on each of them."
        )
    else:
        return
    if found != devices * nodes:
        raise UserError(
            f"trainer.devices and trainer.nodes: found {devices} and {nodes}, but {launcher} has started {found} "
            "processes; let their product be that."
        )


def _is_task_of_slurm() -> bool:
    """Whether Lightning takes its ranks from SLURM: in every job, but for one task in an interactive shell."""
    environment = os.environ
    if not {"SLURM_NTASKS", "SLURM_PROCID"} <= environment.keys():
        return False
    return int(environment["SLURM_NTASKS"]) > 1 or environment.get("SLURM_JOB_NAME") not in (None, *INTERACTIVE)


def sum_over_ranks(losses: dict[str, torch.Tensor], targets: Iterable[str], strategy: Any) -> dict[str, float]:
    """Sum each loss over the ranks of Lightning's ``strategy``, in the order of ``targets``.

    A target may have labels on some ranks alone: all of them reduce one table of the same shape and dtype.
    """
    names = list(targets)
    table = torch.zeros(2, len(names), dtype=torch.float64, device=strategy.root_device)
    for column, name in enumerate(names):
        if name in losses:
            table[0, column], table[1, column] = losses[name], 1.0
    sums, present = strategy.reduce(table, reduce_op="sum").tolist()
    return {name: value for name, value, seen in zip(names, sums, present, strict=True) if seen}


def keep_freed_memory() -> bool:
    """Tell glibc to reuse big blocks instead of returning each to the system; returns whether it could be told.

    By default every tensor over 32 MB is mapped and page-faulted anew by every operation, which takes longer on a CPU
    than most operations do.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
