"""Latent charges, and the block that feeds their long-range potentials back into the features of nodes."""

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from sciml.data.far_field import SMEARING, FarField
from sciml.models.layers import full_precision, multilayer_perceptron
from sciml.physics.electrostatics import potentials
from sciml_kernels import Edges, degree_norm, segment_sum
from sciml_kernels.structure_factors.ewald import COULOMB


class LatentCharges(nn.Module):
    """``count`` sets of charges from the invariants of atoms, each of total zero.

    Charge flows along edges, from one end to the other: u_i v_j - u_j v_i times the envelope of the edge, with u and v
    linear in the invariants. So every total is conserved by construction, and a far or unlike system never draws charge
    from another, as it would where a mean is taken off.
    """

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.flow = nn.Linear(channels, 2 * count)
        with torch.no_grad():
            self.flow.weight.mul_(0.5)

    def forward(self, invariants: Tensor, envelope: Tensor, edges: Edges) -> Tensor:
        """invariants (n, C), envelope (E, 1) -> charges (n, count) in e."""
        gives, takes = self.flow(invariants).chunk(2, dim=1)
        senders, receivers = edges.senders, edges.receivers
        flow = envelope * (gives[senders] * takes[receivers] - gives[receivers] * takes[senders])
        return segment_sum(flow, edges.pointers)


class ReciprocalBlock(nn.Module):
    """Long-range potentials of latent charges, added to the invariants through a small network.

    Potentials are Ewald sums in cells and direct sums in open systems; see :mod:`sciml.physics.electrostatics`.
    """

    far_field = FarField(ewald=True)

    def __init__(self, channels: int, charges: int, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend
        self.charges = LatentCharges(channels, charges)
        self.network = multilayer_perceptron([charges + channels, channels, channels], zero=True)

    def forward(
        self, x: Tensor, envelope: Tensor, edges: Edges, positions: Tensor, cell: Tensor, batch: Batch
    ) -> Tensor:
        """x (n, d, C), envelope (E, 1) of the edges -> (n, d, C), in the precision of the positions."""
        with full_precision(positions):
            x = x.to(positions.dtype)
            invariants = degree_norm(x, backend=self.backend)[:, 0]
            charges = self.charges(invariants, envelope, edges)
            reached = potentials(charges, positions, cell, batch, backend=self.backend) * (SMEARING / COULOMB)
            update = self.network(torch.cat([reached, invariants], dim=1))
            return torch.cat([x[:, :1] + update[:, None], x[:, 1:]], dim=1)
