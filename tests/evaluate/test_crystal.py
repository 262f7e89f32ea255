"""Properties of crystals against lattice sums of a pair potential, which share nothing with the code but the potential.

The potential is ASE's Lennard-Jones with a smooth cutoff; its pair energy is read off a dimer, and sums over lattice
vectors of its derivatives give what the functions find by strains and displacements.
"""

import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq

from sciml.errors import UserError
from sciml.evaluate import crystal, properties

GPA = 0.006241509
SIGMA, EPSILON, CUTOFF = 3.4, 0.0104, 8.0


def potential() -> LennardJones:
    return LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF, ro=5.5, smooth=True)


@pytest.fixture(scope="module")
def pair() -> CubicSpline:
    distances = np.linspace(2.8, CUTOFF, 1500)
    return CubicSpline(distances, crystal.dimer_energies("Ar", "Ar", distances, potential()))


class Lattice:
    """Sums over the neighbours of an atom of an fcc crystal with the lattice constant of least energy."""

    def __init__(self, pair: CubicSpline) -> None:
        self.pair = pair
        self.constant = brentq(lambda a: self.sum(a, lambda r: pair(r, 1) * r), 5.0, 5.5)
        self.volume = self.constant**3 / 4

    def vectors(self, constant: float) -> np.ndarray:
        grid = np.stack(np.meshgrid(*[np.arange(-5, 6)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        vectors = (grid[(grid.sum(axis=1) % 2 == 0) & (grid != 0).any(axis=1)]) * constant / 2
        return vectors[np.linalg.norm(vectors, axis=1) < CUTOFF]

    def sum(self, constant, function):
        return function(np.linalg.norm(self.vectors(constant), axis=1)).sum()

    @property
    def energy(self) -> float:
        return 0.5 * self.sum(self.constant, self.pair)

    def elastic(self, *axes: int) -> float:
        """C_ijkl of central forces, all atoms at centres of inversion (Born & Huang), GPa."""
        r = self.vectors(self.constant)
        length = np.linalg.norm(r, axis=1)
        stiffness = self.pair(length, 2) / length**2 - self.pair(length, 1) / length**3
        return float((stiffness * np.prod([r[:, axis] for axis in axes], axis=0)).sum() / (2 * self.volume) / GPA)

    def frequencies(self, q: np.ndarray, mass: float) -> np.ndarray:
        """THz, of a wave with the wave vector ``q`` in units of 2 pi / a."""
        r = self.vectors(self.constant)
        length = np.linalg.norm(r, axis=1)
        first, second = self.pair(length, 1) / length, self.pair(length, 2)
        unit = r / length[:, None]
        constants = np.einsum("n,ni,nj->nij", second - first, unit, unit) + first[:, None, None] * np.eye(3)
        phases = 1 - np.cos(2 * np.pi * r @ q / self.constant)
        squares = np.linalg.eigvalsh(np.einsum("n,nij->ij", phases, constants) / mass)
        return np.sqrt(squares * 1.602176634e-19 / 1e-20 / 1.66053907e-27) / (2 * np.pi) / 1e12


@pytest.fixture(scope="module")
def lattice(pair) -> Lattice:
    return Lattice(pair)


def argon(constant: float = 5.25, cubic: bool = False) -> Atoms:
    atoms = bulk("Ar", "fcc", a=constant, cubic=cubic)
    atoms.calc = potential()
    return atoms


def test_relaxation_and_equation_of_state(lattice):
    atoms = crystal.relaxed(argon(5.1), cell=True)
    assert 4 * atoms.get_volume() == pytest.approx(lattice.constant**3, rel=1e-3)
    found = crystal.equation_of_state(atoms)
    assert found.volume == pytest.approx(lattice.volume, rel=2e-4)
    assert found.energy == pytest.approx(lattice.energy, rel=1e-5)
    bulk_modulus = (lattice.elastic(0, 0, 0, 0) + 2 * lattice.elastic(0, 0, 1, 1)) / 3
    assert found.bulk_modulus == pytest.approx(bulk_modulus, rel=5e-3)
    volumes = lattice.volume * np.linspace(0.99, 1.01, 9)
    energies = [0.5 * lattice.sum((4 * volume) ** (1 / 3), lattice.pair) for volume in volumes]
    pressure = np.polynomial.Polynomial.fit(volumes, energies, 4).deriv()
    stiffness = [-volume * pressure.deriv()(volume) * -1 for volume in volumes]
    derivative = np.gradient(stiffness, -pressure(volumes))[4]
    assert found.derivative == pytest.approx(derivative, rel=0.05)


def test_elastic_constants_and_moduli(lattice):
    constants = crystal.elastic_constants(argon(lattice.constant))
    c11, c12 = lattice.elastic(0, 0, 0, 0), lattice.elastic(0, 0, 1, 1)
    cubic = crystal.cubic_constants(constants)
    assert cubic == pytest.approx({"C11": c11, "C12": c12, "C44": lattice.elastic(0, 1, 0, 1)}, rel=5e-3)
    assert cubic["C12"] == pytest.approx(cubic["C44"], rel=5e-3)  # Cauchy's relation of central forces
    assert crystal.moduli(constants)["bulk_modulus"] == pytest.approx((c11 + 2 * c12) / 3, rel=5e-3)
    shear = (c11 - c12) / 2
    voigt = (2 * shear + 3 * cubic["C44"]) / 5
    reuss = 5 * shear * cubic["C44"] / (2 * cubic["C44"] + 3 * shear)
    assert crystal.moduli(constants)["shear_modulus"] == pytest.approx((voigt + reuss) / 2, rel=5e-3)
    turned = np.diag([50.0, 40.0, 30.0, 10.0, 10.0, 10.0])
    assert crystal.cubic_constants(turned) is None


def test_constants_of_a_turned_crystal_are_the_turned_constants(lattice):
    """The (6, 6) order is right: along [110], C11' = (C11 + C12 + 2 C44) / 2, and C66' = (C11 - C12) / 2."""
    atoms = argon(lattice.constant)
    atoms.rotate(45, "z", rotate_cell=True)
    constants = crystal.elastic_constants(atoms)
    c11, c12, c44 = (lattice.elastic(*axes) for axes in ((0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 0, 1)))
    assert constants[0, 0] == pytest.approx((c11 + c12 + 2 * c44) / 2, rel=5e-3)
    assert constants[0, 1] == pytest.approx((c11 + c12 - 2 * c44) / 2, rel=5e-3)
    assert constants[5, 5] == pytest.approx((c11 - c12) / 2, rel=5e-3)
    assert constants[2, 2] == pytest.approx(c11, rel=5e-3)
    assert constants[3, 3] == pytest.approx(c44, rel=5e-3)


def test_vacancy_of_a_pair_potential_costs_the_cohesion_of_an_atom(lattice):
    """Without relaxation exactly -E: n bonds of an atom go, half of them come back with it. Relaxed a little less."""
    atoms = argon(lattice.constant, cubic=True)
    rigid = crystal.vacancy_energy(atoms, length=10.0, relax=False)
    assert rigid == pytest.approx(-lattice.energy, rel=1e-4)
    assert 0.95 * rigid < crystal.vacancy_energy(atoms, length=10.0) < rigid


def test_phonons_of_the_cubic_cell_are_those_of_the_zone_boundary(lattice):
    """The cubic cell folds the three points X of the primitive cell onto Gamma."""
    atoms = argon(lattice.constant, cubic=True)
    found = crystal.gamma_phonons(atoms)
    expected = np.sort(np.tile(lattice.frequencies(np.array([1.0, 0, 0]), atoms.get_masses()[0]), 3))
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_an_unstable_crystal_has_imaginary_phonons():
    """Simple cubic argon shears away; in a doubled cell some frequency is imaginary, and it is not lost: all but the
    three of the translations, those nearest zero, are told, whatever the masses.
    """
    atoms = bulk("Ar", "sc", a=3.75).repeat((2, 2, 1))
    atoms.set_masses([20.0, 40.0, 30.0, 10.0])
    atoms.calc = potential()
    found = crystal.gamma_phonons(atoms)
    assert found[0] < -0.05
    assert found.shape == (9,)
    assert np.abs(found).min() > 0.05
    np.testing.assert_array_equal(found, np.sort(found))
    assert crystal.gamma_phonons(argon()).shape == (0,)


def test_refusals():
    salt = bulk("NaCl", "rocksalt", a=5.6)
    salt.calc = potential()
    with pytest.raises(UserError, match="vacancy energy of a compound"):
        crystal.vacancy_energy(salt)
    with pytest.raises(UserError, match="the energy has no minimum between"):
        crystal.equation_of_state(argon(6.2))


def test_shape_of_dimers():
    r = np.linspace(3.3, 7.5, 40)
    sound = crystal.dimer(r, crystal.dimer_energies("Ar", "Ar", r, potential()))
    assert sound.bond == pytest.approx(2 ** (1 / 6) * SIGMA, abs=0.06)
    assert sound.depth == pytest.approx(EPSILON, rel=0.02)
    assert sound.turns == 1
    assert sound.tortuosity == pytest.approx(1.0, abs=1e-3)
    rough = crystal.dimer(r, np.sin(3 * r))
    assert rough.turns == 4
    assert rough.tortuosity > 3


def write_file(path, **changes):
    r = np.linspace(3.4, 7.5, 12)
    energies = crystal.dimer_energies("Ar", "Ar", r, potential())
    content = {
        "crystals": {
            "argon": {
                "structure": {"name": "Ar", "crystalstructure": "fcc", "a": 5.25},
                "properties": ["equation_of_state", "elastic"],
                "expected": {"bulk_modulus": 2.0, "C11": 3.0},
            }
        },
        "diatomics": {"Ar-Ar": {"distances": r.tolist(), "energies": (energies + 0.01).tolist()}},
    }
    content["crystals"]["argon"] |= changes
    path.write_text(json.dumps(content))
    return content


def test_the_file_is_computed_compared_and_drawn(tmp_path, lattice):
    write_file(tmp_path / "argon.json")
    text = properties.run(tmp_path / "argon.json", potential(), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "properties.json").read_text())
    values = found["crystals"]["argon"]["values"]
    assert values["C11"] == pytest.approx(lattice.elastic(0, 0, 0, 0), rel=1e-2)
    assert values["elastic_bulk_modulus"] == pytest.approx(values["bulk_modulus"], rel=2e-2)
    assert found["diatomics"]["Ar-Ar"]["mae"] == pytest.approx(0.0, abs=1e-9)  # a constant does not count
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "properties.json", "equation_of_state.png", "diatomics.png"
    }  # fmt: skip
    (row,) = [line for line in text.splitlines() if line.split()[:2] == ["argon", "C11"]]
    assert f"{values['C11'] / 3.0 - 1:+.1%}" in row
    assert "vacancy" not in text


def salt_file(path, **changes):
    """Argon atoms as a compound with another element, of a structure beside the file."""
    structure = path.parent / "salt.cif"
    ase.io.write(structure, Atoms(["Ar", "Kr"] * 2, argon(5.25, cubic=True).positions, cell=[5.25] * 3, pbc=True))
    entry = {"structure": "salt.cif", **changes}
    path.write_text(json.dumps({"crystals": {"salt": entry}}))


def test_a_compound_has_all_but_a_vacancy_and_paths_are_beside_the_file(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    expected = {"C13": 2.0, "phonons": [1.5, *[1.0] * 8]}
    salt_file(tmp_path / "salt.json", expected=expected)
    text = properties.run(tmp_path / "salt.json", potential(), tmp_path / "out")
    values = json.loads((tmp_path / "out" / "properties.json").read_text())["crystals"]["salt"]["values"]
    assert values.keys() >= {"volume", "shear_modulus", "phonons", "C13"}
    assert "vacancy" not in values
    assert "salt: vacancy is left out, the vacancy energy of a compound depends on chemical potentials" in text
    rows = [line.split() for line in text.splitlines() if "phonons" in line]
    assert [row[3] for row in rows] == ["1"] * 8 + ["1.5"]


def test_what_was_computed_before_a_failure_is_kept(tmp_path, monkeypatch):
    """A model that does not hold the second crystal together loses nothing of the first."""
    write_file(tmp_path / "argon.json", properties=["phonons", "equation_of_state"], expected={})

    def fails(atoms):
        raise UserError("Ar: the energy has no minimum.")

    monkeypatch.setitem(properties.PROPERTIES, "equation_of_state", fails)
    with pytest.raises(UserError, match=r"has no minimum. What was computed before is in .*properties.json"):
        properties.run(tmp_path / "argon.json", potential(), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "properties.json").read_text())
    assert found["crystals"]["argon"]["values"] == {"phonons": []}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"structure": {"name": "Xx"}}, "crystals.argon: structure: ASE cannot make it"),
        ({"structure": "missing.cif"}, "crystals.argon: structure: ASE cannot make it"),
        ({"properties": ["elastics"]}, "properties: 'elastics' found, expected one of equation_of_state"),
        ({"expected": {"B0": 2.0}}, "expected: B0=2.0 found; give numbers of volume"),
        ({"expected": {"C11": "3 GPa"}}, "expected: C11=3 GPa found"),
        ({"expected": {"phonons": 15.2}}, "expected: phonons=15.2 found; give numbers of .*, of phonons a list"),
        ({"expected": {"volume": [1, 2]}}, r"expected: volume=\[1, 2\] found"),
        ({"expected": {"volume": True}}, "expected: volume=True found"),
        ({"expected": [3.0]}, r"expected: \[3.0\] found, expected values of volume"),
        ({"properties": "elastic"}, "properties: 'elastic' found, expected a list of"),
        ({"expected": {"vacancy": 0.1}}, "vacancy is not computed, as properties has no vacancy"),
        ({"properties": None, "expected": {"phonons": [1.0]}}, "1 found; the structure has 1 atoms, .* 0 optical"),
        ({"reference": {}}, "key reference found, expected one of expected, properties, structure"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, changes, match):
    write_file(tmp_path / "argon.json", **changes)
    with pytest.raises(UserError, match=match):
        properties.run(tmp_path / "argon.json", potential(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"properties": ["vacancy"]}, "vacancy energy of a compound such as Ar2Kr2 depends"),
        ({"expected": {"vacancy": 1.0}}, "vacancy is not computed, as the vacancy energy of a compound depends"),
        ({"expected": {"phonons": [1.0] * 12}}, "12 found; the structure has 4 atoms, so give all of its 9 optical"),
    ],
)
def test_what_is_not_computed_of_a_compound_is_refused(tmp_path, changes, match):
    salt_file(tmp_path / "salt.json", **changes)
    with pytest.raises(UserError, match=match):
        properties.run(tmp_path / "salt.json", potential(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"crystals": [{"structure": "a.cif"}]}, "crystals: a list found, expected a mapping of names"),
        ({"diatomics": ["Si-Si"]}, "diatomics: a list found, expected a mapping of names"),
        ({"diatomics": {"Si-Si": {"distances": ["1", "2", "3"], "energies": [1, 2, 3]}}}, "Si-Si: expected distances"),
        ({"diatomics": {"source": "curves.json", "pairs": 3}}, "diatomics: expected pairs as a list"),
    ],
)
def test_what_is_no_mapping_is_refused(tmp_path, content, match):
    (tmp_path / "curves.json").write_text("[]")
    (tmp_path / "file.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=match):
        properties.read(tmp_path / "file.json")


def test_curves_of_a_published_file(shared_data, tmp_path):
    path = shared_data / "diatomics" / "diatomics-dft.json.gz"
    (tmp_path / "d.yaml").write_text(f"diatomics: {{source: {path}, key: PBE, pairs: [Si-Si, H-H]}}\n")
    curves = properties.read(tmp_path / "d.yaml")["diatomics"]
    shape = crystal.dimer(np.array(curves["H-H"]["distances"]), np.array(curves["H-H"]["energies"]))
    assert shape.bond == pytest.approx(0.75, abs=0.05)
    assert 3.5 < shape.depth < 5.5
    (tmp_path / "d.yaml").write_text(f"diatomics: {{source: {path}, key: LDA}}\n")
    with pytest.raises(UserError, match="has no 'LDA'"):
        properties.read(tmp_path / "d.yaml")
