"""The ASE calculator: derivatives against differences of its own energy, and what it refuses."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

import sciml
from sciml import registry
from sciml.data.records import ATOM_NAMES
from sciml.errors import UserError
from sciml.export.ase import SciMLCalculator, residues_of
from sciml.graph import RESIDUE_NAMES
from sciml.package import Package, save
from tests.helpers import random_crystal, random_molecule, random_peptide, relative_rms
from tests.small import ALL_SCALES, describe_model, graph_of, outputs, random_model

STEP = 1e-3
FOURTH_ORDER = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package of two levels of theory in double precision, as it is loaded from disk."""
    folder = tmp_path_factory.mktemp("export") / "package"
    save(folder, random_model(torch.float32), {"model": describe_model()}, "# card\n")
    return sciml.load(folder, dtype=torch.float64)


def atoms_of(record: dict) -> Atoms:
    return Atoms(record["types"], record["positions"], cell=record.get("cell"), pbc=record.get("pbc", False))


def difference(energy) -> float:
    return sum(coefficient * energy(step * STEP) for step, coefficient in FOURTH_ORDER) / STEP


@pytest.mark.parametrize("make", [random_molecule, random_crystal])
def test_forces_are_minus_the_derivative_of_the_energy(package, make):
    atoms = atoms_of(make(np.random.default_rng(0), atoms=4))
    atoms.calc = SciMLCalculator(package, "second")
    forces, positions = atoms.get_forces(), atoms.positions.copy()

    def energy(step: float, atom: int, axis: int) -> float:
        atoms.positions = positions
        atoms.positions[atom, axis] += step
        return atoms.get_potential_energy()

    expected = [[-difference(lambda s, a=a, i=i: energy(s, a, i)) for i in range(3)] for a in range(len(atoms))]
    assert relative_rms(forces, np.array(expected)) < 1e-6


def test_stress_is_the_derivative_against_strain_in_the_order_and_sign_of_ase(package):
    atoms = atoms_of(random_crystal(np.random.default_rng(1), atoms=3))
    atoms.calc = SciMLCalculator(package, "first")
    stress, cell = atoms.get_stress(), atoms.cell.array.copy()

    def energy(step: float, i: int, j: int) -> float:
        strain = np.eye(3)
        strain[i, j] += step / 2
        strain[j, i] += step / 2
        atoms.set_cell(cell @ strain, scale_atoms=True)
        return atoms.get_potential_energy()

    voigt = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    volume = abs(np.linalg.det(cell))
    expected = [difference(lambda s, i=i, j=j: energy(s / 10, i, j)) * 10 / volume for i, j in voigt]
    assert relative_rms(stress, np.array(expected)) < 1e-5
    atoms.set_cell(cell, scale_atoms=True)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), atoms.get_stress(voigt=False).T)


def test_a_level_of_theory_of_biology_has_the_domain_of_its_training(tmp_path):
    """A peptide's atoms through ASE are predicted as the record they come from."""
    table = {"materials": ["first"], "biology": ["second"]}
    model = random_model(torch.float32)
    with torch.no_grad():
        model.backbone.embedding.domain.weight.normal_()
    references = describe_model()
    references["context"]["references"]["second"]["7"] = -3.0
    save(tmp_path / "package", model, {"model": references, "datasets_of_domain": table}, "")
    package = sciml.load(tmp_path / "package", dtype=torch.float64)
    record = random_peptide(np.random.default_rng(0), residues=3)
    domain = registry.resolve("domains", "biology")
    graph = domain.graph(record, "atoms", package.config["model"]["cutoffs"]["atoms"], dtype=torch.float64)
    graph.dataset = torch.tensor([1])
    expected = outputs(package.model, "atoms", graph)
    atoms = Atoms(record["types"], record["positions"])
    atoms.calc = SciMLCalculator(package, "second")
    np.testing.assert_allclose(atoms.get_forces(), expected["forces"].numpy(), rtol=1e-9, atol=1e-9)
    assert atoms.get_potential_energy() == pytest.approx(float(expected["energy"][0]), rel=1e-12)
    assert SciMLCalculator(package, "first").domain == "materials"


def test_a_model_with_a_coarse_level_reads_the_residues_of_a_protein(tmp_path):
    """From the arrays that ASE fills from a PDB file; without them it refuses rather than leave the level out."""
    description = describe_model(kinds=("atoms",), **ALL_SCALES)
    description["context"]["references"]["second"]["7"] = -3.0
    model = random_model(torch.float32, kinds=("atoms",), **ALL_SCALES)
    save(tmp_path / "package", model, {"model": description, "datasets_of_domain": {"biology": ["second"]}}, "")
    package = sciml.load(tmp_path / "package", dtype=torch.float64)
    record = random_peptide(np.random.default_rng(0), residues=3)
    expected = outputs(package.model, "atoms", graph_of(record, "atoms"))
    atoms = Atoms(record["types"], record["positions"])
    atoms.calc = SciMLCalculator(package, "second")
    with pytest.raises(UserError, match="no 'residuenumbers' found"):
        atoms.get_potential_energy()
    names = [*RESIDUE_NAMES, "MSE"]
    atoms.set_array("residuenumbers", np.array(record["parent"]) + 7)
    atoms.set_array("residuenames", np.array([names[record["residue_types"][parent]] for parent in record["parent"]]))
    atoms.set_array("atomtypes", np.array([ATOM_NAMES[code] for code in record["atom_names"]]))
    np.testing.assert_allclose(atoms.get_forces(), expected["forces"].numpy(), rtol=1e-9, atol=1e-9)
    assert atoms.get_potential_energy() == pytest.approx(float(expected["energy"][0]), rel=1e-12)


def test_residues_of_two_chains_with_equal_number_and_name_stay_apart():
    atoms = Atoms("NCCONCCO", positions=np.random.default_rng(0).normal(size=(8, 3)))
    atoms.set_array("residuenumbers", np.ones(8, int))
    atoms.set_array("residuenames", np.array(["GLY"] * 8))
    atoms.set_array("atomtypes", np.array(["N", "CA", "C", "O"] * 2))
    assert residues_of(atoms)["parent"].tolist() == [0] * 4 + [1] * 4
    atoms.set_array("atomtypes", np.array(["N", "N", "CA", "CA", "C", "C", "O", "O"]))  # two places of each atom
    assert residues_of(atoms)["parent"].tolist() == [0] * 8


def test_the_energy_has_the_references_of_its_level_of_theory(package):
    """Far apart atoms of two levels differ by their references alone and by what the model learned of each."""
    atoms = Atoms("CO", positions=[[0, 0, 0], [30, 0, 0]])
    energies = []
    for dataset in ("first", "second"):
        atoms.calc = SciMLCalculator(package, dataset)
        energies.append(atoms.get_potential_energy())
        assert np.abs(atoms.get_forces()).max() < 1e-12
    model = package.model
    references = model.heads["energy"].references
    assert references[1, 6] == pytest.approx(-4.0)
    assert energies[0] != energies[1]
    assert atoms.get_potential_energy(force_consistent=True) == energies[1]


def test_charge_and_spin_of_info_reach_the_model(package):
    atoms = atoms_of(random_molecule(np.random.default_rng(0)))
    energies = []
    for info in ({}, {"charge": 0, "spin": 1}, {"charge": 1}, {"spin": 3}):
        atoms.info = info
        atoms.calc = SciMLCalculator(package, "first")
        energies.append(atoms.get_potential_energy())
    assert energies[0] == energies[1]
    assert len(set(energies)) == 3


def test_changed_info_is_not_answered_from_the_cache(package):
    atoms = atoms_of(random_molecule(np.random.default_rng(0)))
    atoms.calc = SciMLCalculator(package, "first")
    neutral = atoms.get_potential_energy()
    atoms.info["charge"] = 1
    assert atoms.get_potential_energy() != neutral


def test_no_stress_without_a_cell(package):
    from ase.calculators.calculator import PropertyNotImplementedError

    atoms = atoms_of(random_molecule(np.random.default_rng(0)))
    atoms.calc = SciMLCalculator(package, "first")
    atoms.get_forces()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_energy_is_conserved_and_a_relaxation_ends(package):
    """What a calculator is for: forces that belong to the energy keep the total energy of a trajectory."""
    atoms = atoms_of(random_molecule(np.random.default_rng(3), atoms=4))
    atoms.calc = SciMLCalculator(package, "first")
    totals = []
    dynamics = VelocityVerlet(atoms, timestep=0.02)
    dynamics.attach(lambda: totals.append(atoms.get_total_energy()))
    dynamics.run(20)
    kinetic = atoms.get_kinetic_energy()
    assert kinetic > 1e-6
    assert np.ptp(totals) < 0.02 * kinetic
    before = np.abs(atoms.get_forces()).max()
    BFGS(atoms, logfile=None, maxstep=0.02).run(fmax=0.5 * before, steps=40)
    assert np.abs(atoms.get_forces()).max() < before


def test_an_unknown_element_is_refused(package):
    atoms = Atoms("CU2", positions=[[0, 0, 0], [0, 0, 1.5], [0, 0, 3.0]])
    atoms.calc = SciMLCalculator(package, "first")
    with pytest.raises(
        UserError, match=r"atoms: U was not in the training data of 'first', which has H, C, O, Si, Cu; fine-tune"
    ):
        atoms.get_potential_energy()


def test_the_level_of_theory_must_be_named_where_there_are_several(package):
    with pytest.raises(UserError, match="has the levels of theory first, second; give one of them"):
        SciMLCalculator(package)
    with pytest.raises(UserError, match="dataset='pbe'"):
        SciMLCalculator(package, "pbe")


def test_one_level_of_theory_needs_no_name(tmp_path):
    description = describe_model()
    for table in ("references", "scales", "spreads"):
        description["context"][table].pop("first")
    save(tmp_path / "package", random_model(torch.float32), {"model": description}, "")
    assert sciml.calculator(tmp_path / "package").dataset == 1


def test_a_package_without_energies_is_refused(tmp_path):
    description = describe_model(("jets",))
    description["context"]["references"] = {}
    package = Package(random_model(torch.float32, kinds=("jets",)), {"model": description}, tmp_path)
    with pytest.raises(UserError, match="has no energies, its kinds are jets"):
        SciMLCalculator(package)
