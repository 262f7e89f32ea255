"""A head for any target that a configuration names: irreps or classes, of nodes, coarse nodes or graphs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch_geometric.data import Batch

from sciml.data.targets import Target
from sciml.graph import NUM_TYPES
from sciml.models.backbone import edge_vectors, edges_of
from sciml.models.block import Convolution
from sciml.models.layers import DegreeLinear, full_precision, multilayer_perceptron, num_components, pad_degrees
from sciml.models.radial import RadialNetwork
from sciml.models.readout import Features, Geometry, Head, HeadContext, pool_mean, pool_sum
from sciml_kernels import degree_norm, edge_embedding

BASIS = 8


class TargetHead(Head):
    """The target of its own key: components (rows, d) of irreps in ``unit``, or logits (rows, classes).

    ``level``      graph, fine (atoms, particles) or coarse (residues): what has a row;
    ``irreps``     degrees up to 4 in natural parity, whatever degrees the backbone has: one convolution along the edges
                   raises its features;
    ``unit``       of the labels; ``classes`` their names instead, for a classification;
    ``extensive``  a graph's value is the sum over its fine nodes, else the mean;
    ``kind``       of graph that it reads; ``column`` of a raw file that holds it;
    ``hidden``     width of the networks, ``channels`` of the features of degree 1 and above.

    Scalars are counted from the composition fit of an extensive target, else from the mean of the labels, in units of
    the deviation that this leaves.
    """

    takes_key = True
    by_type: Tensor
    unit_of_error: Tensor

    @classmethod
    def facts(cls, key: str, options: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        return options.get("kind", "atoms"), (key,)

    def __init__(
        self,
        context: HeadContext,
        key: str,
        level: str = "graph",
        irreps: str = "0e",
        unit: str = "",
        extensive: bool = False,
        classes: list[str] | None = None,
        kind: str = "atoms",
        column: str | None = None,
        hidden: int = 64,
        channels: int = 16,
    ) -> None:
        super().__init__(context)
        self.target = Target(key, level, irreps, unit, tuple(map(str, classes or ())), extensive, kind, column)
        self.kind, self.targets, self.levels, self.channels = kind, (key,), {key: level}, channels
        terms = [(len(self.target.classes), 0)] if classes else self.target.terms
        self.terms, self.scalars = terms, sum(copies for copies, degree in terms if degree == 0)
        tensors = sum(copies for copies, degree in terms if degree > 0)
        self.readout = multilayer_perceptron([context.channels, hidden, self.scalars]) if self.scalars else None
        self.raise_degrees: RaiseDegrees | None = None
        if tensors:
            self.raise_degrees = RaiseDegrees(context, kind, max(degree for _, degree in terms), channels)
            self.gates = multilayer_perceptron([context.channels, hidden, tensors * channels])
            self.gated = nn.Identity()  # where uncertainties look
            self.ranks = {key: irreps}
        known = context.targets.get(key, {})
        by_type = torch.zeros(NUM_TYPES, self.scalars, dtype=torch.float64)
        by_type[:] = torch.tensor(known.get("shift", [0.0] * self.scalars), dtype=torch.float64)
        for number, values in known.get("by_type", {}).items():
            by_type[int(number)] = torch.tensor(values, dtype=torch.float64)
        self.register_buffer("by_type", by_type)
        self.register_buffer("unit_of_error", torch.tensor(known.get("scale", 1.0), dtype=torch.float64))

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
        parts = {0: self._scalars(features, batch)} if self.readout is not None else {}
        tensors = self._tensors(features, batch, geometry)
        columns, taken = [], 0
        for copies, degree in self.terms:
            if degree == 0:
                columns.append(parts[0][:, taken : taken + copies])
                taken += copies
            else:
                columns.append(tensors.pop(0).flatten(1))
        return {self.targets[0]: torch.cat(columns, dim=1)}

    def scale(self, target: str, batch: Batch) -> Tensor | None:
        """The deviation of the labels, per fine node where the target is extensive."""
        if self.target.classes:
            return None
        unit = self.unit_of_error.expand(batch.num_graphs)
        return unit * batch.ptr.diff() if self._summed else unit

    def last_layers(self, target: str) -> list[nn.Module]:
        """Of scalars the end of their network, of tensors the sum over their channels."""
        ends: list[nn.Module] = [] if self.readout is None else [self.readout[-1]]
        return ends if self.raise_degrees is None else [*ends, self.gated]

    def pool_features(self, target: str, inputs: list[Tensor], batch: Batch) -> Tensor:
        """Sums or means over the nodes of a row, of every component, in the unit of the labels.

        Beside tensors scalars are components of their own, and the features of the ones are zero for the others.
        """
        parts = []
        if self.readout is not None:
            per_node = self._summed and not self.target.classes
            scalars = self._pooled(inputs[0], batch) if per_node else inputs[0]
            parts.append(scalars[:, None])
        if self.raise_degrees is not None:
            parts.append(self._pooled(inputs[-1], batch))
        if len(parts) == 2:
            scalars, tensors = parts[0].expand(-1, self.scalars, -1), parts[1]
            parts = [pad(scalars, (0, tensors.shape[2])), pad(tensors, (scalars.shape[2], 0))]
        features = torch.cat(parts, dim=1)
        return features if self.target.classes else features * self.unit_of_error

    @property
    def _summed(self) -> bool:
        return self.target.extensive and self.target.level == "graph"

    def _scalars(self, features: Features, batch: Batch) -> Tensor:
        """(rows, scalars): in float64 counted from what the types tell, or logits."""
        assert self.readout is not None
        if self.target.classes:
            return self.readout(self._rows(features.invariants, features, batch))
        of_types = self.by_type[batch.types]
        if self._summed:
            per_node = self.readout(features.invariants).double() * self.unit_of_error + of_types
            return pool_sum(per_node, batch.batch, batch.num_graphs)
        found = self.readout(self._rows(features.invariants, features, batch)).double() * self.unit_of_error
        return found + self._pooled(of_types, batch)

    def _tensors(self, features: Features, batch: Batch, geometry: Geometry) -> list[Tensor]:
        """(rows, copies, 2 l + 1) of every term of degree 1 or more: sums of gated channels of the raised features."""
        if self.raise_degrees is None:
            return []
        raised = self.raise_degrees(features, batch, geometry)
        gates = self.gates(features.invariants).view(len(raised), -1, self.channels)
        found, taken = [], 0
        for copies, degree in self.terms:
            if degree:
                of_degree = raised[:, degree * degree : (degree + 1) ** 2]
                gate = gates[:, taken : taken + copies]
                found.append(of_degree[:, None] * gate[:, :, None])
                taken += copies
        joined = self.gated(torch.cat([part.flatten(1, 2) for part in found], dim=1)).sum(dim=2) / self.channels**0.5
        pooled = self._pooled(joined.double(), batch) * self.unit_of_error
        sizes = [(copies, 2 * degree + 1) for copies, degree in self.terms if degree]
        parts = pooled.split([copies * width for copies, width in sizes], dim=1)
        return [part.unflatten(1, size) for part, size in zip(parts, sizes, strict=True)]

    def _rows(self, invariants: Tensor, features: Features, batch: Batch) -> Tensor:
        """(rows, C): pooled to the level, with the features of coarse nodes where the backbone has them."""
        rows = self._pooled(invariants, batch)
        if self.target.level == "coarse" and features.coarse is not None:
            rows = rows + features.coarse[:, 0]
        return rows

    def _pooled(self, values: Tensor, batch: Batch) -> Tensor:
        """Values (n, ...) of fine nodes per row of the level: means, or the sum of an extensive target of a graph."""
        if self.target.level == "fine":
            return values
        if self.target.level == "graph":
            pool = pool_sum if self._summed else pool_mean
            return pool(values.flatten(1), batch.batch, batch.num_graphs).view(-1, *values.shape[1:])
        children = values[batch.children].flatten(1)
        return pool_mean(children, batch.parents, batch.coarse_types.shape[0]).view(-1, *values.shape[1:])


class RaiseDegrees(nn.Module):
    """Features of ``channels`` up to a degree that the backbone may not have: its own, normalised, and a convolution of
    them with the harmonics of the edges. Maps (n, (l + 1)^2, C) to (n, (lmax + 1)^2, channels).
    """

    def __init__(self, context: HeadContext, kind: str, lmax: int, channels: int, hidden: int = 32) -> None:
        super().__init__()
        self.kind, self.lmax, self.cutoff, self.backend = kind, lmax, context.cutoffs[kind], context.backend
        self.lmax_in = min(context.lmax, lmax)
        self.linear = DegreeLinear(context.channels, channels, self.lmax_in, context.backend)
        self.radial = RadialNetwork(BASIS, [hidden], context.channels, {}, context.backend)
        self.convolution = Convolution(channels, hidden, self.lmax_in, lmax, lmax, context.backend)

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> Tensor:
        invariants = features.invariants
        positions, edges = geometry.positions_strained, edges_of(batch)
        with full_precision(positions):
            vectors = edge_vectors(batch, edges, positions, geometry.cell_strained, self.backend) / self.cutoff
            solid = self.kind == "jets"  # particles may be parallel, and their difference then has no direction
            edge = edge_embedding(vectors, self.lmax, BASIS, solid=solid, backend=self.backend)
        x = self.linear(features.fine[:, : num_components(self.lmax_in)])
        hidden = self.radial(edge, edges, invariants, invariants, self.kind, None)
        message = self.convolution(x, edge.harmonics, hidden, edges, torch.ones_like(invariants[0, 0]))
        return pad_degrees(x, self.lmax) + degree_norm(message, backend=self.backend)
