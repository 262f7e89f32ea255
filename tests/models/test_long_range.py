"""The model with all of its long range on: symmetries, derivatives, conservation, extensivity, smoothness."""

import numpy as np
import pytest
import torch

from sciml.data.far_field import FarField, add_far_field
from sciml.errors import UserError
from sciml.graph import Graph, collate
from tests.helpers import check_equivariance, random_crystal, random_molecule, relative_rms
from tests.models.test_derivatives import STRAIN_STEP, differences, displacement, strain
from tests.small import ALL_SCALES, LONG_RANGE, describe_model, graph_of, outputs, random_model

SYSTEMS = {
    "molecule": lambda rng: {**random_molecule(rng), "charge": 1.0, "spin": 2.0},
    "triclinic crystal": random_crystal,
    "charged crystal": lambda rng: {**random_crystal(rng, atoms=5), "charge": -1.0},
}


def model(dtype: torch.dtype = torch.float64, **options) -> torch.nn.Module:
    return random_model(dtype, kinds=("atoms",), **{**LONG_RANGE, **ALL_SCALES, **options})


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("system", SYSTEMS)
def test_outputs_follow_rotations_reflections_translations_and_permutations(system, dtype, tolerance):
    trained = model(dtype)
    graph = graph_of(SYSTEMS[system](np.random.default_rng(0)), "atoms", dtype)
    check_equivariance(lambda sample: outputs(trained, "atoms", sample), graph, tolerance)
    add_far_field(graph, trained.far_field)  # and where the far field was made before
    check_equivariance(lambda sample: outputs(trained, "atoms", sample), graph, tolerance)


@pytest.mark.parametrize("system", SYSTEMS)
def test_forces_and_stress_are_derivatives_of_the_energy(system):
    trained = model()
    graph = graph_of(SYSTEMS[system](np.random.default_rng(4)), "atoms", cutoff=5.2)
    found = outputs(trained, "atoms", graph)
    moves = [displacement(atom, axis) for atom in range(3) for axis in range(3)]
    expected = -differences(trained, graph, moves).view(3, 3)
    assert relative_rms(found["forces"][:3], expected) < 1e-7
    assert float(found["forces"].sum(dim=0).abs().max()) < 1e-9
    if "stress" in found:
        pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
        derivative = differences(trained, graph, [strain(i, j) for i, j in pairs], STRAIN_STEP)
        expected = derivative / torch.linalg.det(graph.cell[0]).abs()
        assert relative_rms(torch.stack([found["stress"][0, i, j] for i, j in pairs]), expected) < 1e-7


def test_second_derivatives_a_loss_of_forces_and_stress_against_differences():
    """Along a random direction in the space of all parameters."""
    trained = model()
    records = [SYSTEMS[name](np.random.default_rng(1)) for name in ("molecule", "triclinic crystal")]
    batch = collate([graph_of(record, "atoms") for record in records])
    parameters = list(trained.parameters())
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters]

    def loss(create_graph: bool) -> torch.Tensor:
        found = trained(batch.clone(), "atoms", create_graph=create_graph)
        return found["forces"].square().mean() + found["stress"][1].square().mean()

    gradients = torch.autograd.grad(loss(True), parameters, allow_unused=True)
    expected = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None)
    values = []
    for step in (-2e-6, 2e-6):
        for p, d in zip(parameters, direction, strict=True):
            p.data += step * d
        values.append(float(loss(False)))
        for p, d in zip(parameters, direction, strict=True):
            p.data -= step * d
    assert (values[1] - values[0]) / 4e-6 == pytest.approx(expected, rel=1e-5)


def copies(*records: dict, apart: float = 2e4) -> dict:
    """Molecules far from each other as one record."""
    shift = np.array([apart, -0.4 * apart, 0.0])
    return {
        "types": np.concatenate([record["types"] for record in records]),
        "positions": np.concatenate([record["positions"] + i * shift for i, record in enumerate(records)]),
    }


def test_energies_of_neutral_systems_are_extensive():
    """Two copies, and two systems that are unlike: charge does not flow between them."""
    trained = model()
    rng = np.random.default_rng(0)
    first, second = random_molecule(rng), random_molecule(rng, atoms=7)
    alone = [outputs(trained, "atoms", graph_of(record, "atoms")) for record in (first, second)]
    for records, parts in (((first, first), (0, 0)), ((first, second), (0, 1))):
        found = outputs(trained, "atoms", graph_of(copies(*records), "atoms"))
        for name in ("energy", "interaction_energy"):
            expected = sum(alone[part][name] for part in parts)
            torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=0)
        assert relative_rms(found["forces"], torch.cat([alone[part]["forces"] for part in parts])) < 1e-8
        assert relative_rms(found["charges"], torch.cat([alone[part]["charges"] for part in parts])) < 1e-9


def test_a_supercell_has_the_energy_per_cell_the_forces_and_the_stress_of_its_cell():
    trained = model()
    record = random_crystal(np.random.default_rng(2), atoms=4)
    repeats = np.stack(np.meshgrid(*[(0, 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    supercell = {
        "types": np.tile(record["types"], 8),
        "positions": np.concatenate([record["positions"] + shift @ record["cell"] for shift in repeats]),
        "cell": 2 * record["cell"],
        "pbc": record["pbc"],
    }
    small, large = (outputs(trained, "atoms", graph_of(r, "atoms")) for r in (record, supercell))
    torch.testing.assert_close(large["energy"], 8 * small["energy"], rtol=1e-10, atol=0)
    assert relative_rms(large["forces"], small["forces"].repeat(8, 1)) < 1e-9
    assert relative_rms(large["stress"], small["stress"]) < 1e-9


def test_charges_sum_to_the_total_charge_and_reach_beyond_the_cutoff():
    trained = model()
    rng = np.random.default_rng(0)
    graphs = [graph_of({**random_molecule(rng), "charge": charge}, "atoms") for charge in (0.0, 1.0, -2.0)]
    found = outputs(trained, "atoms", *graphs)
    totals = torch.stack([part.sum() for part in found["charges"].split(12)])
    torch.testing.assert_close(totals, torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64), rtol=0, atol=1e-12)
    first, second = random_molecule(rng), random_molecule(rng)
    near, far = (
        outputs(trained, "atoms", graph_of(copies(first, second, apart=apart), "atoms"))["interaction_energy"]
        for apart in (15.0, 2e4)
    )
    assert float((near - far).abs()) > 1e-4


def test_energy_and_forces_are_smooth_as_an_atom_crosses_the_cutoffs():
    """Of the edges (5 Å) and of dispersion (7 Å): what jumps over a small gap falls with the gap."""
    trained = model()

    def at(distance: float) -> dict[str, torch.Tensor]:
        positions = np.array([[0.0, 0, 0], [-1.1, 0, 0], [distance, 0, 0]])
        return outputs(trained, "atoms", graph_of({"types": np.array([6, 8, 1]), "positions": positions}, "atoms"))

    for cutoff in (5.0, 7.0):
        jumps = []
        for gap in (1e-2, 1e-3):
            before, after = at(cutoff - gap), at(cutoff + gap)
            jumps.append(relative_rms(before["forces"], after["forces"]))
        assert jumps[1] < 0.15 * jumps[0]
        assert jumps[1] < 1e-2


def test_graphs_have_the_same_outputs_alone_and_in_a_batch_of_both_kinds():
    trained = model()
    rng = np.random.default_rng(0)
    graphs = [graph_of(make(rng), "atoms") for make in (random_molecule, random_crystal, random_molecule)]
    together = outputs(trained, "atoms", *graphs)
    alone = [outputs(trained, "atoms", graph) for graph in graphs]
    for name in ("energy", "forces", "charges"):
        assert relative_rms(together[name], torch.cat([one[name] for one in alone])) < 1e-12
    assert relative_rms(together["stress"][1:2], alone[1]["stress"]) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_parameter_takes_part_for_a_single_atom_as_for_a_molecule(dtype):
    trained = model(dtype)
    atom = {"types": np.array([6]), "positions": np.zeros((1, 3))}
    alone = {**atom, "cell": 9.0 * np.eye(3), "pbc": np.ones(3, bool)}
    reached = []
    for record in (atom, alone, random_molecule(np.random.default_rng(0))):
        trained.zero_grad(set_to_none=True)
        found = trained(collate([graph_of(record, "atoms", dtype)]), "atoms", create_graph=True)
        (found["energy"].sum() + found["forces"].square().sum()).backward()
        assert all(torch.isfinite(p.grad).all() for p in trained.parameters() if p.grad is not None)
        reached.append({name for name, p in trained.named_parameters() if p.grad is not None})
    assert reached[0] == reached[1] == reached[2]
    assert any("reciprocal" in name for name in reached[0])
    assert any("electrostatics" in name for name in reached[0])


def test_switched_off_it_is_not_there():
    plain = random_model()
    off = random_model(reciprocal={"charges": 0}, energy={"charges": 0, "repulsion": False, "dispersion": None})
    assert not plain.far_field
    assert plain.state_dict().keys() == off.state_dict().keys()
    assert all(torch.equal(value, off.state_dict()[name]) for name, value in plain.state_dict().items())
    jet_and_atoms = random_model(reciprocal={"charges": 2})
    assert jet_and_atoms.far_field == FarField(ewald=True)


def test_a_slab_is_refused_by_charges_and_taken_by_priors():
    slab = graph_of(random_crystal(np.random.default_rng(0), pbc=(True, True, False)), "atoms")
    with pytest.raises(UserError, match="electrostatics"):
        outputs(model(), "atoms", slab)
    priors = model(reciprocal=None, energy={"repulsion": True, "dispersion": {"radius": 7.0, "scale": 0.75}})
    assert torch.isfinite(outputs(priors, "atoms", slab)["energy"]).all()


def test_equilibration_of_no_charges_is_refused():
    with pytest.raises(UserError, match="equilibration: found true with charges=0"):
        model(reciprocal=None, energy={"equilibration": True})


def test_an_element_without_coefficients_is_refused():
    from sciml.models.model import build_model

    description = describe_model(("atoms",), **LONG_RANGE)
    description["context"]["references"]["first"]["79"] = -1.0
    with pytest.raises(UserError, match="dispersion: Au was found in the data"):
        build_model(description)


def test_bf16_rounds_the_linear_maps_alone():
    trained = model(torch.float32)
    graph: Graph = graph_of(random_crystal(np.random.default_rng(0)), "atoms", torch.float32)
    exact = outputs(trained, "atoms", graph)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = outputs(trained, "atoms", graph)
    for name in ("energy", "charges"):
        assert rounded[name].dtype == exact[name].dtype
        assert relative_rms(rounded[name], exact[name]) < 0.1


@pytest.mark.parametrize("system", ["molecule", "charged crystal"])
def test_equilibrated_charges_have_their_total_symmetries_and_forces(system):
    trained = model(energy={"charges": 2, "equilibration": True})
    graph = graph_of(SYSTEMS[system](np.random.default_rng(2)), "atoms", cutoff=5.2)
    check_equivariance(lambda sample: outputs(trained, "atoms", sample), graph, 1e-9)
    found = outputs(trained, "atoms", graph)
    assert float(found["charges"].sum()) == pytest.approx(float(graph.charge), abs=1e-12)
    expected = -differences(trained, graph, [displacement(0, axis) for axis in range(3)])
    assert relative_rms(found["forces"][0], expected) < 1e-7


@pytest.mark.parametrize("name", ["repulsion", "equilibration"])
def test_a_switch_that_is_no_switch_is_refused(name):
    """A word would count as true."""
    with pytest.raises(UserError, match=f"heads.energy.{name}: found 'maybe', expected true or false"):
        model(reciprocal=None, energy={name: "maybe"})
