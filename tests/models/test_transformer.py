"""The transformer takes the place of the backbone, has the forces of its energy, and no symmetry of rotations."""

import json

import numpy as np
import pytest
import torch

import sciml
from sciml.config import configure
from sciml.errors import UserError
from sciml.graph import KINDS, collate
from sciml.models.model import build_model
from sciml.models.transformer import Transformer, attention_weights
from sciml.verbs.train import train
from tests.helpers import (
    check_equivariance,
    permute,
    random_crystal,
    random_jet,
    random_molecule,
    random_peptide,
    relative_rms,
    translate,
)
from tests.small import describe_model, graph_of, outputs, random_model, stores, train_config

SYSTEMS = {
    "molecule": ("atoms", random_molecule),
    "crystal": ("atoms", random_crystal),
    "jet": ("jets", random_jet),
    "peptide": ("residues", random_peptide),
}
STEP = 1e-4


def transformer(**options):
    return random_model(name="transformer", channels=8, attention_heads=2, edge_hidden=6, **options)


def sample(system: str, seed: int = 0):
    kind, make = SYSTEMS[system]
    return kind, graph_of(make(np.random.default_rng(seed)), kind)


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_follows_permutations_and_translations(system):
    kind, graph = sample(system)
    model = transformer()
    first = outputs(model, kind, graph)
    order = torch.randperm(len(graph.types), generator=torch.Generator().manual_seed(0))
    for changed, action in (permute(graph, order), translate(graph, torch.tensor([0.3, -0.7, 1.1]).double())):
        expected = action(first)
        for name, value in outputs(model, kind, changed).items():
            assert relative_rms(value, expected[name]) < 1e-9, name


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_does_not_follow_rotations(system):
    """The test of equivariance can fail, on every kind of graph."""
    kind, graph = sample(system)
    model = transformer()
    with pytest.raises(AssertionError, match="relative RMS errors above 0.001"):
        check_equivariance(lambda graph: outputs(model, kind, graph), graph, 1e-3)


@pytest.mark.parametrize("system", SYSTEMS)
def test_graphs_of_a_batch_do_not_see_each_other(system):
    kind, graph = sample(system)
    _, other = sample(system, seed=1)
    model = transformer()
    alone, together = outputs(model, kind, graph), outputs(model, kind, graph, other)
    for name, value in alone.items():
        assert relative_rms(together[name][: len(value)], value) < 1e-10, name


@pytest.mark.parametrize("system", ["molecule", "crystal"])
def test_forces_and_stress_are_derivatives_of_the_energy(system):
    _, graph = sample(system)
    model = transformer()
    found = outputs(model, "atoms", graph)
    rng = np.random.default_rng(0)
    direction = torch.from_numpy(rng.normal(size=graph.positions.shape))
    strain = torch.from_numpy((lambda s: s + s.T)(rng.normal(size=(3, 3))))

    def energy(step: float, along: str) -> torch.Tensor:
        moved = graph.clone()
        if along == "direction":
            moved.positions = graph.positions + step * direction
        else:
            deformation = torch.eye(3, dtype=torch.float64) + step * strain
            moved.positions, moved.cell = graph.positions @ deformation, graph.cell @ deformation
        return outputs(model, "atoms", moved)["interaction_energy"]

    def slope(along: str) -> torch.Tensor:
        return (energy(STEP, along) - energy(-STEP, along)) / (2 * STEP)

    assert relative_rms(-(found["forces"] * direction).sum()[None], slope("direction")) < 1e-5
    if system == "crystal":
        virial = (found["stress"][0] * strain).sum() * torch.linalg.det(graph.cell[0]).abs()
        assert relative_rms(virial[None], slope("strain")) < 1e-5


@pytest.mark.parametrize("system", ["molecule", "crystal"])
def test_a_loss_on_forces_has_the_right_gradient(system):
    """The second derivatives: the gradient of a force loss to the weights against differences."""
    _, graph = sample(system)
    model = transformer()

    def loss() -> torch.Tensor:
        return model(collate([graph.clone()]), "atoms", create_graph=True)["forces"].square().sum()

    loss().backward()
    for name in ("backbone.blocks.0.query_key_value.weight", "backbone.edges.0.weight"):
        parameter = model.get_parameter(name)
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
        expected = []
        for sign in (1, -1):
            parameter.data += sign * STEP * direction
            expected.append(loss().detach())
            parameter.data -= sign * STEP * direction
        slope = (expected[0] - expected[1]) / (2 * STEP)
        assert relative_rms((parameter.grad * direction).sum(), slope) < 1e-5, name


def test_forces_are_continuous_as_an_atom_leaves_the_cutoff():
    model = transformer()

    def forces(distance: float) -> torch.Tensor:
        positions = np.array([[0.0, 0, 0], [-1.1, 0, 0], [distance, 0, 0]])
        record = {"types": np.array([6, 8, 1]), "positions": positions, "cell": 20 * np.eye(3), "pbc": [True] * 3}
        return outputs(model, "atoms", graph_of(record, "atoms"))["forces"]

    inside, before, after = forces(4.0), forces(5.0 - 1e-3), forces(5.0 + 1e-3)
    assert float(inside[2].abs().max()) > 1e-4
    assert float(before[2].abs().max()) < 1e-3 * float(inside[2].abs().max())
    assert relative_rms(before[:2], after[:2]) < 1e-3


def test_attention_is_the_same_whatever_the_largest_logit_is():
    logits, receivers = torch.tensor([[300.0], [-300.0], [2.0], [-900.0]]), torch.tensor([0, 0, 1, 2])
    weights = attention_weights(logits, torch.tensor([[1.0], [1.0], [0.5], [1.0]]), receivers, 4)
    expected = torch.tensor([[1.0], [0.0], [0.5 * np.exp(2.0) / (1.0 + 0.5 * np.exp(2.0))], [0.0]])
    torch.testing.assert_close(weights, expected, check_dtype=False)


@pytest.mark.parametrize(("spurions", "changes"), [(True, True), (False, False)])
def test_spurions_can_be_left_out(spurions, changes):
    kind, graph = sample("jet")
    swapped = graph.clone()
    swapped.vectors = graph.vectors[:, [0, 1, 3, 2]]
    model = transformer(spurions=spurions)
    first, second = (outputs(model, kind, jet)["label"] for jet in (graph, swapped))
    assert (relative_rms(second, first) > 1e-6) == changes


def test_features_have_the_degrees_that_heads_read():
    kind, graph = sample("jet")
    backbone = build_model(describe_model(name="transformer", channels=8)).backbone
    options = describe_model()["backbone"] | {"channels": 8}
    wide = Transformer(list(KINDS), {"jets": 2.5}, 2, lmax_out=2, **{k: v for k, v in options.items() if k != "name"})
    for model, components in ((backbone, 1), (wide, 9)):
        batch = collate([graph.clone()])
        features = model.double()(batch, kind, batch.positions, batch.cell)
        assert features.fine.shape == (len(graph.types), components, 8)
        assert features.fine.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_heads": 3}, "expected a divisor"),
        ({"atention_heads": 2}, "unexpected options atention_heads"),
        ({"reciprocal": {"charges": 2}}, "has no such block"),
        ({"coarse_layers": 1, "layers_after": 1}, "has no such block"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        build_model(describe_model(name="transformer", channels=8, **options))


def test_it_trains_on_every_kind_and_is_published(tmp_path):
    stores(tmp_path)
    words = ["model.name=transformer", "model.options.attention_heads=2", "optimizer.reference_channels=2"]
    words += ["model.coarse_layers=0", "model.layers_after=0", "objective.denoise.weight.atoms=1.0"]
    assert train(train_config(tmp_path, *words)) == 0
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"train/forces", "train/label", "train/residue_types", "train/noise_atoms"} <= losses[0].keys()
    package = sciml.load(tmp_path / "run")
    assert isinstance(package.model.backbone, Transformer)
    assert {"forces", "label", "residue_types"} <= json.loads(
        (tmp_path / "run" / "evaluation" / "metrics.json").read_text()
    )["targets"].keys()


def test_its_option_of_the_config_keeps_the_keys_of_the_backbone():
    config = configure("train", ["train=x", "model=transformer"]).model
    small = configure("train", ["train=x", "model=small"]).model
    assert config.name == "transformer"
    assert config.radial == small.radial
    assert set(config.options) == {"attention_heads", "edge_hidden"}
