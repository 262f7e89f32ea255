"""Relativistic kinematics: Minkowski products, boosts, the regulated rest frame and features of particles and pairs.

Four-momenta are (E, px, py, pz) in GeV with metric (+, -, -, -). Everything is computed in float64 and cast last: inputs
lose eps (E / M)^2 in a boost, so float32 collapses for m ~ 0.1 GeV at E ~ 500 GeV.

Spurions break the symmetry that a collider breaks. They are rows (3, 4): time t, beam +, beam - (light-like). Every feature
is a function of Minkowski products of momenta and spurions alone, so it is unchanged when both are transformed together.
The regulators below are scales of invariants for the same reason. They keep soft and collinear limits finite and smooth.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-4
"""Share of t in the regulated frame: gamma stays below 1 / sqrt(2 EPSILON) = 71 in the frame of t."""
MOMENTUM_FLOOR = 1e-2
"""GeV, added in quadrature to transverse momenta."""
SEPARATION_FLOOR = 1e-3
"""Added in quadrature to a distance in rapidity and azimuth; below any detector's granularity."""
MASS_FLOOR = 1e-1
"""GeV, added in quadrature to the mass of a pair; below the mass of two pions."""
PAIR_FEATURES = ("log kT", "log z", "log Delta", "log m^2")


def lab_spurions(dtype: torch.dtype = torch.float64) -> Tensor:
    """Time and the two beam directions (3, 4) in the laboratory."""
    return torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, -1.0]], dtype=dtype)


def minkowski(p: Tensor, q: Tensor) -> Tensor:
    """Minkowski product of (..., 4) and (..., 4) -> (...)."""
    product = p * q
    return product[..., 0] - product[..., 1:].sum(dim=-1)


def mass_squared(p: Tensor) -> Tensor:
    """(E - |p|)(E + |p|) of (..., 4) -> (...) [GeV^2]; negative where rounding made it so."""
    momentum = torch.linalg.vector_norm(p[..., 1:], dim=-1)
    return (p[..., 0] - momentum) * (p[..., 0] + momentum)


def regulated(total: Tensor, time: Tensor, epsilon: float = EPSILON) -> Tensor:
    """P' = P + epsilon (P.t) t for (..., 4): covariant, scale-free and time-like even for a massless P.

    P'^2 = P^2 + (2 epsilon + epsilon^2) (P.t)^2 bounds gamma = P'.t / M' by (1 + epsilon) / sqrt(2 epsilon).
    """
    return total + epsilon * minkowski(total, time)[..., None] * time


def boost_to_rest_frame(p: Tensor, frame: Tensor) -> Tensor:
    """Boost p (..., n, 4) without rotation into the rest frame of ``frame`` (..., 4).

    The energy is taken from the product p.P / M, and the momentum subtracts P (E + E*) / (E_P + M), which has no
    1 - 1/gamma to cancel. Raises ValueError when ``frame`` is not time-like.
    """
    squared = mass_squared(frame)
    if not bool((squared > 0).all()):
        raise ValueError("boost_to_rest_frame: the frame is not time-like; regulate the total momentum first.")
    mass = squared.sqrt()[..., None]
    frame = frame[..., None, :]
    energy = minkowski(p, frame) / mass
    factor = (p[..., 0] + energy) / (frame[..., 0] + mass)
    return torch.cat([energy[..., None], p[..., 1:] - factor[..., None] * frame[..., 1:]], dim=-1)


def boost_matrix(direction: Tensor, gamma: float) -> Tensor:
    """The active boost (4, 4) along ``direction`` (3,) with Lorentz factor ``gamma``; apply it as p @ matrix.T."""
    unit = (direction / torch.linalg.vector_norm(direction)).to(torch.float64)
    momentum = math.sqrt((gamma - 1.0) * (gamma + 1.0))
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 0] = gamma
    matrix[0, 1:] = matrix[1:, 0] = momentum * unit
    matrix[1:, 1:] += (gamma - 1.0) * torch.outer(unit, unit)
    return matrix


def random_boost(gamma: float, generator: torch.Generator | None = None) -> Tensor:
    """A boost (4, 4) with Lorentz factor ``gamma`` along a uniformly random direction."""
    return boost_matrix(torch.randn(3, dtype=torch.float64, generator=generator), gamma)


def lorentz_of_rotation(rotation: Tensor) -> Tensor:
    """The Lorentz matrix (4, 4) of a rotation or reflection (3, 3)."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[1:, 1:] = rotation
    return matrix


class Kinematics(NamedTuple):
    """Invariants of particles (n,) with respect to the spurions; momenta in GeV."""

    mass_squared: Tensor
    plus: Tensor
    minus: Tensor
    pt_squared: Tensor
    rapidity: Tensor

    @property
    def pt(self) -> Tensor:
        """Transverse momentum (n,) [GeV], never below MOMENTUM_FLOOR."""
        return (self.pt_squared + MOMENTUM_FLOOR**2).sqrt()


def kinematics(p: Tensor, spurions: Tensor) -> Kinematics:
    """Transverse momentum and rapidity of p (n, 4) from its products with the spurions (3, 4).

    With beams scaled to b.t = 1 and s = b+.b-, pT^2 = 2 (p.b+)(p.b-) / s - p^2 and y = log(p.b- / p.b+) / 2, which are
    the usual ones in the laboratory.
    """
    time, beams = spurions[0], spurions[1:]
    beams = beams / minkowski(beams, time)[:, None]
    light_cone = minkowski(p[:, None], beams) / (0.5 * minkowski(beams[0], beams[1])).sqrt()
    plus, minus = light_cone.clamp(min=0).unbind(dim=1)
    squared = mass_squared(p).clamp(min=0)
    floor = MOMENTUM_FLOOR**2 / (plus + minus + MOMENTUM_FLOOR)  # keeps a particle along a beam finite
    rapidity = 0.5 * torch.log((minus + floor) / (plus + floor))
    return Kinematics(squared, plus, minus, (plus * minus - squared).clamp(min=0), rapidity)


def pair_products(p: Tensor, k: Kinematics) -> tuple[Tensor, Tensor]:
    """Squared distances Delta^2 (n, n) in rapidity and azimuth, and squared masses (n, n) [GeV^2] of all pairs of p (n, 4).

    Delta^2 = (y - y')^2 + 2 (1 - cos phi), the chord in azimuth, with pT.pT' = (p+ p'- + p- p'+) / 2 - p.p'.
    """
    product = torch.outer(p[:, 0], p[:, 0]) - p[:, 1:] @ p[:, 1:].T
    crossed = torch.outer(k.plus, k.minus)
    transverse = 0.5 * (crossed + crossed.T) - product
    cosine = transverse / torch.outer(k.pt, k.pt)
    rapidity = k.rapidity[:, None] - k.rapidity
    separation = rapidity.square() + (2.0 - 2.0 * cosine).clamp(min=0)
    mass = k.mass_squared[:, None] + k.mass_squared + 2.0 * product
    return separation, mass.clamp(min=0)


def pair_features(p: Tensor, spurions: Tensor) -> Tensor:
    """PAIR_FEATURES (n, n, 4) of all pairs of p (n, 4) with regulators, as used by ParticleNet and Particle Transformer.

    kT = min(pT, pT') Delta [GeV], z = min(pT, pT') / (pT + pT'), m^2 [GeV^2] (Qu, Li, Qian, 2022).
    """
    k = kinematics(p, spurions)
    return pair_features_of(k, *pair_products(p, k))


def pair_features_of(k: Kinematics, separation: Tensor, mass: Tensor) -> Tensor:
    """PAIR_FEATURES (n, n, 4) from kinematics (n,), squared distances (n, n) and squared masses (n, n)."""
    pt = k.pt
    softer = torch.minimum(pt[:, None], pt)
    separation = separation + SEPARATION_FLOOR**2
    log_separation = 0.5 * torch.log(separation)
    log_softer = torch.log(softer)
    log_z = log_softer - torch.log(pt[:, None] + pt)
    return torch.stack([log_softer + log_separation, log_z, log_separation, torch.log(mass + MASS_FLOOR**2)], dim=-1)
