"""What a model costs: parameters, operations and memory of each of its parts, counted on the tensors of one batch."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from sciml.models.block import Convolution, ManyBodyProduct
from sciml.models.layers import DegreeLinear, lmax_of
from sciml.models.model import Model
from sciml.models.radial import RadialNetwork
from sciml_kernels import Spec

BYTES = 4
COPIES = 5
"""Weights, gradients, two moments of AdamW and the moving average."""
_COUNTED = (nn.Linear, DegreeLinear, RadialNetwork, Convolution, ManyBodyProduct)


def coupling_flops(spec: Spec) -> int:
    """Operations of a trilinear contraction in one row: C y, then x (C y), then the weights, over nonzero entries."""
    total = 0
    for path in spec.paths:
        mul = spec.irreps_x[path.x].mul
        pairs = len({(i, k) for i, _, k, _ in path.entries})
        total += 2 * len(path.entries) * (mul if spec.y_channels else 1)
        total += 2 * (pairs + 2 * path.degrees[2] + 1) * mul
    return total


def flops_of_rows(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[int, int] | None:
    """Rows that a module of matrix or tensor products was called on, and its operations in a row, a multiplication and
    an addition counting as two; None for other modules.
    """
    if isinstance(module, nn.Linear):
        return inputs[0].shape[0], 2 * math.prod(inputs[0].shape[1:]) * module.out_features
    if isinstance(module, DegreeLinear):
        _, channels_in, channels_out = module.weights.shape
        return inputs[0].shape[0], 2 * inputs[0].shape[1] * channels_in * channels_out
    if isinstance(module, RadialNetwork):
        *_, kind, edge_scalars = inputs
        return inputs[1].num_edges, sum(2 * weight.numel() for weight, _ in module.layers(kind, edge_scalars))
    if isinstance(module, Convolution):
        x, _, hidden, edges, _ = inputs
        spec = module.specs[lmax_of(x)]
        return edges.num_edges, 2 * hidden.shape[1] * spec.dim_w + coupling_flops(spec)
    if isinstance(module, ManyBodyProduct):
        return inputs[0].shape[0], sum(coupling_flops(spec) for spec in module.specs)
    return None


@dataclass
class Part:
    """Cost of one part of a model: flops of a node of its level (of a head, of what it reads), of an edge, and of the
    whole batch.
    """

    name: str
    parameters: int = 0
    per_node: int = 0
    per_edge: int = 0
    total: int = 0


@dataclass
class Cost:
    """Cost of a model on one batch: its parts, and the bytes that the backward passes keep."""

    parts: list[Part] = field(default_factory=list)
    activations: int = 0

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(part.parameters for part in self.parts)

    @property
    def flops(self) -> int:
        """Operations of one forward pass over the batch."""
        return sum(part.total for part in self.parts)


def part_of(name: str) -> str:
    """The part that a parameter or module belongs to by its dotted name: a block, an embedding or a head."""
    words = name.removeprefix("backbone.").split(".")
    depth = 2 if words[0] in ("blocks", "heads") else 1
    if words[0] == "coarse":
        depth = 3 if words[1] == "blocks" else 2
    return " ".join(words[:depth])


def measure(model: Model, batch: Batch, kind: str) -> Cost:
    """Run ``model`` once on a batch of one kind as training does, up to the loss, and count.

    Flops are those of matrix products and tensor products in the forward pass; point-wise functions are left out.
    Activations are what autograd keeps for the backward passes, with those of the forces.
    """
    with ExitStack() as stack:
        parts = stack.enter_context(counted_parts(model))
        kept = stack.enter_context(saved_bytes())
        model(batch, kind, create_graph=True)
    return Cost(list(parts.values()), sum(kept.values()))


@contextmanager
def counted_parts(model: Model) -> Iterator[dict[str, Part]]:
    """Collect the {name: part} of a model with the operations of every forward pass inside the block."""
    parts: dict[str, Part] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parts.setdefault(part, Part(part)).parameters += parameter.numel()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, _COUNTED):
                hook = module.register_forward_pre_hook(_counting(parts, name))
                stack.callback(hook.remove)
        yield parts


def _counting(parts: dict[str, Part], name: str) -> Any:
    """A hook that adds the operations of a module to its part."""
    part = parts[part_of(name)]

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        found = flops_of_rows(module, inputs)
        computed_again = torch._C._current_graph_task_id() != -1  # by a backward pass, of checkpointed activations
        if found is None or computed_again:
            return
        rows, flops = found
        part.total += rows * flops
        if isinstance(module, RadialNetwork | Convolution):
            part.per_edge += flops
        else:
            part.per_node += flops

    return count


@contextmanager
def saved_bytes() -> Iterator[dict[int, int]]:
    """Collect {address: bytes} of every distinct memory that autograd saves inside the block."""
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        held.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
    held.clear()
