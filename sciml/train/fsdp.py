"""FSDP2 (Zhao et al., 2023, in its second form): parameters, gradients and moments cut along their first axis."""

from typing import Any

import torch
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from sciml.train.sharding import WholeCheckpoints, part_of


class FullyShard(WholeCheckpoints, ModelParallelStrategy):
    """The whole model as one unit, gathered before a forward pass and cut again after its backward pass.

    Cut layer by layer, the derivatives inside a forward pass would meet parameters that are gone already. Checkpoints
    hold whole tensors in the form that an unsharded run has, so that a run can go on under another strategy.
    """

    def __init__(self, ranks: int, double: bool = False) -> None:
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1)
        self.own_precision = double  # Lightning refuses the combination by its name, though nothing is in its way
        if double:
            self.precision_plugin = DoublePrecision()

    def shard(self, model: torch.nn.Module) -> None:
        """Cut ``model`` in place, unless it is."""
        if not isinstance(model, FSDPModule):
            self.precision_plugin.convert_module(model)
            fully_shard(model, mesh=self.device_mesh["data_parallel"])

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Cut the model again afterwards: only a backward pass does so by itself."""
        output = super().validation_step(*args, **kwargs)
        assert self.lightning_module is not None
        for module in self.lightning_module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return output

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The state of the optimizer as without any cut; every rank must call it."""
        saved = getattr(optimizer, "optimizer", optimizer).state_dict()
        state = {number: {key: _whole(value) for key, value in own.items()} for number, own in saved["state"].items()}
        return {**saved, "state": state}

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Cut the whole state of a checkpoint among the ranks."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                number: {key: _like(parameters[number], value) for key, value in values.items()}
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def _whole(value: Any) -> Any:
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """``value`` cut like the parameter, where it is of its shape."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return DTensor.from_local(
        part_of(parameter, value),
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
