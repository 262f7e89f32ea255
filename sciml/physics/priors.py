"""Pair energies that are known before any training: the repulsion of nuclei and dispersion.

Energies of pairs in eV from distances in Å; a pair counts once. Both vanish with their first and second derivative at
their cutoff.
"""

import csv
from functools import cache
from pathlib import Path

import torch
from ase.data import chemical_symbols
from torch import Tensor

from sciml.errors import UserError
from sciml.units import BOHR, KJ_PER_MOL
from sciml_kernels.edge_embedding.reference import polynomial_envelope
from sciml_kernels.structure_factors.ewald import COULOMB

SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
STEEPNESS = 20.0
SWITCH = 0.8
"""Dispersion is switched off over the last part of its radius, from this share on."""


def nuclear_repulsion(distances: Tensor, first: Tensor, second: Tensor, cutoffs: Tensor) -> Tensor:
    """The screened repulsion of Ziegler, Biersack and Littmark (1985) of pairs (P,).

    E = C Z Z' / r phi(r / a), a = 0.8854 a_0 / (Z^0.23 + Z'^0.23), times the envelope of the edges at ``cutoffs`` (P,).
    ``first`` and ``second`` (P,) are atomic numbers; zero, a masked type, repels nothing.
    """
    numbers = torch.stack([first, second]).to(distances)
    length = 0.8854 * BOHR / numbers.clamp(min=1.0).pow(0.23).sum(dim=0)
    screened = sum(factor * torch.exp(-rate * distances / length) for factor, rate in SCREENING)
    return COULOMB * numbers.prod(dim=0) / distances * screened * polynomial_envelope(distances / cutoffs)


def dispersion(distances: Tensor, first: Tensor, second: Tensor, radius: float, scale: float) -> Tensor:
    """The dispersion of Grimme (2006), D2, of pairs (P,) of atomic numbers ``first`` and ``second``.

    E = -s6 C6 / r^6 / (1 + exp(-20 (r / R - 1))) with C6 the geometric mean of those of the free atoms and R the sum of
    the van der Waals radii; ``scale`` is s6 of the density functional (0.75 for PBE, 1.05 for B3LYP). A quintic step
    takes it to zero between 0.8 ``radius`` and ``radius`` [Å]. Raises UserError for an element without coefficients,
    where the pairs are on a CPU.
    """
    coefficients, radii = (column.to(distances) for column in _dispersion_table())
    if first.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_elements(torch.cat([first, second]), len(radii) - 1)
    c6 = (coefficients[first] * coefficients[second]).sqrt()
    damping = torch.sigmoid(STEEPNESS * (distances / (radii[first] + radii[second]) - 1.0))
    x = ((distances / radius - SWITCH) / (1.0 - SWITCH)).clamp(0.0, 1.0)
    step = 1.0 - x**3 * (10.0 - 15.0 * x + 6.0 * x * x)
    return -scale * c6 / distances**6 * damping * step


def _check_elements(numbers: Tensor, last: int) -> None:
    if len(numbers) and (largest := int(numbers.max())) > last:
        raise UserError(
            f"dispersion: found {chemical_symbols[largest]} in a structure, expected elements up to "
            f"{chemical_symbols[last]}, of which there are coefficients; leave its records out, or the dispersion with "
            "heads.energy.dispersion=null."
        )


def dispersion_elements() -> set[int]:
    """Atomic numbers that :func:`dispersion` has coefficients for."""
    return set(range(1, len(_dispersion_table()[0])))


@cache
def _dispersion_table() -> tuple[Tensor, Tensor]:
    """C6 in eV Å^6 and van der Waals radii in Å by atomic number, fp64; of no atom 0 and 1."""
    with open(Path(__file__).parent / "dispersion.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    joule_nm6 = 1e-3 * KJ_PER_MOL * 10.0**6
    c6 = [0.0, *(joule_nm6 * float(row["c6"]) for row in rows)]
    radii = [1.0, *(float(row["r0"]) for row in rows)]
    return torch.tensor(c6, dtype=torch.float64), torch.tensor(radii, dtype=torch.float64)
