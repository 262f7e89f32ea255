"""Potentials of latent charges: against known constants, the kernels, differences, and one splitting with another."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sciml.data.far_field import PAIR_COST, REACH, SMEARING, FarField, add_far_field, far_field, with_far_field
from sciml.errors import UserError
from sciml.graph import Graph, collate
from sciml.physics.electrostatics import equilibrate, potentials
from sciml.physics.symmetry import permute, relative_rms
from sciml_kernels import ewald_reciprocal_energy, half_space
from sciml_kernels.structure_factors.ewald import COULOMB
from tests.kernels.test_structure_factors import BONDS, MADELUNG, crystal

DOUBLE = torch.float64
OPEN, CELL = torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)


def structure(
    positions: Tensor, cell: Tensor | None = None, splitting: float | None = None, smearing: float = SMEARING
) -> Graph:
    """A graph without edges that has what potentials need."""
    lattice = torch.zeros(3, 3, dtype=DOUBLE) if cell is None else cell
    pbc = OPEN if cell is None else CELL
    found = far_field(
        positions.numpy(), lattice.numpy(), pbc[0].numpy(), FarField(ewald=True), splitting=splitting, smearing=smearing
    )
    types = torch.ones(len(positions), dtype=torch.int64)
    return Graph(types=types, positions=positions, cell=lattice[None], pbc=pbc, **found)


def energy(charges: Tensor, positions: Tensor, cell: Tensor, batch, smearing: float = SMEARING) -> Tensor:
    return 0.5 * (charges * potentials(charges, positions, cell, batch, smearing)).sum()


def random_charges(n: int, sets: int = 2, seed: int = 1, neutral: bool = True) -> Tensor:
    charges = torch.randn(n, sets, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return charges - charges.mean(dim=0) if neutral else charges


def displaced(atoms: int = 7, side: float = 4.3) -> tuple[Tensor, Tensor]:
    """Positions and a triclinic cell of some atoms, one of them outside."""
    cell = side * torch.tensor([[1.0, 0.1, -0.05], [0.25, 0.9, 0.1], [-0.15, 0.2, 1.1]], dtype=DOUBLE)
    fractional = torch.rand(atoms, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    return (fractional + torch.tensor([0.0, 1.3, -0.4])) @ cell, cell


@pytest.mark.parametrize("name", MADELUNG)
def test_madelung_constants(name):
    """Charges narrow enough to be points at the nearest neighbour: erfc(r / 2 sigma) < 1e-12."""
    positions, charges, cell = crystal(name)
    bond = BONDS[name] * float(cell[0, 0, 0])
    smearing = bond / 10.5
    for splitting in (0.9, 1.4):
        batch = collate([structure(positions, cell[0], splitting, smearing)])
        found = -float(energy(charges, positions, cell, batch, smearing)) * bond / COULOMB / (len(positions) // 2)
        assert found == pytest.approx(MADELUNG[name], abs=1e-8)


def observables(splitting: float | None, neutral: bool, smearing: float) -> list[Tensor]:
    """Energy, forces, stress and potentials of a displaced triclinic cell at one splitting."""
    positions, cell = displaced()
    charges = random_charges(len(positions), neutral=neutral)
    batch = collate([structure(positions, cell, splitting, smearing)])
    place, strain = positions.clone().requires_grad_(), torch.eye(3, dtype=DOUBLE).requires_grad_()
    found = energy(charges, place @ strain, cell[None] @ strain, batch, smearing)
    volume = torch.linalg.det(cell)
    forces, virial = torch.autograd.grad(found, (place, strain))
    return [found.detach(), forces, virial / volume, potentials(charges, positions, cell[None], batch, smearing)]


@pytest.mark.parametrize("neutral", [True, False], ids=["neutral", "charged"])
@pytest.mark.parametrize("smearing", [1.0, 0.3])
def test_splittings_agree_in_energy_forces_and_stress(smearing, neutral):
    """Waves alone at the largest splitting, waves and pairs at others; a charged cell has its background."""
    largest = 0.5 / smearing
    expected = observables(largest, neutral, smearing)
    for part in (0.8, 0.55):
        for value, reference in zip(observables(part * largest, neutral, smearing), expected, strict=True):
            assert float(reference.abs().max()) > 1e-3
            assert relative_rms(value, reference) < 1e-8


def test_waves_alone_are_those_of_the_kernels():
    positions, cell = displaced()
    charges, splitting = random_charges(len(positions)), 0.5 / SMEARING
    batch = collate([structure(positions, cell)])
    assert len(batch.far_senders) == 0
    waves = half_space(cell[None], 2 * REACH * splitting)
    expected = ewald_reciprocal_energy(positions, charges, cell[None], batch.ptr, waves, splitting).sum()
    expected = expected - COULOMB * splitting / math.sqrt(math.pi) * charges.square().sum()
    torch.testing.assert_close(energy(charges, positions, cell[None], batch), expected, rtol=1e-11, atol=0)


def test_open_systems_are_direct_sums_of_gaussian_charges():
    positions = torch.tensor([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0], [0.0, 30.0, 0.0]], dtype=DOUBLE)
    charges = torch.tensor([[0.4], [-0.3], [0.9]], dtype=DOUBLE)
    found = potentials(charges, positions, torch.zeros(1, 3, 3, dtype=DOUBLE), collate([structure(positions)]))
    far = math.hypot(1.1, 30.0)
    expected = [
        -0.3 * math.erf(1.1 / 2) / 1.1 + 0.9 / 30.0,
        0.4 * math.erf(1.1 / 2) / 1.1 + 0.9 / far,
        0.4 / 30.0 - 0.3 / far,
    ]
    np.testing.assert_allclose(found[:, 0].numpy(), COULOMB * np.array(expected), rtol=1e-12)


def test_a_large_cell_tends_to_the_open_system():
    """A neutral quadrupole without dipole, whose images are felt as 1 / L^5."""
    arm = torch.tensor([0.7, 0.4, 0.2], dtype=DOUBLE)
    positions = torch.stack([arm, -arm, torch.zeros(3, dtype=DOUBLE)])
    charges = torch.tensor([[0.5], [0.5], [-1.0]], dtype=DOUBLE)
    alone = energy(charges, positions, torch.zeros(1, 3, 3, dtype=DOUBLE), collate([structure(positions)]))
    errors = []
    for side in (10.0, 20.0):
        cell = side * torch.eye(3, dtype=DOUBLE)
        errors.append(float(energy(charges, positions, cell[None], collate([structure(positions, cell)])) - alone))
    assert abs(errors[1]) < abs(errors[0]) / 25
    assert abs(errors[1]) < 1e-4 * abs(float(alone))


@pytest.mark.parametrize("splitting", [None, 0.3])
def test_first_and_second_derivatives(splitting):
    """In charges, positions and cell, of an open system and two cells in one batch, one of them charged."""
    first, cell = displaced(4)
    second, other = displaced(3, side=3.1)
    graphs = [structure(first, cell, splitting), structure(second[:2]), structure(second, other, splitting)]
    batch = collate(graphs)
    charges = random_charges(len(batch.positions), neutral=False)

    def function(charges: Tensor, positions: Tensor, cell: Tensor) -> Tensor:
        return potentials(charges, positions, cell, batch).square().sum() / COULOMB**2

    def of_cells(cells: Tensor) -> Tensor:
        return torch.stack([cells[0], batch.cell[1], cells[1]])

    leaves = [x.clone().requires_grad_() for x in (charges, batch.positions, batch.cell[[0, 2]])]
    given = lambda q, r, c: function(q, r, of_cells(c))  # noqa: E731
    assert torch.autograd.gradcheck(given, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(given, leaves, fast_mode=True)


def test_coincident_atoms_are_no_singularity():
    positions = torch.zeros(2, 3, dtype=DOUBLE).requires_grad_()
    batch = collate([structure(positions.detach())])
    charges = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE)
    found = energy(charges, positions, torch.zeros(1, 3, 3, dtype=DOUBLE), batch)
    assert float(found.detach()) == pytest.approx(-COULOMB / (SMEARING * math.sqrt(math.pi)), rel=1e-6)
    (force,) = torch.autograd.grad(found, positions, create_graph=True)
    (second,) = torch.autograd.grad(force.square().sum(), positions)
    assert torch.isfinite(force).all()
    assert torch.isfinite(second).all()


def test_graphs_of_a_batch_do_not_see_each_other_and_atoms_may_be_renumbered():
    first, cell = displaced(5)
    second, other = displaced(9, side=5.0)
    graphs = [structure(first, cell, 0.3), structure(second), structure(second, other)]
    charges = [random_charges(len(graph.positions), seed=i, neutral=False) for i, graph in enumerate(graphs)]
    batch = collate([graph.clone() for graph in graphs])
    together = potentials(torch.cat(charges), batch.positions, batch.cell, batch)
    alone = []
    for graph, q in zip(graphs, charges, strict=True):
        one = collate([graph.clone()])
        alone.append(potentials(q, one.positions, one.cell, one))
        order = torch.randperm(len(q))
        moved = collate([permute(_with_edges(graph), order)[0]])
        torch.testing.assert_close(potentials(q[order], moved.positions, moved.cell, moved), alone[-1][order])
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)


def _with_edges(graph: Graph) -> Graph:
    graph = graph.clone()
    graph.senders = graph.receivers = torch.zeros(0, dtype=torch.int64)
    return graph


def test_rigid_motions_and_other_cells_of_one_lattice_change_nothing():
    positions, cell = displaced()
    charges = random_charges(len(positions))
    expected = potentials(charges, positions, cell[None], collate([structure(positions, cell, 0.4)]))
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)))[0]
    sheared = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, -1, 1]], dtype=DOUBLE) @ cell
    wrapped = positions + torch.randint(-2, 3, (7, 3)).double() @ cell
    for place, lattice in ((positions @ rotation.T + 5.0, cell @ rotation.T), (positions, sheared), (wrapped, cell)):
        found = potentials(charges, place, lattice[None], collate([structure(place, lattice, 0.4)]))
        assert relative_rms(found, expected) < 1e-10


def test_the_splitting_is_that_of_the_faster_sum():
    """Waves alone in small cells; in large ones alpha^6 falls as N / V^2, which pairs make up for."""
    chosen = []
    for atoms in (100, 2000):
        side = (atoms / 0.05) ** (1 / 3)
        positions = side * np.random.default_rng(0).random((atoms, 3))
        found = far_field(positions, side * np.eye(3), np.ones(3, bool), FarField(ewald=True))
        assert (len(found["far_senders"]) > 0) == (atoms == 2000)
        chosen.append(float(found["splitting"]))
    assert chosen[0] == 0.5 / SMEARING
    assert chosen[1] == pytest.approx((2 * math.pi**3 * PAIR_COST * 0.05**2 / 2000) ** (1 / 6))


def test_what_a_batch_lacks_is_made_as_for_single_graphs():
    first, cell = displaced(5)
    graphs = [structure(first, cell), structure(first)]
    bare = collate([Graph(**{k: g[k] for k in ("types", "positions", "cell", "pbc")}) for g in graphs])
    made = with_far_field(bare, FarField(ewald=True))
    assert "splitting" not in bare
    expected = collate([add_far_field(g.clone(), FarField(ewald=True)) for g in graphs])
    for name in ("splitting", "waves", "num_waves", "far_senders", "far_receivers", "far_shifts"):
        assert torch.equal(made[name], expected[name]), name
    assert with_far_field(made, FarField(ewald=True)) is made


@pytest.mark.parametrize("pbc", [(True, True, False), (False, False, True)])
def test_slabs_and_wires_are_refused(pbc):
    with pytest.raises(UserError, match="electrostatics: found the periodic directions"):
        far_field(np.zeros((1, 3)), np.diag([5.0, 5.0, 5.0]), np.array(pbc), FarField(ewald=True))
    found = far_field(np.zeros((1, 3)), np.diag(np.array(pbc) * 5.0), np.array(pbc), FarField(radius=6.0))
    assert len(found["far_senders"]) > 0


def test_open_systems_that_are_too_large_are_refused():
    with pytest.raises(UserError, match="electrostatics: found an open system of 10001 atoms"):
        far_field(np.zeros((10_001, 3)), np.zeros((3, 3)), np.zeros(3, bool), FarField(ewald=True))


def test_single_precision_keeps_the_digits_it_can():
    positions, cell = displaced(40, side=8.0)
    charges = random_charges(40)
    exact = potentials(charges, positions, cell[None], collate([structure(positions, cell, 0.4)]))
    graph = structure(positions, cell, 0.4)
    batch = collate([Graph(**{k: v.float() if v.is_floating_point() else v for k, v in graph.to_dict().items()})])
    assert relative_rms(potentials(charges.float(), batch.positions, batch.cell, batch), exact) < 1e-5


def test_equilibrated_charges_have_the_least_energy_of_all_with_their_totals():
    """The gradient of the energy is the same at all atoms of a graph; an open system, and a cell with a charge."""
    first, cell = displaced(6)
    batch = collate([structure(first[:4]), structure(first, cell)])
    generator = torch.Generator().manual_seed(2)
    chi = torch.randn(10, dtype=DOUBLE, generator=generator)
    eta = torch.rand(10, dtype=DOUBLE, generator=generator)
    totals = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    charges = equilibrate(chi, eta, totals, batch.positions, batch.cell, batch)
    torch.testing.assert_close(torch.stack([part.sum() for part in charges.split([4, 6])]), totals, rtol=0, atol=1e-12)

    def total(charges: Tensor) -> Tensor:
        own = 0.5 * (eta + COULOMB / (SMEARING * math.sqrt(math.pi))) * charges**2
        return (chi * charges + own).sum() + energy(charges[:, None], batch.positions, batch.cell, batch)

    leaf = charges.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(leaf), leaf)
    for part in gradient.split([4, 6]):
        assert float((part - part.mean()).abs().max()) < 1e-10
    for seed in range(5):
        change = torch.cat([random_charges(4, 1, seed), random_charges(6, 1, seed)])[:, 0]
        assert total(charges + 0.1 * change) > total(charges)

    def solved(positions: Tensor) -> Tensor:
        return equilibrate(chi, eta, totals, positions, batch.cell, batch).square().sum()

    place = batch.positions.clone().requires_grad_()
    assert torch.autograd.gradcheck(solved, place, fast_mode=True)
    assert torch.autograd.gradgradcheck(solved, place, fast_mode=True)
