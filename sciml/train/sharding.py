"""Parameters that are cut among the ranks: this rank's part of one, and the whole of it.

A parameter of FSDP2 is a DTensor, cut along its first axis; one of ZeRO-3 is an empty tensor whose part, of the
flattened and padded values, lies beside it; every other parameter is whole on every rank. What acts on each number by
itself, such as a moving average, works on the parts; what leaves the process, such as a checkpoint, takes the whole.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from sciml.models.model import Model, build_model


def is_cut(parameter: Tensor) -> bool:
    """Whether the ranks hold different parts of a parameter."""
    return isinstance(parameter, DTensor) or hasattr(parameter, "ds_tensor")


def part(parameter: Tensor) -> Tensor:
    """This rank's part of a parameter, as a detached view: writing into it changes the parameter."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.detach()
    return parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter.detach()


@torch.no_grad()
def whole(parameter: Tensor, own: Tensor | None = None) -> Tensor:
    """The whole of what the ranks hold: of the parameter, or of ``own``, which is cut like it. All ranks must call it.

    A copy where the parameter is cut, else ``own`` or the detached parameter itself.
    """
    own = part(parameter) if own is None else own
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        cut = DTensor.from_local(own, mesh, placements, shape=parameter.shape, stride=parameter.stride())
        return cut.full_tensor()
    if hasattr(parameter, "ds_tensor"):
        engine: Any = parameter  # with the attributes that DeepSpeed gives it
        group = engine.ds_process_group
        parts = own.new_empty(torch.distributed.get_world_size(group) * own.numel())
        torch.distributed.all_gather_into_tensor(parts, own.contiguous().flatten(), group=group)
        return parts[: engine.ds_numel].view(engine.ds_shape)
    return own


@torch.no_grad()
def part_of(parameter: Tensor, values: Tensor) -> Tensor:
    """This rank's part of whole ``values``, which have the parameter's full shape, on the parameter's device."""
    if isinstance(parameter, DTensor):
        values = values.to(parameter.device)
        return distribute_tensor(values, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()
    if hasattr(parameter, "ds_tensor"):
        engine: Any = parameter
        size, rank = engine.ds_tensor.numel(), torch.distributed.get_rank(engine.ds_process_group)
        own = engine.ds_tensor.new_zeros(size)
        flat = values.flatten()[rank * size : (rank + 1) * size]
        own[: len(flat)] = flat
        return own
    return values.to(parameter.device)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module as it would be without any cut; all ranks must call it."""
    state = module.state_dict()
    for name, parameter in module.named_parameters():
        if is_cut(parameter):
            state[name] = whole(parameter)
    return state


@torch.no_grad()
def load_whole_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy a whole state into a module whose parameters may be cut."""
    parameters = dict(module.named_parameters())
    cut = {name for name, parameter in parameters.items() if is_cut(parameter)}
    for name in cut:
        part(parameters[name]).copy_(part_of(parameters[name], state[name]))
    rest = {name: value for name, value in state.items() if name not in cut}
    module.load_state_dict(rest, strict=not cut)


def unsharded(model: Model, description: dict[str, Any]) -> Model:
    """The model itself, or an equal one of the ``description`` where its parameters are cut; all ranks must call it."""
    if not any(map(is_cut, model.parameters())):
        return model
    state = whole_state(model)
    plain = build_model(description)
    plain.load_state_dict(state, assign=True)
    return plain


@torch.no_grad()
def copy_parts(values: Iterable[Tensor], parameters: Iterable[Tensor]) -> None:
    """Write this rank's parts into the parameters."""
    for parameter, value in zip(parameters, values, strict=True):
        part(parameter).copy_(value)


class WholeCheckpoints(ParallelStrategy):
    """A strategy whose checkpoints hold whole tensors, on every rank, in the form that one without cuts has.

    So a checkpoint can be resumed under any strategy and at any number of ranks, and whatever writes checkpoints need
    know no strategy.
    """

    restore_checkpoint_after_setup = True
    lightning_restore_optimizer = True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return whole_state(self.lightning_module)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        load_whole_state(self.lightning_module, checkpoint["state_dict"])

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)
