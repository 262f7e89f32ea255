"""Checks and normalisation of raw records."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.checks import prepare, regulate_energies, spacelike
from sciml.data.records import SCHEMAS, schema
from sciml.errors import BadRecord, UserError
from tests.data.examples import crystal, jet, molecule, peptide


@pytest.mark.parametrize(
    ("make", "domain"), [(molecule, "materials"), (crystal, "materials"), (jet, "hep"), (peptide, "biology")]
)
def test_good_records_get_the_dtypes_of_the_schema(make, domain):
    record = prepare(make(), domain)
    for name, field in schema(domain).items():
        if name in record and field.dtype != "str":
            assert record[name].dtype == np.dtype(field.dtype), name
    assert {field.name for field in SCHEMAS[domain] if field.required} <= set(record)


BAD_ATOMS = [
    ({"positions": [[0, 0, np.nan]] * 5}, "positions: NaN"),
    ({"forces": [[0, 0, np.inf]] * 5}, "forces: NaN or infinite"),
    ({"energy": np.nan}, "energy: NaN"),
    ({"energy": 1e9}, "energy: 1e.09 eV"),
    ({"types": [0, 6, 6, 1, 1]}, "types: atom 0 has atomic number 0"),
    ({"types": [119, 6, 6, 1, 1]}, "types: atom 0 has atomic number 119"),
    ({"types": []}, "types: the record has zero atoms"),
    ({"types": None}, "types: missing"),
    ({"positions": None}, "positions: missing"),
    ({"types": ["C"] * 5}, "types: not numeric"),
    ({"forces": [[0, 0, 0]] * 4}, r"forces: shape \(4, 3\), expected \(5, 3\)"),
    ({"forces": [[1e7, 0, 0]] * 5}, "forces: 1e.07 eV/Å.*unit"),
    ({"spin": 0}, "spin: multiplicity"),
    ({"positions": np.arange(15).reshape(5, 3) * 1e5}, "positions: the atoms spread"),
    ({"pbc": [True] * 3}, "cell: a periodic direction has no lattice vector"),
    ({"pbc": [True] * 3, "cell": np.diag([5.0, 5.0, 1e7])}, "cell: a lattice vector of 1e.07 Å"),
    ({"pbc": [True] * 3, "cell": [[5, 0, 0], [5, 0, 0], [0, 0, 5]]}, "cell: .*linearly dependent"),
    ({"pbc": [True] * 3, "cell": np.eye(3) * 0.5}, "cell: 0.025 Å.3 per atom"),
    ({"temperature": 300}, "temperature: not a field"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ATOMS)
def test_bad_atoms_are_refused_by_key(change, message):
    with pytest.raises(BadRecord, match=message):
        prepare({**molecule(5), **change}, "materials")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"types": [7, 1, 1, 1]}, "types: particle kinds"),
        ({"momenta": np.zeros((4, 4))}, "momenta: constituent 0 has no positive energy"),
        ({"momenta": np.ones((4, 3))}, "momenta: shape"),
        ({"momenta": 1e3 * jet(4)["momenta"]}, r"momenta: .* GeV in all, expected at most 1e\+05; are they in MeV"),
        ({"label": -1}, "label: -1"),
        ({"particle_charge": None}, "particle_charge: missing"),
    ],
)
def test_bad_jets_are_refused_by_key(change, message):
    with pytest.raises(BadRecord, match=message):
        prepare({**jet(4), **change}, "hep")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residue_types": []}, "residue_types: the record has zero residues"),
        ({"residue_types": [0, 21], "chain": [0, 0]}, "residue_types: a value outside"),
        ({"parent": [5] * 8}, "parent: indices 5 to 5"),
        ({"atom_names": [9] * 8}, "atom_names: code 9"),
        ({"chain": [0]}, r"chain: shape \(1,\), expected \(2,\)"),
    ],
)
def test_bad_peptides_are_refused_by_key(change, message):
    with pytest.raises(BadRecord, match=message):
        prepare({**peptide(2), **change}, "biology")


def test_open_directions_lose_their_lattice_vectors():
    record = prepare({**molecule(), "cell": np.eye(3) * 50, "pbc": [False] * 3}, "materials")
    assert not record["cell"].any()
    slab = prepare({**crystal(), "pbc": [True, True, False]}, "materials")
    assert slab["cell"][:2].any(axis=1).all()
    assert not slab["cell"][2].any()
    assert "stress" in crystal()
    assert "stress" not in slab


@pytest.mark.parametrize("pbc", [[False] * 3, [True, True, False], [True] * 3])
def test_far_coordinates_come_near_without_changing_the_geometry(pbc):
    record = {**crystal(), "pbc": pbc}
    far = {**record, "positions": record["positions"] + np.array([3, -2, 5]) @ record["cell"] * 1000}
    near, moved = prepare(record, "materials"), prepare(far, "materials")
    assert np.abs(moved["positions"]).max() < 500
    difference = moved["positions"].astype(float) - near["positions"]
    difference -= difference[0]
    fractional = difference @ np.linalg.inv(record["cell"])
    # Whole lattice vectors along periodic directions, nothing along the others.
    assert np.abs(fractional - np.where(pbc, np.rint(fractional), 0)).max() < 1e-5


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-3, 1.0, 1e3]),
    st.sampled_from([-1e-2, 0.0, 1e-8]),
)
def test_regulated_energies_are_the_smallest_of_timelike_vectors(seed, scale, offset):
    generator = np.random.default_rng(seed)
    momentum = generator.normal(size=(50, 3)) * scale
    energy = np.linalg.norm(momentum, axis=1) * (1 + offset)
    momenta = np.concatenate([energy[:, None], momentum], axis=1).astype(np.float32)
    regulated = regulate_energies(momenta)
    squared = (momenta[:, 1:].astype(np.float64) ** 2).sum(axis=1)
    assert (regulated.astype(np.float64) ** 2 >= squared).all()
    assert (regulated >= momenta[:, 0]).all()
    raised = regulated > momenta[:, 0]
    below = np.nextafter(regulated[raised], np.float32(0)).astype(np.float64)
    assert (below**2 < squared[raised]).all()


def test_massless_momenta_in_double_precision_do_not_count_as_spacelike():
    momentum = np.random.default_rng(0).normal(size=(200, 3)) * 100
    massless = np.concatenate([np.linalg.norm(momentum, axis=1, keepdims=True), momentum], axis=1)
    assert not spacelike(massless).any()
    assert not spacelike(massless * [1.001, 1, 1, 1]).any()
    assert spacelike(massless * [1 - 1e-6, 1, 1, 1]).all()
    assert 0 < spacelike(massless.astype(np.float32)).sum() < 200  # here rounding is all there is to tell


def test_true_momenta_are_regulated_and_their_total_is_a_particle_s():
    record = jet(4)
    true = record["momenta"] * np.array([0.5, 1, 1, 1], dtype=np.float32)
    total = true.sum(axis=0, dtype=np.float64) * [4, 1, 1, 1]
    prepared = prepare({**record, "true_momenta": true, "total_momentum": total}, "hep")
    np.testing.assert_array_equal(prepared["true_momenta"][:, 0], regulate_energies(true))
    np.testing.assert_array_equal(prepared["total_momentum"], total)
    for key, value, message in (
        ("total_momentum", [1.0, 2.0, 0.0, 0.0], "energy 1 GeV, less than its momentum 2 GeV"),
        ("total_momentum", [-1.0, 0.0, 0.0, 0.0], "total_momentum: energy -1 GeV"),
        ("true_momenta", true[:2], r"true_momenta: shape \(2, 4\)"),
        ("true_momenta", true * 1e12, "true_momenta: .* more than 1e\\+09; is the unit right"),
    ):
        with pytest.raises(BadRecord, match=message):
            prepare({**record, key: value}, "hep")


def test_unknown_domain():
    with pytest.raises(UserError, match="domain 'chemistry' is not known"):
        schema("chemistry")
