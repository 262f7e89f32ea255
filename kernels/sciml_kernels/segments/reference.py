"""The definitions in plain torch: any dtype, any order of derivative by autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sciml_kernels.half import in_single

LINEAR = 1e-12  # least moment of inertia over the others, below which atoms lie on a line

Sum = Callable[[Tensor, Tensor], Tensor]


def ascending(pointers: Tensor, rows: int) -> bool:
    """Whether the pointers ascend from 0 to the number of rows."""
    return int(pointers[0]) == 0 and int(pointers[-1]) == rows and not bool((pointers.diff() < 0).any())


def rows_of(pointers: Tensor, rows: int) -> Tensor:
    """The segment of each row."""
    segments = torch.arange(pointers.shape[0] - 1, device=pointers.device)
    return torch.repeat_interleave(segments, pointers.diff(), output_size=rows)


@in_single
def segment_sum(values: Tensor, pointers: Tensor) -> Tensor:
    """out[s] = sum of values[pointers[s] : pointers[s + 1]]."""
    out = values.new_zeros(pointers.shape[0] - 1, *values.shape[1:])
    return out.index_add(0, rows_of(pointers, values.shape[0]), values)


def segment_expand(values: Tensor, pointers: Tensor, rows: int) -> Tensor:
    """out[r] = values[segment of r]."""
    return values.index_select(0, rows_of(pointers, rows))


def segment_mean(values: Tensor, pointers: Tensor, total: Sum = segment_sum) -> Tensor:
    """The mean of each segment, zero where it is empty."""
    return total(values, pointers) / counts(pointers, values)


def counts(pointers: Tensor, like: Tensor) -> Tensor:
    """Rows of each segment, at least 1, shaped to divide (segments, ...) like `like`."""
    return pointers.diff().clamp(min=1).to(like.dtype).view(-1, *[1] * (like.dim() - 1))


@in_single
def remove_mean(values: Tensor, pointers: Tensor) -> Tensor:
    """values - mean of their segment."""
    return values - segment_expand(segment_mean(values, pointers), pointers, values.shape[0])


@in_single
def project_charge(charges: Tensor, totals: Tensor, pointers: Tensor) -> Tensor:
    """charges - mean of their graph + the share of each atom in the total."""
    shares = totals / counts(pointers, totals)
    return remove_mean(charges, pointers) + segment_expand(shares, pointers, charges.shape[0])


def remove_net_force_and_torque(
    forces: Tensor, positions: Tensor, pointers: Tensor, total: Sum = segment_sum
) -> Tensor:
    """forces - mean - turn x arm, in double; `total` sums segments."""
    force, position = forces.double(), positions.double()
    segment = rows_of(pointers, forces.shape[0])
    arm = position - segment_mean(position, pointers, total)[segment]
    force = force - segment_mean(force, pointers, total)[segment]
    torque = total(torch.linalg.cross(arm, force), pointers)
    outer = arm[:, :, None] * arm[:, None, :]
    identity = torch.eye(3, dtype=outer.dtype, device=outer.device)
    inertia = total(arm.square().sum(-1)[:, None, None] * identity - outer, pointers)
    left = force - torch.linalg.cross(_turn(inertia, torque)[segment], arm)
    return left.to(forces.dtype)


def _turn(inertia: Tensor, torque: Tensor) -> Tensor:
    """Solutions (segments, 3) of inertia @ turn = torque; atoms on a line or in a point turn as they can."""
    first, second, third = inertia.unbind(1)
    cross = torch.linalg.cross
    columns = torch.stack([cross(second, third), cross(third, first), cross(first, second)], -1)
    determinant = (first * columns[..., 0]).sum(-1)
    moment = 0.5 * inertia.diagonal(dim1=1, dim2=2).sum(-1)
    solid = determinant > LINEAR * moment**3
    point = moment == 0
    # where() would pass the infinite derivatives of the side not taken: divide by 1 there
    turned = torch.einsum("sij,sj->si", columns, torque) / torch.where(solid, determinant, 1.0)[:, None]
    on_line = torch.where(point, 0.0, 1.0 / torch.where(point, 1.0, moment))[:, None] * torque
    return torch.where(solid[:, None], turned, on_line)
