"""Every output of the model follows the symmetries of its input, to rounding."""

import numpy as np
import pytest
import torch

from sciml.domains.hep.graphs import graph as jet_graph
from sciml.graph import collate
from sciml.physics.lorentz import lorentz_of_rotation
from tests.helpers import (
    boost,
    check_equivariance,
    lorentz_transform,
    random_crystal,
    random_jet,
    random_molecule,
    random_peptide,
    random_rotation,
    relative_rms,
)
from tests.small import ALL_SCALES, COARSE_CUTOFFS, CUTOFFS, graph_of, outputs, random_model

SYSTEMS = {
    "molecule": ("atoms", lambda rng: {**random_molecule(rng), "charge": 1.0, "spin": 2.0}),
    "triclinic crystal": ("atoms", random_crystal),
    "slab": ("atoms", lambda rng: random_crystal(rng, pbc=(True, True, False))),
    "jet": ("jets", random_jet),
    "collinear jet": ("jets", lambda rng: random_jet(rng, mass=1.0)),
    "peptide": ("atoms", random_peptide),
    "backbone": ("residues", random_peptide),
}
SCALES = pytest.mark.parametrize("scales", [{}, ALL_SCALES], ids=["fine", "all scales"])
OUTPUTS = {
    "atoms": {"energy", "interaction_energy", "forces"},
    "jets": {"label"},
    "residues": {"residue_types"},
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("system", SYSTEMS)
@SCALES
def test_outputs_follow_rotations_reflections_translations_and_permutations(scales, system, dtype, tolerance):
    kind, make = SYSTEMS[system]
    model = random_model(dtype, **scales)
    for seed in range(2):
        graph = graph_of(make(np.random.default_rng(seed)), kind, dtype)
        defined = OUTPUTS[kind] | ({"stress"} if system == "triclinic crystal" else set())

        def predict(sample, kind=kind, defined=defined):
            found = outputs(model, kind, sample)
            assert all(found[name].isnan().all() for name in found.keys() - defined)  # a slab has no stress
            return {name: found[name] for name in defined}

        check_equivariance(predict, graph, tolerance, seed)


@pytest.mark.parametrize("gamma", [1.1, 3.0, 10.0])
@SCALES
def test_class_logits_are_lorentz_invariant(scales, gamma):
    model = random_model(**scales)
    record = random_jet(np.random.default_rng(0))
    first = outputs(model, "jets", graph_of(record, "jets"))["label"]
    moved, spurions = boost(record, gamma, torch.Generator().manual_seed(1))
    graph = jet_graph(moved, "jets", CUTOFFS["jets"], torch.float64, COARSE_CUTOFFS["jets"], spurions)
    graph.dataset = torch.tensor([1])
    assert relative_rms(outputs(model, "jets", graph)["label"], first) < 1e-7


@pytest.mark.parametrize("levels", [{}, {"coarse_layers": 1, "layers_after": 1}])
def test_without_spurions_jets_do_not_know_where_the_beams_are(levels):
    """Momenta turn, beams do not: logits stay without the spurions and change with them."""
    record = random_jet(np.random.default_rng(0))
    turned, _ = lorentz_transform(record, lorentz_of_rotation(random_rotation(torch.Generator().manual_seed(1))))
    errors = []
    for spurions in (False, True):
        model = random_model(spurions=spurions, **levels)
        first, second = (outputs(model, "jets", graph_of(jet, "jets"))["label"] for jet in (record, turned))
        errors.append(relative_rms(second, first))
    assert errors[0] < 1e-7
    assert errors[1] > 1e-4


def test_a_mirror_image_has_other_features_but_the_same_energy():
    """The test of reflections can fail: a chiral molecule and its mirror image are not the same up to a rotation."""
    model = random_model()
    record = random_molecule(np.random.default_rng(3))
    energy = outputs(model, "atoms", graph_of(record, "atoms"))["interaction_energy"]
    mirrored = outputs(model, "atoms", graph_of({**record, "positions": record["positions"] * [-1, 1, 1]}, "atoms"))
    moved = {**record, "positions": record["positions"] * [1.001, 1, 1]}
    assert relative_rms(mirrored["interaction_energy"], energy) < 1e-12
    assert relative_rms(outputs(model, "atoms", graph_of(moved, "atoms"))["interaction_energy"], energy) > 1e-6


@pytest.mark.parametrize("kind", ["jets", "residues"])
def test_logits_are_no_constants(kind):
    """The tests of invariant logits can fail: they depend on the geometry, far beyond the tolerances above."""
    model = random_model()
    graph = graph_of({"jets": random_jet, "residues": random_peptide}[kind](np.random.default_rng(0)), kind)
    first = outputs(model, kind, graph)
    moved = graph.clone()
    moved.positions = graph.positions @ torch.diag(torch.tensor([1.0, 1.0, 0.9], dtype=torch.float64))
    changed = [moved]
    if kind == "jets":  # the vectors stay behind when the positions turn
        turned = graph.clone()
        turned.positions = graph.positions.roll(1, dims=1)
        changed.append(turned)
    for other in changed:
        for name, value in outputs(model, kind, other).items():
            assert relative_rms(value, first[name]) > 1e-4, name


@pytest.mark.parametrize("kind", ["atoms", "jets", "residues"])
def test_a_graph_has_the_same_outputs_alone_and_in_a_batch(kind):
    rng = np.random.default_rng(0)
    makers = {"atoms": [random_molecule, random_crystal], "jets": [random_jet] * 2, "residues": [random_peptide] * 2}
    graphs = [graph_of(make(rng), kind, dataset=i) for i, make in enumerate(makers[kind])]
    model = random_model()
    together = outputs(model, kind, *graphs)
    alone = [outputs(model, kind, graph) for graph in graphs]
    if kind == "atoms":  # no stress without a cell
        alone[0]["stress"] = torch.full((1, 3, 3), torch.nan, dtype=torch.float64)
    for name, value in together.items():
        assert relative_rms(value, torch.cat([one[name] for one in alone])) < 1e-12, name


def test_levels_of_theory_charge_and_spin_reach_the_energy():
    model = random_model()
    record = random_molecule(np.random.default_rng(0))
    graphs = [
        graph_of(record, "atoms", dataset=0),
        graph_of(record, "atoms", dataset=1),
        graph_of({**record, "charge": 1.0}, "atoms", dataset=1),
        graph_of({**record, "spin": 3.0}, "atoms", dataset=1),
    ]
    energies = outputs(model, "atoms", *graphs)["interaction_energy"]
    assert len(energies.unique()) == 4


def test_two_far_copies_have_twice_the_energy():
    model = random_model()
    record = random_molecule(np.random.default_rng(0))
    double = {
        "types": np.tile(record["types"], 2),
        "positions": np.concatenate([record["positions"], record["positions"] + [40.0, -30.0, 0.0]]),
    }
    one = outputs(model, "atoms", graph_of(record, "atoms"))
    two = outputs(model, "atoms", graph_of(double, "atoms"))
    for name in ("energy", "interaction_energy"):
        torch.testing.assert_close(two[name], 2 * one[name], rtol=1e-11, atol=0)
    assert relative_rms(two["forces"], one["forces"].repeat(2, 1)) < 1e-11


def test_wrapping_atoms_and_other_cells_of_one_lattice_change_nothing():
    model = random_model()
    rng = np.random.default_rng(1)
    record = random_crystal(rng)
    first = outputs(model, "atoms", graph_of(record, "atoms"))
    moved = {**record, "positions": record["positions"] + rng.integers(-3, 4, (8, 3)) @ record["cell"]}
    sheared = {**record, "cell": np.array([[1, 0, 0], [1, 1, 0], [0, -1, 1]]) @ record["cell"]}
    for other in (moved, sheared):
        found = outputs(model, "atoms", graph_of(other, "atoms"))
        for name in first:
            assert relative_rms(found[name], first[name]) < 1e-10, name


def test_a_supercell_has_the_energy_per_cell_the_forces_and_the_stress_of_its_cell():
    model = random_model()
    record = random_crystal(np.random.default_rng(2), atoms=4)
    repeats = np.stack(np.meshgrid(*[(0, 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    supercell = {
        "types": np.tile(record["types"], 8),
        "positions": np.concatenate([record["positions"] + shift @ record["cell"] for shift in repeats]),
        "cell": 2 * record["cell"],
        "pbc": record["pbc"],
    }
    small = outputs(model, "atoms", graph_of(record, "atoms"))
    large = outputs(model, "atoms", graph_of(supercell, "atoms"))
    torch.testing.assert_close(large["energy"], 8 * small["energy"], rtol=1e-11, atol=0)
    assert relative_rms(large["forces"], small["forces"].repeat(8, 1)) < 1e-10
    assert relative_rms(large["stress"], small["stress"]) < 1e-10


def test_edges_beyond_the_cutoff_count_for_nothing():
    model = random_model()
    for record in (random_molecule(np.random.default_rng(0), atoms=30), random_crystal(np.random.default_rng(0))):
        near, far = graph_of(record, "atoms"), graph_of(record, "atoms", cutoff=6.0)
        assert len(far.senders) > len(near.senders)
        for name, value in outputs(model, "atoms", near).items():
            assert relative_rms(outputs(model, "atoms", far)[name], value) < 1e-12, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_single_atom_has_its_energy_no_force_and_gradients(dtype):
    """No edges at all: predictions are finite and every parameter that a molecule reaches is reached."""
    model = random_model(dtype)
    atom = {"types": np.array([6]), "positions": np.zeros((1, 3))}
    reached = []
    for record in (atom, random_molecule(np.random.default_rng(0))):
        model.zero_grad(set_to_none=True)
        predictions = model(collate([graph_of(record, "atoms", dtype)]), "atoms", create_graph=True)
        assert torch.isfinite(predictions["energy"]).all()
        (predictions["energy"].sum() + predictions["forces"].square().sum()).backward()
        reached.append({name for name, p in model.named_parameters() if p.grad is not None})
        if record is atom:
            assert (predictions["forces"] == 0).all()
            assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert reached[0] == reached[1]


def test_an_empty_edge_set_inside_a_batch_is_no_special_case():
    model = random_model()
    atom = graph_of({"types": np.array([6]), "positions": np.zeros((1, 3))}, "atoms")
    molecule = graph_of(random_molecule(np.random.default_rng(0)), "atoms")
    alone = outputs(model, "atoms", atom)["energy"]
    torch.testing.assert_close(outputs(model, "atoms", molecule, atom)["energy"][1:], alone, rtol=1e-12, atol=0)
