"""Momenta that sum to a given four-momentum, each on its mass shell: the rescaling of RAMBO, differentiable.

Any three-momenta and masses are turned into such a set (Kleiss, Stirling, Ellis, 1986): on shell, boosted to the rest
frame of their own sum, scaled there by the one factor that makes their energies add up to the mass of the total, and
boosted to the total. Every step is covariant under rotations of the frame that the momenta are given in, and leaves a
set that already sums to the total as it is.
"""

import torch
from torch import Tensor

from sciml.physics import lorentz

NEWTON_STEPS = 12
"""From the upper bound of :func:`rescaling` each step at least halves the distance and soon squares it."""
LEAST_MASS = 1e-6
"""Of a sum, as a share of its energy, below which it has no rest frame to speak of."""
MOST_MASSES = 1.0 - 1e-6
"""Largest sum of the masses, as a share of the mass of the total; above it there is no momentum left to scale."""


def conserving(momenta: Tensor, mass_squared: Tensor, total: Tensor, index: Tensor) -> Tensor:
    """Four-momenta (n, 4) that sum to ``total`` (B, 4) in every group ``index`` (n,), from ``momenta`` (n, 3) [GeV].

    All in float64, each total with positive energy and m^2 >= 0. To rounding, and differentiable in momenta,
    mass_squared and total:

    - the sum of a group is its total, always;
    - every particle has the mass sqrt(``mass_squared`` (n,)) given. Where the masses of a group do not fit into the
      total, all of them are scaled down by one factor. A group without momenta in a rest frame (a total that is
      light-like, or particles that are all at rest or all collinear and massless, a single one for instance) shares its
      total in proportion to the energies, mass and momentum alike;
    - no energy is negative.
    """
    groups = len(total)
    mass_squared = mass_squared.clamp(min=0)
    particles = _on_shell(momenta, mass_squared)
    summed = _sum(particles, index, groups)
    shares = particles[:, 0] / summed[index, 0].clamp(min=1e-300)
    restless = _restless(summed) | _restless(total)
    rest = lorentz.boost_to_rest_frame(particles[:, None], _unless(restless, summed)[index])[:, 0, 1:]
    restless = restless | (_sum(rest.abs().sum(dim=1), index, groups) <= LEAST_MASS * summed[:, 0])
    target = _unless(restless, total)
    target_mass = lorentz.mass_squared(target).sqrt()
    masses = _sum(mass_squared.clamp(min=1e-300).sqrt(), index, groups)
    fit = torch.where(restless, 0.0, (MOST_MASSES * target_mass / masses).clamp(max=1.0))
    mass_squared = mass_squared * fit.square()[index]
    rest = torch.where(restless[index, None], 1.0, rest)
    scaled = _on_shell(rescaling(rest, mass_squared, target_mass, index)[index, None] * rest, mass_squared)
    solved = lorentz.boost_from_rest_frame(scaled[:, None], target[index])[:, 0]
    return torch.where(restless[index, None], shares[:, None] * total[index], solved)


def rescaling(momenta: Tensor, mass_squared: Tensor, mass: Tensor, index: Tensor) -> Tensor:
    """The factor s (B,) >= 0 with sum_i sqrt(s^2 p_i^2 + m_i^2) = M in every group.

    ``momenta`` (n, 3) and ``mass_squared`` (n,) of particles in groups ``index`` (n,) whose masses sum to less than
    ``mass`` (B,). Newton's method on a convex function, from the upper bound that the triangle inequality of the
    vectors (p_i, m_i) gives, falls to the root from above. The gradient is that of the implicit function: one more
    Newton step from the root, taken as constant.
    """
    groups = len(mass)
    squared = momenta.square().sum(dim=1)

    def step(scale: Tensor, squared: Tensor, mass_squared: Tensor, mass: Tensor) -> Tensor:
        energies = (scale.square()[index] * squared + mass_squared).clamp(min=1e-300).sqrt()
        slope = _sum(scale[index] * squared / energies, index, groups)
        return scale - (_sum(energies, index, groups) - mass) / slope.clamp(min=1e-300)

    with torch.no_grad():
        fixed = (squared.detach(), mass_squared.detach(), mass.detach())
        room = (fixed[2].square() - _sum(fixed[1].sqrt(), index, groups).square()).clamp(min=0)
        scale = room.sqrt() / _sum(fixed[0].sqrt(), index, groups).clamp(min=1e-300)
        for _ in range(NEWTON_STEPS):
            scale = step(scale, *fixed)
    return step(scale, squared, mass_squared, mass)


def _on_shell(momenta: Tensor, mass_squared: Tensor) -> Tensor:
    # the floor keeps the gradient of a massless particle at rest finite
    energy = (momenta.square().sum(dim=1) + mass_squared).clamp(min=1e-300).sqrt()
    return torch.cat([energy[:, None], momenta], dim=1)


def _restless(p: Tensor) -> Tensor:
    """Which of p (B, 4) are so nearly light-like that they have no rest frame."""
    return lorentz.mass_squared(p) <= (LEAST_MASS * p[:, 0]).square()


def _unless(restless: Tensor, p: Tensor) -> Tensor:
    """p (B, 4), and something at rest where the result is not used but must have finite gradients."""
    return torch.where(restless[:, None], p.new_tensor([1.0, 0.0, 0.0, 0.0]), p)


def _sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    return values.new_zeros((size, *values.shape[1:])).index_add(0, index, values)
