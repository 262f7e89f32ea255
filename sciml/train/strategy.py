"""How ranks share the training: a closed table from the names of strategies to Lightning's."""

import os
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, Strategy

STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")


def build_strategy(
    name: str, ranks: int, accelerator: str, gradient_clip: float | None, precision: str = "32"
) -> Strategy | str:
    """The strategy ``name`` for ``ranks`` processes; one process needs none, whatever the name.

    One that has set ``own_precision`` knows the ``precision``, and Lightning must not be told it. ``gradient_clip`` is
    the largest norm of the gradient, None for no limit, for strategies that clip it themselves.
    """
    if ranks == 1:
        return "auto"
    if name == "ddp":
        return DDPStrategy(broadcast_buffers=False)  # they are constants, and ranks may validate unequal numbers
    if name == "fsdp2":
        from sciml.train.fsdp import FullyShard

        return FullyShard(ranks, double=precision == "64")
    if name in ("zero1", "zero2", "zero3"):
        if accelerator == "cpu":  # DeepSpeed would take a GPU wherever there is one
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from sciml.train.zero import Zero

        return Zero(int(name[-1]), gradient_clip)
    raise ValueError(f"strategy.name: found {name!r} with {ranks} ranks, expected one of {', '.join(STRATEGIES[1:])}")


def clips_gradients(strategy: Any) -> bool:
    """Whether a strategy clips the gradients by itself."""
    return getattr(strategy, "clips_gradients", False)


def wants_every_prediction(strategy: Any) -> bool:
    """Whether a backward pass has to run through the same modules on every rank, whatever labels a rank has."""
    return getattr(strategy, "wants_every_prediction", False)
