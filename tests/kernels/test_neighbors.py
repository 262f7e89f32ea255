"""Neighbour lists of batches: the definition against a loop, every library against the definition."""

from __future__ import annotations

import importlib.util
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sciml_kernels import Edges, Neighbors, neighbor_list
from sciml_kernels.neighbors import op

LIBRARIES = [
    "vesin",
    pytest.param(
        "nvalchemi",
        marks=pytest.mark.skipif(importlib.util.find_spec("nvalchemiops") is None, reason="nvalchemi is not installed"),
    ),
]
BACKENDS = pytest.mark.parametrize("backend", ["reference", *LIBRARIES])


def batch(seed: int, counts: list[int], size: float = 4.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions, triclinic cells, periodic directions and pointers of systems; some atoms lie outside their cell."""
    generator = torch.Generator().manual_seed(seed)
    systems = len(counts)
    noise = torch.randn(systems, 3, 3, dtype=torch.float64, generator=generator)
    cells = size * torch.eye(3, dtype=torch.float64) + 0.12 * size * noise
    pbc = torch.rand(systems, 3, generator=generator) < 0.6
    pointers = torch.tensor([0, *itertools.accumulate(counts)])
    fractional = 1.4 * torch.rand(sum(counts), 3, dtype=torch.float64, generator=generator) - 0.2
    system = torch.repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    return torch.einsum("ad,adk->ak", fractional, cells[system]), cells, pbc, pointers


def by_loop(positions: Tensor, cells: Tensor, pbc: Tensor, pointers: Tensor, cutoff: float) -> list[tuple[int, ...]]:
    """(receiver, sender, shift) of every pair, sorted."""
    found = []
    for system, (start, end) in enumerate(itertools.pairwise(pointers.tolist())):
        steps = [range(-4, 5) if periodic else (0,) for periodic in pbc[system].tolist()]
        for shift in itertools.product(*steps):
            offset = torch.tensor(shift, dtype=torch.float64) @ torch.where(pbc[system, :, None], cells[system], 0.0)
            for receiver, sender in itertools.product(range(start, end), repeat=2):
                distance = float((positions[sender] - positions[receiver] + offset).norm())
                if distance < cutoff and (any(shift) or receiver != sender):
                    found.append((receiver, sender, *shift))
    return sorted(found)


def listed(found: Neighbors) -> list[tuple[int, ...]]:
    """The pairs in their order."""
    return [tuple(row) for row in torch.column_stack([found.receivers, found.senders, found.shifts]).tolist()]


@pytest.mark.parametrize("seed", range(3))
def test_the_definition_equals_a_loop(seed: int) -> None:
    arguments = batch(seed, [3, 0, 1, 4])
    assert listed(neighbor_list(*arguments, 4.0, "reference")) == by_loop(*arguments, 4.0)


@pytest.mark.parametrize("backend", LIBRARIES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1), st.lists(st.integers(0, 12), min_size=1, max_size=4), st.floats(1.0, 7.0)
)  # fmt: skip
def test_libraries_equal_the_definition(backend: str, seed: int, counts: list[int], cutoff: float) -> None:
    """Crystals, slabs, chains and molecules in one batch, in the same order."""
    arguments = batch(seed, counts)
    found, expected = (neighbor_list(*arguments, cutoff, name) for name in (backend, "reference"))
    assert [tensor.dtype for tensor in found] == [torch.int64] * 3
    for tensor, wanted in zip(found, expected, strict=True):
        assert torch.equal(tensor, wanted)
    Edges(found.senders, found.receivers, len(arguments[0]))  # checks the order and the range


@BACKENDS
def test_every_pair_has_its_reverse_and_is_close(backend: str) -> None:
    positions, cells, pbc, pointers = batch(1, [30, 40], size=9.0)
    found = neighbor_list(positions, cells, pbc, pointers, 5.0, backend)
    pairs = set(listed(found))
    assert len(pairs) == len(found.senders) > 0
    assert pairs == {(sender, receiver, -a, -b, -c) for receiver, sender, a, b, c in pairs}
    system = torch.repeat_interleave(pointers.diff())
    assert torch.equal(system[found.senders], system[found.receivers])
    images = torch.einsum("ed,edk->ek", found.shifts.double(), cells[system[found.receivers]])
    assert float((positions[found.senders] - positions[found.receivers] + images).norm(dim=1).max()) < 5.0


@BACKENDS
def test_images_of_one_atom(backend: str) -> None:
    """Six at a lattice constant, none at exactly the cutoff, none without periodicity; more in a smaller cell."""
    positions, cells = torch.zeros(4, 3), 3.0 * torch.eye(3).expand(4, 3, 3)
    pbc = torch.tensor([[True] * 3, [True, True, False], [True, False, False], [False] * 3])
    pointers = torch.arange(5)
    found = neighbor_list(positions, cells, pbc, pointers, 3.1, backend)
    assert torch.bincount(found.receivers, minlength=4).tolist() == [6, 4, 2, 0]
    assert len(neighbor_list(positions, cells, pbc, pointers, 3.0, backend).senders) == 0
    many = neighbor_list(positions[:1], cells[:1], pbc[:1], torch.tensor([0, 1]), 12.0, backend)
    inside = itertools.product(range(-4, 5), repeat=3)
    assert len(many.senders) == sum(0 < a * a + b * b + c * c < 16 for a, b, c in inside)


@BACKENDS
def test_what_is_moved_by_lattice_vectors_or_far_away_has_the_same_edges(backend: str) -> None:
    positions, cells, _, pointers = batch(2, [20, 20], size=6.0)
    pbc = torch.tensor([[True] * 3, [False] * 3])
    found = neighbor_list(positions, cells, pbc, pointers, 4.0, backend)
    moved = positions.clone()
    moved[5] += 7 * cells[0, 0] - 2 * cells[0, 2]
    moved[20:] += 1e6
    again = neighbor_list(moved, cells, pbc, pointers, 4.0, backend)
    assert torch.equal(again.receivers, found.receivers)
    first = found.receivers < 20
    assert torch.equal(again.senders[~first], found.senders[~first])
    there = (found.senders == 5) & (found.receivers != 5)
    expected = found.shifts[there] - torch.tensor([7, 0, -2])
    assert sorted(again.shifts[(again.senders == 5) & (again.receivers != 5)].tolist()) == sorted(expected.tolist())


@BACKENDS
def test_denser_than_a_library_assumes(backend: str) -> None:
    positions = torch.rand(150, 3, generator=torch.Generator().manual_seed(0))
    system = torch.zeros(1, 3, 3), torch.zeros(1, 3, dtype=torch.bool), torch.tensor([0, 150])
    assert len(neighbor_list(positions, *system, 5.0, backend).senders) == 150 * 149


@BACKENDS
@pytest.mark.parametrize("pointers", [[0], [0, 0], [0, 0, 0]], ids=str)
def test_no_atoms(backend: str, pointers: list[int]) -> None:
    systems = len(pointers) - 1
    cells, pbc = torch.eye(3).expand(systems, 3, 3), torch.ones(systems, 3, dtype=torch.bool)
    found = neighbor_list(torch.zeros(0, 3), cells, pbc, torch.tensor(pointers), 3.0, backend)
    assert [tuple(tensor.shape) for tensor in found] == [(0,), (0,), (0, 3)]
    assert [tensor.dtype for tensor in found] == [torch.int64] * 3


def test_auto_is_vesin_on_a_cpu_and_the_reference_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = batch(3, [5, 6])
    assert op._choose("auto", arguments[0]) == "vesin"
    monkeypatch.setattr(op, "_installed", lambda module: False)
    op._warn.cache_clear()
    with pytest.warns(UserWarning, match="all pairs of atoms, which is slow: vesin is not installed") as caught:
        found, _ = (neighbor_list(*arguments, 4.0) for _ in range(2))
    assert len(caught) == 1
    assert listed(found) == by_loop(*arguments, 4.0)
    with pytest.raises(ValueError, match=r"'nvalchemi' is not possible, nvalchemi-toolkit-ops is not installed"):
        neighbor_list(*arguments, 4.0, "nvalchemi")


def test_positions_keep_their_derivatives_and_the_list_has_none() -> None:
    positions, *system = batch(4, [6, 7])
    found = neighbor_list(positions.requires_grad_(), *system, 4.0)
    assert positions.requires_grad
    assert not any(tensor.requires_grad for tensor in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": torch.zeros(5, 2)}, r"positions: found shape \(5, 2\), expected \(any, 3\)"),
        ({"positions": torch.zeros(5, 3, dtype=torch.int64)}, "positions: found torch.int64, expected a floating"),
        ({"positions": torch.full((5, 3), math.nan)}, "positions: found NaN or an infinite number"),
        ({"cells": torch.zeros(3, 3)}, r"cells: found shape \(3, 3\), expected \(2, 3, 3\)"),
        ({"cells": torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)}, "cells: found torch.float64, expected torch.fl"),
        ({"cells": torch.ones(2, 3, 3)}, "cells: found no volume in system 0, expected independent periodic lattice"),
        ({"cells": torch.full((2, 3, 3), math.inf)}, "cells: found NaN or an infinite number"),
        ({"pbc": torch.ones(2, 3)}, "pbc: found torch.float32 on cpu, expected torch.bool on cpu as positions"),
        ({"pbc": torch.ones(2, 3, dtype=torch.bool, device="meta")}, "pbc: found torch.bool on meta, expected"),
        ({"pointers": torch.tensor([0, 2, 4])}, r"pointers: found \[0, 2, 4\]\.\.\[4\], expected 0 ascending to 5"),
        ({"pointers": torch.tensor([0, 6, 5])}, r"pointers: found \[0, 6, 5\]"),
        ({"pointers": torch.tensor([0, 2, 5], dtype=torch.int32)}, "pointers: found torch.int32 on cpu"),
        ({"pointers": torch.zeros(0, dtype=torch.int64)}, r"pointers: found shape \(0,\), expected \(systems \+ 1,\)"),
        ({"cutoff": 0.0}, "cutoff: found 0.0, expected a positive length"),
        ({"cutoff": math.nan}, "cutoff: found nan"),
        ({"backend": "ase"}, "backend: found 'ase', expected 'auto', 'reference', 'vesin' or 'nvalchemi'"),
    ],
)  # fmt: skip
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    arguments = {
        "positions": torch.zeros(5, 3), "cells": torch.eye(3).repeat(2, 1, 1), "cutoff": 1.0,
        "pbc": torch.ones(2, 3, dtype=torch.bool), "pointers": torch.tensor([0, 2, 5]), **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        neighbor_list(**arguments)  # type: ignore[arg-type]
