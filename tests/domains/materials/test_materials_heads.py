"""The head of direct forces: conserved momenta, symmetries, and what it shares with the conservative head."""

import numpy as np
import pytest
import torch

from sciml.errors import UserError
from sciml.graph import collate
from sciml.models.model import Model, build_model
from tests.helpers import check_equivariance, random_crystal, random_molecule
from tests.small import describe_model, graph_of, outputs

SYSTEMS = {
    "molecule": random_molecule,
    "triclinic crystal": random_crystal,
    "slab": lambda rng: random_crystal(rng, pbc=(True, True, False)),
    "pair": lambda rng: random_molecule(rng, atoms=2),
}


def direct(dtype: torch.dtype = torch.float64) -> Model:
    torch.manual_seed(0)
    description = describe_model(("atoms",))
    description["heads"] = {"energy": {"name": "direct_forces", "hidden": 8}}
    return build_model(description).to(dtype).eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("system", SYSTEMS)
def test_outputs_follow_rotations_reflections_translations_and_permutations(system, dtype, tolerance):
    model = direct(dtype)
    graph = graph_of(SYSTEMS[system](np.random.default_rng(0)), "atoms", dtype)
    found = check_equivariance(lambda sample: outputs(model, "atoms", sample), graph, tolerance)
    assert ("stress" in found) == (system == "triclinic crystal")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_net_force_and_without_cell_no_net_torque(dtype):
    rng = np.random.default_rng(1)
    graphs = [graph_of(make(rng), "atoms", dtype) for make in SYSTEMS.values()]
    found = outputs(direct(dtype), "atoms", *graphs)["forces"].double()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    sizes = [len(graph.types) for graph in graphs]
    for graph, forces, name in zip(graphs, found.split(sizes), SYSTEMS, strict=True):
        typical = float(forces.abs().max())
        assert typical > 1e-3
        assert float(forces.sum(dim=0).abs().max()) < tolerance * typical * len(forces)
        torque = torch.linalg.cross(graph.positions.double(), forces).sum(dim=0)
        if name in ("molecule", "pair"):
            assert float(torque.abs().max()) < 20 * tolerance * typical * len(forces)
        else:
            assert float(torque.abs().max()) > 1e-3 * typical


def test_a_single_atom_feels_nothing():
    atom = graph_of({"types": np.array([6]), "positions": np.zeros((1, 3))}, "atoms")
    assert outputs(direct(), "atoms", atom)["forces"].abs().max() == 0.0


def test_the_stress_is_symmetric_and_that_of_a_crystal_alone():
    rng = np.random.default_rng(0)
    graphs = [graph_of(make(rng), "atoms") for make in (random_molecule, random_crystal)]
    stress = outputs(direct(), "atoms", *graphs)["stress"]
    assert stress[0].isnan().all()
    torch.testing.assert_close(stress[1], stress[1].T, rtol=1e-12, atol=1e-15)
    assert stress[1].abs().max() > 0


def test_nothing_is_differentiated_to_predict_and_a_loss_reaches_every_parameter():
    model = direct(torch.float32)
    batch = collate([graph_of(random_crystal(np.random.default_rng(0)), "atoms", torch.float32)])
    assert not any(head.differentiates for head in model.heads_for("atoms"))
    found = model(batch, "atoms")
    loss = found["energy"].sum() + found["forces"].square().sum() + found["stress"].square().sum()
    loss.backward()
    fresh = [n for n, p in model.named_parameters() if p.grad is None and not n.startswith("backbone.embedding")]
    assert fresh == []


def test_two_heads_of_one_target_are_refused():
    description = describe_model(("atoms",))
    description["heads"]["direct_forces"] = {"hidden": 8}
    with pytest.raises(UserError, match="heads: energy and direct_forces both predict energy"):
        build_model(description)
