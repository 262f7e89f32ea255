"""The definition: all pairs of all periodic images, in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PAIRS = 2**24  # pairs of atoms and images that are looked at at once


def neighbor_list(
    positions: Tensor, cells: Tensor, pbc: Tensor, pointers: Tensor, cutoff: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Senders, receivers and shifts in any order. Its cost is atoms squared times images."""
    bounds = pointers.tolist()
    found = []
    for start, end, cell, periodic in zip(bounds, bounds[1:], cells, pbc):
        senders, receivers, shifts = _system(positions[start:end], cell, periodic, cutoff)
        found.append((senders + start, receivers + start, shifts))
    if not found:
        return pointers.new_empty(0), pointers.new_empty(0), pointers.new_empty(0, 3)
    senders, receivers, shifts = (torch.cat(parts) for parts in zip(*found))
    return senders, receivers, shifts


def _system(positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of one system; non-periodic rows of its cell are at right angles to the others."""
    images = _images(positions, cell, pbc, cutoff)
    atoms = len(positions)
    found = []
    for some in images.split(max(1, PAIRS // max(1, atoms * atoms))):
        vectors = positions[None, None] - positions[None, :, None] + (some.to(cell.dtype) @ cell)[:, None, None]
        near = vectors.square().sum(-1) < cutoff * cutoff  # (images, receivers, senders)
        near[(some == 0).all(1)] &= ~torch.eye(atoms, dtype=torch.bool, device=near.device)
        image, receivers, senders = near.nonzero().unbind(1)
        found.append((senders, receivers, some[image]))
    senders, receivers, shifts = (torch.cat(parts) for parts in zip(*found))
    return senders, receivers, shifts


def _images(positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float) -> Tensor:
    """(images, 3) int64: every shift with which an atom can be near another, atoms outside the cell included."""
    inverse = torch.linalg.inv(cell)
    steps = [torch.zeros(1, dtype=torch.int64)] * 3
    if len(positions):
        fractional = positions @ inverse
        spread = fractional.amax(0) - fractional.amin(0)
        most = ((cutoff * torch.linalg.vector_norm(inverse, dim=0) + spread) * pbc).tolist()
        steps = [torch.arange(-math.floor(value), math.floor(value) + 1) for value in most]
    return torch.cartesian_prod(*steps).to(positions.device)
