"""Processes that others start, such as ranks that Lightning starts by itself, one process each, beside the first."""

import ctypes
import os
import signal
import time

PREEMPTED = 143
"""The exit code of a run that was stopped before its end and goes on from there, as after SIGTERM."""
_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def first_process() -> bool:
    """Whether this is the process that writes files and talks to the user: the first of all ranks.

    torchrun tells a process its rank, Lightning its rank in its node and the node's, SLURM the number of its task.
    """
    environment = os.environ
    if "RANK" in environment:
        return environment["RANK"] == "0"
    if "LOCAL_RANK" in environment:
        return environment["LOCAL_RANK"] == environment.get("NODE_RANK", "0") == "0"
    return environment.get("SLURM_PROCID", "0") == "0" or environment.get("SLURM_NTASKS", "1") == "1"


def started_by_first_rank() -> bool:
    """Whether this process is a rank that the first one started; torchrun and SLURM tell theirs more."""
    rank = os.environ.get("LOCAL_RANK", "0")
    return rank != "0" and not {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & os.environ.keys()


def end_with_parent() -> None:
    """Have the system kill this process when the one that started it ends."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux alone has it
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def let_first_rank_leave(seconds: float = 10.0) -> None:
    """Before this rank leaves with an error: the first kills everything, itself included, as soon as it sees that, and
    it may just be telling the user why, or leaving by the code of a preemption.
    """
    if started_by_first_rank():
        time.sleep(seconds)  # ended by the first rank's end
