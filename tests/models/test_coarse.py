"""The coarse level: off it leaves nothing behind, on it is reached by every gradient, exact and smooth."""

import numpy as np
import pytest
import torch

from sciml.data.subjets import cluster
from sciml.graph import KINDS, Graph, collate
from sciml.models.model import build_model
from tests.helpers import random_crystal, random_jet, random_molecule, random_peptide, relative_rms
from tests.small import ALL_SCALES, COARSE_CUTOFFS, describe_model, graph_of, outputs, random_model

RECORDS = {"atoms": random_peptide, "jets": random_jet, "residues": random_peptide}


def test_without_coarse_layers_nothing_of_the_level_is_built_or_read():
    model, split = random_model(coarse_layers=0), random_model(layers=1, layers_after=1)
    assert not [name for name in model.state_dict() if "backbone.coarse" in name]
    assert model.state_dict().keys() == split.state_dict().keys()  # blocks are blocks, wherever the level would be
    for kind, make in RECORDS.items():
        record = make(np.random.default_rng(0))
        first = outputs(model, kind, graph_of(record, kind, coarse_cutoff=None))
        for other in (outputs(model, kind, graph_of(record, kind)), outputs(split, kind, graph_of(record, kind))):
            for name, value in first.items():
                assert torch.equal(other[name], value), name


def test_a_coarse_level_needs_a_fine_block_after_it_and_graphs_that_have_one():
    with pytest.raises(ValueError, match="layers_after: found 0"):
        build_model(describe_model(coarse_layers=1))
    graph = graph_of(random_molecule(np.random.default_rng(0)), "atoms", coarse_cutoff=None)
    with pytest.raises(ValueError, match="the graphs have no coarse level"):
        outputs(random_model(**ALL_SCALES), "atoms", graph)


@pytest.mark.parametrize("kind", KINDS)
def test_the_coarse_level_reaches_the_predictions(kind):
    model, graph = random_model(**ALL_SCALES), graph_of(RECORDS[kind](np.random.default_rng(0)), kind)
    first = outputs(model, kind, graph)
    with torch.no_grad():
        model.backbone.coarse.blocks[0].linear_out.weights.mul_(1.5)
    for name, value in outputs(model, kind, graph).items():
        assert relative_rms(value, first[name]) > 1e-6, name


@pytest.mark.parametrize("kind", KINDS)
def test_features_have_the_degrees_that_the_heads_read_on_both_levels(kind):
    """Also where a head reads higher degrees than go between blocks."""
    graph = graph_of(RECORDS[kind](np.random.default_rng(0)), kind)
    batch = collate([graph])
    description = describe_model(**ALL_SCALES)
    from sciml.models.backbone import Backbone

    options = {key: value for key, value in description["backbone"].items() if key != "name"}
    for lmax in (0, 1, 2):
        backbone = Backbone(
            list(KINDS), description["cutoffs"], 2, **options, lmax_out=lmax, coarse_cutoffs=COARSE_CUTOFFS
        ).double()
        features = backbone(batch, kind, batch.positions, batch.cell)
        assert features.fine.shape == (len(graph.types), (lmax + 1) ** 2, 4)
        assert features.coarse.shape == (len(graph.coarse_types), (lmax + 1) ** 2, 4)


@pytest.mark.parametrize("make", [random_crystal, random_molecule, random_peptide])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_every_parameter_takes_part_in_every_step(make, backend):
    """A crystal has no coarse nodes, yet no gradient is missing, and those of the level that nothing reaches are 0."""
    model = random_model(kinds=("atoms",), backend=backend, **ALL_SCALES)
    batch = collate([graph_of(make(np.random.default_rng(0)), "atoms")])
    predictions = model(batch, "atoms", create_graph=True)
    (predictions["interaction_energy"].sum() + predictions["forces"].square().sum()).backward()
    empty = batch.coarse_types.shape[0] == 0
    assert empty == (make is not random_peptide)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if empty and name.startswith(("backbone.coarse.up", "backbone.coarse.blocks", "backbone.coarse.embedding")):
            assert float(parameter.grad.abs().max()) == 0.0, name


def test_data_parallel_training_takes_a_batch_of_crystals(tmp_path):
    """DistributedDataParallel waits for the gradient of every parameter; none may stay behind."""
    model = random_model(torch.float32, kinds=("atoms",), **ALL_SCALES)
    batch = collate([graph_of(random_crystal(np.random.default_rng(0)), "atoms", torch.float32)])
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # a second pass fails where the first left a gradient behind
            predictions = parallel(batch, "atoms", create_graph=True)
            (predictions["interaction_energy"].sum() + predictions["forces"].square().sum()).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_crystal_beside_a_peptide_is_as_alone():
    model = random_model(**ALL_SCALES)
    rng = np.random.default_rng(0)
    graphs = [graph_of(make(rng), "atoms") for make in (random_crystal, random_peptide, random_molecule)]
    together = outputs(model, "atoms", *graphs)
    alone = [outputs(model, "atoms", graph) for graph in graphs]
    for name in ("energy", "forces"):
        assert relative_rms(together[name], torch.cat([one[name] for one in alone])) < 1e-12


def test_the_gradient_of_a_force_loss_is_its_derivative():
    """Along a random direction of all parameters, through both levels."""
    model = random_model(kinds=("atoms",), **ALL_SCALES)
    batch = collate([graph_of(random_peptide(np.random.default_rng(0), residues=4), "atoms")])

    def loss() -> torch.Tensor:
        predictions = model(batch.clone(), "atoms", create_graph=True)
        return predictions["forces"].square().sum() + predictions["interaction_energy"].square().sum()

    loss().backward()
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]
    expected = sum(float((p.grad * d).sum()) for p, d in zip(model.parameters(), directions, strict=True))
    step, values = 1e-5, {}
    for factor in (-2, -1, 1, 2):
        with torch.no_grad():
            for p, d in zip(model.parameters(), directions, strict=True):
                p.add_(factor * step * d)
        values[factor] = float(loss().detach())
        with torch.no_grad():
            for p, d in zip(model.parameters(), directions, strict=True):
                p.sub_(factor * step * d)
    found = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)
    assert found == pytest.approx(expected, rel=1e-6)


def two_residues(distance: float) -> Graph:
    """Two glycine-like residues out of each other's fine reach, at a distance of their centres [Å]."""
    frame = np.array([[-1.2, 0.4, 0.0], [0.0, -0.4, 0.0], [1.2, 0.0, 0.0]])
    record = {
        "types": np.array([7, 6, 6] * 2),
        "atom_names": np.array([1, 2, 3] * 2),
        "parent": np.array([0, 0, 0, 1, 1, 1]),
        "residue_types": np.array([5, 0]),
        "positions": np.concatenate([frame, frame[:, [1, 0, 2]] + [distance, 0.0, 0.0]]),
        "energy": 0.0,
    }
    return graph_of(record, "atoms", cutoff=3.0)


def test_energy_and_forces_are_smooth_as_residues_cross_the_coarse_cutoff():
    model = random_model(kinds=("atoms",), **ALL_SCALES)
    model.backbone.cutoffs.fill_(3.0)
    cutoff = COARSE_CUTOFFS["atoms"]

    def at(distance: float) -> dict[str, torch.Tensor]:
        return outputs(model, "atoms", two_residues(distance))

    assert two_residues(cutoff - 0.1).coarse_senders.shape == (2,)
    inside, before, after = at(cutoff - 1.0), at(cutoff - 1e-3), at(cutoff + 1e-3)
    typical = relative_rms(inside["forces"], after["forces"])
    assert typical > 1e-4
    assert relative_rms(before["forces"], after["forces"]) < 1e-4 * typical
    energies = [at(cutoff - gap)["interaction_energy"] - after["interaction_energy"] for gap in (0.02, 0.01)]
    assert 6.0 < float(energies[0] / energies[1]) < 10.0  # third order: a factor of 8


def jet_outputs(model: torch.nn.Module, record: dict) -> torch.Tensor:
    return outputs(model, "jets", graph_of(record, "jets"))["label"]


def test_jets_are_continuous_as_a_particle_comes_to_rest_in_the_frame():
    """Its direction is undefined there; it keeps its subjet."""
    model = random_model(**ALL_SCALES)
    momenta = np.array([[0.14, 0, 0, 0], [50.0, 30.0, 40.0, 0], [50.0, -30.0, -40.0, 0], [20.0, 0, 0, 20.0]])
    momenta = np.concatenate([momenta, [[20.0, 0, 0, -20.0]]])
    parent = np.array([0, 0, 1, 2, 3])

    def at(p: float) -> torch.Tensor:
        momenta[0] = [np.hypot(0.14, p), p, 0.0, 0.0]
        return jet_outputs(model, {"types": np.array([1, 3, 3, 3, 3]), "momenta": momenta, "parent": parent})

    centre = at(0.0)
    errors = [relative_rms(at(p), centre) for p in (1e-3, 1e-4, 1e-5)]
    assert 0 < errors[0] < 1e-2
    assert errors[1] < 0.2 * errors[0]
    assert errors[2] < 0.2 * errors[1]
    assert relative_rms(at(-1e-6), at(1e-6)) < 0.2 * errors[2]


def test_jets_are_continuous_as_particles_become_collinear():
    model = random_model(**ALL_SCALES)
    record = random_jet(np.random.default_rng(3), particles=12, massless=1.1)
    parent = cluster(record["momenta"])
    first = record["momenta"][0, 1:]

    def at(angle: float) -> torch.Tensor:
        kick = angle * np.cross(first, [0.3, -0.2, 0.9])
        pieces = np.stack([0.3 * first + kick, 0.7 * first - kick])
        pieces = np.concatenate([np.linalg.norm(pieces, axis=1, keepdims=True), pieces], axis=1)
        split = {
            "types": np.append(record["types"], 3),
            "momenta": np.concatenate([pieces[:1], record["momenta"][1:], pieces[1:]]),
            "parent": np.append(parent, parent[0]),
        }
        return jet_outputs(model, split)

    together = at(0.0)
    errors = [relative_rms(at(angle), together) for angle in (1e-3, 1e-4, 1e-5)]
    assert errors[0] > 0
    assert errors[2] < 1e-3
    assert errors == sorted(errors, reverse=True)
    assert relative_rms(at(-1e-5), at(1e-5)) < 1e-3
