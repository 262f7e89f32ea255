"""The public neighbour list: check the arguments, choose a library, put the pairs in order."""

from __future__ import annotations

import functools
import importlib.util
import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from sciml_kernels.checks import check_alike, check_shape
from sciml_kernels.neighbors import libraries, reference

_LIBRARY = {"vesin": ("vesin", "vesin"), "nvalchemi": ("nvalchemiops", "nvalchemi-toolkit-ops")}  # module, distribution
_SEARCH = {
    "reference": reference.neighbor_list,
    "vesin": libraries.by_vesin,
    "nvalchemi": libraries.by_nvalchemi,
}
_FLAT = 1e-9  # volume over the product of the lengths of the lattice vectors, below which they lie in a plane


class Neighbors(NamedTuple):
    """Directed pairs of a batch, sorted by receiver, then sender, then shift.

    Attributes:
        senders, receivers: (edges,) int64, counted through the batch: what `Edges` takes.
        shifts: (edges, 3) int64. With the cell of their system the edge vector, sender relative to receiver, is
            positions[sender] - positions[receiver] + shift @ cell; shifts are 0 along directions without periodicity.
    """

    senders: Tensor
    receivers: Tensor
    shifts: Tensor


def neighbor_list(
    positions: Tensor, cells: Tensor, pbc: Tensor, pointers: Tensor, cutoff: float, backend: str = "auto"
) -> Neighbors:
    """Every directed pair of atoms of one system closer than `cutoff`, periodic images included.

    An atom is a neighbour of its own images. The list is the same on every device and by every backend, as distances
    are compared in double; it carries no derivatives, those of the edge vectors follow from its indices and shifts.

    Args:
        positions: (atoms, 3), sorted by system; atoms may lie outside their cell.
        cells: (systems, 3, 3), lattice vectors as rows; rows of directions without periodicity are not read.
        pbc: (systems, 3) bool, the periodic directions.
        pointers: (systems + 1,) int64: the atoms of system s are pointers[s] to pointers[s + 1].
        cutoff: in the unit of the positions.
        backend: "auto" (vesin on a CPU, nvalchemi on a GPU, and the reference, with one sentence that says so, where
            that is not installed), "reference" (all pairs of all images), "vesin", "nvalchemi".

    Raises:
        ValueError: an argument of wrong shape, dtype, device or value, or a backend that is not possible here.
    """
    _check(positions, cells, pbc, pointers, cutoff)
    chosen = _choose(backend, positions)
    with torch.no_grad():
        cells = _completed(cells.detach().double(), pbc)
        positions, cells = _placed(positions.detach().double(), cells, pbc, pointers)
        search = _SEARCH[chosen]
        return _ordered(*search(positions, cells, pbc, pointers, float(cutoff)), len(positions))


def _check(positions: Tensor, cells: Tensor, pbc: Tensor, pointers: Tensor, cutoff: float) -> None:
    check_shape("positions", positions, (None, 3))
    if pointers.dim() != 1 or not pointers.numel():
        raise ValueError(f"pointers: found shape {tuple(pointers.shape)}, expected (systems + 1,)")
    systems = pointers.shape[0] - 1
    check_shape("cells", cells, (systems, 3, 3))
    check_shape("pbc", pbc, (systems, 3))
    check_alike("positions", positions, cells=cells)
    for name, tensor, dtype in (("pbc", pbc, torch.bool), ("pointers", pointers, torch.int64)):
        if tensor.dtype != dtype or tensor.device != positions.device:
            raise ValueError(
                f"{name}: found {tensor.dtype} on {tensor.device}, expected {dtype} on {positions.device} as positions"
            )
    if not (math.isfinite(cutoff) and cutoff > 0):
        raise ValueError(f"cutoff: found {cutoff}, expected a positive length")
    bounds = pointers.tolist()
    if bounds[:1] != [0] or bounds[-1] != len(positions) or bounds != sorted(bounds):
        raise ValueError(f"pointers: found {bounds[:3]}..{bounds[-1:]}, expected 0 ascending to {len(positions)} atoms")
    for name, tensor in (("positions", positions), ("cells", cells[pbc])):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}: found NaN or an infinite number, expected finite ones")


def _choose(backend: str, positions: Tensor) -> str:
    """The backend that runs: "auto" resolved, an impossible choice refused."""
    if backend not in ("auto", "reference", *_LIBRARY):
        raise ValueError(f"backend: found {backend!r}, expected 'auto', 'reference', 'vesin' or 'nvalchemi'")
    on_cpu = positions.device.type == "cpu"
    chosen = ("vesin" if on_cpu else "nvalchemi") if backend == "auto" else backend
    reason = ""
    if chosen == "vesin" and not on_cpu:
        reason = f"positions are on {positions.device}, expected on the CPU"
    elif chosen in _LIBRARY and not _installed(_LIBRARY[chosen][0]):
        reason = f"{_LIBRARY[chosen][1]} is not installed"
    if reason and backend != "auto":
        raise ValueError(f"backend: {backend!r} is not possible, {reason}")
    if reason:
        _warn(reason)
    return "reference" if reason else chosen


@functools.cache
def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(f"neighbor_list looks at all pairs of atoms, which is slow: {reason}.", stacklevel=4)


def _completed(cells: Tensor, pbc: Tensor) -> Tensor:
    """Cells in which rows of directions without periodicity are unit vectors at right angles to all others.

    Raises:
        ValueError: periodic lattice vectors that lie in a plane or on a line.
    """
    periodic = torch.where(pbc[:, :, None], cells, 0.0)
    # The projector on the periodic vectors has an eigenvalue 0 for each direction that they leave open.
    lengths = torch.linalg.vector_norm(periodic, dim=2, keepdim=True)
    units = periodic / lengths.clamp(min=torch.finfo(cells.dtype).tiny)
    directions = torch.linalg.eigh(units.mT @ units).eigenvectors.mT
    place = ((~pbc).cumsum(1) - 1).clamp(min=0)
    directions = directions.gather(1, place[:, :, None].expand(-1, -1, 3))
    volumes = torch.linalg.det(torch.where(pbc[:, :, None], units, directions)).abs()
    if len(cells) and float(volumes.min()) < _FLAT:
        system = int(volumes.argmin())
        raise ValueError(f"cells: found no volume in system {system}, expected independent periodic lattice vectors")
    return torch.where(pbc[:, :, None], cells, directions)


def _placed(positions: Tensor, cells: Tensor, pbc: Tensor, pointers: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and cells so that open directions begin at 0 and their row of the cell spans the atoms."""
    system = torch.repeat_interleave(pointers.diff(), output_size=len(positions))
    fractional = torch.einsum("ad,adk->ak", positions, torch.linalg.inv(cells)[system])
    index = system[:, None].expand(-1, 3)
    least, most = (
        fractional.new_zeros(len(cells), 3).scatter_reduce(0, index, fractional, name, include_self=False)
        for name in ("amin", "amax")
    )
    begin = torch.where(pbc, 0.0, least)
    positions = positions - torch.einsum("sd,sdk->sk", begin, cells)[system]
    return positions, cells * torch.where(pbc, 1.0, (most - least).clamp(min=1.0))[:, :, None]


def _ordered(senders: Tensor, receivers: Tensor, shifts: Tensor, atoms: int) -> Neighbors:
    """Pairs sorted by receiver, sender and shift: libraries leave the order of a receiver's senders open."""
    reach = int(shifts.abs().amax()) if len(shifts) else 0
    pairs = receivers * atoms + senders
    if reach == 0:
        order = torch.argsort(pairs)
    else:
        first, second, third = (shifts + reach).unbind(1)
        base = 2 * reach + 1
        order = torch.argsort((first * base + second) * base + third)
        order = order[torch.argsort(pairs[order], stable=True)]
    return Neighbors(senders[order], receivers[order], shifts[order])
