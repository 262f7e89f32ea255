"""How a pass is cut into GPU kernels, so that the values of a thread fit into its registers.

A part holds paths of one multiplicity. Paths from one x slot share its features and the gradient to them, and no two
slots share weights: whole x slots in one part cost no further bytes but those of y, which are few. A slot that is too
large for the registers is cut by output slots, which reads and writes its features again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from sciml_kernels.trilinear.emit import Term, emit
from sciml_kernels.trilinear.spec import Path, Spec

Walk = Literal["rows", "receiver", "sender"]
Room = Callable[[Sequence[int], int], bool]  # whether these paths fit into a thread that holds so many channels

WARP = 32  # threads of a warp on NVIDIA's GPUs; AMD's have 64
CHANNELS_PER_THREAD = (4, 2, 1)
WISHED_CHANNELS = 2  # for each thread: what depends on y alone is computed once for both
MOST_STEPS = 900  # of the couplings of a part: the time that Triton takes to compile grows with their square


@dataclasses.dataclass(frozen=True)
class Config:
    """A launch configuration.

    Attributes:
        values: registers (of 32 bits) that the named values of a thread may take; the compiler needs some on top.
        warps: warps of a program, which share its channels.
        stages: edges whose rows are on their way to a program at a time; those of the next ones wait in shared memory.
    """

    values: int = 144
    warps: int = 1
    stages: int = 1


@dataclasses.dataclass(frozen=True)
class Part:
    """What one kernel computes: these paths (indices), a block of so many channels at a time."""

    paths: tuple[int, ...]
    block: int


def arrays_read(terms: tuple[Term, ...], wants: str) -> tuple[str, ...]:
    """The arrays that the gradients `wants` of the sum of `terms` depend on."""
    tangents = sorted({name for term in terms for name in (term.x, term.y, term.w) if name.startswith("v")})
    forward = wants == "g" and not tangents
    return "x", "y", "w", *(() if forward else ("g",)), *tangents


def choose_walk(spec: Spec, terms: tuple[Term, ...], wants: str, by_sender: bool) -> Walk:
    """Whether edges are walked by receiver or by sender: the one that moves fewer bytes per edge.

    The node that is walked holds its rows in registers. Rows of the other side are read at every edge, and a gradient
    to them is written as a row per edge and read again, in order, by the sum.
    """
    sides = {"x": spec.dim_x, "g": spec.dim_out}
    reads = arrays_read(terms, wants)
    moved = {kind: dim * (sum(name[-1] == kind for name in reads) + 2 * (kind in wants)) for kind, dim in sides.items()}
    return "sender" if by_sender and moved["g"] < moved["x"] else "receiver"


def cut(
    spec: Spec, size: int, terms: tuple[Term, ...], wants: str, config: Config, warp: int = WARP
) -> tuple[Part, ...]:
    """All paths of the spec in parts; `size` is that of a number in bytes, `warp` the threads of a warp."""
    parts: list[Part] = []
    for mul in dict.fromkeys(spec.irreps_x[path.x].mul for path in spec.paths):
        slots: dict[int, list[int]] = {}
        for index, path in enumerate(spec.paths):
            if spec.irreps_x[path.x].mul == mul:
                slots.setdefault(path.x, []).append(index)

        def room(paths: Sequence[int], channels: int) -> bool:
            vectors, scalars = _values(spec, paths, terms, wants)
            registers = (vectors * channels + scalars) * size // 4
            return registers <= config.values and steps_of(spec, paths, terms, wants) <= MOST_STEPS

        for group in packed(slots, room):
            channels = next((count for count in CHANNELS_PER_THREAD if room(group, count)), 1)
            block = min(warp * config.warps * channels, 1 << (mul - 1).bit_length())
            parts.append(Part(tuple(group), block))
    return tuple(parts)


def packed(slots: Mapping[int, list[int]], room: Room) -> list[list[int]]:
    """Whole slots together while each thread can hold two channels of them; a slot too large for one is cut."""
    groups: list[list[int]] = []
    for paths in slots.values():
        if groups and room(groups[-1] + paths, WISHED_CHANNELS):
            groups[-1] += paths
        elif room(paths, 1):
            groups.append(list(paths))
        else:
            groups += _pieces(paths, room)
    return groups


def _pieces(paths: list[int], room: Room) -> list[list[int]]:
    groups = [[paths[0]]]
    for path in paths[1:]:
        if room([*groups[-1], path], 1):
            groups[-1].append(path)
        else:
            groups.append([path])
    return groups


def steps_of(spec: Spec, paths: Sequence[int], terms: tuple[Term, ...], wants: str) -> int:
    """Steps of the distinct couplings of these paths."""
    couplings = {spec.paths[index].degrees: spec.paths[index] for index in paths}
    return sum(_coupling_steps(path, terms, wants) for path in couplings.values())


@functools.cache
def _coupling_steps(path: Path, terms: tuple[Term, ...], wants: str) -> int:
    return len(emit(path, terms, wants))


def _values(spec: Spec, paths: Sequence[int], terms: tuple[Term, ...], wants: str) -> tuple[int, int]:
    """Values alive in the loop over edges: those with a channel axis, and scalars."""
    chosen = [spec.paths[index] for index in paths]
    components = {
        "x": sum(spec.irreps_x[slot].ir.dim for slot in {path.x for path in chosen}),
        "y": sum(spec.irreps_y[slot].ir.dim for slot in {path.y for path in chosen}),
        "g": sum(spec.irreps_out[slot].ir.dim for slot in {path.out for path in chosen}),
        "w": 1,
    }
    reads = [name[-1] for name in arrays_read(terms, wants)]
    scalars = 0 if spec.y_channels else components["y"] * reads.count("y")
    vectors = sum(components[kind] for kind in reads if kind != "y" or spec.y_channels)
    return vectors + sum(components[kind] for kind in wants), scalars
