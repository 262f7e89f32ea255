"""Neighbour lists by published libraries: cell lists on the CPU and on GPUs."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def by_vesin(
    positions: Tensor, cells: Tensor, pbc: Tensor, pointers: Tensor, cutoff: float
) -> tuple[Tensor, Tensor, Tensor]:
    """vesin (https://github.com/Luthaf/vesin), system by system on the CPU."""
    import numpy
    from vesin import NeighborList

    calculator = NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=torch.get_num_threads())
    points, boxes, periodic = positions.numpy(), (cells * pbc[:, :, None]).numpy(), pbc.numpy()
    bounds = pointers.tolist()
    found: list[tuple[numpy.ndarray, ...]] = [(numpy.empty(0), numpy.empty(0), numpy.empty((0, 3)))]
    for system, (start, end) in enumerate(itertools.pairwise(bounds)):
        receivers, senders, shifts = calculator.compute(
            points=points[start:end], box=boxes[system], periodic=periodic[system], quantities="ijS"
        )
        found.append((senders.astype(numpy.int64) + start, receivers.astype(numpy.int64) + start, shifts))
    senders, receivers, shifts = (
        torch.from_numpy(numpy.concatenate(parts, dtype=numpy.int64, casting="unsafe")) for parts in zip(*found)
    )
    return senders, receivers, shifts


def by_nvalchemi(
    positions: Tensor, cells: Tensor, pbc: Tensor, pointers: Tensor, cutoff: float
) -> tuple[Tensor, Tensor, Tensor]:
    """nvalchemi-toolkit-ops (https://github.com/NVIDIA/nvalchemi-toolkit-ops), all systems in one launch."""
    from nvalchemiops.neighbors.neighbor_utils import NeighborOverflowError
    from nvalchemiops.torch.neighbors import neighbor_list

    if not len(positions):
        return pointers.new_empty(0), pointers.new_empty(0), pointers.new_empty(0, 3)
    arguments = {"cell": cells, "pbc": pbc, "batch_ptr": pointers.int(), "return_neighbor_list": True}
    room: dict[str, int] = {}
    while True:
        try:
            pairs, _, shifts = neighbor_list(positions, cutoff, **arguments, **room)
            break
        except NeighborOverflowError as error:
            room = {"max_neighbors": error.num_neighbors}  # denser than it assumes
    receivers, senders = pairs.long()
    return senders, receivers, shifts.long()
