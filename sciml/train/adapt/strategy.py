"""Which parameters a fine-tuning trains, and how fast: all, the heads, the last blocks, or updates of low rank."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sciml.models.block import Convolution
from sciml.models.layers import DegreeLinear
from sciml.models.model import Model


def choose_trained(model: Model, options: Any, heads: Iterable[str]) -> None:
    """Freeze what ``options``, the section ``adapt`` of the configuration, does not train; add its low-rank updates.

    Heads that are not among ``heads``, those that the data train, stay as they are: they are what the package knows of
    other tasks. Frozen parameters get no gradient and so no state of the optimizer.
    """
    heads = set(heads)
    for key, head in model.heads.items():
        head.requires_grad_(key in heads)
    if options.name == "full":
        return
    model.backbone.requires_grad_(False)
    if options.name == "last_n":
        last = tuple(f"{stage}." for stage in stages(model)[1:-1][-options.blocks :])
        for name, parameter in model.named_parameters():
            if name.startswith(last):
                parameter.requires_grad_(True)
    if options.name == "lora":
        for module in model.backbone.modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(True)
        add_low_rank(model, options.rank, options.alpha)


def stages(model: Model) -> list[str]:
    """Beginnings of the names of parameters in the order of the computation: the embedding, the blocks of the backbone,
    the coarse level as one of them, and the heads.
    """
    found: list[str] = []
    for name, part in model.backbone.named_children():
        inner = [f"{name}.{index}" for index in range(len(part))] if isinstance(part, nn.ModuleList) else [name]
        if name == "coarse":  # between the blocks before and after it
            place = 1 + int(getattr(model.backbone, "layers", len(found)))
            found = [*found[:place], name, *found[place:]]
        else:
            found += inner
    return [*(f"backbone.{name}" for name in found), "heads"]


def learning_rate_factors(model: Model, decay: float) -> dict[str, float]:
    """{parameter: its share of the learning rate}: ``decay`` to the number of stages behind it (Howard & Ruder,
    2018).
    """
    order = stages(model)[::-1]
    return {
        name: decay ** next((depth for depth, stage in enumerate(order) if name.startswith(f"{stage}.")), 0)
        for name, _ in model.named_parameters()
    }


class LowRank(nn.Module):
    """weight + alpha / rank * A B, for each degree or path where the weight has them (LoRA, Hu et al., 2022).

    A, on the side of the inputs, is random and B zero, so that the first step is that of the weight alone. ``order``, a
    swap of two dimensions or none, turns the weight into (degrees, inputs, outputs) or (inputs, outputs), and back.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, order: tuple[int, ...]) -> None:
        super().__init__()
        self.scale, self.order = alpha / rank, order
        *degrees, inputs, outputs = weight.permute(order).shape
        self.a = nn.Parameter(weight.new_empty(*degrees, inputs, rank).normal_(std=1.0 / math.sqrt(inputs)))
        self.b = nn.Parameter(weight.new_zeros(*degrees, rank, outputs))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * (self.a @ self.b)).permute(self.order)


def add_low_rank(model: Model, rank: int, alpha: float) -> None:
    """Give every linear map of the backbone an update of ``rank``; a map that is no larger than that gets none."""
    for module, name, order in list(_linear_maps(model.backbone)):
        weight = getattr(module, name)
        if min(weight.permute(order).shape[-2:]) > rank:
            update = LowRank(weight.detach(), rank, alpha, order)
            parametrize.register_parametrization(module, name, update)


def merge_low_rank(model: nn.Module) -> None:
    """Turn weights and their updates into plain weights with equal outputs; nothing of the updates is left."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrizations: Any = module.parametrizations
            for name in list(parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _linear_maps(backbone: nn.Module) -> Iterator[tuple[nn.Module, str, tuple[int, ...]]]:
    """Yield (module, name of its weight, order of the dimensions that :class:`LowRank` takes)."""
    for module in backbone.modules():
        if isinstance(module, DegreeLinear):
            yield module, "weights", (0, 1, 2)
        elif isinstance(module, Convolution):  # a map for each path, which couples three degrees
            yield module, "weight", (1, 0, 2)
        elif isinstance(module, nn.Linear):
            yield module, "weight", (1, 0)


def trained_parameters(model: nn.Module) -> int:
    """Number of the parameters that get a gradient."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def low_rank_of(options: Any) -> dict[str, Any]:
    """What a checkpoint must tell to be read without its run: {"low_rank": {rank, alpha}}, or nothing."""
    return {"low_rank": {"rank": options.rank, "alpha": options.alpha}} if options.name == "lora" else {}


def load_weights(model: Model, weights: dict[str, Tensor], averages: list[Tensor], low_rank: dict[str, Any]) -> None:
    """Load the state of a checkpoint, and the averages of its parameters where there are any, as plain weights."""
    if low_rank:
        add_low_rank(model, **low_rank)
    model.load_state_dict(weights)
    with torch.no_grad():
        for parameter, average in zip(model.parameters(), averages, strict=bool(averages)):
            parameter.copy_(average)
    merge_low_rank(model)
