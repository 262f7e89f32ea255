"""The public structure factors: check the arguments, choose a backend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciml_kernels.backends import choose
from sciml_kernels.checks import check_alike, check_shape, check_type
from sciml_kernels.half import in_single
from sciml_kernels.segments.op import check_pointers
from sciml_kernels.structure_factors import library, reference


def structure_factors(
    positions: Tensor,
    charges: Tensor,
    wave_vectors: Tensor,
    atom_pointers: Tensor,
    wave_pointers: Tensor,
    backend: str = "auto",
) -> Tensor:
    """S(k) = sum over the atoms of a system of charge * exp(i k . r), differentiable twice in everything.

    Compiled backends keep a block of pairs at a time, in memory that does not grow with atoms x waves.

    Args:
        positions: (atoms, 3), sorted by system.
        charges: (atoms, channels).
        wave_vectors: (waves, 3), sorted by system, in radians per unit of the positions.
        atom_pointers, wave_pointers: (systems + 1,) int64: the atoms of system s are atom_pointers[s] to
            atom_pointers[s + 1], its waves likewise.
        backend: "auto" (compiled where possible), "reference" (plain torch), "cpu" (generated C++), "triton".

    Returns:
        (waves, 2, channels), the real and the imaginary part.

    Raises:
        ValueError: an argument of wrong shape, dtype or device, pointers that do not fit (checked on a CPU), or a
            backend that is not possible here.
    """
    check_shape("wave_vectors", wave_vectors, (None, 3))
    check_alike("positions", positions, charges=charges, wave_vectors=wave_vectors)
    chosen = choose(backend, positions)
    return _in_radians(positions, charges, wave_vectors, atom_pointers, wave_pointers, chosen)


@in_single  # rounded turns would be other waves
def _in_radians(
    positions: Tensor, charges: Tensor, waves: Tensor, atom_pointers: Tensor, wave_pointers: Tensor, backend: str
) -> Tensor:
    return in_turns(positions, charges, waves / (2 * math.pi), atom_pointers, wave_pointers, backend)


def in_turns(
    positions: Tensor, charges: Tensor, frequencies: Tensor, atom_pointers: Tensor, wave_pointers: Tensor, backend: str
) -> Tensor:
    """The same of exp(2 pi i frequency . r): with fractional positions and integers, no digits of phases are lost."""
    check_atoms(positions, charges)
    check_alike("positions", positions, charges=charges, wave_vectors=frequencies)
    chosen = choose(backend, positions)
    check_systems("atom_pointers", atom_pointers, positions, chosen)
    check_systems("wave_pointers", wave_pointers, frequencies, chosen)
    if atom_pointers.shape != wave_pointers.shape:
        found = wave_pointers.shape[0] - 1
        raise ValueError(
            f"wave_pointers: found {found} systems, expected {atom_pointers.shape[0] - 1} as atom_pointers"
        )
    arguments = (positions, charges, frequencies, atom_pointers, wave_pointers)
    return (
        reference.structure_factors(*arguments)
        if chosen == "reference"
        else library.structure_factors(*arguments, chosen)
    )


def check_atoms(positions: Tensor, charges: Tensor) -> None:
    """Raise ValueError unless these are positions (atoms, 3) and charges (atoms, channels) of one channel or more."""
    check_shape("positions", positions, (None, 3))
    check_shape("charges", charges, (positions.shape[0], None))
    if not charges.shape[1]:
        raise ValueError(
            f"charges: found shape {tuple(charges.shape)}, expected (atoms, channels), one channel or more"
        )


def check_systems(name: str, pointers: Tensor, rows: Tensor, chosen: str) -> None:
    """Raise ValueError unless these are pointers into the rows; their values are looked at on a CPU."""
    check_type(name, pointers, Tensor)
    if pointers.dtype != torch.int64 or pointers.dim() != 1 or pointers.shape[0] < 1:
        raise ValueError(
            f"{name}: found {pointers.dtype} of shape {tuple(pointers.shape)}, expected int64 (systems + 1,)"
        )
    if pointers.device != rows.device:
        raise ValueError(f"{name}: found on {pointers.device}, expected on {rows.device} as positions")
    check_pointers(name, pointers, rows.shape[0], chosen)
