"""Coordinate denoising: the positions of some samples are shifted by noise, and a vector head finds the noise.

The noise level is an input of the node embedding and the target is the equivariant noise in units of that level
(Godwin et al., 2022; Zaidi et al., 2023). Where a frame has forces it may be off equilibrium: the forces of the clean
frame are then an input too, without which the clean positions could not be told (DeNS, Liao et al., 2024). A frame
without forces is taken for an equilibrium one. Jets have no such objective: their momenta are a draw from a shower, not
near a minimum of anything, and there is no clean neighbour that a noisy jet belongs to.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch

from sciml.data.records import Record
from sciml.graph import Graph
from sciml.models.layers import multilayer_perceptron
from sciml.models.readout import Features, Geometry, Head, HeadContext


class Denoise:
    """Shifts the positions of a ``fraction`` of the samples of ``kind``; see :class:`sciml.data.corruption.Corruption`.

    ``levels`` (lowest, highest) [Å] bound the standard deviation of each coordinate, drawn evenly in its logarithm.
    """

    def __init__(self, kind: str, fraction: float, levels: tuple[float, float]) -> None:
        self.kind, self.target, self.fraction, self.levels = kind, f"noise_{kind}", fraction, levels

    def count(self, nodes: int) -> int:
        """Three components a node."""
        return 3 * nodes

    def record(self, record: Record, generator: np.random.Generator) -> Record:
        """The record with shifted positions, and with ``noise`` (n, 3) in units of ``noise_level`` [Å].

        The noise has no mean: a shift of the whole frame cannot be found again.
        """
        low, high = (math.log(level) for level in self.levels)
        level = math.exp(generator.uniform(low, high))
        noise = generator.standard_normal((len(record["positions"]), 3))
        noise -= noise.mean(axis=0)
        positions = np.asarray(record["positions"], np.float64) + level * noise
        return {**record, "positions": positions, "noise": noise, "noise_level": level}

    def graph(self, graph: Graph, generator: np.random.Generator) -> None:
        """Nothing is left to do: the domain carried the noise from the record to its graph."""

    def blank(self, graph: Graph) -> None:
        """Noise level and forces of zero, which are no input at all, and no label."""
        if self.target not in graph:
            zeros = torch.zeros_like(graph.positions)
            graph.noise_level, graph.clean_forces = zeros.new_zeros(1), zeros
            graph[self.target] = torch.full_like(zeros, torch.nan)


class _DenoiseHead(Head):
    """The noise (n, 3) of every fine node in units of its level: a gated sum of the vector channels."""

    lmax = 1
    reads_noise = True

    def __init__(self, context: HeadContext, hidden: int = 64) -> None:
        super().__init__(context)
        self.gates = multilayer_perceptron([context.channels, hidden, context.channels])

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
        vectors = features.fine[:, 1:4]
        noise = (vectors * self.gates(features.invariants)[:, None]).sum(dim=2)
        return {self.targets[0]: noise / math.sqrt(vectors.shape[2])}


class DenoiseAtomsHead(_DenoiseHead):
    """The noise of atoms."""

    kind = "atoms"
    targets = ("noise_atoms",)


class DenoiseResiduesHead(_DenoiseHead):
    """The noise of backbone atoms."""

    kind = "residues"
    targets = ("noise_residues",)
