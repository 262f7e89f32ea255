"""The definition in plain torch: any dtype, any order of derivative by autograd."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciml_kernels.half import in_single


@in_single
def structure_factors(
    positions: Tensor, charges: Tensor, frequencies: Tensor, atom_pointers: Tensor, wave_pointers: Tensor
) -> Tensor:
    """(waves, 2, channels): sums of charge * cos and charge * sin of 2 pi frequency . position, graph by graph."""
    atoms, waves = atom_pointers.diff().tolist(), wave_pointers.diff().tolist()
    systems = zip(positions.split(atoms), charges.split(atoms), frequencies.split(waves), strict=True)
    parts = [_of_one(*system) for system in systems]
    return torch.cat(parts) if parts else _of_one(positions, charges, frequencies)


def _of_one(positions: Tensor, charges: Tensor, frequencies: Tensor) -> Tensor:
    turns = frequencies @ positions.T
    angles = 2 * math.pi * (turns - turns.detach().round())  # whole turns go before they cost digits
    return torch.stack([angles.cos() @ charges, angles.sin() @ charges], dim=1)
