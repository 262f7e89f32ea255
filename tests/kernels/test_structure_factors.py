"""Structure factors and the reciprocal part of Ewald sums: definitions, derivatives, physics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sciml_kernels import Waves, ewald_reciprocal_energy, half_space, structure_factors
from sciml_kernels.structure_factors import cpu
from sciml_kernels.structure_factors.ewald import COULOMB
from tests.kernels.test_layers import derivatives, random

BACKENDS = pytest.mark.parametrize("backend", ["reference", "cpu"])
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}
# More than a tile of 32 and a ragged block, no atoms, one atom and one wave, no waves, a few.
ATOMS, WAVES = [37, 0, 1, 3, 5], [33, 4, 1, 0, 9]


def pointers(sizes: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(sizes)])


def arguments(channels: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Positions, charges and wave vectors of the systems above; some angles are large."""
    shapes = ((sum(ATOMS), 3), (sum(ATOMS), channels), (sum(WAVES), 3))
    r, q, k = (random(*shape, seed=seed) for seed, shape in enumerate(shapes))
    return [tensor.to(dtype) for tensor in (2.0 * r, q, 3.0 * k)]


def factors(*leaves: Tensor, backend: str) -> Tensor:
    return structure_factors(*leaves, pointers(ATOMS), pointers(WAVES), backend)


def naive(r: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A loop over pairs."""
    out = []
    for atoms, waves in zip(zip(r.split(ATOMS), q.split(ATOMS), strict=True), k.split(WAVES), strict=True):
        for wave in waves:
            angles = [math.fsum((wave * point).tolist()) for point in atoms[0]]
            parts = [
                sum((f(a) * c for a, c in zip(angles, atoms[1], strict=True)), q.new_zeros(q.shape[1]))
                for f in (math.cos, math.sin)
            ]
            out.append(torch.stack(parts))
    return torch.stack(out)


@BACKENDS
def test_against_a_loop(backend: str) -> None:
    r, q, k = arguments(2)
    torch.testing.assert_close(factors(r, q, k, backend=backend), naive(r, q, k), rtol=0, atol=1e-12)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, for small problems too."""
    monkeypatch.setattr(cpu, "PARALLEL_PAIRS", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("channels", [1, 2, 11])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_derivatives_equal_those_of_the_definition(
    dtype: torch.dtype,
    channels: int,
    poisoned: None,
    two_threads: None,
) -> None:
    """In fp32 against the definition in fp64: rounding of large phases counts."""
    given = arguments(channels, dtype)
    exact = [tensor.double() for tensor in given]
    for wanted in ((0, 1, 2), (0,), (1,), (2,), (0, 1)):
        found = derivatives(lambda *leaves: factors(*leaves, backend="cpu"), given, wanted)
        expected = derivatives(lambda *leaves: factors(*leaves, backend="reference"), exact, wanted)
        for name, tensor in found.items():
            scale = float(expected[name].abs().max())
            error = float((tensor.double() - expected[name]).abs().max())
            assert error <= TOLERANCE[dtype] * scale, f"{name} of {wanted}: off by {error} of {scale}"


@BACKENDS
def test_nothing_changes_when_positions_and_waves_turn(backend: str) -> None:
    r, q, k = arguments(2)
    turn, _ = torch.linalg.qr(random(3, 3, seed=8))
    found = factors(r @ turn.T, q, k @ turn.T, backend=backend)
    torch.testing.assert_close(found, factors(r, q, k, backend=backend), rtol=0, atol=1e-12)


@BACKENDS
def test_second_derivatives_are_those_of_the_first(backend: str) -> None:
    leaves = [tensor.requires_grad_() for tensor in arguments(2)]
    sums = random(sum(WAVES), 2, 2, seed=5)

    def function(*leaves: Tensor) -> Tensor:
        return (factors(*leaves, backend=backend) * sums).square().sum()

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_results_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "PARALLEL_PAIRS", 0)
    given, before = arguments(3), torch.get_num_threads()
    found = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        found.append(derivatives(lambda *leaves: factors(*leaves, backend="cpu"), given, (0, 1, 2)))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in found[0].items())


@BACKENDS
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_inf_propagate(bad: float, backend: str) -> None:
    r, q, k = arguments(2)
    r[0, 1] = bad
    found = factors(r, q, k, backend=backend)
    assert found[: WAVES[0]].isnan().all()
    assert found[WAVES[0] :].isfinite().all()


def test_large_phases_keep_their_digits() -> None:
    """Whole turns are exact: an atom 10^6 cells away has the factors of its image."""
    n = torch.tensor([[3.0, -2.0, 5.0]])
    r = torch.tensor([[0.25, 0.5, 0.125]])
    q, ends = torch.ones(1, 1), torch.tensor([0, 1])
    from sciml_kernels.structure_factors.op import in_turns

    near, far = (in_turns(at, q, n, ends, ends, "cpu") for at in (r, r + 2.0**16))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-6)


@BACKENDS
@pytest.mark.parametrize("systems", [0, 1, 2])
def test_empty(systems: int, backend: str) -> None:
    ends = torch.zeros(systems + 1, dtype=torch.int64)
    r, q, k = random(0, 3).requires_grad_(), random(0, 2), random(0, 3)
    out = structure_factors(r, q, k, ends, ends, backend)
    assert out.shape == (0, 2, 2)
    assert torch.autograd.grad(out.sum(), r)[0].shape == (0, 3)
    cell = torch.eye(3, dtype=torch.float64).expand(systems, 3, 3)
    energy = ewald_reciprocal_energy(r, q, cell, ends, Waves(torch.zeros(0, 3, dtype=torch.int64), ends), 0.5, backend)
    assert energy.tolist() == [[0.0, 0.0]] * systems


def test_opcheck() -> None:
    operators, check = torch.ops.sciml_kernels, torch.library.opcheck
    given = [tensor.requires_grad_() for tensor in arguments(2)]
    ends, g = (pointers(ATOMS), pointers(WAVES), "cpu"), random(sum(WAVES), 2, 2).requires_grad_()
    check(operators.structure_factors.default, (*given, *ends))
    check(operators.structure_factors_backward.default, (g, *given, *ends, "rqk"))
    plain = [tensor.detach() for tensor in (*given, g, *given)]
    check(operators.structure_factors_double_backward.default, (*plain, *ends, "grqk"))


def test_third_derivatives_are_refused() -> None:
    leaves = [tensor.requires_grad_() for tensor in arguments(1)]
    first = torch.autograd.grad(factors(*leaves, backend="cpu").square().sum(), leaves[0], create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), leaves[0], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="third derivatives"):
        torch.autograd.grad(second.square().sum(), leaves[0])


def one(**changed: Tensor) -> Tensor:
    r, q, k = arguments(2)
    given = {"positions": r, "charges": q, "wave_vectors": k, "atom_pointers": pointers(ATOMS)}
    return structure_factors(**{**given, "wave_pointers": pointers(WAVES), **changed})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one(positions=random(46, 2)), r"positions: found shape \(46, 2\), expected \(any, 3\)"),
        (lambda: one(charges=random(45, 2)), r"charges: found shape \(45, 2\), expected \(46, any\)"),
        (lambda: one(charges=random(46, 0)), r"charges: found shape \(46, 0\), expected \(atoms, channels\)"),
        (lambda: one(charges=random(46, 2).float()), "charges: found torch.float32, expected torch.float64"),
        (lambda: one(wave_vectors=random(47)), r"wave_vectors: found shape \(47,\), expected \(any, 3\)"),
        (lambda: one(atom_pointers=pointers(ATOMS[:-1])), "atom_pointers: found .*expected ascending from 0 to 46"),
        (lambda: one(wave_pointers=pointers([47])), "wave_pointers: found 1 systems, expected 5 as atom_pointers"),
        (lambda: one(wave_pointers=torch.zeros(6)), "wave_pointers: found torch.float32 of shape"),
        (lambda: half_space(torch.zeros(1, 3, 3), 1.0), "cell: found the volume 0.0, expected"),
        (lambda: half_space(torch.eye(3), 1.0), "cell: found shape"),
        (lambda: half_space(torch.eye(3)[None], -1.0), "cutoff: found -1.0, expected a positive"),
        (lambda: reciprocal(*crystal("NaCl"), 0.5, wrong=-0.5), "splitting: found -0.5, expected a positive"),
    ],
)  # fmt: skip
def test_bad_arguments(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


FACES = [(0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0)]
MADELUNG = {"NaCl": 1.747564594633182, "CsCl": 1.762674773070988, "ZnS": 1.638055053388790}  # to the nearest neighbour
BONDS = {"NaCl": 0.5, "CsCl": 3**0.5 / 2, "ZnS": 3**0.5 / 4}  # of the cubic lattice constant
SHIFTS = {"NaCl": (0.5, 0.5, 0.5), "CsCl": (0.5, 0.5, 0.5), "ZnS": (0.25, 0.25, 0.25)}


def crystal(name: str, length: float = 4.0) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, charges and cell of a cubic cell."""
    sites = torch.tensor(FACES if name != "CsCl" else FACES[:1], dtype=torch.float64)
    both = torch.cat([sites, sites + torch.tensor(SHIFTS[name], dtype=torch.float64)])
    charges = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(len(sites))
    return length * both, charges[:, None], length * torch.eye(3, dtype=torch.float64)[None]


def reciprocal(
    r: Tensor, q: Tensor, cell: Tensor, splitting: float, backend: str = "cpu", wrong: float | None = None
) -> Tensor:
    waves = half_space(cell, 13.0 * splitting)
    return ewald_reciprocal_energy(r, q, cell, torch.tensor([0, len(r)]), waves, wrong or splitting, backend)[0]


def ewald(r: Tensor, q: Tensor, cell: Tensor, splitting: float, backend: str = "cpu") -> Tensor:
    """The energy of a neutral cell: with images within 6.5 / splitting, and the self terms."""
    reach = 6.5 / splitting
    heights = 1.0 / torch.linalg.inv(cell[0].detach()).norm(dim=0)
    spans = [torch.arange(-n, n + 1) for n in (reach / heights).ceil().int().add(1).tolist()]
    shifts = torch.cartesian_prod(*spans).to(r.dtype) @ cell[0]
    apart = r[:, None, None] - r[None, :, None] + shifts
    square = apart.square().sum(-1)
    near = (square < reach**2) & (square > 1e-12)
    distance = torch.where(near, square, 1.0).sqrt()
    pairs = torch.where(near, torch.erfc(splitting * distance) / distance, 0.0).sum(-1)
    short = 0.5 * torch.einsum("ac,bc,ab->c", q, q, pairs) - splitting / math.pi**0.5 * q.square().sum(0)
    return reciprocal(r, q, cell, splitting, backend) + COULOMB * short


@BACKENDS
@pytest.mark.parametrize("name", MADELUNG)
def test_madelung_constants(name: str, backend: str) -> None:
    r, q, cell = crystal(name)
    bond = BONDS[name] * float(cell[0, 0, 0])
    energy = ewald(r, q, cell, 0.9, backend)
    found = -float(energy) * bond / COULOMB / (len(r) // 2)
    assert found == pytest.approx(MADELUNG[name], abs=1e-8)


def displaced() -> tuple[Tensor, Tensor, Tensor]:
    """Six atoms in a triclinic cell, two sets of charges that sum to zero."""
    cell = torch.tensor([[[4.1, 0.3, -0.2], [0.9, 3.7, 0.4], [-0.6, 0.8, 4.6]]], dtype=torch.float64)
    r = torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) @ cell[0]
    q = random(6, 2, seed=4)
    return r, q - q.mean(0), cell


def test_two_splittings_agree_in_energy_forces_and_stress() -> None:
    r, q, cell = displaced()
    found = []
    for splitting in (0.8, 1.1):
        place, charge = r.clone().requires_grad_(), q.clone().requires_grad_()
        strain = torch.eye(3, dtype=torch.float64).requires_grad_()
        energy = ewald(place @ strain, charge, cell @ strain, splitting)
        found.append([energy, *torch.autograd.grad(energy.sum(), (place, charge, strain))])
    for first, second in zip(*found, strict=True):
        assert float(first.detach().abs().max()) > 0.1
        torch.testing.assert_close(first, second, rtol=0, atol=1e-8)


@BACKENDS
def test_the_energy_does_not_change_when_all_atoms_move(backend: str) -> None:
    r, q, cell = displaced()
    shift = torch.tensor([0.7, -1.3, 25.0], dtype=torch.float64)
    first = reciprocal(r, q, cell, 0.8, backend)
    torch.testing.assert_close(reciprocal(r + shift, q, cell, 0.8, backend), first, rtol=0, atol=1e-10)
    torch.testing.assert_close(reciprocal(r + cell[0, 1], q, cell, 0.8, backend), first, rtol=0, atol=1e-10)


def test_the_energy_has_second_derivatives_in_positions_charges_and_cell() -> None:
    r, q, cell = (tensor[:4] for tensor in displaced())
    ends, waves = torch.tensor([0, 4]), half_space(cell, 3.0)

    def energy(*leaves: Tensor) -> Tensor:
        return ewald_reciprocal_energy(*leaves, ends, waves, 0.6, "cpu")

    leaves = [tensor.clone().requires_grad_() for tensor in (r, q, cell)]
    assert torch.autograd.gradcheck(energy, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(energy, leaves, fast_mode=True)


def test_systems_of_a_batch_do_not_see_each_other() -> None:
    """And every half of the waves, with its mirror image, is the whole sphere."""
    systems = [displaced(), tuple(t[:, :1].expand(-1, 2) if i == 1 else t for i, t in enumerate(crystal("CsCl")))]
    r, q, cell = (torch.cat([system[i] for system in systems]) for i in range(3))
    waves = half_space(cell, 8.0)
    together = ewald_reciprocal_energy(r, q, cell, torch.tensor([0, 6, 8]), waves, 0.8)
    for index, (place, charge, lattice) in enumerate(systems):
        own = half_space(lattice, 8.0)
        alone = ewald_reciprocal_energy(place, charge, lattice, torch.tensor([0, len(place)]), own, 0.8)
        torch.testing.assert_close(together[index], alone[0], rtol=1e-12, atol=0)
        n = own.indices
        inside = (2 * math.pi * torch.linalg.solve(lattice[0], n.double().T)).norm(dim=0) <= 8.0
        assert inside.all()
        every = torch.cat([n, -n])
        assert len(every.unique(dim=0)) == len(every)
        grid = torch.cartesian_prod(*[torch.arange(-12, 13)] * 3)
        lengths = (2 * math.pi * torch.linalg.solve(lattice[0], grid.double().T)).norm(dim=0)
        assert int((lengths <= 8.0).sum()) == len(every) + 1


@pytest.mark.slow
def test_compiled_gradients_equal_eager_ones() -> None:
    r, q, cell = displaced()
    ends, waves = torch.tensor([0, 6]), half_space(cell, 5.0)

    def loss(positions: Tensor, charges: Tensor) -> Tensor:
        energy = ewald_reciprocal_energy(positions, charges, cell, ends, waves, 0.8)
        (forces,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        return energy.square().sum() + forces.square().sum()

    found = []
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        for function in (loss, torch.compile(loss, fullgraph=True)):
            leaves = [tensor.clone().requires_grad_() for tensor in (r, q)]
            found.append(torch.autograd.grad(function(*leaves), leaves[1])[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)
