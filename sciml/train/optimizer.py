"""The optimizer and the learning-rate schedule."""

import copy
import math
from typing import Any

import torch

from sciml.models.model import Model, build_model


def build_optimizer(
    model: torch.nn.Module,
    options: Any,
    widths: dict[str, float] | None = None,
    factors: dict[str, float] | None = None,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, 2019); weight decay acts on matrices alone, not on biases, gains or embeddings.

    ``widths`` {parameter: how many times its inputs are those at the reference} divide the learning rate, as
    :func:`relative_widths` gives them; decay keeps its pace: the two multiply to the same. ``factors`` {parameter: its
    share of the learning rate} slow both. Frozen parameters are left out.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    groups: dict[tuple[bool, float, float], list[torch.nn.Parameter]] = {(True, 1.0, 1.0): [], (False, 1.0, 1.0): []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.dim() > 1 and id(parameter) not in embeddings
        width = (widths or {}).get(name, 1.0) if decayed else 1.0
        groups.setdefault((decayed, width, (factors or {}).get(name, 1.0)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": options.weight_decay * width if decayed else 0.0,
                "lr": options.learning_rate * factor / width,
            }
            for (decayed, width, factor), parameters in groups.items()
            if parameters
        ],
        lr=options.learning_rate,
        betas=tuple(options.betas),
        eps=options.eps,
        fused=True,
    )


def relative_widths(model: Model, description: dict[str, Any], channels: int | None) -> dict[str, float]:
    """{parameter: inputs of the matrix / its inputs in the same model of ``channels``}; empty for None.

    Adam moves every weight by its learning rate, whatever the gradient, so the output of a matrix moves in proportion
    to the number of its inputs; divided by that, one learning rate serves every width (muP for Adam: Yang et al., 2022,
    table 8). Inputs are the second axis of every matrix here. A matrix whose inputs the channels do not change, such as
    those of the radial network, has 1.
    """
    if channels is None:
        return {}
    reference = copy.deepcopy(description)
    reference["backbone"]["channels"] = channels
    with torch.random.fork_rng(devices=[]):
        shapes = {name: parameter.shape for name, parameter in build_model(reference).named_parameters()}
    return {
        name: parameter.shape[1] / shapes[name][1]
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
    }


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
