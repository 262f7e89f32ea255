"""The embedded samples: small, whole, with the elements, labels and units that the project promises."""

from pathlib import Path

import numpy as np
import pytest

import sciml
from sciml.data.records import schema
from sciml.data.store import Store

SAMPLES = Path(sciml.__file__).parent / "data" / "samples"
ATOMS = {"energy": "eV", "forces": "eV/Å", "positions": "Å", "charge": "e"}
CRYSTALS = {**ATOMS, "cell": "Å", "stress": "eV/Å^3"}
# name: domain, level of theory, elements, targets that every record has, units
PROMISED = {
    "molecules": ("materials", "gfn2-xtb", "H C N O F Si P S Cl", ("energy", "forces"), CRYSTALS),
    "silicon": ("materials", "gfn1-xtb", "Si", ("energy", "forces", "stress"), CRYSTALS),
    "lithium": ("materials", "gupta", "Li", ("energy", "forces", "stress"), CRYSTALS),
    "metals": ("materials", "emt", "Al Ni Cu Pd Ag Pt Au", ("energy", "forces", "stress"), CRYSTALS),
    "jets": ("hep", "pythia8", "", ("label",), {"momenta": "GeV", "jet_momentum": "GeV", "particle_charge": "e"}),
    "peptides": ("biology", "amber14", "H C N O S", ("energy", "forces", "residue_types"), ATOMS),
}


def test_all_samples_take_at_most_eight_megabytes() -> None:
    assert {path.name for path in SAMPLES.iterdir() if path.is_dir()} == set(PROMISED)
    assert sum(file.stat().st_size for file in SAMPLES.rglob("*") if file.is_file()) <= 8_000_000


@pytest.mark.parametrize("name", PROMISED)
def test_a_sample_is_whole_and_holds_what_is_promised(name: str) -> None:
    from ase.data import atomic_numbers

    domain, dataset, elements, targets, units = PROMISED[name]
    store = Store(SAMPLES / name, verify=True)
    assert (store.domain, store.dataset, store.manifest["licence"]) == (domain, dataset, "CC0-1.0")
    assert store.manifest["source"]
    assert store.manifest["counts"]["quarantined"] == 0
    assert store.manifest["units"] == units
    assert units == {field.name: field.unit for field in schema(domain).values() if field.name in units}
    for target in targets:
        assert store.has(target).all(), target
    numbers = sorted(atomic_numbers[symbol] for symbol in elements.split())
    assert store.manifest["elements"] == numbers
    if numbers:
        assert np.unique(np.concatenate([record["types"] for record in store])).tolist() == numbers


def test_periodic_samples_are_periodic_and_molecules_are_not() -> None:
    for name, periodic in (("molecules", False), ("metals", True)):
        assert {bool(record["pbc"].all()) for record in Store(SAMPLES / name)} == {periodic}


def test_jets_have_four_classes_and_peptides_twenty_types_and_many_sequences() -> None:
    jets, peptides = Store(SAMPLES / "jets"), Store(SAMPLES / "peptides")
    assert jets.manifest["classes"] == ["qcd", "top", "w", "z"]
    assert {int(record["label"]) for record in jets} == {0, 1, 2, 3}
    types = np.concatenate([record["residue_types"] for record in peptides])
    assert np.unique(types).tolist() == list(range(20))
    assert len(set(peptides.groups)) > 100
