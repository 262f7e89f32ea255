"""Set up the training process: seeds, threads and the allocator."""

import ctypes
import os
import random

import numpy as np
import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h


def prepare_process(seed: int, threads: int | None) -> None:
    """Seed every generator, set the number of CPU threads and keep freed memory in the process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries draw from the global generator)
    torch.manual_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()


def first_process() -> bool:
    """Whether this is the process that writes files and talks to the user: the first of its node's ranks."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def keep_freed_memory() -> bool:
    """Tell glibc to reuse big blocks instead of returning each to the system; returns whether it could be told.

    By default every tensor over 32 MB is mapped and page-faulted anew by every operation, which takes longer on a CPU
    than most operations do.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
