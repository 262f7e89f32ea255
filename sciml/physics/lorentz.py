"""Relativistic kinematics: Minkowski products, boosts, the regulated rest frame and features of particles and pairs.

Four-momenta are (E, px, py, pz) in GeV with metric (+, -, -, -). Everything is computed in float64 and cast last:
inputs lose eps (E / M)^2 in a boost, so float32 collapses for m ~ 0.1 GeV at E ~ 500 GeV.

Spurions break the symmetry that a collider breaks. They are rows (3, 4): time t, beam +, beam - (light-like). Every
feature is a function of Minkowski products of momenta and spurions alone, so it is unchanged when both are transformed
together. The regulators are scales of invariants for the same reason; they keep soft and collinear limits finite.
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

_METRIC = (1.0, -1.0, -1.0, -1.0)


def lower(p: Tensor) -> Tensor:
    """The covariant components (E, -px, -py, -pz) of (..., 4), so that a Minkowski product is p @ lower(q)."""
    return p * p.new_tensor(_METRIC)


def minkowski(p: Tensor, q: Tensor) -> Tensor:
    """Minkowski product of (..., 4) and (..., 4) -> (...)."""
    return (p * lower(q)).sum(dim=-1)


def lab_spurions(dtype: torch.dtype = torch.float64) -> Tensor:
    """Time and the two beam directions (3, 4) in the laboratory."""
    return torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, -1.0]], dtype=dtype)


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
    if not torch.compiler.is_compiling() and not bool((squared > 0).all()):
        raise ValueError("boost_to_rest_frame: the frame is not time-like; regulate the total momentum first.")
    mass = squared.sqrt()[..., None, None]
    energy = p @ lower(frame)[..., None] / mass
    factor = (p[..., :1] + energy) / (frame[..., None, :1] + mass)
    return torch.cat([energy, p[..., 1:] - factor * frame[..., None, 1:]], dim=-1)


def boost_from_rest_frame(p: Tensor, frame: Tensor) -> Tensor:
    """The inverse of :func:`boost_to_rest_frame`: p (..., n, 4) from the rest frame of ``frame`` (..., 4)."""
    return boost_to_rest_frame(p, lower(frame))


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
    """Invariants of particles (n,) with respect to the spurions; momenta in GeV, masses and pT regulated."""

    mass_squared: Tensor
    plus: Tensor
    minus: Tensor
    log_pt: Tensor
    rapidity: Tensor


def kinematics(p: Tensor, spurions: Tensor) -> Kinematics:
    """Transverse momentum and rapidity of p (n, 4) from its products with the spurions (3, 4).

    With beams scaled to b.t = 1 and b+.b- = 2, as in the laboratory, p+ = p.b+ = E - pz and p- = p.b- = E + pz, so that
    pT^2 = p+ p- - p^2 and y = log(p- / p+) / 2. MOMENTUM_FLOOR keeps pT = 0 and a particle along a beam finite.
    """
    covariant = lower(spurions)
    scale = covariant[1:] @ spurions[0]
    symmetric = (0.5 * (spurions[1] @ covariant[2]) / scale.prod()).sqrt()
    light_cone = (p @ (covariant[1:] / (scale * symmetric)[:, None]).T).clamp(min=0)
    squared = mass_squared(p).clamp(min=0)
    pt_squared = (light_cone.prod(dim=1) - squared).clamp(min=0) + MOMENTUM_FLOOR**2
    along_beam = MOMENTUM_FLOOR**2 / (light_cone.sum(dim=1, keepdim=True) + MOMENTUM_FLOOR)
    log_plus, log_minus = torch.log(light_cone + along_beam).unbind(dim=1)
    plus, minus = light_cone.unbind(dim=1)
    return Kinematics(squared, plus, minus, 0.5 * pt_squared.log(), 0.5 * (log_minus - log_plus))


def pair_products(p: Tensor, k: Kinematics) -> tuple[Tensor, Tensor]:
    """Regulated Delta^2 (n, n) in rapidity and azimuth and m^2 (n, n) [GeV^2] of all pairs of p (n, 4).

    Delta^2 = (y - y')^2 + 2 (1 - cos phi), the chord in azimuth, with pT.pT' = (p+ p'- + p- p'+) / 2 - p.p'.
    """
    product = p @ lower(p).T
    crossed = torch.outer(0.5 * k.plus, k.minus)
    inverse_pt = torch.exp(-k.log_pt)
    cosine = (crossed + crossed.T - product) * torch.outer(inverse_pt, inverse_pt)
    separation = (2.0 + SEPARATION_FLOOR**2 - 2.0 * cosine).clamp(min=SEPARATION_FLOOR**2)
    separation = torch.addcmul(separation, k.rapidity[:, None] - k.rapidity, k.rapidity[:, None] - k.rapidity)
    mass = torch.add(k.mass_squared[:, None] + (k.mass_squared + MASS_FLOOR**2), product, alpha=2.0)
    return separation, mass.clamp(min=MASS_FLOOR**2)


def pair_features_of(k: Kinematics, separation: Tensor, mass: Tensor) -> Tensor:
    """PAIR_FEATURES (n, n, 4) from kinematics (n,) and the regulated Delta^2 and m^2 (n, n) of all pairs."""
    log_separation = 0.5 * separation.log()
    softer = torch.minimum(k.log_pt[:, None], k.log_pt)
    log_z = softer - torch.logaddexp(k.log_pt[:, None], k.log_pt)
    return torch.stack([softer + log_separation, log_z, log_separation, mass.log()], dim=-1)


def pair_features(p: Tensor, spurions: Tensor) -> Tensor:
    """PAIR_FEATURES (n, n, 4) of all pairs of p (n, 4) with regulators, as in Particle Transformer.

    kT = min(pT, pT') Delta [GeV], z = min(pT, pT') / (pT + pT'), m^2 [GeV^2] (Qu, Li, Qian, 2022).
    """
    k = kinematics(p, spurions)
    return pair_features_of(k, *pair_products(p, k))
