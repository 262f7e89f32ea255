"""The states of all random generators of a process, as plain data that a checkpoint can hold."""

import random
from typing import Any

import numpy as np
import torch


def generator_states(device: torch.device) -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, and of that of ``device`` where it is a GPU."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 (libraries draw from it)
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_generators(states: dict[str, Any], device: torch.device) -> None:
    """Put every generator back to where :func:`generator_states` found it."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


def seed_rank(seed: int, step: int, rank: int) -> None:
    """Seed the generators of a rank that the checkpoint of ``step`` knows nothing of, as others and apart from them."""
    drawn = int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
    random.seed(drawn)
    np.random.seed(drawn % 2**32)  # noqa: NPY002 (libraries draw from it)
    torch.manual_seed(drawn % 2**63)
