"""Forces and stress are the derivatives of the energy, in fp64 to 1e-7 and in fp32 to 1e-4; all of it is smooth."""

import numpy as np
import pytest
import torch

from sciml.graph import Graph, collate
from sciml.models.model import Model
from tests.helpers import random_crystal, random_molecule, random_peptide, relative_rms
from tests.small import ALL_SCALES, COARSE_CUTOFFS, graph_of, outputs, random_model

STEP = 5e-4
"""Å: truncation h^4 E^(5) / 30 and rounding 1e-16 E / h are both small."""
STRAIN_STEP = 2e-4
"""A strain moves a neighbour by up to 5 Å times itself."""
COEFFICIENTS = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))  # fourth order


def wide_graph(record: dict) -> Graph:
    """Edges beyond the cutoff too, where the envelope is zero, so that no displacement moves a pair past the list."""
    return graph_of(record, "atoms", cutoff=5.2, coarse_cutoff=COARSE_CUTOFFS["atoms"] + 0.2)


def differences(model: Model, graph: Graph, moves: list, h: float = STEP) -> torch.Tensor:
    """Fourth-order differences of the interaction energy along ``moves``, functions (graph, step) -> changed graph."""
    graphs = [move(graph.clone(), step * h) for move in moves for step, _ in COEFFICIENTS]
    energies = outputs(model, "atoms", *graphs)["interaction_energy"].view(len(moves), -1)
    return energies @ torch.tensor([c for _, c in COEFFICIENTS], dtype=torch.float64) / h


def displacement(atom: int, axis: int):
    def move(graph: Graph, step: float) -> Graph:
        graph.positions = graph.positions.clone()
        graph.positions[atom, axis] += step
        return graph

    return move


def strain(i: int, j: int):
    def move(graph: Graph, step: float) -> Graph:
        deformation = torch.eye(3, dtype=torch.float64)
        deformation[i, j] += 0.5 * step
        deformation[j, i] += 0.5 * step
        graph.positions, graph.cell = graph.positions @ deformation, graph.cell @ deformation
        return graph

    return move


SYSTEMS = {
    "molecule": lambda rng: {**random_molecule(rng, atoms=8), "charge": -1.0},
    "triclinic crystal": lambda rng: random_crystal(rng, atoms=5),
    "small cell": lambda rng: random_crystal(rng, atoms=1),
    "peptide": lambda rng: random_peptide(rng, residues=2),
}
SCALES = pytest.mark.parametrize("scales", [{}, ALL_SCALES], ids=["fine", "all scales"])


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("system", SYSTEMS)
@SCALES
def test_forces_are_the_derivative_of_the_interaction_energy(scales, system, backend):
    model = random_model(backend=backend, **scales)
    graph = wide_graph(SYSTEMS[system](np.random.default_rng(4)))
    n = len(graph.types)
    forces = outputs(model, "atoms", graph)["forces"]
    expected = -differences(model, graph, [displacement(a, i) for a in range(n) for i in range(3)]).view(n, 3)
    if system == "small cell":  # an atom that moves with all its images feels nothing
        assert float(forces.abs().max()) < 1e-12
        assert float(expected.abs().max()) < 1e-9
    else:
        assert relative_rms(forces, expected) < 1e-7
    assert float(forces.sum(dim=0).abs().max()) < 1e-10


@pytest.mark.parametrize("system", ["triclinic crystal", "small cell"])
@SCALES
def test_stress_is_the_derivative_against_strain(scales, system):
    model = random_model(**scales)
    graph = wide_graph(SYSTEMS[system](np.random.default_rng(5)))
    stress = outputs(model, "atoms", graph)["stress"][0]
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    volume = torch.linalg.det(graph.cell[0]).abs()
    derivative = differences(model, graph, [strain(i, j) for i, j in pairs], STRAIN_STEP) / volume
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for (i, j), value in zip(pairs, derivative, strict=True):
        expected[i, j] = expected[j, i] = value
    assert relative_rms(stress, expected) < 1e-7


def test_no_stress_where_the_system_is_not_periodic_in_all_directions():
    model = random_model()
    rng = np.random.default_rng(0)
    slab, crystal = random_crystal(rng, pbc=(True, True, False)), random_crystal(rng)
    assert "stress" not in outputs(model, "atoms", graph_of(slab, "atoms"))
    stress = outputs(model, "atoms", graph_of(slab, "atoms"), graph_of(crystal, "atoms"))["stress"]
    assert stress[0].isnan().all()
    assert stress[1].isfinite().all()


@pytest.mark.parametrize("system", ["molecule", "triclinic crystal", "peptide"])
@SCALES
def test_fp32_forces_agree_with_fp64_forces(scales, system):
    record = SYSTEMS[system](np.random.default_rng(7))
    wide = outputs(random_model(torch.float64, **scales), "atoms", graph_of(record, "atoms", torch.float64))
    narrow = outputs(random_model(torch.float32, **scales), "atoms", graph_of(record, "atoms", torch.float32))
    assert relative_rms(narrow["forces"], wide["forces"]) < 1e-4
    if "stress" in wide:
        assert relative_rms(narrow["stress"], wide["stress"]) < 1e-4


def test_energy_and_forces_are_smooth_as_an_atom_crosses_the_cutoff():
    """An atom leaves a dimer: at the cutoff its force vanishes with the square of the distance to it."""
    model = random_model()

    def at(distance: float) -> dict[str, torch.Tensor]:
        positions = np.array([[0.0, 0, 0], [-1.1, 0, 0], [distance, 0, 0]])
        return outputs(model, "atoms", graph_of({"types": np.array([6, 8, 1]), "positions": positions}, "atoms"))

    inside, before, after = at(4.0), at(5.0 - 1e-3), at(5.0 + 1e-3)
    typical = float(inside["forces"][2].abs().max())
    assert typical > 1e-3
    assert float(after["forces"][2].abs().max()) == 0.0
    assert float(before["forces"][2].abs().max()) < 1e-4 * typical
    assert relative_rms(before["forces"][:2], after["forces"][:2]) < 1e-4
    energies = [at(5.0 - gap)["interaction_energy"] - after["interaction_energy"] for gap in (0.02, 0.01)]
    assert 6.0 < float(energies[0] / energies[1]) < 10.0  # third order: a factor of 8


@SCALES
def test_backends_agree_in_values_and_in_gradients_of_a_force_loss(scales):
    from sciml_kernels.backends import no_compiler

    if no_compiler():
        pytest.skip(f"the compiled kernels are not possible here: {no_compiler()}")
    records = [make(np.random.default_rng(8)) for make in (random_molecule, random_crystal, random_peptide)]
    batch = collate([graph_of(record, "atoms") for record in records])
    found = {}
    for backend in ("reference", "cpu"):
        model = random_model(backend=backend, **scales)
        predictions = model(batch.clone(), "atoms", create_graph=True)
        loss = (predictions["forces"] - batch.forces).square().sum() + predictions["interaction_energy"].square().sum()
        loss = loss + predictions["stress"][1].square().sum()
        loss.backward()
        gradients = {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
        found[backend] = {**{n: v.detach() for n, v in predictions.items()}, **gradients}
    assert found["reference"].keys() == found["cpu"].keys()
    for name, value in found["reference"].items():
        assert relative_rms(found["cpu"][name], value) < 1e-9, name


@pytest.mark.parametrize("kind", ["jets", "residues"])
@SCALES
def test_backends_agree_on_logits(scales, kind):
    from tests.helpers import random_jet

    record = {"jets": random_jet, "residues": random_peptide}[kind](np.random.default_rng(9))
    first, second = (
        outputs(random_model(backend=b, **scales), kind, graph_of(record, kind)) for b in ("reference", "auto")
    )
    for name in first:
        assert relative_rms(second[name], first[name]) < 1e-10
