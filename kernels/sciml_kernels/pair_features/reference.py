"""The definition of the pair features in plain torch: any dtype, any order of derivative by autograd.

Every feature is a function of Minkowski products of momenta and spurions alone, so it is unchanged when both are
transformed together; so are the regulators, which keep soft and collinear limits finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOMENTUM_FLOOR = 1e-2
"""GeV, added in quadrature to transverse momenta."""
SEPARATION_FLOOR = 1e-3
"""Added in quadrature to a distance in rapidity and azimuth; below any detector's granularity."""
MASS_FLOOR = 1e-1
"""GeV, added in quadrature to the mass of a pair; below the mass of two pions."""


def kinematics(momenta: Tensor, spurions: Tensor) -> Tensor:
    """Of momenta (n, 4) with their spurions (n, 3, 4): columns mass^2, p+, p-, log pT, rapidity.

    With beams scaled to b.t = 1 and b+.b- = 2, as in the laboratory, p+ = p.b+ = E - pz and p- = p.b- = E + pz, so that
    pT^2 = p+ p- - p^2 and y = log(p- / p+) / 2. MOMENTUM_FLOOR keeps pT = 0 and a particle along a beam finite.
    """
    time, beams = spurions[:, 0], spurions[:, 1:]
    scale = minkowski(beams, time[:, None])
    symmetric = (0.5 * minkowski(beams[:, 0], beams[:, 1]) / scale.prod(dim=1)).sqrt()
    light_cone = (minkowski(momenta[:, None], beams) / (scale * symmetric[:, None])).clamp(min=0)
    squared = mass_squared(momenta).clamp(min=0)
    pt_squared = (light_cone.prod(dim=1) - squared).clamp(min=0) + MOMENTUM_FLOOR**2
    along_beam = MOMENTUM_FLOOR**2 / (light_cone.sum(dim=1, keepdim=True) + MOMENTUM_FLOOR)
    log_plus, log_minus = torch.log(light_cone + along_beam).unbind(dim=1)
    return torch.stack(
        [squared, light_cone[:, 0], light_cone[:, 1], 0.5 * pt_squared.log(), 0.5 * (log_minus - log_plus)], dim=1
    )


def pairs(p: Tensor, q: Tensor, p_kinematics: Tensor, q_kinematics: Tensor) -> Tensor:
    """(pairs, 4) features of two momenta (pairs, 4) each, with their kinematics (pairs, 5).

    Delta^2 = (y - y')^2 + 2 (1 - cos phi), the chord in azimuth, with pT.pT' = (p+ p'- + p- p'+) / 2 - p.p'.
    """
    squared_p, plus_p, minus_p, log_pt_p, rapidity_p = p_kinematics.unbind(dim=1)
    squared_q, plus_q, minus_q, log_pt_q, rapidity_q = q_kinematics.unbind(dim=1)
    product = minkowski(p, q)
    crossed = 0.5 * plus_p * minus_q + 0.5 * plus_q * minus_p
    cosine = (crossed - product) * (torch.exp(-log_pt_p) * torch.exp(-log_pt_q))
    azimuth = (2.0 + SEPARATION_FLOOR**2 - 2.0 * cosine).clamp(min=SEPARATION_FLOOR**2)
    log_separation = 0.5 * (azimuth + (rapidity_p - rapidity_q).square()).log()
    mass = (squared_p + (squared_q + MASS_FLOOR**2) + 2.0 * product).clamp(min=MASS_FLOOR**2)
    softer = torch.minimum(log_pt_p, log_pt_q)
    log_z = softer - torch.logaddexp(log_pt_p, log_pt_q)
    return torch.stack([softer + log_separation, log_z, log_separation, mass.log()], dim=1)


def pair_features(momenta: Tensor, spurions: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
    """Of momenta (n, 4) with their spurions (n, 3, 4)."""
    k = kinematics(momenta, spurions)
    return pairs(momenta[receivers], momenta[senders], k[receivers], k[senders])


def mass_squared(p: Tensor) -> Tensor:
    """(E - |p|)(E + |p|) of (..., 4) -> (...) [GeV^2]; negative where rounding made it so."""
    momentum = torch.linalg.vector_norm(p[..., 1:], dim=-1)
    return (p[..., 0] - momentum) * (p[..., 0] + momentum)


def minkowski(p: Tensor, q: Tensor) -> Tensor:
    """Minkowski product of (..., 4) and (..., 4) -> (...), metric (+, -, -, -)."""
    return (p * q * p.new_tensor([1.0, -1.0, -1.0, -1.0])).sum(dim=-1)
