"""Records into bins within a budget of graphs, nodes and edges, as tables of costs alone."""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sciml.errors import UserError

_LOOK_AHEAD = 16  # records tried after the first that does not fit
_GAP = 0.03  # share of the budget below which a gap is not worth filling
_EVEN = 1.01  # most edges of a bin / mean, below which bins are even
_MOST_SWAPS = 32  # between the bins of a step
_MAX_WAITING = 64  # records that may wait for a gap before filling becomes mere draining


@dataclass(frozen=True)
class Budget:
    """What one micro-batch may hold at most; None is no limit. A record that is larger alone gets its own bin."""

    max_graphs: int | None = None
    max_nodes: int | None = None
    max_edges: int | None = None

    def __post_init__(self) -> None:
        limits = (self.max_graphs, self.max_nodes, self.max_edges)
        if any(limit is not None and limit <= 0 for limit in limits):
            raise UserError(f"batch: budget {limits} found, expected positive numbers of graphs, nodes and edges.")
        if all(limit is None for limit in limits):
            raise UserError("batch: no budget is set; set one of max_graphs, max_nodes, max_edges.")


def pack(costs: np.ndarray, budget: Budget, look_ahead: int = _LOOK_AHEAD) -> list[list[int]]:
    """Pack records of ``costs`` (n, 3: graphs, nodes, edges) in order into bins within ``budget``; indices per bin.

    Greedy next-fit by prefix sums, so the work is per bin; gaps are filled from the next ``look_ahead`` records, and
    those passed over come first in a later bin. With ``look_ahead=0`` the order is kept.
    """
    limits = [(axis, limit) for axis, limit in enumerate((budget.max_graphs, budget.max_nodes, budget.max_edges))]
    used = [(axis, limit) for axis, limit in limits if limit is not None]
    limit = [value for _, value in used]
    costs = np.asarray(costs, dtype=np.int64)[:, [axis for axis, _ in used]]
    table = costs.tolist()
    sums = [np.concatenate([[0], np.cumsum(column)]) for column in costs.T]
    bins: list[list[int]] = []
    waiting: list[int] = []
    cursor, total = 0, len(costs)
    while cursor < total or waiting:
        left = list(limit)
        members: list[int] = []
        waiting = _fill(waiting, table, left, members)
        end = cursor
        if cursor < total:
            reach = [int(column.searchsorted(column[cursor] + room, "right")) for column, room in zip(sums, left)]
            end = max(min(reach) - 1, cursor)
            left = [room - int(column[end] - column[cursor]) for column, room in zip(sums, left)]
            members.extend(range(cursor, end))
        if not members:  # nothing fits into an empty bin: the next record is larger than the budget
            members, end = ([waiting.pop(0)], cursor) if waiting else ([cursor], cursor + 1)
        elif end < total and look_ahead and len(waiting) < _MAX_WAITING and _worth_filling(left, limit):
            ahead = range(end, min(end + look_ahead, total))
            waiting += _fill(ahead, table, left, members)
            end = ahead[-1] + 1
        bins.append(members)
        cursor = end
    return bins


def balance(costs: np.ndarray, bins: list[list[int]], budget: Budget) -> list[list[int]]:
    """Deal the records of ``bins`` anew so that each has nearly as many edges; all stay within ``budget``.

    ``costs`` (n, 3: graphs, nodes, edges) of the records, which the bins hold by index.
    """
    limits = np.array([np.inf if x is None else x for x in (budget.max_graphs, budget.max_nodes, budget.max_edges)])
    dealt = _even_out(_largest_first(costs, sorted(itertools.chain(*bins)), len(bins), limits) or bins, costs, limits)
    heaviest = [max(costs[members, 2].sum() for members in found) for found in (dealt, bins)]
    return dealt if heaviest[0] <= heaviest[1] else _even_out(bins, costs, limits)


def _largest_first(costs: np.ndarray, records: list[int], count: int, limits: np.ndarray) -> list[list[int]] | None:
    """The record with the most edges first, each into the bin with the fewest that has room (Graham, 1969).

    A record that is larger than the limits alone needs an empty bin. None where a record finds no room. A bin without
    room for the smallest graphs, nodes and edges of all records is not asked again.
    """
    members: list[list[int]] = [[] for _ in range(count)]
    table, most = costs.tolist(), limits.tolist()
    last = (limits - costs[records].min(axis=0)).tolist()  # the most that a bin may hold to have room for any record
    lightest = [(0, 0, 0, target) for target in range(count)]  # a heap of (edges, graphs, nodes, bin)
    for record in sorted(records, key=lambda i: (-table[i][2], -table[i][1], i)):
        graphs, nodes, edges = table[record]
        full = []
        while lightest:
            had_edges, had_graphs, had_nodes, target = heapq.heappop(lightest)
            load = (had_graphs + graphs, had_nodes + nodes, had_edges + edges)
            if not members[target] or all(value <= limit for value, limit in zip(load, most)):
                break
            if all(value <= limit for value, limit in zip((had_graphs, had_nodes, had_edges), last)):
                full.append((had_edges, had_graphs, had_nodes, target))
        else:
            return None
        members[target].append(record)
        for entry in (*full, (load[2], load[0], load[1], target)):
            heapq.heappush(lightest, entry)
    return members


def _even_out(bins: list[list[int]], costs: np.ndarray, limits: np.ndarray) -> list[list[int]]:
    """Swap records of the bin with the most edges for smaller ones of others, or move them, while that helps."""
    bins = [list(members) for members in bins]
    none = np.zeros((1, costs.shape[1]), dtype=costs.dtype)
    for _ in range(_MOST_SWAPS):
        loads = np.stack([costs[members].sum(axis=0) for members in bins])
        order = np.argsort(loads[:, 2], kind="stable").tolist()
        most = order[-1]
        if loads[most, 2] <= _EVEN * loads[:, 2].mean():
            break
        for other in order[:-1]:
            # what bin `most` would give away, by its record and the one it gets (the last: none)
            given = costs[bins[most]][:, None] - np.concatenate([costs[bins[other]], none])[None]
            worst = np.maximum(loads[most, 2] - given[..., 2], loads[other, 2] + given[..., 2]).astype(float)
            fits = (loads[other] + given <= limits) & (loads[most] - given <= np.maximum(limits, loads[most]))
            worst[~fits.all(axis=-1)] = np.inf
            if len(bins[most]) == 1:
                worst[:, -1] = np.inf
            give, get = np.unravel_index(int(worst.argmin()), worst.shape)
            if worst[give, get] < loads[most, 2]:
                record = bins[most].pop(int(give))
                if get < len(bins[other]):
                    bins[most].append(bins[other].pop(int(get)))
                bins[other].append(record)
                break
        else:
            break
    return bins


def _worth_filling(left: list[int], limit: list[int]) -> bool:
    return all(room > _GAP * most for room, most in zip(left, limit))


def _fill(candidates: Sequence[int], table: list[list[int]], left: list[int], members: list[int]) -> list[int]:
    """Move candidates that fit into ``members`` and take them off ``left``, in place; return those passed over."""
    passed = []
    for candidate in candidates:
        cost = table[candidate]
        for need, room in zip(cost, left):
            if need > room:
                passed.append(candidate)
                break
        else:
            left[:] = [room - need for need, room in zip(cost, left)]
            members.append(candidate)
    return passed
