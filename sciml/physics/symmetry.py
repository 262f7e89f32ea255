"""Symmetry transformations of graphs and records, how outputs follow, and the error measure of every symmetry test.

Each helper takes a Graph (single, or a Batch where nodes keep their order) or a raw Record and returns the transformed
sample and an :class:`Action`, which maps outputs on the first sample to those expected on the second:

>>> turned, action = rotate(graph, random_orthogonal())      # doctest: +SKIP
>>> relative_rms(model(turned)["forces"], action(model(graph))["forces"]) < 1e-9      # doctest: +SKIP

What turns with space is told by name: ``RANKS`` for the fields of a graph, a record and a model's outputs alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from e3nn import o3
from torch import Tensor

from sciml.data.records import Record
from sciml.graph import FOUR_MOMENTA, Graph
from sciml.irreps import parse_irreps
from sciml.physics import lorentz

NOISE = ("clean_forces", "noise_atoms", "noise_residues")
MASKED = ("masked_atoms", "masked_jets")
RANKS: dict[str, int | str] = {
    **{"positions": 1, "vectors": 1, "forces": 1, "cell": 1, "stress": 2},
    **dict.fromkeys((*FOUR_MOMENTA, *NOISE), 1),
}
"""Trailing spatial axes of a field or output: 1 for vectors (rows of the cell, four-vectors too), 2 for tensors; others
have none."""
FINE_FIELDS = (
    *("types", "positions", "scalars", "vectors", "forces", "charges", "batch", "momenta", "true_momenta"),
    *NOISE,
    *MASKED,
)
"""Fields of a Graph and outputs with one row per fine node, unless told otherwise."""


@dataclass(frozen=True)
class Action:
    """How outputs transform: spatial axes by ``rotation`` (3, 3), rows of fine nodes by ``order`` (n,)."""

    rotation: Tensor | None = None
    order: Tensor | None = None

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        fine: tuple[str, ...] = FINE_FIELDS,
        ranks: Mapping[str, int | str] = RANKS,
    ) -> dict[str, Tensor]:
        """The outputs expected on the transformed sample; ``fine`` names those with one row per fine node, ``ranks``
        those that turn with space.
        """
        expected = dict(outputs)
        for name, value in outputs.items():
            if self.rotation is not None:
                value = turn(value, self.rotation, ranks.get(name, 0))
            if self.order is not None and name in fine:
                value = value[self.order.to(value.device)]
            expected[name] = value
        return expected


def relative_rms(value: Tensor | np.ndarray, reference: Tensor | np.ndarray, floor: float = 0.0) -> float:
    """RMS of the difference over the RMS of ``reference``, in float64; entries that are NaN in both count as equal.

    ``floor`` is the least RMS to divide by, where the reference may vanish. Returns inf for a difference from an
    all-zero reference.
    """
    value, reference = (torch.as_tensor(x).detach().to("cpu", torch.float64) for x in (value, reference))
    if value.shape != reference.shape:
        raise ValueError(f"relative_rms: shapes {tuple(value.shape)} and {tuple(reference.shape)} differ.")
    both = value.isnan() & reference.isnan()
    difference = (value - reference)[~both].square().sum().sqrt()
    scale = reference[~both].square().sum().sqrt()
    if difference == 0:
        return 0.0
    return float(difference / scale.clamp_min(floor * (~both).sum().sqrt()))


def lengths(value: Tensor, rank: int | str) -> Tensor:
    """The length (..., copies) of every copy of the irreps in ``rank``, signed for scalars; other values as they are.

    Boosts turn the vectors of a rest frame (Wigner, 1939) and leave these.
    """
    if not isinstance(rank, str):
        return value
    degrees = [degree for copies, degree in parse_irreps(rank) for _ in range(copies)]
    parts = value.split([2 * degree + 1 for degree in degrees], dim=-1)
    return torch.cat([part if part.shape[-1] == 1 else part.norm(dim=-1, keepdim=True) for part in parts], dim=-1)


def random_orthogonal(generator: torch.Generator | None = None) -> Tensor:
    """A matrix (3, 3) float64 of O(3), uniform in the Haar measure (Mezzadri, 2007): half of them reflect."""
    q, r = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    return q * torch.sign(torch.diagonal(r))


def random_rotation(generator: torch.Generator | None = None) -> Tensor:
    """A matrix (3, 3) float64 of SO(3), uniform in the Haar measure."""
    matrix = random_orthogonal(generator)
    return matrix * torch.sign(torch.linalg.det(matrix))


def turn(value: Tensor, rotation: Tensor, rank: int | str) -> Tensor:
    """Apply ``rotation`` (3, 3) to the last ``rank`` axes of a tensor: v -> R v, or T -> R T R^T; to the components
    (..., d) of irreps where ``rank`` names those.

    The energy of a four-vector (..., 4) stays.
    """
    if isinstance(rank, str):
        return value @ representation(rank, rotation.cpu().double()).to(value).T
    if rank == 0:
        return value
    rotation = (lorentz.lorentz_of_rotation(rotation) if value.shape[-1] == 4 else rotation).to(value)
    return value @ rotation.T if rank == 1 else rotation @ value @ rotation.T


def representation(irreps: str, rotation: Tensor) -> Tensor:
    """The matrix (d, d) float64 by which components of ``irreps``, of natural parity, turn with ``rotation`` (3, 3).

    From harmonics of the same points before and after, to rounding; by Euler angles it would have seven digits.
    """
    points = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blocks = []
    for copies, degree in parse_irreps(irreps):
        before, after = (o3.spherical_harmonics(degree, x, normalize=True) for x in (points, points @ rotation.T))
        blocks += [torch.linalg.lstsq(before, after).solution.T] * copies
    return torch.block_diag(*blocks)


def rotate(sample: Graph | Record, rotation: Tensor) -> tuple[Any, Action]:
    """Turn (or reflect) a graph or record by ``rotation`` (3, 3).

    Raises ValueError for a jet record, whose beams must turn too: use :func:`lorentz_transform`.
    """
    if "momenta" in sample and not isinstance(sample, Graph):
        raise ValueError("rotate: the beams of a jet must turn with its momenta; use lorentz_transform.")
    return _edited(sample, lambda name, value: turn(value, rotation, RANKS.get(name, 0))), Action(rotation)


def translate(sample: Graph | Record, shift: Tensor) -> tuple[Any, Action]:
    """Move all positions by ``shift`` (3,); nothing else changes."""
    return _edited(sample, lambda name, value: value + shift.to(value) if name == "positions" else value), Action()


def permute(sample: Graph | Record, order: Tensor) -> tuple[Any, Action]:
    """Renumber fine nodes so that new node i is old node ``order[i]``; edges stay sorted by receiver.

    Coarse nodes keep their numbers. A Batch is refused with ValueError: its nodes must stay in their graphs.
    """
    if not isinstance(sample, Graph):
        names = ("types", "positions", "forces", "momenta", "true_momenta", "particle_charge", "atom_names", "parent")
        rows = order.numpy()
        return {k: np.asarray(v)[rows] if k in names else v for k, v in sample.items()}, Action(order=order)
    if "ptr" in sample:
        raise ValueError("permute: a Batch cannot be permuted across its graphs; permute each graph before collating.")
    permuted = _edited(sample, lambda name, value: value[order] if name in FINE_FIELDS else value)
    place = torch.argsort(order)
    for start, others in (("", ("shifts", "edge_scalars")), ("far_", ("far_shifts",))):
        if f"{start}receivers" not in sample:
            continue
        receivers = place[sample[f"{start}receivers"]]
        edges = torch.argsort(receivers, stable=True)
        permuted[f"{start}receivers"] = receivers[edges]
        permuted[f"{start}senders"] = place[sample[f"{start}senders"]][edges]
        for name in others:
            if name in sample:
                permuted[name] = sample[name][edges]
    if "children" in sample:
        permuted.children = place[sample.children]
    return permuted, Action(order=order)


def lorentz_transform(record: Record, matrix: Tensor) -> tuple[Record, Tensor]:
    """A jet record with momenta transformed by the Lorentz ``matrix`` (4, 4), kept in float64, and its spurions (3, 4).

    Outputs on ``graph(record, ..., spurions=spurions)`` are those on the first record.
    """
    moved = {
        name: (torch.from_numpy(np.array(record[name], dtype=np.float64)) @ matrix.T).numpy()
        for name in FOUR_MOMENTA
        if name in record
    }
    return {**record, **moved}, lorentz.lab_spurions() @ matrix.T


def boost(record: Record, gamma: float, generator: torch.Generator | None = None) -> tuple[Record, Tensor]:
    """A jet record boosted by ``gamma`` in a random direction, and its spurions (3, 4)."""
    return lorentz_transform(record, lorentz.random_boost(gamma, generator))


def _edited(sample: Graph | Record, edit: Callable[[str, Tensor], Tensor]) -> Any:
    """A copy with ``edit(name, tensor)`` applied to every field that turns with space or has a row per fine node."""
    if isinstance(sample, Graph):
        changed = sample.clone()
        for name, value in sample.to_dict().items():
            if isinstance(value, Tensor) and (name in RANKS or name in FINE_FIELDS):
                changed[name] = edit(name, value)
        return changed
    changed = dict(sample)
    for name in RANKS.keys() & sample.keys():
        value = torch.from_numpy(np.array(sample[name], dtype=np.float64))
        changed[name] = edit(name, value).numpy()
    return changed
