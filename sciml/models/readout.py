"""What every head shares: the context it is built from, the geometry it may differentiate, and pooling."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from sciml.data.far_field import FarField


@dataclass(frozen=True)
class HeadContext:
    """Facts of the training data that heads are built from: plain data, stored in the package.

    ``datasets`` names of the levels of theory in the order of their index; ``references`` {dataset: {atomic number:
    eV}}; ``scales`` {dataset: eV/Å} the RMS of forces; ``spreads`` {dataset: eV} the deviation of energies per atom
    that the references leave; ``classes`` names of the graph classes; ``targets`` {target of a configuration: {scale,
    shift, by_type}} what :func:`sciml.train.labels.target_facts` finds of its labels; ``cutoffs`` {kind: radius of the
    edges}; ``lmax`` highest degree of the features; ``backend`` of sciml_kernels.
    """

    channels: int
    datasets: list[str]
    references: dict[str, dict[str, float]] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, float] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    cutoffs: dict[str, float] = field(default_factory=dict)
    lmax: int = 0
    backend: str = "auto"


@dataclass(frozen=True)
class Features:
    """What the backbone made of a batch: [node, component, channel] with degrees 0 up to the highest that a head reads.

    ``fine`` (n, (lmax + 1)^2, C); ``coarse`` (r, (lmax + 1)^2, C), None where the backbone has no coarse level.
    """

    fine: Tensor
    coarse: Tensor | None = None

    @property
    def invariants(self) -> Tensor:
        """The degree 0 of the fine level, (n, C)."""
        return self.fine[:, 0]


@dataclass(frozen=True)
class Geometry:
    """Positions (n, 3) to differentiate; the same and the cells (B, 3, 3) under the strain (B, 3, 3) that is zero; and
    whether to keep the graph.
    """

    positions: Tensor
    positions_strained: Tensor
    cell_strained: Tensor
    strain: Tensor
    create_graph: bool


class Head(nn.Module):
    """Base of all heads: turns the features of nodes into named predictions.

    A subclass sets ``kind`` (the kind of graph it reads), ``targets`` (the predictions it returns), ``levels`` (graph,
    fine or coarse, where the number of rows of a prediction may not tell), ``lmax`` (the highest degree of features it
    reads), ``differentiates`` (whether it needs gradients of the geometry) and
    ``far_field`` (what it needs beyond the edges) and ``reads_noise`` (whether the backbone must know the level of
    noise in the positions), and takes (context, **options) to build, with ``takes_key`` (context, key, **options).
    What ``sciml verify`` must know beside that: ``ranks`` {prediction: spatial axes, or irreps} of those that turn with
    space and are not in :data:`sciml.physics.symmetry.RANKS`, ``irc_safe``, the claim that soft particles and
    collinear splittings change nothing, and ``shares_charge``, that parts of a system do so however far they are apart.
    """

    kind: str
    targets: tuple[str, ...]
    levels: dict[str, str] = {}
    lmax: int = 0
    differentiates: bool = False
    far_field: FarField = FarField()
    reads_noise: bool = False
    takes_key: bool = False
    ranks: dict[str, int | str] = {}
    irc_safe: bool = False
    shares_charge: bool = False

    @classmethod
    def facts(cls, key: str, options: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Kind and targets of the head that ``options`` under ``key`` build."""
        return cls.kind, cls.targets

    def __init__(self, context: HeadContext, **options: Any) -> None:
        super().__init__()

    def forward(self, features: Features, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
        """Return {target: prediction}."""
        raise NotImplementedError

    def last_layers(self, target: str) -> list[nn.Module]:
        """The linear layers at the end of ``target``, whose inputs tell how certain it is; empty without one."""
        readout = getattr(self, "readout", None)
        return [readout[-1]] if target == self.targets[0] and isinstance(readout, nn.Sequential) else []

    def pool_features(self, target: str, inputs: list[Tensor], batch: Batch) -> Tensor:
        """What the prediction, as it is compared, is linear in, (rows, components, w) float64, from the inputs (..., w)
        of its last layers.
        """
        return inputs[0][:, None]

    def scale(self, target: str, batch: Batch) -> Tensor | None:
        """Unit (B,) in which the error of ``target`` is measured by the loss, per graph; None for one."""
        return None

    def compared(self, target: str, values: Tensor, batch: Batch) -> Tensor:
        """Predictions or labels (rows, ...) in the frame where they are compared and where uncertainties are told, in
        their own unit: a linear map.
        """
        return values

    def error(self, target: str, prediction: Tensor, label: Tensor, batch: Batch) -> Tensor:
        """What the loss of ``target`` makes small, of the shape of both and in the unit of ``scale``."""
        return self.compared(target, prediction - label, batch)


def pool_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum rows of ``values`` into ``size`` groups; shape (size, ...)."""
    return values.new_zeros((size, *values.shape[1:])).index_add(0, index, values)


def pool_mean(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Mean of rows in each group; zero for an empty group."""
    counts = pool_sum(torch.ones_like(values[:, :1]), index, size)
    return pool_sum(values, index, size) / counts.clamp_min(1.0)
