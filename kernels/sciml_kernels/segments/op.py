"""The public segment operations: check the arguments, choose a backend.

Rows are sorted by segment (atoms by graph): those of segment s are pointers[s] to pointers[s + 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciml_kernels.backends import choose
from sciml_kernels.checks import check_alike, check_shape, check_type, readable
from sciml_kernels.half import in_single
from sciml_kernels.segments import cpu, library, reference


def segment_pointers(index: Tensor, num_segments: int) -> Tensor:
    """Pointers (num_segments + 1,) of rows whose segment is `index`, which must ascend.

    Raises:
        ValueError: index is not int64 (rows,), does not ascend, or leaves 0..num_segments - 1.
    """
    if index.dtype != torch.int64 or index.dim() != 1:
        raise ValueError(f"index: found {index.dtype} of shape {tuple(index.shape)}, expected int64 (rows,)")
    if index.numel():
        if bool((index[1:] < index[:-1]).any()):
            raise ValueError("index: found in no ascending order, expected rows sorted by segment")
        first, last = int(index[0]), int(index[-1])
        if first < 0 or last >= num_segments:
            raise ValueError(f"index: found {first}..{last}, expected within 0..{num_segments - 1}")
    return torch.searchsorted(index, torch.arange(num_segments + 1, device=index.device))


def segment_sum(values: Tensor, pointers: Tensor, backend: str = "auto") -> Tensor:
    """out[s] = sum of values[pointers[s] : pointers[s + 1]], in a fixed order; derivatives of every order.

    Args:
        values: (rows, ...), sorted by segment.
        pointers: (segments + 1,) int64, ascending from 0 to rows; see `segment_pointers`.
        backend: "auto" (compiled where possible), "reference" (plain torch), "cpu" (generated C++), "triton".

    Raises:
        ValueError: an argument of wrong shape, dtype or device, pointers that do not fit (checked on a CPU), or a
            backend that is not possible here.
    """
    chosen = _choose("values", values, pointers, backend)
    if chosen == "reference":
        return reference.segment_sum(values, pointers)
    return library.segment_sum(values, pointers, chosen)


def segment_expand(values: Tensor, pointers: Tensor, rows: int, backend: str = "auto") -> Tensor:
    """out[r] = values[segment of r], the transpose of `segment_sum`; derivatives of every order.

    Args:
        values: (segments, ...).
        pointers: (segments + 1,) int64, ascending from 0 to rows.
        rows: the length of the result.
        backend: as for `segment_sum`; raises as it does.
    """
    chosen = _choose("values", values, pointers, backend, rows)
    if values.shape[0] != pointers.shape[0] - 1:
        raise ValueError(f"values: found {values.shape[0]} rows, expected {pointers.shape[0] - 1}, one of each segment")
    if chosen == "reference":
        return reference.segment_expand(values, pointers, rows)
    return library.segment_expand(values, pointers, rows, chosen)


def remove_net_force(forces: Tensor, pointers: Tensor, backend: str = "auto") -> Tensor:
    """Forces less their mean over each graph, the least change that makes their sum zero; derivatives of every order.

    Args:
        forces: (atoms, 3), or any (atoms, ...).
        pointers, backend: as for `segment_sum`; raises as it does.
    """
    chosen = _choose("forces", forces, pointers, backend)
    if chosen == "reference":
        return reference.remove_mean(forces, pointers)
    return library.remove_mean(forces, pointers, chosen)


def remove_net_force_and_torque(forces: Tensor, positions: Tensor, pointers: Tensor, backend: str = "auto") -> Tensor:
    """The least change of the forces that makes their sum and their torque zero in each graph; differentiable twice.

    For systems without periodic cells: a cell fixes directions, so that torque is not conserved there. Atoms on a line
    and single atoms are treated as such; at the passage from a line to a bent shape the result jumps, as the number of
    conditions does.

    Args:
        forces, positions: (atoms, 3).
        pointers, backend: as for `segment_sum`; raises as it does.
    """
    check_shape("forces", forces, (None, 3))
    check_shape("positions", positions, (forces.shape[0], 3))
    check_alike("forces", forces, positions=positions)
    chosen = _choose("forces", forces, pointers, backend)
    if chosen == "reference":
        return reference.remove_net_force_and_torque(forces, positions, pointers)
    if chosen == "triton":  # a few numbers for each graph: the definition on deterministic sums
        return reference.remove_net_force_and_torque(
            forces, positions, pointers, lambda values, pointers: library.segment_sum(values, pointers, chosen)
        )
    return library.momentum(forces, positions, pointers, chosen)


def project_charge(charges: Tensor, totals: Tensor, pointers: Tensor, backend: str = "auto") -> Tensor:
    """The least change of the charges that gives each graph its total charge; derivatives of every order.

    Args:
        charges: (atoms,).
        totals: (graphs,); that of an empty graph has no effect.
        pointers, backend: as for `segment_sum`; raises as it does.
    """
    check_shape("charges", charges, (None,))
    chosen = _choose("charges", charges, pointers, backend)
    check_shape("totals", totals, (pointers.shape[0] - 1,))
    check_alike("charges", charges, totals=totals)
    if chosen == "reference":
        return reference.project_charge(charges, totals, pointers)
    return _projected(charges, totals, pointers, chosen)


@in_single
def _projected(charges: Tensor, totals: Tensor, pointers: Tensor, backend: str) -> Tensor:
    shares = totals / reference.counts(pointers, totals)
    centered = library.remove_mean(charges, pointers, backend)
    return centered + library.segment_expand(shares, pointers, charges.shape[0], backend)


def _choose(name: str, values: Tensor, pointers: Tensor, backend: str, rows: int | None = None) -> str:
    """The backend, after the checks that all operations share; `rows` where they are not those of the values."""
    check_alike(name, values)
    check_type("pointers", pointers, Tensor)
    if values.dim() < 1:
        raise ValueError(f"{name}: found a scalar, expected (rows, ...)")
    if pointers.dtype != torch.int64 or pointers.dim() != 1 or pointers.shape[0] < 1:
        raise ValueError(
            f"pointers: found {pointers.dtype} of shape {tuple(pointers.shape)}, expected int64 (segments + 1,)"
        )
    if pointers.device != values.device:
        raise ValueError(f"pointers: found on {pointers.device}, expected on {values.device} as {name}")
    chosen = choose(backend, values)
    check_pointers("pointers", pointers, values.shape[0] if rows is None else rows, chosen)
    return chosen


def check_pointers(name: str, pointers: Tensor, rows: int, chosen: str) -> None:
    """Raise ValueError unless pointers on a CPU ascend from 0 to the number of rows: kernels would read elsewhere."""
    if pointers.device.type != "cpu" or not readable(pointers):
        return
    ascending = cpu.ascending if chosen == "cpu" else reference.ascending
    if not ascending(pointers, rows):
        raise ValueError(f"{name}: found {_shown(pointers)}, expected ascending from 0 to {rows}")


def _shown(pointers: Tensor) -> str:
    values = pointers[:6].tolist()
    return f"{values}" if len(pointers) <= 6 else f"{values[:-1]}...{int(pointers[-1])}"
