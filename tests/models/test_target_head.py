"""Heads of targets from a configuration: equivariant of any degree from any backbone, extensive where they say so."""

import numpy as np
import pytest
import torch

from sciml.models.model import build_model
from sciml.models.target_head import TargetHead
from sciml.physics import lorentz
from sciml.physics.symmetry import (
    Action,
    lengths,
    lorentz_transform,
    permute,
    random_orthogonal,
    relative_rms,
    rotate,
)
from tests.helpers import random_crystal, random_jet, random_molecule, random_peptide
from tests.small import describe_model, graph_of, outputs

IRREPS = ("0e", "1o", "0e+2e", "2x0e+2x2e+4e", "2x1o+0e+3o")


def model_of(heads, lmax_out=0, **backbone):
    torch.manual_seed(0)
    description = {**describe_model(**backbone), "lmax_out": lmax_out}
    description["heads"] |= {
        key: {"name": "target", "hidden": 8, "channels": 4, **options} for key, options in heads.items()
    }
    model = build_model(description).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if float(parameter.abs().max()) == 0.0:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("lmax", [0, 1], ids=["of invariants", "of vectors"])
@pytest.mark.parametrize("level", ["graph", "fine"])
def test_every_degree_turns_with_space(level, lmax):
    names = {f"target_{index}": irreps for index, irreps in enumerate(IRREPS)}
    model = model_of({name: {"irreps": irreps, "level": level} for name, irreps in names.items()}, lmax)
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(1)
    for record in (random_molecule(rng, atoms=6), random_crystal(rng, atoms=4)):
        graph = graph_of(record, "atoms")
        first = outputs(model, "atoms", graph)
        rotation = random_orthogonal(generator)
        turned = outputs(model, "atoms", rotate(graph, rotation)[0])
        order = torch.randperm(len(graph.types), generator=generator)
        moved = outputs(model, "atoms", permute(graph, order)[0])
        for name, irreps in names.items():
            assert float(first[name].abs().max()) > 1e-4
            expected = Action(rotation)(first, ranks={name: irreps})[name]
            assert relative_rms(turned[name], expected) < 1e-9, name
            assert relative_rms(moved[name], first[name][order] if level == "fine" else first[name]) < 1e-9, name


def test_the_ranks_tell_verify_how_an_output_turns():
    head = model_of({"polarizability": {"irreps": "0e+2e"}}).heads["polarizability"]
    assert isinstance(head, TargetHead)
    assert head.ranks == {"polarizability": "0e+2e"}


def test_extensive_targets_sum_and_intensive_ones_average():
    model = model_of({"sum": {"irreps": "0e+2e", "extensive": True}, "mean": {"irreps": "0e+2e"}})
    rng = np.random.default_rng(0)
    one = graph_of(random_molecule(rng, atoms=5), "atoms")
    far = random_molecule(np.random.default_rng(0), atoms=5)
    both = {
        **far,
        "types": np.tile(far["types"], 2),
        "positions": np.concatenate([far["positions"], far["positions"] + 100.0]),
        "forces": np.tile(far["forces"], (2, 1)),
    }
    single, double = outputs(model, "atoms", one), outputs(model, "atoms", graph_of(both, "atoms"))
    torch.testing.assert_close(double["sum"], 2 * single["sum"])
    torch.testing.assert_close(double["mean"], single["mean"])


def test_facts_of_the_labels_are_where_an_untrained_head_starts():
    description = describe_model()
    description["heads"]["gap"] = {"name": "target", "irreps": "0e", "extensive": True}
    facts = {"scale": 0.0, "shift": [0.0], "by_type": {"1": [2.0], "6": [-3.0]}}
    description["context"]["targets"] = {"gap": facts}
    model = build_model(description).double()
    graph = graph_of(random_molecule(np.random.default_rng(0), atoms=5, elements=(1, 6)), "atoms")
    expected = 2.0 * (graph.types == 1).sum() - 3.0 * (graph.types == 6).sum()
    assert float(outputs(model, "atoms", graph)["gap"][0, 0]) == pytest.approx(float(expected))


def test_vectors_of_parallel_particles_are_finite_and_keep_their_length_when_the_jet_is_boosted():
    """Two particles of one direction have no direction between them; boosts turn the vectors of the rest frame."""
    model = model_of({"axis": {"kind": "jets", "irreps": "1o"}}, layers=1)
    record = random_jet(np.random.default_rng(0), particles=6)
    record["momenta"][1] = 0.5 * record["momenta"][0]
    first = outputs(model, "jets", graph_of(record, "jets"))["axis"]
    assert first.isfinite().all()
    assert float(first.abs().max()) > 1e-4
    boosted, spurions = lorentz_transform(record, lorentz.random_boost(3.0, torch.Generator().manual_seed(0)))
    moved = outputs(model, "jets", graph_of(boosted, "jets", spurions=spurions))["axis"]
    assert relative_rms(lengths(moved, "1o"), lengths(first, "1o")) < 1e-6


def test_levels_and_kinds_have_their_rows():
    heads = {
        "charge": {"level": "coarse", "kind": "residues"},
        "burial": {"level": "coarse", "kind": "residues", "classes": ["in", "out", "between"]},
        "shift": {"level": "fine", "kind": "residues", "irreps": "1o"},
        "mass": {"kind": "jets"},
    }
    model = model_of(heads, layers=1, coarse_layers=1, layers_after=1)
    rng = np.random.default_rng(0)
    peptide, jet = graph_of(random_peptide(rng, residues=4), "residues"), graph_of(random_jet(rng, particles=6), "jets")
    found = outputs(model, "residues", peptide)
    assert found["charge"].shape == (4, 1)
    assert found["burial"].shape == (4, 3)
    assert found["shift"].shape == (len(peptide.types), 3)
    assert outputs(model, "jets", jet)["mass"].shape == (1, 1)
