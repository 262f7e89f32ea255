"""Electrostatic potentials of Gaussian charges: Ewald sums in cells periodic in three directions, else direct sums.

A charge is a Gaussian of width sigma, so nothing is singular: two of them interact by erf(r / 2 sigma) / r. The sum
over all images (Ewald, 1921) is split at alpha <= 1 / (2 sigma) into waves and pairs,

    phi_i = 4 pi / V sum_k exp(-k^2 / 4 alpha^2) / k^2 Re[S(k)* exp(i k.r_i)]  -  2 alpha / sqrt(pi) q_i
          + sum_j q_j [erf(r / 2 sigma) - erf(alpha r)] / r  -  pi / V (1 / alpha^2 - 4 sigma^2) Q,

times the Coulomb constant. The second term takes the charge's own potential out. The last one and the missing k = 0
are those of a uniform background that neutralises a charged cell, and of conducting surroundings of a polar one. An
open system is the case alpha = 0 with all pairs. The sum is exact up to exp(-REACH^2) = 1.4e-11; its terms are chosen
by :mod:`sciml.data.far_field`.

The phase of an atom and a wave is a product over three axes, exp(2 pi i n.f) = prod_a exp(2 pi i n_a f_a). So sines and
cosines are taken per axis alone, two axes are multiplied out once, and the sums over atoms and over waves are matrix
products: 16 K operations for an atom and a wave of K channels, at the speed of matrix products, over a box of waves
whose corners are left out by their weights (1.9 times those of the sphere). `sciml_kernels.structure_factors` computes
each phase anew, and needs no memory for two of the axes: N times the waves in a plane of the box here.
"""

import math

import torch
from torch import Tensor
from torch_geometric.data import Batch

from sciml.data.far_field import REACH, SMEARING
from sciml_kernels import Edges, segment_sum
from sciml_kernels.structure_factors.ewald import COULOMB

_TINY = 1e-12  # Å^2, added to squared distances: coincident atoms have derivatives


def potentials(charges: Tensor, positions: Tensor, cell: Tensor, batch: Batch, smearing: float = SMEARING) -> Tensor:
    """Potentials (n, K) in V at the atoms, of ``charges`` (n, K) in e: K sets of charges, each with its own potentials.

    ``positions`` (n, 3) and ``cell`` (B, 3, 3) in Å are given apart from the batch because forces and stress
    differentiate them; ``batch`` has the fields of :mod:`sciml.data.far_field`. The energy is half of the sum of
    charge times potential, in eV. Derivatives of any order.
    """
    found = _pairs(charges, positions, cell, batch, smearing)
    periodic = batch.pbc.all(dim=1)
    if bool(periodic.any()):
        found = found + _periodic(charges, positions, cell, batch, periodic, smearing)
    return COULOMB * found


def equilibrate(
    electronegativities: Tensor, hardnesses: Tensor, totals: Tensor, positions: Tensor, cell: Tensor, batch: Batch
) -> Tensor:
    """Charges (n,) in e that minimise sum_i chi_i q_i + eta_i q_i^2 / 2 plus their electrostatic energy.

    Charge equilibration (Rappe, Goddard, 1991) of Gaussian charges: ``electronegativities`` chi (n,) in V,
    ``hardnesses`` eta (n,) > 0 in V / e, to which the energy of a Gaussian in its own field is added, so that there is
    one minimum; under the condition that the charges of a graph sum to ``totals`` (B,). Two parts of a system exchange
    charge however far they are from each other. Takes memory and time for a dense matrix of each graph.
    """
    sizes = batch.ptr.diff()
    most = int(sizes.max())
    place = torch.arange(most, device=sizes.device)
    inside = place < sizes[:, None]
    rows = torch.where(inside, batch.ptr[:-1, None] + place, 0)
    local = torch.arange(len(positions), device=sizes.device) - batch.ptr[batch.batch]
    unit = torch.nn.functional.one_hot(local, most).to(positions)
    interaction = potentials(unit, positions, cell, batch)[rows] * inside[..., None]
    own = torch.where(inside, hardnesses[rows] + COULOMB / (SMEARING * math.sqrt(math.pi)), 1.0)
    constraint = inside.to(positions)
    matrix = torch.cat([interaction + torch.diag_embed(own), constraint[:, None]], dim=1)
    matrix = torch.cat([matrix, torch.nn.functional.pad(constraint, (0, 1))[..., None]], dim=2)
    right = torch.cat([-electronegativities[rows] * inside, totals[:, None]], dim=1)
    return torch.linalg.solve(matrix, right)[:, :-1][inside]


def pair_vectors(batch: Batch, positions: Tensor, cell: Tensor) -> Tensor:
    """Vectors (P, 3) from receiver to sender of the pairs beyond the edges, through the periodic images."""
    vectors = positions[batch.far_senders] - positions[batch.far_receivers]
    if batch.num_graphs == 1:  # a large system comes alone: no copy of the cell for each pair
        return vectors + batch.far_shifts @ cell[0]
    return vectors + torch.einsum("ei,eij->ej", batch.far_shifts, cell[batch.batch[batch.far_receivers]])


def _pairs(charges: Tensor, positions: Tensor, cell: Tensor, batch: Batch, smearing: float) -> Tensor:
    """The sum over pairs, (n, K)."""
    distance = (pair_vectors(batch, positions, cell).square().sum(dim=1) + _TINY).sqrt()
    splitting = batch.splitting[batch.batch[batch.far_receivers]]
    kernel = (torch.erf(distance / (2 * smearing)) - torch.erf(splitting * distance)) / distance
    edges = Edges(batch.far_senders, batch.far_receivers, charges.shape[0], validate=False)
    return segment_sum(kernel[:, None] * charges[edges.senders], edges.pointers)


def _periodic(
    charges: Tensor, positions: Tensor, cell: Tensor, batch: Batch, periodic: Tensor, smearing: float
) -> Tensor:
    """The other terms, (n, K): zero for atoms of open systems."""
    graphs = periodic.nonzero()[:, 0]
    cell, splitting = cell[graphs], batch.splitting[graphs, None, None]
    first, sizes = batch.ptr[graphs], batch.ptr.diff()[graphs]
    place = torch.arange(int(sizes.max()), device=sizes.device)
    inside = place < sizes[:, None]
    rows = torch.where(inside, first[:, None] + place, 0)
    q = charges[rows] * inside[..., None]
    volume = torch.linalg.det(cell).abs()[:, None, None]
    background = math.pi * (splitting**-2 - 4 * smearing**2) / volume * q.sum(dim=1, keepdim=True)
    found = _waves(q, positions[rows], cell, splitting, volume, batch.waves[graphs])
    found = found - 2 / math.sqrt(math.pi) * splitting * q - background
    return torch.zeros_like(charges).index_put((rows[inside],), found[inside])


def _waves(q: Tensor, positions: Tensor, cell: Tensor, splitting: Tensor, volume: Tensor, waves: Tensor) -> Tensor:
    """The sum over waves: q (b, n, K), positions (b, n, 3), splitting, volume (b, 1, 1), waves (b, 3) -> (b, n, K)."""
    inverse = torch.linalg.inv(cell)
    fractional = positions @ inverse
    most = [int(size) for size in waves.amax(dim=0)]
    indices = [torch.arange(-size * (axis > 0), size + 1, device=q.device).to(q) for axis, size in enumerate(most)]
    (c1, s1), (c2, s2), (c3, s3) = (_turn(fractional[..., axis, None] * n) for axis, n in enumerate(indices))
    plane = torch.stack([_outer(c2, c3) - _outer(s2, s3), _outer(c2, s3) + _outer(s2, c3)], dim=1).flatten(1, 2)
    # the real and the imaginary part of a phase are rows of this matrix times the two parts of the plane
    axis = torch.stack([torch.stack([c1, s1], dim=-1), torch.stack([-s1, c1], dim=-1)], dim=1).flatten(3)
    own = (q[:, None, :, :, None] * axis[:, :, :, None]).flatten(1, 2)
    factors = own.flatten(2).transpose(1, 2) @ plane
    weights = _weights(indices, inverse, splitting, volume).repeat_interleave(2, dim=1)
    weighted = factors.unflatten(1, (q.shape[2], -1)) * weights[:, None]
    found = (plane @ weighted.flatten(1, 2).transpose(1, 2)).view(*axis.shape[:3], q.shape[2], -1)
    return (found * axis[:, :, :, None]).sum(dim=(1, 4))


def _weights(indices: list[Tensor], inverse: Tensor, splitting: Tensor, volume: Tensor) -> Tensor:
    """4 pi / V exp(-k^2 / 4 alpha^2) / k^2 of half of the waves (b, n1, n2 n3), those with -k counted along."""
    n = torch.cartesian_prod(*indices)
    k = 2 * math.pi * n @ inverse.transpose(1, 2)
    square = k.square().sum(dim=2).unflatten(1, (len(indices[0]), -1))
    counted = (square > 0) & (square <= (2 * REACH * splitting) ** 2)
    square = torch.where(counted, square, 1.0)
    both = torch.where(indices[0] > 0, 2.0, 1.0)[:, None]
    terms = both * torch.exp(square / (-4 * splitting**2)) / square
    return torch.where(counted, terms, 0.0) * (4 * math.pi / volume)


def _turn(turns: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of so many turns; whole ones go before they cost digits."""
    angles = 2 * math.pi * (turns - turns.detach().round())
    return angles.cos(), angles.sin()


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """(b, n, i), (b, n, j) -> (b, n, i j)."""
    return (a.unsqueeze(3) * b.unsqueeze(2)).flatten(2)
