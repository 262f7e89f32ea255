"""The reciprocal part of Ewald sums, and the waves that it needs. Ewald, Annalen der Physik 369, 253 (1921)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sciml_kernels.backends import choose
from sciml_kernels.checks import check_alike, check_device, check_shape, check_type
from sciml_kernels.half import in_single
from sciml_kernels.segments import library, reference
from sciml_kernels.segments.op import segment_sum
from sciml_kernels.structure_factors.op import check_atoms, check_systems, in_turns

COULOMB = 14.399645478425668  # eV Å / e^2: e / (4 pi epsilon_0) with the constants of CODATA 2018


class Waves(NamedTuple):
    """Reciprocal lattice vectors of each system, one of k and -k, without zero.

    Attributes:
        indices: (waves, 3) int64, coordinates n in the reciprocal basis, k = 2 pi cell^-1 n.
        pointers: (systems + 1,) int64: those of system s are pointers[s] to pointers[s + 1].
    """

    indices: Tensor
    pointers: Tensor


def half_space(cell: Tensor, cutoff: float) -> Waves:
    """All reciprocal lattice vectors up to a length, half of them: the other half adds the same to the energy.

    The list is a choice of terms, not a function to differentiate: keep it while a cell is strained.

    Args:
        cell: (systems, 3, 3), rows are lattice vectors.
        cutoff: largest |k| in radians per unit of the cell. With a splitting alpha, terms beyond it are smaller than
            exp(-cutoff^2 / (4 alpha^2)).

    Raises:
        ValueError: a cell of wrong shape or without volume, or a cutoff that is not positive.
    """
    check_shape("cell", cell, (None, 3, 3))
    check_alike("cell", cell)
    if not 0 < cutoff < math.inf:
        raise ValueError(f"cutoff: found {cutoff}, expected a positive number")
    found = [_of_one(lattice, cutoff) for lattice in cell.detach().double().cpu()]
    counts = torch.tensor([0, *map(len, found)])
    indices = torch.cat([torch.zeros(0, 3, dtype=torch.int64), *found])
    return Waves(indices.to(cell.device), counts.cumsum(0).to(cell.device))


def _of_one(lattice: Tensor, cutoff: float) -> Tensor:
    """n_i = k . a_i / 2 pi is at most cutoff |a_i| / 2 pi."""
    if not abs(float(torch.linalg.det(lattice))) > 0:
        raise ValueError(
            f"cell: found the volume {float(torch.linalg.det(lattice))}, expected lattice vectors that span"
        )
    most = (cutoff / (2 * math.pi) * torch.linalg.vector_norm(lattice, dim=1)).floor().long().tolist()
    first, second, third = (torch.arange(-n, n + 1) for n in most)
    n = torch.cartesian_prod(first[first >= 0], second, third)
    upper = (n[:, 0] > 0) | ((n[:, 0] == 0) & ((n[:, 1] > 0) | ((n[:, 1] == 0) & (n[:, 2] > 0))))
    n = n[upper]
    k = 2 * math.pi * torch.linalg.solve(lattice, n.double().T).T
    return n[k.square().sum(1) <= cutoff**2]


def ewald_reciprocal_energy(
    positions: Tensor,
    charges: Tensor,
    cell: Tensor,
    pointers: Tensor,
    waves: Waves,
    splitting: float,
    backend: str = "auto",
) -> Tensor:
    """E = 2 pi / V sum over k != 0 of exp(-k^2 / (4 alpha^2)) / k^2 |S(k)|^2, in eV, differentiable twice.

    The Ewald energy is this plus the sum over pairs of q_i q_j erfc(alpha r) / r, less alpha / sqrt(pi) sum_i q_i^2,
    times the Coulomb constant; for a net charge Q, less pi Q^2 / (2 V alpha^2) too (a uniform background).

    Derivatives to the cell are at fixed positions: for a stress, strain both.

    Args:
        positions: (atoms, 3) in Å, sorted by system.
        charges: (atoms, channels) in e; every channel is a set of charges with an energy of its own.
        cell: (systems, 3, 3) in Å, rows are lattice vectors.
        pointers: (systems + 1,) int64: the atoms of system s are pointers[s] to pointers[s + 1].
        waves: of `half_space`.
        splitting: alpha in 1 / Å.
        backend: "auto" (compiled where possible), "reference" (plain torch), "cpu" (generated C++), "triton".

    Returns:
        (systems, channels) in eV.

    Raises:
        ValueError: an argument of wrong shape, dtype, device or range, or a backend that is not possible here.
    """
    check_alike("positions", positions, charges=charges, cell=cell)
    chosen = choose(backend, positions)
    _check(positions, charges, cell, pointers, waves, splitting, chosen)
    return _energy(positions, charges, cell, pointers, waves, splitting, chosen)


@in_single  # half precision has no inverse, and cannot count waves
def _energy(
    positions: Tensor, charges: Tensor, cell: Tensor, pointers: Tensor, waves: Waves, splitting: float, backend: str
) -> Tensor:
    inverse = torch.linalg.inv(cell)
    frequencies = waves.indices.to(positions.dtype)
    own = _expanded(inverse, pointers, positions.shape[0], backend)
    fractional = (positions.unsqueeze(1) @ own).squeeze(1)
    factors = in_turns(fractional, charges, frequencies, pointers, waves.pointers, backend)
    bases = _expanded(inverse, waves.pointers, frequencies.shape[0], backend)
    k = 2 * math.pi * (bases @ frequencies.unsqueeze(2)).squeeze(2)
    square = k.square().sum(1, keepdim=True)
    terms = torch.exp(square / (-4 * splitting**2)) / square * factors.square().sum(1)
    volume = torch.linalg.det(cell).abs().unsqueeze(1)
    return 4 * math.pi * COULOMB / volume * segment_sum(terms, waves.pointers, backend)


def _expanded(matrices: Tensor, pointers: Tensor, rows: int, backend: str) -> Tensor:
    """The matrix of its system for each row."""
    if backend == "reference":
        return reference.segment_expand(matrices, pointers, rows)
    return library.segment_expand(matrices, pointers, rows, backend)


def _check(
    positions: Tensor, charges: Tensor, cell: Tensor, pointers: Tensor, waves: Waves, splitting: float, chosen: str
) -> None:
    check_atoms(positions, charges)
    check_shape("cell", cell, (None, 3, 3))
    check_type("waves", waves, Waves)
    check_shape("waves.indices", waves.indices, (None, 3))
    check_device("waves.indices", waves.indices, "positions", positions)
    for name, ends, rows in (("pointers", pointers, positions), ("waves.pointers", waves.pointers, waves.indices)):
        check_systems(name, ends, rows, chosen)
        check_shape(name, ends, (cell.shape[0] + 1,))
    if not 0 < splitting < math.inf:
        raise ValueError(f"splitting: found {splitting}, expected a positive number")
