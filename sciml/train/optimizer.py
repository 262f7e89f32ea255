"""The optimizer and the learning-rate schedule."""

import math
from typing import Any

import torch


def build_optimizer(model: torch.nn.Module, options: Any) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, 2019); weight decay acts on matrices alone, not on biases, gains or embeddings."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if parameter.dim() > 1 and id(parameter) not in embeddings else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=tuple(options.betas), eps=options.eps, fused=True)


def learning_rate_factor(step: int, warmup: int, total: int, final: float, schedule: str = "cosine") -> float:
    """Linear warm-up over ``warmup`` optimizer steps, then constant, or a cosine from 1 to ``final`` at ``total`` steps
    (Loshchilov & Hutter, 2017).
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
