"""Terms of the energy beside the learned local one: electrostatics of latent charges, repulsion and dispersion.

Each is a module that maps what a head is given to the energy of every graph (B,) in eV, float64.
"""

import math

import torch
from ase.data import chemical_symbols, covalent_radii
from torch import Tensor, nn
from torch_geometric.data import Batch

from sciml.data.far_field import SMEARING, FarField
from sciml.errors import UserError
from sciml.models.backbone import edge_vectors, edges_of
from sciml.models.readout import Features, Geometry, HeadContext, pool_sum
from sciml.models.reciprocal import LatentCharges
from sciml.physics.electrostatics import equilibrate, pair_vectors, potentials
from sciml.physics.priors import dispersion, dispersion_elements, nuclear_repulsion
from sciml_kernels import Edges, project_charge
from sciml_kernels.edge_embedding.reference import polynomial_envelope
from sciml_kernels.structure_factors.ewald import COULOMB


class Electrostatics(nn.Module):
    """Half the sum of latent charge times potential, of ``count`` sets of Gaussian charges.

    The first set sums to the total charge of its graph: what the flow along edges leaves to it is shared evenly. The
    further sets sum to zero. With ``equilibration`` the first set is that of least energy instead, for learned
    electronegativities and hardnesses.
    """

    far_field = FarField(ewald=True)

    def __init__(self, context: HeadContext, count: int, equilibration: bool) -> None:
        super().__init__()
        self.cutoff = context.cutoffs["atoms"]
        self.charges = LatentCharges(context.channels, count)
        self.response = nn.Linear(context.channels, 2) if equilibration else None

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Energies (B,) and the first set of charges (n,) in e."""
        distances = torch.linalg.vector_norm(_edge_vectors(batch, geometry), dim=1, keepdim=True)
        edges = Edges(batch.senders, batch.receivers, batch.types.shape[0], validate=False)
        charges = self.charges(features.invariants, polynomial_envelope(distances / self.cutoff), edges)
        own, self_energy = self._own(features, batch, geometry, charges[:, 0])
        charges = torch.cat([own[:, None], charges[:, 1:]], dim=1)
        reached = potentials(charges, geometry.positions_strained, geometry.cell_strained, batch)
        per_atom = (0.5 * (charges * reached).sum(dim=1) + self_energy).double()
        return pool_sum(per_atom, batch.batch, batch.num_graphs), own

    def _own(self, features: Features, batch: Batch, geometry: Geometry, flown: Tensor) -> tuple[Tensor, Tensor]:
        """The first set of charges (n,), and what an atom's own charge costs it (n,) in eV."""
        if self.response is None:
            return project_charge(flown, batch.charge, batch.ptr), torch.zeros_like(flown)
        response = self.response(features.invariants)
        chi, eta = response[:, 0], nn.functional.softplus(response[:, 1])
        place = geometry.positions_strained, geometry.cell_strained
        charges = equilibrate(chi, eta, batch.charge, *place, batch)
        own_field = 0.5 * COULOMB / (SMEARING * math.sqrt(math.pi))
        return charges, chi * charges + (0.5 * eta + own_field) * charges.square()


class Repulsion(nn.Module):
    """The screened repulsion of nuclei, up to the sum of the covalent radii of a pair, or the radius of the edges."""

    radii: Tensor

    def __init__(self, context: HeadContext) -> None:
        super().__init__()
        self.cutoff = context.cutoffs["atoms"]
        self.register_buffer("radii", torch.tensor(covalent_radii), persistent=False)

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> Tensor:
        distances = torch.linalg.vector_norm(_edge_vectors(batch, geometry), dim=1)
        first, second = batch.types[batch.receivers], batch.types[batch.senders]
        cutoffs = (self.radii[first] + self.radii[second]).clamp(max=self.cutoff).to(distances)
        energies = nuclear_repulsion(distances, first, second, cutoffs)
        return _of_graphs(energies, batch.receivers, batch)


class Dispersion(nn.Module):
    """Damped -C6 / r^6 with the coefficients of free atoms, up to ``radius`` [Å], times ``scale``.

    Raises UserError for an element without coefficients.
    """

    def __init__(self, context: HeadContext, radius: float, scale: float) -> None:
        super().__init__()
        found = {int(number) for table in context.references.values() for number in table}
        if missing := sorted(found - dispersion_elements()):
            raise UserError(
                f"heads.energy.dispersion: {chemical_symbols[missing[0]]} was found in the data, but there are "
                f"coefficients up to {chemical_symbols[max(dispersion_elements())]} only; leave dispersion out."
            )
        self.radius, self.scale = radius, scale
        self.far_field = FarField(radius=radius)

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> Tensor:
        vectors = pair_vectors(batch, geometry.positions_strained, geometry.cell_strained)
        first, second = batch.types[batch.far_receivers], batch.types[batch.far_senders]
        distances = torch.linalg.vector_norm(vectors, dim=1)
        energies = dispersion(distances, first, second, self.radius, self.scale)
        return _of_graphs(energies, batch.far_receivers, batch)


def _edge_vectors(batch: Batch, geometry: Geometry) -> Tensor:
    return edge_vectors(batch, edges_of(batch), geometry.positions_strained, geometry.cell_strained)


def _of_graphs(energies: Tensor, receivers: Tensor, batch: Batch) -> Tensor:
    """Half the sum over directed pairs, per graph."""
    return 0.5 * pool_sum(energies.double(), batch.batch[receivers], batch.num_graphs)
