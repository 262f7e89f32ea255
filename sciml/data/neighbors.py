"""Neighbour lists for molecules, crystals and slabs, by the cell lists of vesin (https://github.com/Luthaf/vesin)."""

import math

import numpy as np

from sciml.errors import UserError

_MOST_CELLS = 10**6
"""The cell lists of vesin end the process where an open system is spread over too many cells."""


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
        if _scattered(positions, cutoff):
            return _pairs_of_tree(positions, cutoff)
    from vesin import NeighborList

    calculator = NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=1)
    box = np.where(periodic[:, None], np.asarray(cell, dtype=np.float64), 0.0)
    receivers, senders, shifts = calculator.compute(points=positions, box=box, periodic=periodic, quantities="ijS")
    return senders.astype(np.int64), receivers.astype(np.int64), shifts.astype(np.int64)


def _scattered(positions: np.ndarray, cutoff: float) -> bool:
    """Whether an open system takes more cells than there should be."""
    return len(positions) > 0 and bool(np.prod(np.ceil(np.ptp(positions, axis=0) / cutoff) + 1) > _MOST_CELLS)


def _pairs_of_tree(positions: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same for an open system whose parts are very far from each other."""
    from scipy.spatial import cKDTree

    pairs = cKDTree(positions).query_pairs(cutoff, output_type="ndarray").astype(np.int64)
    receivers, senders = np.concatenate([pairs, pairs[:, ::-1]]).T
    order = np.lexsort((senders, receivers))
    return senders[order], receivers[order], np.zeros((len(order), 3), np.int64)


def pair_counts(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radii: tuple[float, ...]) -> np.ndarray:
    """Return the number of directed pairs within each of ``radii`` (ascending, Å), int64 (len(radii),)."""
    periodic = np.asarray(pbc, dtype=bool)
    if not periodic.any() and _scattered(positions, radii[-1]):
        senders, receivers, _ = _pairs_of_tree(np.asarray(positions, dtype=np.float64), radii[-1])
        distances = np.linalg.norm(positions[senders] - positions[receivers], axis=1)
        return np.searchsorted(np.sort(distances), radii, side="right").astype(np.int64)
    from vesin import NeighborList

    box = np.where(periodic[:, None], np.asarray(cell, dtype=np.float64), 0.0)
    calculator = NeighborList(cutoff=radii[-1], full_list=False, sorted=False, n_threads=1)
    points = np.ascontiguousarray(positions, dtype=np.float64)
    if not periodic.any():
        points = points - points.mean(axis=0)
    (distances,) = calculator.compute(points=points, box=box, periodic=periodic, quantities="d")
    return 2 * np.searchsorted(np.sort(distances), radii, side="right").astype(np.int64)
