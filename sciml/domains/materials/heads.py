"""Energy with conservative forces and stress, or with forces and stress that are read out directly."""

import math

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from sciml.data.far_field import FarField
from sciml.domains.materials.terms import Dispersion, Electrostatics, Repulsion
from sciml.errors import UserError
from sciml.graph import ELEMENTS, holds_anywhere
from sciml.models.layers import multilayer_perceptron
from sciml.models.readout import Features, Geometry, Head, HeadContext, pool_mean
from sciml_kernels import remove_net_force, remove_net_force_and_torque, segment_sum


class PotentialHead(Head):
    """What heads of energies share: the sum over atoms of a learned term in units of the dataset's force scale, plus
    the dataset's own reference energy of the element, so that levels of theory never mix. Sums run in fp64.
    """

    kind = "atoms"
    targets = ("energy", "forces", "stress")
    references: Tensor
    scales: Tensor
    spreads: Tensor

    def __init__(self, context: HeadContext, hidden: int = 64) -> None:
        super().__init__(context)
        self.backend = context.backend
        self.readout = multilayer_perceptron([context.channels, hidden, 1])
        last = self.readout[-1]
        assert isinstance(last, torch.nn.Linear)
        with torch.no_grad():  # start near the reference energies
            last.weight.mul_(0.1)
            last.bias.zero_()
        references = torch.zeros(len(context.datasets), ELEMENTS + 1, dtype=torch.float64)
        scales = torch.ones(len(context.datasets), dtype=torch.float64)
        spreads = torch.ones_like(scales)
        for index, dataset in enumerate(context.datasets):
            for number, energy in context.references.get(dataset, {}).items():
                references[index, int(number)] = energy
            scales[index] = context.scales.get(dataset, 1.0)
            spreads[index] = context.spreads.get(dataset, scales[index])
        self.register_buffer("references", references)
        self.register_buffer("scales", scales)
        self.register_buffer("spreads", spreads)

    def local_energy(self, features: Features, batch: Batch) -> Tensor:
        """The learned energy of each graph (B,) in eV without references."""
        per_atom = self.readout(features.invariants)[:, 0].double()
        return segment_sum(per_atom, batch.ptr, self.backend) * self.scales[batch.dataset]

    def reference_energy(self, batch: Batch) -> Tensor:
        """The sum of the reference energies of each graph (B,) in eV."""
        return segment_sum(self.references[batch.dataset[batch.batch], batch.types], batch.ptr, self.backend)

    def pool_features(self, target: str, inputs: list[Tensor], batch: Batch) -> Tensor:
        """The sum over the atoms, in the unit of the dataset."""
        pooled = segment_sum(inputs[0], batch.ptr, self.backend) * self.scales[batch.dataset, None]
        return pooled[:, None]

    def scale(self, target: str, batch: Batch) -> Tensor | None:
        """Of the dataset: the spread of energies per atom, the RMS of forces; a stress counts as the virial per atom,
        in the unit of forces times 1 Å.
        """
        if target == "energy":
            return self.spreads[batch.dataset]
        return self.stress_scale(batch) if target == "stress" else self.scales[batch.dataset]

    def stress_scale(self, batch: Batch) -> Tensor:
        """Unit (B,) of stresses in eV/Å^3: the virial per atom is the RMS of forces times 1 Å."""
        scale = self.scales[batch.dataset]
        return scale * batch.ptr.diff() / _volumes(batch).to(scale.dtype)


class EnergyHead(PotentialHead):
    """Total energy (B,) in eV, forces -dE/dx (n, 3) in eV/Å and stress dE/dstrain / V (B, 3, 3) in eV/Å^3.

    ``interaction_energy`` is the energy without references. Stress is NaN where the system is not periodic in all
    directions. Terms beside the learned local one, each left out by default:

    ``charges``        sets of latent charges with their electrostatic energy, the first of which sums to the total
                       charge and is the prediction ``charges`` (n,) in e;
    ``equilibration``  makes the first set that of least energy, by a dense solution for each graph;
    ``repulsion``      the screened repulsion of nuclei (ZBL) below the sum of the covalent radii;
    ``dispersion``     {radius in Å, scale} of damped -C6 / r^6 terms (D2); scale is s6 of the density functional.

    Raises UserError for ``equilibration`` without charges, and for a switch that is neither true nor false.
    """

    differentiates = True

    def __init__(
        self,
        context: HeadContext,
        hidden: int = 64,
        charges: int = 0,
        equilibration: bool = False,
        repulsion: bool = False,
        dispersion: dict[str, float] | None = None,
    ) -> None:
        super().__init__(context, hidden)
        for name, value in (("equilibration", equilibration), ("repulsion", repulsion)):
            if not isinstance(value, bool):
                raise UserError(f"heads.energy.{name}: found {value!r}, expected true or false.")
        if equilibration and not charges:
            raise UserError("heads.energy.equilibration: found true with charges=0, expected 1 set of charges or more.")
        self.shares_charge = equilibration
        self.electrostatics = Electrostatics(context, charges, equilibration) if charges else None
        self.priors = nn.ModuleList()
        if repulsion:
            self.priors.append(Repulsion(context))
        if dispersion:
            self.priors.append(Dispersion(context, **dispersion))
        for term in (self.electrostatics, *self.priors):
            self.far_field = self.far_field | getattr(term, "far_field", FarField())

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
        interaction = self.local_energy(features, batch)
        predictions = {}
        if self.electrostatics is not None:
            energy, predictions["charges"] = self.electrostatics(features, batch, geometry)
            interaction = interaction + energy
        for prior in self.priors:
            interaction = interaction + prior(features, batch, geometry)
        gradients = self._gradients(interaction, geometry)
        energy = interaction + self.reference_energy(batch)
        predictions |= {"energy": energy, "interaction_energy": interaction, "forces": -gradients[0]}
        if gradients[1] is not None:
            predictions["stress"] = self._stress(gradients[1], batch)
        return predictions

    @staticmethod
    def _gradients(energy: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor | None]:
        inputs = [geometry.positions] + ([geometry.strain] if geometry.strain.requires_grad else [])
        gradients = torch.autograd.grad(
            energy.sum(), inputs, create_graph=geometry.create_graph, materialize_grads=True
        )
        return gradients[0], gradients[1] if len(gradients) > 1 else None

    @staticmethod
    def _stress(virial: Tensor, batch: Batch) -> Tensor:
        # NaN is put in last: divided by a NaN volume, even the zero gradient of an unlabelled stress would be NaN.
        return _where_periodic(virial / _volumes(batch).to(virial.dtype)[:, None, None], batch)


class DirectForcesHead(PotentialHead):
    """Total energy (B,) in eV, and forces (n, 3) in eV/Å and stress (B, 3, 3) in eV/Å^3 that are no derivatives of it.

    Cheap to train, since nothing is differentiated twice; not for dynamics, whose energy would drift. Forces are sums
    over channels of the features of degree 1, gated by invariants, less their net force and, without a cell, their net
    torque: the least change that conserves momentum. Stress is the mean over atoms of an invariant times the unit
    matrix and of outer products of the same vectors, NaN where the system is not periodic in all directions.
    """

    lmax = 1

    def __init__(self, context: HeadContext, hidden: int = 64) -> None:
        super().__init__(context, hidden)
        self.gates = multilayer_perceptron([context.channels, hidden, 2 * context.channels + 1])
        self.channels = context.channels

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
        vectors = features.fine[:, 1:4]
        gates = self.gates(features.invariants)
        force_gate, stress_gate, pressure = gates.split([self.channels, self.channels, 1], dim=1)
        interaction = self.local_energy(features, batch)
        forces = (vectors * force_gate[:, None]).sum(dim=2) / math.sqrt(self.channels)
        forces = forces * self.scales[batch.dataset[batch.batch], None]
        predictions = {
            "energy": interaction + self.reference_energy(batch),
            "interaction_energy": interaction,
            "forces": self._conserving(forces.to(vectors.dtype), batch),
        }
        if geometry.create_graph or batch.has_crystals:  # all batches of a training run have the same predictions
            outer = (vectors * stress_gate[:, None]) @ vectors.transpose(1, 2) / self.channels
            per_atom = outer + pressure[..., None] * torch.eye(3, dtype=outer.dtype, device=outer.device)
            virial = pool_mean(per_atom.flatten(1), batch.batch, batch.num_graphs).view(-1, 3, 3)
            stress = virial * self.stress_scale(batch)[:, None, None].to(virial.dtype)
            predictions["stress"] = _where_periodic(stress, batch)
        return predictions

    @staticmethod
    def _conserving(forces: Tensor, batch: Batch) -> Tensor:
        """Without net force, and without net torque where nothing is periodic."""
        forces = remove_net_force(forces, batch.ptr)
        if not holds_anywhere(~batch.pbc.any(dim=1)):
            return forces
        still = remove_net_force_and_torque(forces, batch.positions, batch.ptr)
        return torch.where(batch.pbc.any(dim=1)[batch.batch, None], forces, still)


def _where_periodic(stress: Tensor, batch: Batch) -> Tensor:
    """NaN where a graph is not periodic in all directions."""
    return torch.where(batch.pbc.all(dim=1)[:, None, None], stress, torch.nan)


def _volumes(batch: Batch) -> Tensor:
    """Volume (B,) of the cells in Å^3, fp64; 1 where a graph is not periodic in all directions."""
    volumes = torch.linalg.det(batch.cell.double()).abs()
    return torch.where(batch.pbc.all(dim=1), volumes, torch.ones_like(volumes))
