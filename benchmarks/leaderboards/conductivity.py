"""Lattice thermal conductivity by mode, and its error against DFT: kappa_SRME of Póta et al., arXiv:2408.00755.

A crystal is relaxed within its symmetry, its force constants of second and third order come from displaced supercells,
and phono3py solves the Wigner transport equation (Simoncelli, Marzari & Mauri, Nature Physics 15, 809, 2019) in the
relaxation-time approximation. A material is a dictionary with the names of the leaderboard's own tables:

    kappa_tot_avg        (1,) mean of the diagonal of the conductivity at 300 K, W/(m K)
    mode_kappa_tot_avg   (1, q-points, bands) the same by mode, the images of a q-point together: their sum over the sum
                         of the weights is the conductivity
    mode_weights         (q-points,) how many images a q-point has
    q_points             (q-points, 3) in units of the reciprocal lattice

or ``failure`` alone, the reason why there is none.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

from sciml.errors import UserError

TEMPERATURE = 300.0  # K
FORCE, STEPS = 1e-4, 300  # eV/Å; force constants of third order ask for a crystal that is well relaxed
DISPLACEMENT = 0.01  # Å
TOLERANCE, TOLERANCE_OF_RELAXATION = 1e-5, 1e-2  # Å: to find the space group, and to keep it
BOUNDARY_PATH = 1e6  # µm, a mean free path that only bounds modes without any scattering
ROUNDING = -0.01  # THz of an acoustic mode at Gamma, which is zero but for rounding
LENGTHS_ONLY = [True, True, True, False, False, False]  # of a strain: angles stay
LARGEST_ERROR = 2.0  # of a material without a conductivity
MESHES = ("q_point_mesh", "q_mesh")
IDENTIFIERS = ("material_id", "mp_id")
KEYS = ("fc2_supercell", "fc3_supercell", MESHES[0], IDENTIFIERS[0])


def conductivity(atoms: Atoms, calculator: Any, displacement: float = DISPLACEMENT) -> dict[str, Any]:
    """The conductivity of a crystal, whose ``info`` has ``fc2_supercell`` and ``fc3_supercell``, (3, 3) or (3,), and
    ``q_point_mesh`` (3,), as the leaderboard's structures do; ``displacement`` of one atom in Å.

    Fails where the relaxation changes the space group, where none is found, or where a frequency is imaginary. Raises
    ImportError without phono3py.
    """
    import spglib
    from phono3py import Phono3py
    from phonopy.structure.atoms import PhonopyAtoms

    before = space_group(atoms)
    if not before:
        return {"failure": "has no space group"}
    try:
        relaxed = relax(atoms, calculator)
    except spglib.SpglibError as error:
        return {"failure": f"its symmetry cannot be kept: {error}"}
    after = space_group(relaxed)
    if before != after:
        return {"failure": f"the space group changed from {before} to {after}"}
    solver = Phono3py(
        PhonopyAtoms(relaxed.symbols, cell=relaxed.cell, positions=relaxed.positions),
        supercell_matrix=atoms.info["fc3_supercell"],
        phonon_supercell_matrix=atoms.info["fc2_supercell"],
        primitive_matrix="auto",
        symprec=TOLERANCE,
    )
    solver.mesh_numbers = atoms.info["q_point_mesh"]
    solver.generate_displacements(distance=displacement)
    solver.phonon_forces = forces(solver.phonon_supercells_with_displacements, calculator)
    solver.produce_fc2()
    solver.symmetrize_fc2()
    solver.init_phph_interaction(symmetrize_fc3q=False)
    solver.run_phonon_solver()
    if imaginary(solver.get_phonon_data()[0]):
        return {"failure": "a frequency is imaginary"}
    solver.forces = forces(solver.supercells_with_displacements, calculator)
    solver.produce_fc3()
    solver.symmetrize_fc3()
    solver.init_phph_interaction(symmetrize_fc3q=False)
    solver.run_thermal_conductivity(
        temperatures=[TEMPERATURE], is_isotope=True, boundary_mfp=BOUNDARY_PATH, transport_type="SMM19"
    )
    return _material(solver.thermal_conductivity)


def _material(found: Any) -> dict[str, Any]:
    pairs = found.mode_kappa_matrix[0, ..., :3].mean(axis=-1)  # the first and only width of smearing
    return {
        "kappa_tot_avg": found.kappa[0, :, :3].mean(axis=-1).tolist(),
        "mode_kappa_tot_avg": by_mode(pairs, found.mode_heat_capacities).tolist(),
        "mode_weights": found.grid_weights.tolist(),
        "q_points": found.qpoints.tolist(),
    }


def relax(atoms: Atoms, calculator: Any) -> Atoms:
    """Positions and the lengths of the cell relaxed by FIRE within the space group."""
    moved = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    moved.calc = calculator
    moved.set_constraint(FixSymmetry(moved, symprec=TOLERANCE_OF_RELAXATION))
    FIRE(FrechetCellFilter(moved, mask=LENGTHS_ONLY), logfile=None).run(fmax=FORCE, steps=STEPS)
    return Atoms(moved.numbers, positions=moved.positions, cell=moved.cell, pbc=True)


def space_group(atoms: Atoms) -> int:
    """The number of the space group, 0 where none is found."""
    import spglib

    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    try:
        found = spglib.get_symmetry_dataset(cell, symprec=TOLERANCE)
    except spglib.SpglibError:
        return 0
    return int(found.number) if found is not None else 0


def forces(supercells: list[Any], calculator: Any) -> np.ndarray:
    """Forces on the atoms of displaced supercells (supercells, atoms, 3), eV/Å."""
    found = []
    for cell in supercells:
        atoms = Atoms(cell.symbols, cell=cell.cell, positions=cell.positions, pbc=True)
        atoms.calc = calculator
        found.append(atoms.get_forces())
    return np.array(found)


def imaginary(frequencies: np.ndarray) -> bool:
    """Whether a frequency (q-points, bands) in THz, Gamma first, is imaginary, which phonopy writes as negative."""
    acoustic, rest = frequencies[0, :3], (frequencies[0, 3:], frequencies[1:])
    unstable = bool((acoustic < ROUNDING).any()) or any((part < 0).any() for part in rest)
    return unstable or not np.isfinite(frequencies).all()


def by_mode(pairs: np.ndarray, capacities: np.ndarray) -> np.ndarray:
    """Contributions of modes (T, q, bands) from those of pairs of modes (T, q, bands, bands) and heat capacities
    (T, q, bands).

    A pair is shared by the heat capacities. As in the leaderboard's code, with which its reference was made, a mode
    gets the share of its partner.
    """
    both = capacities[..., :, None] + capacities[..., None, :]
    share = np.divide(capacities[..., :, None], both, out=np.zeros_like(both), where=both > 0)
    return np.asarray(2 * (pairs * share).sum(axis=-2))


def named(atoms: Atoms, needed: Iterable[str]) -> Atoms:
    """A structure of a file, with the names that are used here in its ``info`` for others in use.

    Raises UserError where one that is ``needed`` is missing.
    """
    for names in (MESHES, IDENTIFIERS):
        found = [atoms.info[name] for name in names if name in atoms.info]
        atoms.info |= {names[0]: found[0]} if found else {}
    if missing := [name for name in needed if name not in atoms.info]:
        who = atoms.info.get("material_id", atoms.get_chemical_formula())
        raise UserError(f"{who} has no {', '.join(missing)}, which each structure of the leaderboard's files has.")
    return atoms


def failed(material: dict[str, Any] | None) -> bool:
    """Whether a material has no conductivity."""
    return material is None or material.get("failure") is not None


def read_table(path: Path) -> dict[str, dict[str, Any]]:
    """{material_id: material} of JSON lines, or of JSON that is a list of rows or has columns; ``.gz`` or not.

    What a stopped run left of its last line does not count. Raises UserError where that is not what the file holds.
    """
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            content = _lines(file) if ".jsonl" in path.suffixes else json.load(file)
        rows = _rows_of_columns(content) if isinstance(content, dict) else content
        return {next(row[name] for name in IDENTIFIERS if row.get(name) is not None): row for row in rows}
    except (AttributeError, TypeError, StopIteration, ValueError, OSError, EOFError) as error:
        raise UserError(
            f"{path}: found no table of conductivities ({error or type(error).__name__}), expected rows with "
            "material_id, kappa_tot_avg, mode_kappa_tot_avg and mode_weights."
        ) from error


def _lines(file: Iterable[str]) -> list[dict[str, Any]]:
    """The rows; a last line without an end that is no JSON is what a stopped run left."""
    lines = list(file)
    if lines and not lines[-1].endswith("\n") and not lines[-1].endswith("}"):
        lines.pop()
    return [json.loads(line) for line in lines]


def _rows_of_columns(columns: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: column.get(key) for name, column in columns.items()} for key in next(iter(columns.values()))]


def symmetric_errors(predicted: dict[str, Any] | None, true: dict[str, Any]) -> tuple[float, float]:
    """Symmetric relative errors, 0 to 2: the mean one of the modes (SRME), and that of their sum (SRE).

    Raises UserError where the modes of both are not the same ones, or the reference has no numbers.
    """
    if predicted is None or failed(predicted):
        return LARGEST_ERROR, LARGEST_ERROR
    name = true.get("material_id", true.get("mp_id", "a material"))
    try:
        (ours, total), (theirs, reference) = ((_modes(side), _total(side)) for side in (predicted, true))
        others = [key for key in ("mode_weights", "q_points") if _differ(predicted, true, key)]
        weights = float(np.sum(true["mode_weights"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{name}: found no conductivity at {TEMPERATURE:g} K by modes ({error!r}).") from error
    if ours.shape != theirs.shape or others:
        found = " and ".join(others) or f"{ours.shape} q-points and bands, {theirs.shape} in the reference"
        raise UserError(
            f"{name}: its modes are others than those of the reference ({found}), so that they cannot be compared; was "
            "it the same cell and mesh?"
        )
    if not np.isfinite(theirs).all() or not math.isfinite(reference):
        raise UserError(f"{name}: the reference holds numbers that are not finite.")
    if not np.isfinite(ours).all() or not math.isfinite(total) or total + reference <= 0:
        return LARGEST_ERROR, LARGEST_ERROR
    of_modes = float(np.abs(ours - theirs).sum()) / weights
    mean_error, error = (2 * value / (total + reference) for value in (of_modes, abs(total - reference)))
    return min(mean_error, LARGEST_ERROR), min(error, LARGEST_ERROR)


def _differ(first: dict[str, Any], second: dict[str, Any], name: str) -> bool:
    """Whether both have something of that name, and it is not the same."""
    pair = [side.get(name) for side in (first, second)]
    return None not in pair and not np.allclose(np.asarray(pair[0], float), np.asarray(pair[1], float), atol=1e-6)


def _modes(material: dict[str, Any]) -> np.ndarray:
    """Contributions (q-points, bands) at the temperature: means, or those of a tensor, full or as six components."""
    if material.get("mode_kappa_tot_avg") is not None:
        return np.asarray(_at_temperature(material, np.asarray(material["mode_kappa_tot_avg"], dtype=float)))
    tensors = np.asarray(_at_temperature(material, np.asarray(material["mode_kappa_tot_rta"], dtype=float)))
    if tensors.shape[-2:] == (3, 3) and tensors.ndim == 4:
        return np.asarray(np.trace(tensors, axis1=-2, axis2=-1) / 3)
    return np.asarray(tensors[..., :3].mean(axis=-1))


def _total(material: dict[str, Any]) -> float:
    return float(_at_temperature(material, np.ravel(material["kappa_tot_avg"])))


def _at_temperature(material: dict[str, Any], values: np.ndarray) -> Any:
    """That of ``values`` (T, ...) at the temperature, the first where the material does not name its temperatures."""
    temperatures = [float(each) for each in np.ravel(material.get("temperatures") or [TEMPERATURE])]
    return values[temperatures.index(TEMPERATURE)]
