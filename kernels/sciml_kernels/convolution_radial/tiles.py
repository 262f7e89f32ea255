"""How a fused pass is cut into kernels and laid out on the threads of a program; configurations are data, as `tuned`.

What a thread holds is counted in values of a tile of (edges, channels), spread over all threads of a program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from sciml_kernels.convolution_radial.passes import Pass
from sciml_kernels.trilinear import tuned
from sciml_kernels.trilinear.parts import Part, Walk, arrays_read, packed, steps_of
from sciml_kernels.trilinear.spec import Spec
from sciml_kernels.trilinear.triton import HELD, OTHER

LEAST = 16  # rows or columns that a matrix product takes
IN_USE = 8  # values of one path that come and go
MOST_STEPS = 540  # of the couplings of a part, as in `parts`: fewer, for the products take time to compile as well


@dataclasses.dataclass(frozen=True)
class Config:
    """A launch configuration.

    Attributes:
        tile: edges that a program has in flight; pieces of nodes are rounded up to it.
        block: channels of a program.
        threads: threads of a program: 8 warps of NVIDIA's GPUs, 4 of AMD's.
        step: hidden features of a product at a time.
        values: registers (of 32 bits) that the named values of a thread may take; the compiler needs some on top.
        maxnreg: the most registers of a thread on NVIDIA's GPUs: with 128, two programs run side by side.
            Without a bound the compiler spills some values to reach a number that lets one more program run.
    """

    tile: int = 16
    block: int = 32
    threads: int = 256
    step: int = 16
    values: int = 56
    maxnreg: int = 128


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the source of a kernel depends on beside its paths.

    Attributes:
        tile: edges of a tile.
        hidden: features of h.
        step: hidden features of a product at a time.
        precision: of the matrix products, as `tl.dot` names it.
    """

    tile: int
    hidden: int
    step: int
    precision: str

    @property
    def padded(self) -> int:
        """The hidden features, or the next number of them that a matrix product takes."""
        return max(LEAST, 1 << (self.hidden - 1).bit_length())


def config(gpu: str, key: str, hidden: int, dtype: torch.dtype, walk: Walk, todo: Pass) -> Config:
    """The measured configuration of a pass on this GPU, else the default."""
    found = tuned.measured(gpu).get(entry(key, hidden, dtype, walk, todo))
    return default(todo) if found is None else Config(**found)


def default(todo: Pass) -> Config:
    """For what was not measured. 128 registers are enough for the value and for the first gradient to h."""
    return Config(maxnreg=128 if todo.wants in ("g", "h") and not todo.tangents else 255)


def measured(gpu: str, todo: Pass) -> bool:
    """Whether fused kernels of a pass of this order have been measured on this GPU, and were the faster way."""
    orders = (name.split()[-2:] for name in tuned.measured(gpu) if " hidden " in name)
    return todo.order in {Pass(tangents.replace("-", ""), wants).order for tangents, wants in orders}


def entry(key: str, hidden: int, dtype: torch.dtype, walk: Walk, todo: Pass) -> str:
    """The key of a measured configuration in its file."""
    return f"{key} hidden {hidden} {str(dtype).removeprefix('torch.')} {walk} {todo.tangents or '-'} {todo.wants}"


def cut(spec: Spec, hidden: int, walk: Walk, todo: Pass, config: Config) -> tuple[Part, ...]:
    """All paths of the spec in parts of one multiplicity; whole x slots together where the registers allow it."""
    parts = []
    for mul in dict.fromkeys(spec.irreps_x[path.x].mul for path in spec.paths):
        slots: dict[int, list[int]] = {}
        for index, path in enumerate(spec.paths):
            if spec.irreps_x[path.x].mul == mul:
                slots.setdefault(path.x, []).append(index)
        block = min(config.block, max(LEAST, 1 << (mul - 1).bit_length()))

        def room(paths: Sequence[int], channels: int, block: int = block) -> bool:
            steps = steps_of(spec, paths, todo.terms, todo.trilinear_wants)
            return registers(spec, hidden, paths, block, walk, todo, config) <= config.values and steps <= MOST_STEPS

        parts += [Part(tuple(group), block) for group in packed(slots, room)]
    return tuple(parts)


def sums_wait(todo: Pass) -> bool:
    """Whether sums over the edges of a node are taken across a tile only at the end, while it is (edges, channels).

    That costs fewer operations, and registers that only a pass without gradients to the edges can spare.
    """
    return not set(todo.wants) & set("yh") and ("x" in todo.wants) + ("g" in todo.wants) < 2


def registers(spec: Spec, hidden: int, paths: Sequence[int], block: int, walk: Walk, todo: Pass, config: Config) -> int:
    """What a thread holds while a tile is served, in registers."""
    chosen = [spec.paths[index] for index in paths]
    components = {
        "x": sum(spec.irreps_x[slot].ir.dim for slot in {path.x for path in chosen}),
        "g": sum(spec.irreps_out[slot].ir.dim for slot in {path.out for path in chosen}),
    }
    reads = [name[-1] for name in arrays_read(todo.terms, todo.trilinear_wants)]
    other, held = OTHER[walk], HELD[walk]
    values = IN_USE + components[other] * (reads.count(other) + (other in todo.wants))
    values += components[held] * (held in todo.wants and sums_wait(todo))
    values += max(spec.irreps_y[path.y].ir.dim for path in chosen) * ("y" in todo.wants)
    matrices = block * len(paths) * ("W" in todo.wants) + config.tile * ("h" in todo.wants)
    sums = components[held] * LEAST // 2 * block * (held in todo.wants and not sums_wait(todo))  # half of a tile's
    return -(-(values * config.tile * block + matrices * hidden + sums) // config.threads)
