"""Boosts, the regulated frame and pair features: exact where they are invariant, finite where they are singular."""

import math

import numpy as np
import pytest
import torch

from sciml.physics import lorentz
from tests.helpers import random_jet, random_rotation

EPS = torch.finfo(torch.float64).eps


def momenta_of(record):
    return torch.from_numpy(record["momenta"])


def particle(pt, eta, phi, mass=0.0):
    p = torch.tensor([pt * math.cos(phi), pt * math.sin(phi), pt * math.sinh(eta)], dtype=torch.float64)
    return torch.cat([(p.square().sum() + mass**2).sqrt()[None], p])


def test_boost_matrices_keep_the_metric():
    generator = torch.Generator().manual_seed(0)
    metric = torch.diag(torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=torch.float64))
    for gamma in (1.0, 1.5, 10.0):
        matrix = lorentz.random_boost(gamma, generator)
        torch.testing.assert_close(matrix.T @ metric @ matrix, metric, rtol=0, atol=20 * EPS * gamma**2)
        assert matrix[0, 0] == pytest.approx(gamma)


@pytest.mark.parametrize("gamma", [1.0, 10.0, 1e3])
def test_rest_frame_has_the_mass_as_its_energy(gamma):
    frame = lorentz.random_boost(gamma, torch.Generator().manual_seed(1))[:, 0] * 80.0
    rest = lorentz.boost_to_rest_frame(frame[None], frame)[0]
    tolerance = 20 * EPS * gamma**2 * 80.0
    assert rest[0] == pytest.approx(80.0, abs=tolerance)
    assert rest[1:].abs().max() <= tolerance


def test_boost_is_batched_and_keeps_products():
    jets = torch.stack([momenta_of(random_jet(np.random.default_rng(seed))) for seed in range(3)])
    totals = jets.sum(dim=1)
    rest = lorentz.boost_to_rest_frame(jets, totals)
    one = lorentz.boost_to_rest_frame(jets[1], totals[1])
    torch.testing.assert_close(rest[1], one)
    products, expected = (x @ lorentz.lower(x).transpose(1, 2) for x in (rest, jets))
    assert (products - expected).abs().max() <= 20 * EPS * float(totals[:, 0].max()) ** 2
    assert rest[..., 1:].sum(dim=1).abs().max() < 1e-9


def test_a_frame_that_is_not_timelike_is_refused():
    photon = torch.tensor([5.0, 0.0, 3.0, 4.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="time-like"):
        lorentz.boost_to_rest_frame(photon[None], photon)


def test_regulated_momentum_is_covariant_and_bounds_gamma():
    generator = torch.Generator().manual_seed(2)
    time = lorentz.lab_spurions()[0]
    photon = torch.tensor([500.0, 0.0, 300.0, 400.0], dtype=torch.float64)
    frame = lorentz.regulated(photon, time)
    gamma = float(frame[0] / lorentz.mass_squared(frame).sqrt())
    assert 50.0 < gamma <= (1 + lorentz.EPSILON) / math.sqrt(2 * lorentz.EPSILON)
    matrix = lorentz.random_boost(10.0, generator)
    moved = lorentz.regulated(matrix @ photon, matrix @ time)
    torch.testing.assert_close(moved, matrix @ frame, rtol=1e-11, atol=1e-9)


def test_pt_and_rapidity_are_the_usual_ones():
    k = lorentz.kinematics(
        torch.stack([particle(50.0, 0.7, 2.0, 0.14), particle(0.5, -2.0, 1.0)]), lorentz.lab_spurions()
    )
    torch.testing.assert_close(k.log_pt.exp(), torch.tensor([50.0, 0.5], dtype=torch.float64), rtol=3e-4, atol=0)
    mt, pz = math.hypot(50.0, 0.14), 50.0 * math.sinh(0.7)
    torch.testing.assert_close(
        k.rapidity, torch.tensor([math.asinh(pz / mt), -2.0], dtype=torch.float64), rtol=0, atol=1e-3
    )


def test_pair_features_are_the_usual_ones():
    p = torch.stack([particle(50.0, 0.7, 3.0), particle(20.0, 0.6, -3.1)])
    k_t, z, separation, mass = lorentz.pair_features(p, lorentz.lab_spurions())[0, 1].exp()
    azimuth = 2 * math.sin((2 * math.pi - 6.1) / 2)
    delta = math.hypot(0.1, azimuth)
    assert float(separation) == pytest.approx(delta, rel=1e-3)
    assert float(k_t) == pytest.approx(20.0 * delta, rel=1e-3)
    assert float(z) == pytest.approx(20.0 / 70.0, rel=1e-6)
    assert float(mass) == pytest.approx(2000.0 * (math.cosh(0.1) - math.cos(6.1)) + lorentz.MASS_FLOOR**2, rel=1e-9)


@pytest.mark.parametrize("gamma", [2.0, 10.0])
def test_pair_features_follow_boosts_with_their_spurions(gamma):
    generator = torch.Generator().manual_seed(3)
    for seed in range(10):
        p, spurions = momenta_of(random_jet(np.random.default_rng(seed))), lorentz.lab_spurions()
        matrix = lorentz.random_boost(gamma, generator) @ lorentz.lorentz_of_rotation(random_rotation(generator))
        features = lorentz.pair_features(p, spurions)
        moved = lorentz.pair_features(p @ matrix.T, spurions @ matrix.T)
        # inputs round at eps (gamma E)^2; the smallest scale it is compared with is the floor of a soft pair
        worst = 20 * EPS * gamma**2 * float(p[:, 0].max()) ** 2 / lorentz.MASS_FLOOR**2
        off_diagonal = ~torch.eye(len(p), dtype=torch.bool)
        assert (features - moved)[off_diagonal].abs().max() <= max(worst, 1e-9)


def test_spurions_may_have_any_scale():
    p, spurions = momenta_of(random_jet(np.random.default_rng(4))), lorentz.lab_spurions()
    scaled = spurions * torch.tensor([[1.0], [3.0], [0.2]])
    torch.testing.assert_close(lorentz.pair_features(p, scaled), lorentz.pair_features(p, spurions))


LIMITS = {
    "same": (particle(50.0, 0.3, 1.0), particle(50.0, 0.3, 1.0)),
    "collinear": (particle(50.0, 0.3, 1.0), particle(20.0, 0.3, 1.0)),
    "nearly collinear": (particle(500.0, 0.3, 1.0), particle(500.0, 0.3 + 1e-9, 1.0)),
    "soft": (particle(50.0, 0.3, 1.0), particle(1e-12, 0.5, 2.0)),
    "zero": (particle(50.0, 0.3, 1.0), torch.zeros(4, dtype=torch.float64)),
    "along the beam": (particle(50.0, 0.3, 1.0), torch.tensor([7.0, 0.0, 0.0, 7.0], dtype=torch.float64)),
    "back to back": (particle(50.0, 0.3, 1.0), particle(50.0, -0.3, 1.0 + math.pi)),
}


@pytest.mark.parametrize("name", LIMITS)
def test_pair_features_and_gradients_are_finite_in_every_limit(name):
    p = torch.stack(LIMITS[name]).requires_grad_()
    features = lorentz.pair_features(p, lorentz.lab_spurions())
    assert features.isfinite().all()
    (gradient,) = torch.autograd.grad(features.sum(), p)
    assert gradient.isfinite().all()


def test_pair_features_are_continuous_in_the_collinear_and_soft_limits():
    first, spurions = particle(50.0, 0.3, 1.0), lorentz.lab_spurions()
    limit = lorentz.pair_features(torch.stack([first, particle(20.0, 0.3, 1.0)]), spurions)[0, 1]
    errors = []
    for angle in (1e-3, 1e-4, 1e-5, 1e-6):
        features = lorentz.pair_features(torch.stack([first, particle(20.0, 0.3 + angle, 1.0)]), spurions)[0, 1]
        errors.append(float((features - limit).abs().max()))
    assert errors[-1] < 1e-5
    assert errors == sorted(errors, reverse=True)
    limit = lorentz.pair_features(torch.stack([first, torch.zeros(4, dtype=torch.float64)]), spurions)[0, 1]
    errors = []
    for pt in (1e-3, 1e-4, 1e-5, 1e-6):
        features = lorentz.pair_features(torch.stack([first, particle(pt, 0.5, 1.5)]), spurions)[0, 1]
        errors.append(float((features - limit).abs().max()))
    assert errors[-1] < 1e-2
    assert errors == sorted(errors, reverse=True)
