"""The generators: energies, forces and stresses belong together, seeds repeat, and a missing engine is named."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from sciml.data.checks import check_record
from sciml.errors import UserError
from sciml.ingest.generate import classical, common, emt, jets, peptides, silicon, xtb

ROOT = Path(__file__).resolve().parents[3]


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skip a test unless every engine is installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed (the generate extra)")


def energy(atoms: Atoms) -> float:
    """Return the energy in eV as a float."""
    return float(atoms.get_potential_energy())


def check_forces(atoms: Atoms, step: float, tolerance: float) -> None:
    """Compare three force components with central differences of the energy."""
    forces = atoms.get_forces().copy()
    for index, axis in ((0, 0), (1, 2), (len(atoms) - 1, 1)):
        moved = []
        for sign in (1, -1):
            displaced = atoms.copy()
            displaced.calc = atoms.calc
            displaced.positions[index, axis] += sign * step
            moved.append(energy(displaced))
        assert -(moved[0] - moved[1]) / (2 * step) == pytest.approx(forces[index, axis], abs=tolerance)


def check_stress(atoms: Atoms, step: float, tolerance: float) -> None:
    """Compare the stress (ASE's sign) with central differences of the energy by strain over the volume."""
    stress = atoms.get_stress(voigt=False).copy()
    volume = atoms.get_volume()
    for i, j in ((0, 0), (2, 2), (0, 1), (1, 2)):
        moved = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            deformed = common.deform(atoms, np.eye(3) + strain)
            deformed.calc = atoms.calc
            moved.append(energy(deformed))
        assert (moved[0] - moved[1]) / (2 * step * volume) == pytest.approx(stress[i, j], abs=tolerance)


def perturbed(atoms: Atoms, seed: int = 1) -> Atoms:
    """Return a sheared and rattled copy, so that no symmetry hides an error."""
    rng = np.random.default_rng(seed)
    atoms = common.deform(atoms, common.random_strain(rng, 0.03, 0.03))
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    return atoms


@pytest.mark.parametrize("structure", ["Si-diamond-8", "Li-bcc-8", "Si-fcc-8"])
def test_classical_potentials_are_conservative(structure: str) -> None:
    symbol, lattice, constant, repeat = classical.STRUCTURES[structure]
    atoms = perturbed(bulk(symbol, lattice, a=constant, cubic=True).repeat(repeat))
    atoms.calc = classical.calculator(symbol)
    check_forces(atoms, 1e-4, 1e-6)
    check_stress(atoms, 1e-4, 1e-7)


def test_classical_potentials_give_the_published_crystals() -> None:
    silicon = bulk("Si", "diamond", a=5.431)
    silicon.calc = classical.StillingerWeber()
    assert silicon.get_potential_energy() / 2 == pytest.approx(-4.3366, abs=1e-3)
    assert np.abs(silicon.get_stress()).max() < 1e-4
    lithium = bulk("Li", "bcc", a=3.49)
    lithium.calc = classical.GuptaLithium()
    assert lithium.get_potential_energy() == pytest.approx(-1.63, abs=1e-3)
    assert np.abs(lithium.get_stress()).max() < 1e-4


def test_metals_are_conservative() -> None:
    from ase.calculators.emt import EMT

    rng = np.random.default_rng(2)
    atoms = perturbed(emt.structure(("Cu", "Au", "Al"), rng))
    atoms.calc = EMT()
    check_forces(atoms, 1e-4, 1e-5)
    check_stress(atoms, 1e-4, 1e-6)


@needs("tblite")
def test_molecules_are_conservative() -> None:
    atoms = xtb.calculator(Atoms("SiH3OH", [(0, 0, 0), (1.4, 0, 0.5), (-0.7, 1.2, 0.5), (-0.7, -1.2, 0.5),
                                           (0.1, 0.1, -1.65), (0.8, 0.3, -2.2)]))  # fmt: skip
    check_forces(atoms, 1e-3, 2e-4)


@needs("tblite")
def test_silicon_has_the_forces_and_stress_of_its_energy() -> None:
    (record,) = silicon.sample(classical.Task(silicon.STRUCTURE, "rattled", 0, 5, 1))
    check_record(record, "materials")
    rng = np.random.default_rng(6)
    strain, shift = 1e-3 * rng.normal(size=(3, 3)), 1e-3 * rng.normal(size=record["positions"].shape)
    strain = strain + strain.T
    moved = []
    for sign in (1, -1):
        atoms = Atoms("Si64", record["positions"] + sign * shift, cell=record["cell"], pbc=True)
        moved.append(energy(xtb.calculator(common.deform(atoms, np.eye(3) + sign * strain), silicon.METHOD)))
    work = np.linalg.det(record["cell"]) * (strain * record["stress"]).sum() - (shift * record["forces"]).sum()
    assert (moved[0] - moved[1]) / 2 == pytest.approx(work, rel=1e-2)


@needs("openmm", "PeptideBuilder")
def test_peptides_are_conservative_and_complete() -> None:
    (record,) = peptides.sample(peptides.Task("GPHKC", 3, 1))
    check_record(record, "biology")
    names = record["atom_names"]
    for code in (1, 2, 3, 4):
        assert sorted(record["parent"][names == code]) == [0, 1, 2, 3, 4]
    assert (names == 5).sum() == 4  # no beta carbon in glycine
    assert record["charge"] == 1
    rng = np.random.default_rng(0)
    topology, _ = peptides._build("GPHKC", peptides.backbone_angles("GPHKC", rng), rng)
    if topology.getNumAtoms() != len(record["types"]):
        pytest.skip("histidine took its other tautomer")
    systems = peptides.Systems(topology)
    positions = record["positions"].astype(np.float64)
    _, forces = systems.label(positions)
    for index, axis in ((0, 0), (10, 1), (30, 2)):
        step = np.zeros_like(positions)
        step[index, axis] = 1e-3
        numeric = -(systems.label(positions + step)[0] - systems.label(positions - step)[0]) / 2e-3
        assert numeric == pytest.approx(forces[index, axis], abs=5e-3)  # OpenMM's CPU platform is single precision


@needs("openmm", "PeptideBuilder")
def test_peptides_repeat_by_seed() -> None:
    first, second = (peptides.sample(peptides.Task("GAW", 5, 1))[0] for _ in range(2))
    np.testing.assert_array_equal(first["positions"], second["positions"])
    assert first["energy"] == second["energy"]


@pytest.mark.parametrize("generate", [
    lambda: emt.generate(3, 2, 2),
    lambda: classical.generate(3, 2, 2),
    pytest.param(lambda: xtb.generate(3, 3, 4), marks=needs("tblite")),
])  # fmt: skip
def test_generators_repeat_by_seed_and_keep_the_schema(generate) -> None:  # type: ignore[no-untyped-def]
    first, second = list(generate()), list(generate())
    assert len(first) >= 4
    for one, other in zip(first, second, strict=True):
        check_record(one, "materials")
        assert one["id"] == other["id"]
        np.testing.assert_array_equal(one["positions"], other["positions"])
        np.testing.assert_array_equal(one["forces"], other["forces"])
        assert np.abs(one["forces"].sum(axis=0)).max() < 1e-3


def test_sequences_deal_every_residue_evenly() -> None:
    drawn = peptides.random_sequences(np.random.default_rng(0), 100, (5, 12))
    assert len(set(drawn)) == 100
    counts = [sum(sequence.count(letter) for sequence in drawn) for letter in peptides.RESIDUES]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("group", list(xtb.GROUPS))
def test_substitution_keeps_atoms_apart(group: str) -> None:
    methane = Atoms("CH4", [(0, 0, 0), (0.63, 0.63, 0.63), (-0.63, -0.63, 0.63), (0.63, -0.63, -0.63),
                            (-0.63, 0.63, -0.63)])  # fmt: skip
    made = xtb.substitute(methane, group, np.random.default_rng(1))
    assert made is not None
    assert len(made) == 4 + len(xtb.GROUPS[group][1])
    assert xtb.intact(made)


@needs("pythia8mc", "fastjet")
def test_jets_come_from_a_process_of_its_own() -> None:
    program = ROOT / "scripts" / "pythia_jets.py"
    records = list(jets.generate(11, program, {"top": 2}))
    assert len(records) == 2
    for record in records:
        check_record(record, "hep")
        assert record["label"] == jets.CLASSES.index("top")
        pt = np.hypot(*record["momenta"][:, 1:3].T)
        assert (np.diff(pt) <= 0).all()
        assert pt.min() >= 1.0
        assert 500 <= np.hypot(*record["jet_momentum"][1:3]) <= 650
        # the constituents that are kept carry nearly all of the jet
        assert record["momenta"][:, 0].sum() > 0.8 * record["jet_momentum"][0]
    assert "pythia8mc" not in sys.modules
    assert "fastjet" not in sys.modules


def test_a_missing_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for engine in (lambda: xtb.generate(1), lambda: peptides.generate(1), lambda: jets.generate(1, ROOT, {"qcd": 1})):
        with pytest.raises(UserError, match="generate extra"):
            next(engine())


def test_jets_refuse_a_missing_program_and_an_unknown_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jets, "require", lambda module, engine: None)
    with pytest.raises(UserError, match="is not there"):
        next(jets.generate(1, tmp_path / "none.py", {"qcd": 1}))
    program = tmp_path / "program.py"
    program.write_text("import sys; sys.exit('no luck')")
    with pytest.raises(UserError, match="not known"):
        next(jets.generate(1, program, {"gluino": 1}))
    with pytest.raises(UserError, match="exit code 1: no luck"):
        next(jets.generate(1, program, {"qcd": 1}))
