"""Neighbour lists for molecules, crystals and slabs, by the cell lists of vesin (https://github.com/Luthaf/vesin)."""

import math

import numpy as np

from sciml.errors import UserError


def neighbors(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every directed pair closer than ``cutoff``, periodic images included, sorted by receiver.

    Arguments: positions (n, 3) in Å, cell (3, 3) with lattice vectors as rows, pbc (3,), cutoff in Å. Returns senders
    (E,), receivers (E,) and shifts (E, 3), all int64; the edge vector, sender relative to receiver, is
    ``positions[sender] - positions[receiver] + shifts @ cell``. An atom is a neighbour of its own images.
    Raises UserError when the cutoff is not a positive finite number or a coordinate is not finite.
    """
    if not (math.isfinite(cutoff) and cutoff > 0):
        raise UserError(f"cutoff: {cutoff} found, expected a positive length in Å.")
    positions = np.ascontiguousarray(positions, dtype=np.float64)
    if not np.isfinite(positions).all():
        raise UserError("positions: NaN or infinite coordinates have no neighbours; clean the record.")
    periodic = np.asarray(pbc, dtype=bool)
    if not periodic.any():
        # Far from the origin the grid of the cell list loses digits; only differences matter here.
        positions = positions - positions.mean(axis=0) if len(positions) else positions
    from vesin import NeighborList

    calculator = NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=1)
    box = np.where(periodic[:, None], np.asarray(cell, dtype=np.float64), 0.0)
    receivers, senders, shifts = calculator.compute(points=positions, box=box, periodic=periodic, quantities="ijS")
    return senders.astype(np.int64), receivers.astype(np.int64), shifts.astype(np.int64)


def pair_counts(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radii: tuple[float, ...]) -> np.ndarray:
    """Return the number of directed pairs within each of ``radii`` (ascending, Å), int64 (len(radii),)."""
    from vesin import NeighborList

    periodic = np.asarray(pbc, dtype=bool)
    box = np.where(periodic[:, None], np.asarray(cell, dtype=np.float64), 0.0)
    calculator = NeighborList(cutoff=radii[-1], full_list=False, sorted=False, n_threads=1)
    points = np.ascontiguousarray(positions, dtype=np.float64)
    if not periodic.any():
        points = points - points.mean(axis=0)
    (distances,) = calculator.compute(points=points, box=box, periodic=periodic, quantities="d")
    return 2 * np.searchsorted(np.sort(distances), radii, side="right").astype(np.int64)
