"""Conserving momenta sum to their total, lie on their mass shells, and follow rotations; their gradients are exact."""

import pytest
import torch

from sciml.physics import lorentz
from sciml.physics.phase_space import MOST_MASSES, conserving, rescaling
from tests.helpers import random_rotation

SIZES = (2, 3, 7, 40)


def cases(seed=0, heavy=1.0):
    """Momenta (n, 3), masses squared (n,), totals (B, 4) and groups (n,) of any scale, half the particles massless."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    index = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    momenta = normal(len(index), 3) * torch.exp(2 * normal(len(index), 1))
    masses = heavy * normal(len(index)).abs() * (torch.rand(len(index), generator=generator) < 0.5)
    total = 50 * normal(len(SIZES), 4)
    mass = 1.0 + 1.5 * torch.zeros(len(SIZES), dtype=torch.float64).index_add(0, index, masses)
    total[:, 0] = (total[:, 1:].square().sum(dim=1) + mass.square()).sqrt()
    return momenta, masses.square(), total, index


def sums(values, index):
    return values.new_zeros(len(SIZES), *values.shape[1:]).index_add(0, index, values)


@pytest.mark.parametrize("seed", range(5))
def test_the_sum_is_the_total_and_every_mass_is_kept(seed):
    momenta, mass_squared, total, index = cases(seed)
    found = conserving(momenta, mass_squared, total, index)
    assert (sums(found, index) - total).abs().max() < 1e-13 * total[:, 0].max()
    assert (lorentz.mass_squared(found) - mass_squared).abs().max() < 1e-13 * total[:, 0].max() ** 2
    assert (found[:, 0] >= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_momenta_that_conserve_already_stay(seed):
    momenta, mass_squared, _, index = cases(seed)
    energies = (momenta.square().sum(dim=1) + mass_squared).sqrt()
    before = torch.cat([energies[:, None], momenta], dim=1)
    found = conserving(momenta, mass_squared, sums(before, index), index)
    torch.testing.assert_close(found, before, rtol=0, atol=1e-12 * float(energies.max()))


def test_rotations_turn_the_result():
    momenta, mass_squared, total, index = cases()
    matrix = lorentz.lorentz_of_rotation(random_rotation(torch.Generator().manual_seed(1)))
    found = conserving(momenta, mass_squared, total, index)
    turned = conserving(momenta @ matrix[1:, 1:].T, mass_squared, total @ matrix.T, index)
    torch.testing.assert_close(turned, found @ matrix.T, rtol=0, atol=1e-11)


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("room", [1e-5, 1e-2, 1.0, 1e4])
def test_newton_s_method_solves_from_barely_open_to_relativistic_phase_space(room, spread):
    """``room`` is the mass beyond the sum of the masses, as its share; some momenta are ``spread`` times others."""
    momenta, mass_squared, _, index = cases(heavy=1.0)
    momenta[::3] *= spread
    mass_squared = mass_squared + 0.01
    mass = (1 + room) * sums(mass_squared.sqrt(), index)
    scale = rescaling(momenta, mass_squared, mass, index)
    energies = (scale.square()[index] * momenta.square().sum(dim=1) + mass_squared).sqrt()
    torch.testing.assert_close(sums(energies, index), mass, rtol=1e-13, atol=0)
    assert (scale > 0).all()


def test_masses_that_do_not_fit_are_scaled_down_together():
    momenta, mass_squared, total, index = cases()
    mass_squared = mass_squared * 1e4 + 100.0
    found = conserving(momenta, mass_squared, total, index)
    ratio = (lorentz.mass_squared(found) / mass_squared).clamp(min=0).sqrt()
    limit = MOST_MASSES * lorentz.mass_squared(total).sqrt() / sums(mass_squared.sqrt(), index)
    assert (limit < 1).all()
    torch.testing.assert_close(ratio, limit[index], rtol=1e-5, atol=0)
    assert (sums(found, index) - total).abs().max() < 1e-12 * total[:, 0].max()


LIGHT = [5.0, 3.0, 4.0, 0.0]
DEGENERATE = {
    "a single massless particle": ([[3.0, 4.0, 0.0]], [0.0], LIGHT),
    "a single massive particle": ([[3.0, 4.0, 0.0]], [0.25], [7.0, 1.0, 2.0, 3.0]),
    "a light-like total": ([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [0.0, 0.25], LIGHT),
    "collinear massless particles": ([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]], [0.0, 0.0], [7.0, 1.0, 2.0, 3.0]),
    "particles at rest": ([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [1.0, 4.0], [7.0, 1.0, 2.0, 3.0]),
    "nothing at all": ([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [0.0, 0.0], [7.0, 1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_what_has_no_rest_frame_shares_the_total_and_has_finite_gradients(name):
    momenta, mass_squared, total = (torch.tensor(x, dtype=torch.float64) for x in DEGENERATE[name])
    momenta.requires_grad_()
    mass_squared.requires_grad_()
    index = torch.zeros(len(momenta), dtype=torch.long)
    found = conserving(momenta, mass_squared, total[None], index)
    torch.testing.assert_close(found.sum(dim=0), total, rtol=1e-14, atol=1e-14)
    assert (found[:, 0] >= 0).all()
    assert (lorentz.mass_squared(found.detach()) >= -1e-12).all()
    for gradient in torch.autograd.grad(found.square().sum(), (momenta, mass_squared)):
        assert gradient.isfinite().all()


def test_gradients_are_those_of_finite_differences():
    momenta, mass_squared, total, index = cases()
    keep = index < 3
    inputs = [momenta[keep] / 10, mass_squared[keep] + 0.1, total[:3] + torch.tensor([50.0, 0, 0, 0])]
    inputs = [x.double().clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: conserving(*x, index[keep]), inputs, eps=1e-6, atol=1e-6, rtol=1e-5)
