"""Energy with conservative forces and stress."""

import torch
from torch import Tensor
from torch_geometric.data import Batch

from sciml.graph import ELEMENTS
from sciml.models.layers import multilayer_perceptron
from sciml.models.readout import Features, Geometry, Head, HeadContext, pool_sum


class EnergyHead(Head):
    """Total energy (B,) in eV, forces -dE/dx (n, 3) in eV/Å and stress dE/dstrain / V (B, 3, 3) in eV/Å^3.

    The energy is the sum over atoms of a learned term in units of the dataset's force scale, plus the dataset's own
    reference energy of the element, so that levels of theory never mix. Sums run in fp64. ``interaction_energy`` is
    the energy without references. Stress is NaN where the system is not periodic in all directions.
    """

    kind = "atoms"
    targets = ("energy", "forces", "stress")
    differentiates = True
    references: Tensor
    scales: Tensor
    spreads: Tensor

    def __init__(self, context: HeadContext, hidden: int = 64) -> None:
        super().__init__(context)
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

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
        graphs = batch.num_graphs
        per_atom = self.readout(features.invariants)[:, 0].double()
        interaction = pool_sum(per_atom, batch.batch, graphs) * self.scales[batch.dataset]
        reference = pool_sum(self.references[batch.dataset[batch.batch], batch.types], batch.batch, graphs)
        gradients = self._gradients(interaction, geometry)
        predictions = {"energy": interaction + reference, "interaction_energy": interaction, "forces": -gradients[0]}
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
        stress = virial / _volumes(batch).to(virial.dtype)[:, None, None]
        return torch.where(batch.pbc.all(dim=1)[:, None, None], stress, torch.nan)

    def scale(self, target: str, batch: Batch) -> Tensor | None:
        """Of the dataset: the spread of energies per atom, the RMS of forces; a stress counts as the virial per atom,
        in the unit of forces times 1 Å.
        """
        if target == "energy":
            return self.spreads[batch.dataset]
        scale = self.scales[batch.dataset]
        if target != "stress":
            return scale
        atoms = torch.bincount(batch.batch, minlength=batch.num_graphs)
        return scale * atoms / _volumes(batch).to(scale.dtype)


def _volumes(batch: Batch) -> Tensor:
    """Volume (B,) of the cells in Å^3, fp64; 1 where a graph is not periodic in all directions."""
    volumes = torch.linalg.det(batch.cell.double()).abs()
    return torch.where(batch.pbc.all(dim=1), volumes, torch.ones_like(volumes))
