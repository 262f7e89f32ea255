"""The three passes, made of three sums over pairs of an atom a and a wave k that every backend has.

With t = k . r in turns, c = cos 2 pi t, s = sin 2 pi t, and g the gradient that arrives at the two parts of S:

    waves    S_k = sum_a (c, s) q_a
    charges  dF/dq_a = sum_k g_k . (c, s)
    points   dF/dr_a = 2 pi sum_k m k,  dF/dk = 2 pi sum_a m r,      m = (q . g_sin) c - (q . g_cos) s

F = g . S is the same function of atoms and of waves, so `points` serves both. The double backward pass is the change of
these sums when positions, charges and waves change along what has arrived at their gradients: a change d of the
phase turns (c, s) by a right angle, to d (-s, c).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

Pair = tuple[Tensor, Tensor]
Term = TypeVar("Term", Tensor, Pair)


class Points(NamedTuple):
    """Atoms or waves.

    Attributes:
        pointers: (graphs + 1,).
        values: (rows, 3), positions or frequencies.
        changes: (rows, 3) or None, along which phases change.
    """

    pointers: Tensor
    values: Tensor
    changes: Tensor | None = None


class Sums(Protocol):
    """What a backend computes."""

    def waves(self, waves: Points, atoms: Points, plain: Tensor | None, turned: Tensor | None) -> Tensor:
        """(waves, 2, channels): sums over atoms of plain (c, s) + turned d (-s, c)."""

    def charges(self, atoms: Points, waves: Points, g: Tensor) -> Tensor:
        """(atoms, channels): sums over waves of g . (c, s), or g . d (-s, c) where something changes."""

    def points(self, rows: Points, others: Points, plain: Pair | None, turned: Pair | None) -> Tensor:
        """(rows, 3): sums over the others of their values and changes.

        A pair holds the charges (atoms, 1, channels) and the gradients (waves, 2, channels), that of the rows first.
        Values count m of the plain pair, and its change by d of the turned pair; changes count m of the turned one.
        """


def forward(run: Sums, r: Tensor, q: Tensor, k: Tensor, atoms: Tensor, waves: Tensor) -> Tensor:
    """The value."""
    return run.waves(Points(waves, k), Points(atoms, r), q, None)


def backward(
    run: Sums, g: Tensor, r: Tensor, q: Tensor, k: Tensor, atoms: Tensor, waves: Tensor, wants: str
) -> dict[str, Tensor | None]:
    """Gradients to positions r, charges q and frequencies k."""
    row, column = Points(atoms, r), Points(waves, k)
    found: dict[str, Tensor | None] = dict.fromkeys("rqk")
    if "r" in wants:
        found["r"] = run.points(row, column, (q.unsqueeze(1), g), None)
    if "q" in wants:
        found["q"] = run.charges(row, column, g)
    if "k" in wants:
        found["k"] = run.points(column, row, (g, q.unsqueeze(1)), None)
    return found


def double_backward(
    run: Sums,
    vr: Tensor | None,
    vq: Tensor | None,
    vk: Tensor | None,
    g: Tensor,
    r: Tensor,
    q: Tensor,
    k: Tensor,
    atoms: Tensor,
    waves: Tensor,
    wants: str,
) -> dict[str, Tensor | None]:
    """Gradients to g, r, q and k, for what arrives at the gradients to r, q and k."""
    row, column = Points(atoms, r, vr), Points(waves, k, vk)
    moved = vr is not None or vk is not None
    plain = None if vq is None else (vq.unsqueeze(1), g)
    turned = (q.unsqueeze(1), g) if moved else None
    found: dict[str, Tensor | None] = dict.fromkeys("grqk")
    if "g" in wants:
        found["g"] = run.waves(column, row, vq, q if moved else None)
    if "r" in wants:
        found["r"] = run.points(row, column, plain, turned)
    if "q" in wants:
        found["q"] = run.charges(row, column, g) if moved else q.new_zeros(q.shape)
    if "k" in wants:
        found["k"] = run.points(column, row, _swapped(plain), _swapped(turned))
    return found


def _swapped(pair: Pair | None) -> Pair | None:
    return None if pair is None else (pair[1], pair[0])


def either(plain: Term | None, turned: Term | None) -> Term:
    """One of the two terms of a sum, to see its sizes."""
    found = turned if plain is None else plain
    if found is None:
        raise ValueError("plain, turned: found None and None, expected one of them")
    return found
