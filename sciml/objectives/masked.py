"""Masked types: some nodes of some samples hide their type, and a head finds it from what is around them.

The type of a masked node is 0 (BERT, Devlin et al., 2019; on graphs Hu et al., 2020). For atoms it is the element, for
jets the kind of the particle; the masked residue types of proteins are a target of their own, ``residue_types``.
"""

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch

from sciml.data.records import Record
from sciml.graph import INPUTS, NUM_TYPES, Graph
from sciml.models.layers import multilayer_perceptron
from sciml.models.readout import Features, Geometry, Head, HeadContext


class Masked:
    """Hides the types of a part ``nodes`` of the nodes in a ``fraction`` of the samples of ``kind``, at least of one.

    See :class:`sciml.data.corruption.Corruption`. What else would tell the type is hidden too: the charge of a particle
    and with it charge and mass of its subjet, the role of an atom in the frame of its residue.
    """

    def __init__(self, kind: str, fraction: float, nodes: float) -> None:
        self.kind, self.target, self.fraction, self.nodes = kind, f"masked_{kind}", fraction, nodes

    def count(self, nodes: int) -> int:
        """One label a masked node."""
        return max(1, round(self.nodes * nodes))

    def record(self, record: Record, generator: np.random.Generator) -> Record:
        """The record itself: types make no edges."""
        return record

    def graph(self, graph: Graph, generator: np.random.Generator) -> None:
        """Hide the types of the chosen nodes and make them labels."""
        nodes = len(graph.types)
        chosen = torch.from_numpy(generator.permutation(nodes)[: self.count(nodes)])
        label = torch.full_like(graph.types, -1)
        label[chosen] = graph.types[chosen]
        graph[self.target] = label
        graph.types = graph.types.index_fill(0, chosen, 0)
        columns = torch.tensor(INPUTS[self.kind].type_scalars, dtype=torch.int64)
        if len(columns):
            graph.scalars = graph.scalars.clone()
            graph.scalars[chosen[:, None], columns] = 0.0
        of_parents = torch.tensor(INPUTS[self.kind].coarse_type_scalars, dtype=torch.int64)
        if len(of_parents) and "coarse_scalars" in graph:
            parents = graph.parents[torch.isin(graph.children, chosen)]
            graph.coarse_scalars = graph.coarse_scalars.clone()
            graph.coarse_scalars[parents[:, None], of_parents] = 0.0
        if "child_roles" in graph:
            graph.child_roles = graph.child_roles.masked_fill(torch.isin(graph.children, chosen)[:, None], 0.0)

    def blank(self, graph: Graph) -> None:
        """No label."""
        if self.target not in graph:
            graph[self.target] = torch.full_like(graph.types, -1)


class _MaskedHead(Head):
    """Logits (n, NUM_TYPES) of the type of every fine node."""

    def __init__(self, context: HeadContext, hidden: int = 64) -> None:
        super().__init__(context)
        self.readout = multilayer_perceptron([context.channels, hidden, NUM_TYPES])

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
        return {self.targets[0]: self.readout(features.invariants)}


class MaskedAtomsHead(_MaskedHead):
    """Masked elements."""

    kind = "atoms"
    targets = ("masked_atoms",)


class MaskedJetsHead(_MaskedHead):
    """Masked kinds of particles."""

    kind = "jets"
    targets = ("masked_jets",)
