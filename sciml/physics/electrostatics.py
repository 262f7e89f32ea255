"""Electrostatic potentials of Gaussian charges: Ewald sums in cells periodic in three directions, else direct sums.

A charge is a Gaussian of width sigma, so nothing is singular: two of them interact by erf(r / 2 sigma) / r. The sum
over all images (Ewald, 1921) is split at alpha <= 1 / (2 sigma) into waves and pairs,

    phi_i = 4 pi / V sum_k exp(-k^2 / 4 alpha^2) / k^2 Re[S(k)* exp(i k.r_i)]  -  2 alpha / sqrt(pi) q_i
          + sum_j q_j [erf(r / 2 sigma) - erf(alpha r)] / r  -  pi / V (1 / alpha^2 - 4 sigma^2) Q,

times the Coulomb constant. The second term takes the charge's own potential out. The last one and the missing k = 0
are those of a uniform background that neutralises a charged cell, and of conducting surroundings of a polar one. An
open system is the case alpha = 0 with all pairs. The sum is exact up to exp(-REACH^2) = 1.4e-11; its terms are chosen
by :mod:`sciml.data.far_field`.

Both sums over waves are structure factors: S(k) over atoms, and the potentials over waves with the roles of positions
and wave vectors exchanged, so that the kernels serve both, without any array of atoms times waves.
"""

import math

import torch
from torch import Tensor
from torch_geometric.data import Batch

from sciml.data.far_field import SMEARING
from sciml_kernels import Edges, coulomb_pairs, segment_sum
from sciml_kernels.structure_factors.ewald import COULOMB
from sciml_kernels.structure_factors.op import in_turns

CHUNK = 8  # columns of a dense matrix at a time: kernels are compiled for a number of channels


def potentials(
    charges: Tensor,
    positions: Tensor,
    cell: Tensor,
    batch: Batch,
    smearing: float = SMEARING,
    backend: str = "auto",
) -> Tensor:
    """Potentials (n, K) in V at the atoms, of ``charges`` (n, K) in e: K sets of charges, each with its own potentials.

    ``positions`` (n, 3) and ``cell`` (B, 3, 3) in Å are given apart from the batch because forces and stress
    differentiate them; ``batch`` has the fields of :mod:`sciml.data.far_field`. The energy is half of the sum of
    charge times potential, in eV. Differentiable twice. ``backend`` as in :mod:`sciml_kernels`.
    """
    found = _pairs(charges, positions, cell, batch, smearing, backend)
    return COULOMB * (found + _periodic(charges, positions, cell, batch, smearing, backend))


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
    unit = torch.nn.functional.one_hot(local, CHUNK * math.ceil(most / CHUNK)).to(positions)
    columns = [potentials(part, positions, cell, batch) for part in unit.split(CHUNK, dim=1)]
    interaction = torch.cat(columns, dim=1)[rows, :most] * inside[..., None]
    own = torch.where(inside, hardnesses[rows] + COULOMB / (SMEARING * math.sqrt(math.pi)), 1.0)
    constraint = inside.to(positions)
    matrix = torch.cat([interaction + torch.diag_embed(own), constraint[:, None]], dim=1)
    matrix = torch.cat([matrix, torch.nn.functional.pad(constraint, (0, 1))[..., None]], dim=2)
    right = torch.cat([-electronegativities[rows] * inside, totals[:, None]], dim=1)
    return torch.linalg.solve(matrix, right)[:, :-1][inside]


def pair_vectors(batch: Batch, positions: Tensor, cell: Tensor) -> Tensor:
    """Vectors (P, 3) from receiver to sender of the pairs beyond the edges, through the periodic images."""
    return positions[batch.far_senders] - positions[batch.far_receivers] + pair_offsets(batch, cell)


def pair_offsets(batch: Batch, cell: Tensor) -> Tensor:
    """Lattice vectors (P, 3) of the senders' images in the pairs beyond the edges."""
    if batch.num_graphs == 1:  # a large system comes alone: no copy of the cell for each pair
        return batch.far_shifts @ cell[0]
    return torch.einsum("ei,eij->ej", batch.far_shifts, cell[batch.batch[batch.far_receivers]])


def _pairs(charges: Tensor, positions: Tensor, cell: Tensor, batch: Batch, smearing: float, backend: str) -> Tensor:
    """The sum over pairs, (n, K)."""
    edges = Edges(batch.far_senders, batch.far_receivers, charges.shape[0], validate=False)
    alone = batch.num_graphs == 1
    splittings = batch.splitting.expand(len(edges.senders)) if alone else batch.splitting[batch.batch[edges.receivers]]
    offsets = pair_offsets(batch, cell)
    interaction = coulomb_pairs(positions, edges, offsets, splittings[:, None], smearing, backend)
    return segment_sum(interaction * charges.index_select(0, edges.senders), edges.pointers, backend)


def _periodic(charges: Tensor, positions: Tensor, cell: Tensor, batch: Batch, smearing: float, backend: str) -> Tensor:
    """The other terms, (n, K): zero for atoms of open systems."""
    periodic = batch.pbc.all(dim=1)
    cell = torch.where(periodic[:, None, None], cell, torch.eye(3, dtype=cell.dtype, device=cell.device))
    splitting = torch.where(periodic, batch.splitting, 1.0)
    volume = torch.linalg.det(cell).abs()
    total = segment_sum(charges, batch.ptr, backend)
    background = (math.pi * (splitting**-2 - 4 * smearing**2) / volume)[:, None] * total
    found = _waves(charges, positions, cell, splitting, volume, batch, backend)
    own = 2 / math.sqrt(math.pi) * splitting[batch.batch, None] * charges
    return torch.where(periodic[batch.batch, None], found - own - background[batch.batch], 0.0)


def _waves(
    charges: Tensor, positions: Tensor, cell: Tensor, splitting: Tensor, volume: Tensor, batch: Batch, backend: str
) -> Tensor:
    """The sum over waves, (n, K)."""
    pointers = torch.nn.functional.pad(batch.num_waves.cumsum(0), (1, 0))
    owner = torch.repeat_interleave(batch.num_waves, output_size=batch.waves.shape[0])
    inverse = torch.linalg.inv(cell)
    fractional = torch.einsum("ni,nij->nj", positions, inverse[batch.batch])
    indices = batch.waves.to(positions.dtype)
    square = (2 * math.pi * torch.einsum("wij,wj->wi", inverse[owner], indices)).square().sum(dim=1)
    weights = 8 * math.pi / volume[owner] * torch.exp(square / (-4 * splitting[owner] ** 2)) / square  # of k and -k
    factors = in_turns(fractional, charges, indices, batch.ptr, pointers, backend)
    weighted = (factors * weights[:, None, None]).flatten(1)
    cosine, sine = in_turns(indices, weighted, fractional, pointers, batch.ptr, backend).unbind(dim=1)
    return cosine[:, : charges.shape[1]] + sine[:, charges.shape[1] :]
