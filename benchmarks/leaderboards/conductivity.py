"""Lattice thermal conductivity by mode, and its error against DFT: kappa_SRME of Póta et al., arXiv:2408.00755.

A crystal is relaxed within its symmetry, its force constants of second and third order come from displaced supercells,
and phono3py solves the Wigner transport equation (Simoncelli, Marzari & Mauri, Nature Physics 15, 809, 2019) in the
relaxation-time approximation. A material is a dictionary with the names of the leaderboard's own tables:

    kappa_tot_avg        (1,) mean of the diagonal of the conductivity at 300 K, W/(m K)
    mode_kappa_tot_avg   (1, q-points, bands) the same by mode, the images of a q-point together: their sum over the sum
                         of the weights is the conductivity
    mode_weights         (q-points,) how many images a q-point has

or ``failure`` alone, the reason why there is none.
"""

from __future__ import annotations

import gzip
import json
import warnings
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
DISPLACEMENT = 0.03  # Å
TOLERANCE, LOOSE = 1e-5, 1e-2  # Å: to find the space group, and to keep it
BOUNDARY = 1e6  # µm, a mean free path that only bounds modes without any scattering
NOISE = -0.01  # THz of an acoustic mode at Gamma, which is zero but for rounding
DIAGONAL = [True, True, True, False, False, False]  # of a strain: lengths change, angles do not
FAILED = 2.0  # the largest value of both errors: of a material without a conductivity
KEYS = ("fc2_supercell", "fc3_supercell", "q_point_mesh")
NAMES = ("material_id", "mp_id")  # of the column that names a material
MODES, FULL_MODES = "mode_kappa_tot_avg", "mode_kappa_tot_rta"


def conductivity(atoms: Atoms, calculator: Any) -> dict[str, Any]:
    """The conductivity of a crystal, whose ``info`` has ``fc2_supercell`` and ``fc3_supercell``, (3, 3) or (3,), and
    ``q_point_mesh`` (3,), as the leaderboard's structures do.

    Fails where the relaxation changes the space group, or a frequency is imaginary. Raises UserError where ``info``
    lacks one of the three, ImportError without phono3py.
    """
    from phono3py import Phono3py
    from phonopy.structure.atoms import PhonopyAtoms

    if missing := [key for key in KEYS if key not in atoms.info]:
        raise UserError(f"has no {', '.join(missing)}, which the structures of phononDB have beside their cells.")
    relaxed = relax(atoms, calculator)
    before, after = space_group(atoms), space_group(relaxed)
    if before != after:
        return {"failure": f"the space group changed from {before} to {after}"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # phono3py renames arguments from release to release
        solver = Phono3py(
            PhonopyAtoms(relaxed.symbols, cell=relaxed.cell, positions=relaxed.positions),
            supercell_matrix=atoms.info["fc3_supercell"],
            phonon_supercell_matrix=atoms.info["fc2_supercell"],
            primitive_matrix="auto",
            symprec=TOLERANCE,
        )
        solver.mesh_numbers = atoms.info["q_point_mesh"]
        solver.generate_displacements(distance=DISPLACEMENT)
        solver.phonon_forces = forces(solver.phonon_supercells_with_displacements, calculator)
        solver.produce_fc2(symmetrize_fc2=True)
        solver.init_phph_interaction(symmetrize_fc3q=False)
        solver.run_phonon_solver()
        if imaginary(solver.get_phonon_data()[0]):
            return {"failure": "a frequency is imaginary"}
        solver.forces = forces(solver.supercells_with_displacements, calculator)
        solver.produce_fc3(symmetrize_fc3r=True)
        solver.init_phph_interaction(symmetrize_fc3q=False)
        solver.run_thermal_conductivity(
            temperatures=[TEMPERATURE], is_isotope=True, boundary_mfp=BOUNDARY, transport_type="SMM19"
        )
    found = solver.thermal_conductivity
    pairs = found.mode_kappa_matrix[0, ..., :3].mean(axis=-1)  # the first and only width of smearing
    return {
        "kappa_tot_avg": found.kappa[0, :, :3].mean(axis=-1).tolist(),
        MODES: by_mode(pairs, found.mode_heat_capacities).tolist(),
        "mode_weights": found.grid_weights.tolist(),
    }


def relax(atoms: Atoms, calculator: Any) -> Atoms:
    """Positions and the lengths of the cell relaxed by FIRE within the space group."""
    moved = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    moved.calc = calculator
    moved.set_constraint(FixSymmetry(moved, symprec=LOOSE))
    FIRE(FrechetCellFilter(moved, mask=DIAGONAL), logfile=None).run(fmax=FORCE, steps=STEPS)
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
    return not np.isfinite(frequencies).all() or bool((acoustic < NOISE).any()) or any((f < 0).any() for f in rest)


def by_mode(pairs: np.ndarray, capacities: np.ndarray) -> np.ndarray:
    """Contributions of modes (T, q, bands) from those of pairs of modes (T, q, bands, bands) and heat capacities
    (T, q, bands).

    A pair is shared by the heat capacities. As in the leaderboard's code, with which its reference was made, a mode
    gets the share of its partner.
    """
    both = capacities[..., :, None] + capacities[..., None, :]
    share = np.divide(capacities[..., :, None], both, out=np.zeros_like(both), where=both > 0)
    return np.asarray(2 * (pairs * share).sum(axis=-2))


def read_table(path: Path) -> dict[str, dict[str, Any]]:
    """{material_id: material} of JSON lines, or of the JSON of columns that is published; ``.gz`` or not."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        if ".jsonl" in path.suffixes:
            rows = [json.loads(line) for line in file]
        else:
            columns = json.load(file)
            keys = next(iter(columns.values()))
            rows = [{name: column.get(key) for name, column in columns.items()} for key in keys]
    return {next(row[name] for name in NAMES if name in row): row for row in rows}


def errors(predicted: dict[str, Any] | None, true: dict[str, Any]) -> tuple[float, float]:
    """Symmetric relative errors, 0 to 2: the mean one of the modes (SRME), and that of their sum (SRE)."""
    if predicted is None or predicted.get("failure"):
        return FAILED, FAILED
    ours, theirs = _modes(predicted), _modes(true)
    total, reference = (float(np.ravel(side["kappa_tot_avg"])[0]) for side in (predicted, true))
    if ours.shape != theirs.shape or not np.isfinite(ours).all() or not total + reference > 0:
        return FAILED, FAILED
    of_modes = float(np.abs(ours - theirs).sum()) / float(np.sum(true["mode_weights"]))
    mean_error, error = (2 * value / (total + reference) for value in (of_modes, abs(total - reference)))
    return min(mean_error, FAILED), min(error, FAILED)


def _modes(material: dict[str, Any]) -> np.ndarray:
    """Contributions (q-points, bands) at the first temperature."""
    if material.get(MODES) is not None:
        return np.asarray(material[MODES], dtype=float)[0]
    return np.asarray(material[FULL_MODES], dtype=float)[0, ..., :3].mean(axis=-1)
