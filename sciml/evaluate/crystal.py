"""Properties of crystals by any ASE calculator: equation of state, elastic constants, vacancies, phonons; dimers.

Functions take ``ase.Atoms`` with a calculator and work on copies. Lengths in Å, energies in eV, moduli in GPa,
frequencies in THz. Positions are relaxed under every strain, as the measured constants are.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from sciml.errors import UserError
from sciml.units import GPA

FORCE = 1e-4
"""Largest force on an atom, eV/Å, of a relaxed structure."""
_STEPS = 500
_TO_THZ = 15.633302  # sqrt(eV / u) / Å / (2 pi)
_DISPLACEMENT = 0.01  # Å
_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))  # ASE's order of stresses


class EquationOfState(NamedTuple):
    """Volume [Å^3/atom], energy [eV/atom], bulk modulus [GPa] and its derivative, and the curve they were fitted to."""

    volume: float
    energy: float
    bulk_modulus: float
    derivative: float
    volumes: np.ndarray
    energies: np.ndarray


class Dimer(NamedTuple):
    """What the energies of two atoms over their distance look like.

    ``bond`` [Å] and ``depth`` [eV] of the minimum from the farthest point; ``turns`` how often the slope changes sign,
    once in a sound curve; ``tortuosity`` the way up and down by that of a curve with one minimum, 1 in a sound one.
    """

    bond: float
    depth: float
    turns: int
    tortuosity: float


def relaxed(atoms: Atoms, cell: bool = False, force: float = FORCE) -> Atoms:
    """A copy with positions at rest, and with ``cell`` a cell without stress.

    Raises UserError where 500 steps do not get there.
    """
    result = atoms.copy()
    result.calc = atoms.calc
    with warnings.catch_warnings(action="ignore"):  # of logarithms of matrices
        moving: Any = FrechetCellFilter(result) if cell else result
        steps = BFGS(moving, logfile=None)
        if not steps.run(fmax=force, steps=_STEPS):
            raise UserError(
                f"{atoms.get_chemical_formula()}: not relaxed to {force:g} eV/Å in {_STEPS} steps; start from a better "
                "structure, or the model does not hold this crystal together."
            )
    return result


def equation_of_state(atoms: Atoms, strain: float = 0.02, points: int = 9) -> EquationOfState:
    """Fit Birch and Murnaghan's equation, of third order (Birch, Phys. Rev. 71, 809, 1947), to isotropic strains up to
    ``strain``.

    In x = V^(-2/3) the energy is a polynomial of third degree, so the fit is linear and needs no start.
    """
    volumes: list[float] = []
    energies: list[float] = []
    for factor in np.linspace(1 - strain, 1 + strain, points):
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell[:] * factor, scale_atoms=True)
        scaled.calc = atoms.calc
        scaled = relaxed(scaled)
        volumes.append(float(scaled.get_volume()) / len(atoms))
        energies.append(float(scaled.get_potential_energy()) / len(atoms))
    volume, energy = np.array(volumes, dtype=float), np.array(energies, dtype=float)
    polynomial: Any = np.polynomial.Polynomial.fit(volume ** (-2 / 3), energy, 3)
    slope, curvature, third = (polynomial.deriv(order) for order in (1, 2, 3))
    roots = [float(root.real) for root in slope.roots() if abs(root.imag) < 1e-12 and root.real > 0]
    inside = [root for root in roots if curvature(root) > 0 and min(volumes) < root**-1.5 < max(volumes)]
    if not inside:
        raise UserError(
            f"{atoms.get_chemical_formula()}: the energy has no minimum between {volume[0]:.3g} and {volume[-1]:.3g} "
            "Å^3 per atom; relax the structure first, or the model does not hold it together."
        )
    x = inside[0]
    minimum = x**-1.5
    # d/dV = dx/dV d/dx with dx/dV = -2/3 x^(5/2), and E' = 0 at the minimum.
    second = (4 / 9) * x**5 * curvature(x)
    bulk = minimum * second
    third_volume = -(20 / 9) * x**6.5 * curvature(x) - (8 / 27) * x**7.5 * third(x)
    derivative = -1 - minimum * third_volume / second
    return EquationOfState(minimum, float(polynomial(x)), float(bulk / GPA), float(derivative), volume, energy)


def elastic_constants(atoms: Atoms, strain: float = 0.003) -> np.ndarray:
    """Elastic constants (6, 6) in GPa in the order xx, yy, zz, yz, xz, xy, of a structure without stress.

    Central differences of the stress over six strains, the shears engineering ones, positions relaxed at each.
    """
    constants = np.zeros((6, 6))
    for column, (i, j) in enumerate(_VOIGT):
        stresses = []
        for sign in (1, -1):
            deformation = np.eye(3)
            deformation[i, j] += sign * strain / 2
            deformation[j, i] += sign * strain / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell[:] @ deformation, scale_atoms=True)
            strained.calc = atoms.calc
            stresses.append(relaxed(strained).get_stress())
        constants[:, column] = (stresses[0] - stresses[1]) / (2 * strain)
    return (constants + constants.T) / 2 / GPA


def cubic_constants(constants: np.ndarray, tolerance: float = 0.02) -> dict[str, float] | None:
    """C11, C12 and C44 where the constants are those of a cubic crystal along its axes, to ``tolerance`` of C11."""
    c11, c12, c44 = (float(constants[rows].mean()) for rows in (_DIAGONAL, _OFF, _SHEAR))
    cubic = np.zeros((6, 6))
    cubic[:3, :3] = c12
    cubic[_DIAGONAL], cubic[_SHEAR] = c11, c44
    if np.abs(constants - cubic).max() > tolerance * abs(c11):
        return None
    return {"C11": c11, "C12": c12, "C44": c44}


_DIAGONAL = (np.arange(3), np.arange(3))
_SHEAR = (np.arange(3, 6), np.arange(3, 6))
_OFF = (np.array([0, 0, 1, 1, 2, 2]), np.array([1, 2, 0, 2, 0, 1]))


def moduli(constants: np.ndarray) -> dict[str, float]:
    """Bulk and shear modulus of a polycrystal: the means of Voigt's and Reuss' bounds (Hill, 1952), GPa.

    The shear modulus of a crystal that is not stable, whose compliances do not exist, is Voigt's.
    """
    voigt_bulk = constants[:3, :3].sum() / 9
    voigt_shear = (np.trace(constants[:3, :3]) - constants[_OFF].sum() / 2 + 3 * np.trace(constants[3:, 3:])) / 15
    if np.linalg.eigvalsh(constants).min() <= 0:
        return {"bulk_modulus": float(voigt_bulk), "shear_modulus": float(voigt_shear)}
    compliances = np.linalg.inv(constants)
    reuss_bulk = 1 / compliances[:3, :3].sum()
    reuss = 4 * np.trace(compliances[:3, :3]) - 2 * compliances[_OFF].sum() + 3 * np.trace(compliances[3:, 3:])
    return {
        "bulk_modulus": float((voigt_bulk + reuss_bulk) / 2),
        "shear_modulus": float((voigt_shear + 15 / reuss) / 2),
    }


def vacancy_energy(atoms: Atoms, length: float = 10.0, relax: bool = True) -> float:
    """Energy [eV] to take one atom out of an elementary crystal to its bulk, in a supercell of at least ``length`` Å.

    The cell stays that of the crystal. Raises UserError for a compound, where it depends on what the atom comes to.
    """
    if len(set(atoms.get_chemical_symbols())) > 1:
        raise UserError(
            f"{atoms.get_chemical_formula()}: the vacancy energy of a compound depends on chemical potentials, "
            "expected an elementary crystal; leave vacancy out."
        )
    heights = 1 / np.linalg.norm(np.linalg.inv(atoms.cell[:]), axis=0)
    whole = atoms.repeat([max(1, math.ceil(length / height - 1e-9)) for height in heights])
    whole.calc = atoms.calc
    energy = whole.get_potential_energy() / len(whole)
    left = whole.copy()
    del left[0]
    left.calc = atoms.calc
    left = relaxed(left, force=0.005) if relax else left
    return float(left.get_potential_energy() - len(left) * energy)


def gamma_phonons(atoms: Atoms) -> np.ndarray:
    """Optical frequencies (3n - 3,) at Gamma in THz, ascending, imaginary ones negative.

    Central differences of forces in the cell that is given, which is exact there: an atom moves with its images. The
    three acoustic modes there are the translations of the whole crystal, which are projected out.
    """
    moved = atoms.copy()
    moved.calc = atoms.calc
    hessian = np.zeros((3 * len(atoms), 3 * len(atoms)))
    for atom in range(len(atoms)):
        for axis in range(3):
            forces = []
            for sign in (1, -1):
                moved.positions = atoms.positions
                moved.positions[atom, axis] += sign * _DISPLACEMENT
                forces.append(moved.get_forces().ravel())
            hessian[3 * atom + axis] = (forces[1] - forces[0]) / (2 * _DISPLACEMENT)
    roots = np.sqrt(atoms.get_masses())
    dynamical = (hessian + hessian.T) / 2 / np.repeat(np.repeat(np.outer(roots, roots), 3, axis=0), 3, axis=1)
    complete, _ = np.linalg.qr(np.kron(roots[:, None], np.eye(3)), mode="complete")
    optical = complete[:, 3:]  # across the translations, whose displacements are alike
    squares = np.linalg.eigvalsh(optical.T @ dynamical @ optical)
    return np.sign(squares) * np.sqrt(np.abs(squares)) * _TO_THZ


def dimer_energies(first: str, second: str, distances: Sequence[float], calculator: Any) -> np.ndarray:
    """Energies (points,) of two atoms in vacuum at ``distances`` [Å]."""
    atoms = Atoms([first, second], positions=np.zeros((2, 3)))
    atoms.calc = calculator
    energies = []
    for distance in distances:
        atoms.positions[1] = [0.0, 0.0, distance]
        energies.append(atoms.get_potential_energy())
    return np.array(energies)


def dimer(distances: np.ndarray, energies: np.ndarray) -> Dimer:
    """Describe a curve by ascending ``distances``; see :class:`Dimer`."""
    lowest = int(np.argmin(energies))
    steps = np.diff(energies)
    steps = steps[np.abs(steps) > 1e-6]  # a flat tail has no slope
    shortest = (energies[0] - energies[lowest]) + (energies[-1] - energies[lowest])
    turns = int((np.sign(steps[1:]) != np.sign(steps[:-1])).sum())
    ratio = float(np.abs(steps).sum() / shortest) if shortest > 0 else 1.0
    return Dimer(float(distances[lowest]), float(energies[-1] - energies[lowest]), turns, ratio)
