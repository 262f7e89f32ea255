"""What long-range physics needs of a structure beyond its edges: the terms of an Ewald sum, and pairs further apart.

They are made when the graph is made, so that a step sees tensors alone. The fields of a Graph:

=================  =======  =====================================================================
field              shape    meaning
=================  =======  =====================================================================
splitting          (1,)     alpha of the Ewald sum in 1 / Å, zero where nothing is periodic
waves              (W, 3)   coordinates of one of k and -k in the reciprocal basis, integers
num_waves          (1,)     how many there are
far_senders        (P,)     origin of a pair beyond the edges
far_receivers      (P,)     its target, sorted
far_shifts         (P, 3)   its lattice shift in cells, as for edges
=================  =======  =====================================================================

Charges are Gaussians of width SMEARING, so waves alone would do, in N^2 operations. Pairs within REACH / alpha take
over what is sharper than 1 / alpha. With the cost of a pair in units of that of an atom and a wave, both parts are
balanced at alpha^6 = 2 pi^3 PAIR_COST N / V^2, and the whole takes N^1.5 operations (Perram, Petersen, de Leeuw, 1988).
For rock salt: 216 atoms take 5,125 waves alone; 10,648 atoms alpha = 0.21 / Å, 19,455 waves and 2,451 pairs an atom.
"""

import copy
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch

from sciml.data.neighbors import neighbors
from sciml.errors import UserError
from sciml.graph import Graph
from sciml_kernels import half_space

SMEARING = 1.0
"""Å, the width (standard deviation) of a latent charge."""
REACH = 5.0
"""Terms of either sum beyond REACH widths are below exp(-REACH^2) = 1.4e-11 of the first."""
MOST_OPEN = 10_000
"""Atoms of an open system, whose charges all meet each other: their pairs alone take 4 GB."""
PAIR_COST = 8.0
"""Time of a pair over that of an atom and a wave, on a CPU; the results do not depend on it."""


@dataclass(frozen=True)
class FarField:
    """What a model needs: ``ewald`` the terms for potentials of charges; ``radius`` pairs up to a distance in Å."""

    ewald: bool = False
    radius: float = 0.0

    def __bool__(self) -> bool:
        return self.ewald or self.radius > 0

    def __or__(self, other: "FarField") -> "FarField":
        """What serves both."""
        return FarField(self.ewald or other.ewald, max(self.radius, other.radius))


def far_field(
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    needed: FarField,
    splitting: float | None = None,
    smearing: float = SMEARING,
) -> dict[str, Tensor]:
    """The fields above of one structure: positions (n, 3) in Å, cell (3, 3), pbc (3,).

    ``splitting`` in 1 / Å, at most 1 / (2 smearing), replaces the balanced one.
    Raises UserError where charges are wanted in a slab or a wire, or in an open system of more than MOST_OPEN atoms.
    """
    periodic = np.asarray(pbc, dtype=bool)
    n, radius, alpha, waves = len(positions), needed.radius, 0.0, torch.zeros(0, 3, dtype=torch.int64)
    if needed.ewald and periodic.all():
        volume = abs(float(np.linalg.det(cell)))
        alpha = splitting or _splitting(n, volume, radius, 0.5 / smearing)
        waves = half_space(torch.tensor(cell, dtype=torch.float64)[None], 2 * REACH * alpha).indices
        if alpha < 0.5 / smearing:
            radius = max(radius, REACH / alpha)
    elif needed.ewald and periodic.any():
        raise UserError(
            f"electrostatics: found the periodic directions {periodic.tolist()}, expected all or none of them: sums "
            "over slabs and wires are not there; give a cell with vacuum that is periodic in all directions, or set "
            "heads.energy.charges and model.reciprocal.charges to 0."
        )
    elif needed.ewald and n > MOST_OPEN:
        raise UserError(
            f"electrostatics: found an open system of {n} atoms, expected {MOST_OPEN} at most; give a cell with vacuum "
            "that is periodic in all directions."
        )
    senders, receivers, shifts = _pairs(positions, cell, periodic, radius, needed.ewald)
    return {
        "splitting": torch.tensor([alpha], dtype=torch.float64),
        "waves": waves,
        "num_waves": torch.tensor([len(waves)]),
        "far_senders": torch.from_numpy(senders),
        "far_receivers": torch.from_numpy(receivers),
        "far_shifts": torch.from_numpy(shifts).double(),
    }


def add_far_field(graph: Graph, needed: FarField) -> Graph:
    """Give a graph the fields above, in the floating type of its positions."""
    for name, value in _of(graph.positions, graph.cell[0], graph.pbc[0], needed).items():
        graph[name] = value.to(graph.positions.dtype) if value.is_floating_point() else value
    return graph


def with_far_field(batch: Batch, needed: FarField) -> Batch:
    """The batch itself where its graphs have the fields above, else a shallow copy that has them."""
    if "splitting" in batch:
        return batch
    ends = batch.ptr.tolist()
    parts: dict[str, list[Tensor]] = {}
    for index, (first, last) in enumerate(itertools.pairwise(ends)):
        for name, value in _of(batch.positions[first:last], batch.cell[index], batch.pbc[index], needed).items():
            parts.setdefault(name, []).append(value + first if name in ("far_senders", "far_receivers") else value)
    batch = copy.copy(batch)
    for name, values in parts.items():
        value = torch.cat(values).to(batch.positions.device)
        batch[name] = value.to(batch.positions.dtype) if value.is_floating_point() else value
    return batch


def _of(positions: Tensor, cell: Tensor, pbc: Tensor, needed: FarField) -> dict[str, Tensor]:
    place, lattice = (tensor.detach().cpu().double().numpy() for tensor in (positions, cell))
    return far_field(place, lattice, pbc.cpu().numpy(), needed)


def _splitting(atoms: int, volume: float, radius: float, largest: float) -> float:
    """alpha of the fastest sum: waves alone at the ``largest`` one, or waves and pairs in balance.

    Both parts cost alike in balance, and waves cost alpha^3. Pairs up to ``radius`` are there in any case.
    """
    balanced = (2 * math.pi**3 * PAIR_COST * atoms / volume**2) ** (1 / 6)
    fastest = largest if 2 * balanced**3 >= largest**3 else balanced
    return min(fastest, REACH / radius) if radius > 0 else fastest


def _pairs(
    positions: np.ndarray, cell: np.ndarray, periodic: np.ndarray, radius: float, every: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directed pairs sorted by receiver: within ``radius`` and, where ``every`` is set, all of an open system."""
    n = len(positions)
    if every and not periodic.any():
        receivers, senders = (index.ravel() for index in np.indices((n, n)))
        other = senders != receivers
        return senders[other], receivers[other], np.zeros((other.sum(), 3), np.int64)
    if radius == 0.0 or n == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
    return neighbors(positions, cell, periodic, radius)
