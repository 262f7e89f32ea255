"""New elements and levels of theory start from what is nearest, and their energies are right before the first step."""

from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from sciml import build
from sciml.data.source import Source
from sciml.data.store import Store, StoreWriter
from sciml.errors import UserError
from sciml.package import Package
from sciml.train.adapt.finetuning import FineTuning
from sciml.train.adapt.levels import adopt_levels, nearest_elements, start_new_elements
from tests.helpers import random_crystal, random_molecule
from tests.small import describe_model, graph_of, outputs, random_model

SHIFTS = {1: 3.0, 6: -40.0, 14: 7.0}


@pytest.fixture
def package(tmp_path):
    config = {
        "model": describe_model(),
        "elements": [1, 6, 7, 8, 14],
        "datasets_of_domain": {"materials": ["first", "second"]},
    }
    return Package(random_model(torch.float32), config, tmp_path)


def labelled_store(path, package, dataset, level=1, records=10, elements=(1, 6, 14), stiffness=1.0):
    """Molecules with the forces of the base model at ``level`` and its interaction energy, times ``stiffness``, with
    other references.
    """
    rng = np.random.default_rng(0)
    with StoreWriter(path, "materials", dataset) as writer:
        for index in range(records):
            record = random_molecule(rng, atoms=6, elements=elements)
            found = outputs(package.model, "atoms", graph_of(record, "atoms", torch.float32, dataset=level))
            references = sum(SHIFTS.get(int(z), 1.0) for z in record["types"])
            energy = stiffness * float(found["interaction_energy"][0]) + references
            made = {"energy": energy, "forces": stiffness * found["forces"].numpy(), "id": f"m#{index}"}
            assert writer.add({**record, **made})
    return writer.close()


@pytest.mark.parametrize(
    ("number", "known", "near"),
    [
        (14, [1, 6, 8], [6]),
        (3, [1, 6, 14], [1]),
        (15, [6, 7, 8, 14], [7]),
        (26, [22, 29, 47], [29, 47]),
        (10, [2, 9], [2]),
    ],
)
def test_elements_are_near_by_group_then_by_period(number, known, near):
    assert nearest_elements(number, known) == near


def test_a_new_element_starts_as_the_mean_of_its_neighbours(package, tmp_path):
    store = labelled_store(tmp_path / "store", package, "first", elements=(1, 9))
    model, _ = build.initial_model(describe_model(), package)
    assert start_new_elements(model, package, [Source(store, 0)]) == {9: [8, 7]}
    table = model.backbone.embedding.types.weight
    torch.testing.assert_close(table[9], table[[7, 8]].mean(dim=0))
    torch.testing.assert_close(table[8], package.model.backbone.embedding.types.weight[8])


@pytest.mark.parametrize(("level", "stiffness"), [(0, 1.0), (1, 1.0), (1, 0.7)])
def test_a_new_level_starts_as_the_nearest_with_references_of_its_own(package, tmp_path, level, stiffness):
    store = labelled_store(tmp_path / "store", package, "third", level=level, stiffness=stiffness)
    new = describe_model()
    new["context"]["datasets"] = ["first", "second", "third"]
    new["context"]["references"]["third"] = {"1": 0.0, "6": 0.0, "14": 0.0}
    model, description = build.initial_model(new, package)
    description, notes = adopt_levels(model, package, description, [Source(store, 2, "store")])
    assert notes == [
        f"the new level of theory 'third' starts as {['first', 'second'][level]!r}, with {stiffness:.2f} times its "
        "forces and reference energies of its own"
    ]
    fitted = description["context"]["references"]["third"]
    for number, energy in SHIFTS.items():
        assert fitted[str(number)] == pytest.approx(energy, abs=2e-3)
        assert float(model.heads["energy"].references[2, number]) == fitted[str(number)]
    known = describe_model()["context"]["scales"][["first", "second"][level]]
    assert description["context"]["scales"]["third"] == pytest.approx(stiffness * known, rel=1e-4)
    for record in Store(store.path):  # energies and forces are right before anything is learned
        found = outputs(model, "atoms", graph_of(record, "atoms", torch.float32, dataset=2))
        assert float(found["energy"][0]) == pytest.approx(float(record["energy"]), abs=0.02)
        np.testing.assert_allclose(found["forces"].numpy(), record["forces"], atol=1e-4)


def test_known_levels_stay_and_their_new_elements_are_fitted_to_what_is_left(package, tmp_path):
    store = labelled_store(tmp_path / "store", package, "first", level=0, elements=(1, 29))
    new = describe_model()
    new["context"]["references"]["first"] = {"29": 5.0}
    package.config["model"]["context"]["references"]["first"].pop("29")
    model, description = build.initial_model(new, package)
    description, _ = adopt_levels(model, package, description, [Source(store, 0, "store")])
    before = package.config["model"]["context"]["references"]["first"]
    after = description["context"]["references"]["first"]
    assert {number: after[number] for number in before} == before
    assert after["29"] != 5.0
    assert description["context"]["scales"]["first"] == new["context"]["scales"]["first"]


def with_level(package, name):
    """A model that starts from the package with the level of theory ``name``, and its index."""
    new = describe_model()
    if name == "third":
        new["context"]["datasets"] = ["first", "second", "third"]
        new["context"]["references"]["third"] = {"1": 0.0, "6": 0.0, "14": 0.0}
    model, description = build.initial_model(new, package)
    return model, description, new["context"]["datasets"].index(name)


@pytest.mark.parametrize(
    ("stiffness", "likely"),
    [
        (
            1 / 0.0433641,
            r"23.1 times as large: they are probably in kcal/mol rather than eV \(a factor of 23.06\); ingest the file "
            "with energy_unit=kcal/mol",
        ),
        (
            0.9 / 51.4221,
            r"0.0175 times as large: they are probably in hartree/bohr rather than eV \(a factor of 0.01945\); ingest "
            "the file with forces_unit=hartree/bohr",
        ),
        (27.2114, "27.2 times as large: they were probably converted from hartree, though they were in eV"),
        (13.6057, "13.6 times as large: they were probably converted from rydberg, though they were in eV"),
    ],
)
@pytest.mark.parametrize("name", ["first", "third"])
def test_forces_in_other_units_are_refused_unless_they_are_meant(package, tmp_path, stiffness, likely, name):
    """Of a new level of theory and of a known one; the word that lets them pass is the one of parity."""
    store = labelled_store(tmp_path / "store", package, name, level=0, stiffness=stiffness)
    model, description, index = with_level(package, name)
    with pytest.raises(UserError, match=f"store: its forces point as .* of theory 'first', but are {likely}.*parity"):
        adopt_levels(model, package, description, [Source(store, index, "store")])
    adopt_levels(model, package, description, [Source(store, index, "store")], check_units=False)
    replayed = Source(store, 0, "store", replayed=True)
    adopt_levels(model, package, description, [replayed])


@pytest.mark.parametrize("name", ["first", "third"])
@pytest.mark.parametrize("stiffness", [8.0, 0.15])
def test_forces_of_another_factor_than_that_of_a_unit_are_a_warning(package, tmp_path, name, stiffness):
    """The forces of a package that has learned little are too small, and no unit is to blame."""
    store = labelled_store(tmp_path / "store", package, name, level=0, stiffness=stiffness)
    model, description, index = with_level(package, name)
    _, notes = adopt_levels(model, package, description, [Source(store, index, "store")])
    said = f"'first', but are {stiffness:.3g} times as large: units or levels of theory may be mixed up"
    assert sum("store: its forces point as" in note and said in note for note in notes) == 1


def test_the_file_in_other_units_is_the_one_that_is_named(package, tmp_path):
    good = labelled_store(tmp_path / "good", package, "first", level=0)
    bad = labelled_store(tmp_path / "bad", package, "first", level=0, stiffness=1 / 0.0433641)
    model, description = build.initial_model(describe_model(), package)
    with pytest.raises(UserError, match=r"bad: its forces point as .* 23.1 times as large: .* in kcal/mol"):
        adopt_levels(model, package, description, [Source(good, 0, "good"), Source(bad, 0, "bad")])


def test_data_that_are_only_measured_have_the_units_of_the_package_too(package, tmp_path):
    good = Source(labelled_store(tmp_path / "good", package, "first", level=0), 0, "good")
    bad = Source(labelled_store(tmp_path / "bad", package, "first", level=0, stiffness=1 / 0.0433641), 0, "bad")
    model, description = build.initial_model(describe_model(), package)
    adopt_levels(model, package, description, [good], measured=[good])
    with pytest.raises(UserError, match=r"bad: its forces point as .* in kcal/mol"):
        adopt_levels(model, package, description, [good], measured=[good, bad])


def without(source, name, path):
    """A copy of a store whose records lack a label."""
    with StoreWriter(path, source.domain, source.dataset) as writer:
        for record in source:
            assert writer.add({key: value for key, value in record.items() if key != name})
    return Store(writer.close().path)


def test_energies_alone_tell_their_unit(package, tmp_path):
    """Beyond what the composition tells, for which references of every unit can be fitted."""
    for stiffness in (1 / 0.0433641, 1.0):
        made = labelled_store(tmp_path / f"made-{stiffness:.0f}", package, "third", level=0, stiffness=stiffness)
        store = without(made, "forces", tmp_path / f"alone-{stiffness:.0f}")
        model, description, index = with_level(package, "third")
        refused = pytest.raises(
            UserError,
            match="its energies vary as those .* 23.1 times .* in kcal/mol rather than eV .*energy_unit=kcal/mol",
        )
        with nullcontext() if stiffness == 1.0 else refused:
            adopt_levels(model, package, description, [Source(store, index, "store")])


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (1.0, None),
        (1 / 0.00624151, r"its stress varies as that .* is 160 times .* in GPa rather than eV/Å\^3 .*stress_unit=GPa"),
        (0.000624151, "it was probably converted from kbar, though it was in eV/Å"),
        (-1.0, "its stress has the opposite sign"),
    ],
)
def test_stress_in_other_units_or_of_the_other_sign_is_told(package, tmp_path, times, said):
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "crystals", "materials", "first") as writer:
        for index in range(8):
            record = random_crystal(rng, atoms=4, elements=(1, 6))
            found = outputs(package.model, "atoms", graph_of(record, "atoms", torch.float32, dataset=0))
            labels = {"forces": found["forces"].numpy(), "stress": times * found["stress"][0].numpy()}
            record.pop("energy", None)
            assert writer.add({**record, **labels, "id": f"c#{index}"})
    model, description, index = with_level(package, "first")
    refused = pytest.raises(UserError, match=said) if times not in (1.0, -1.0) else nullcontext()
    with refused:
        _, notes = adopt_levels(model, package, description, [Source(writer.close(), index, "crystals")])
        assert any(said in note for note in notes) if said else not any("stress" in note for note in notes)


@pytest.mark.parametrize("learned", [{"polarizability"}, {"energy", "forces", "stress"}])
def test_units_matter_where_energies_or_forces_are_learned(package, tmp_path, learned):
    store = labelled_store(tmp_path / "store", package, "first", level=0, stiffness=1 / 0.0433641)
    model, description = build.initial_model(describe_model(), package)
    tuning = SimpleNamespace(package=package, options=SimpleNamespace(parity=True), forgetting=Mock())
    tuning.forgetting.keep_classes.return_value = []
    refused = pytest.raises(UserError, match="in kcal/mol") if "forces" in learned else nullcontext()
    with refused:
        FineTuning.adopt(tuning, model, description, [Source(store, 0, "store")], learned)


def test_forces_that_point_elsewhere_tell_nothing_of_units(package, tmp_path):
    store = labelled_store(tmp_path / "store", package, "first", level=0)
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "noise", "materials", "first") as writer:
        for record in store:
            assert writer.add({**record, "forces": 20.0 * rng.normal(size=record["forces"].shape)})
    model, description = build.initial_model(describe_model(), package)
    adopt_levels(model, package, description, [Source(writer.close(), 0, "noise")])


def test_a_package_that_is_wrong_on_its_own_embedded_data_tells_nothing_of_units(package, tmp_path):
    """It was trained for a few steps: its forces are small everywhere, and no unit is to blame."""
    store = labelled_store(tmp_path / "store", package, "third", level=0, stiffness=27.2114)
    trusting, description, _ = with_level(package, "third")
    with pytest.raises(UserError, match="converted from hartree"):
        adopt_levels(trusting, package, description, [Source(store, 2, "store")])
    package.config["model"]["context"]["datasets"] = ["gfn2-xtb", "second"]  # the level of the embedded molecules
    package.config["datasets_of_domain"]["materials"] = ["gfn2-xtb"]
    references = package.config["model"]["context"]["references"]
    references["gfn2-xtb"] = references.pop("first")
    _, notes = adopt_levels(trusting, package, description, [Source(store, 2, "store")])
    assert not [note for note in notes if "times as large" in note]
    assert [note for note in notes if "units are not checked by the level of theory 'gfn2-xtb'" in note]


def test_the_judges_of_units_are_levels_of_atoms_with_elements_that_the_package_knows(package, tmp_path):
    """A base of the embedded data has levels of jets too; a base of few elements is not judged by others."""
    store = labelled_store(tmp_path / "store", package, "third", level=0, stiffness=27.2114)
    model, description, _ = with_level(package, "third")
    package.config["model"]["context"]["datasets"] = ["gfn2-xtb", "pythia8"]
    package.config["datasets_of_domain"] = {"materials": ["gfn2-xtb"], "hep": ["pythia8"]}
    references = package.config["model"]["context"]["references"]
    references["gfn2-xtb"] = references.pop("first")
    package.config["elements"] = [2]
    with pytest.raises(UserError, match="converted from hartree"):
        adopt_levels(model, package, description, [Source(store, 2, "store")])
