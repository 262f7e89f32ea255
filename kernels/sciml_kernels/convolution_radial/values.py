"""The values of a fused kernel in its source: which arrays there are, their names, loads and masks."""

from __future__ import annotations

import dataclasses

from sciml_kernels.convolution_radial.passes import Pass
from sciml_kernels.convolution_radial.tiles import Shape
from sciml_kernels.trilinear.parts import Part, Walk
from sciml_kernels.trilinear.spec import Path, Spec, offsets, weight_offsets


@dataclasses.dataclass(frozen=True)
class Values:
    """What a kernel is made for, see `triton.source`, and what follows of it for single values."""

    spec: Spec
    part: Part
    real: str
    walk: Walk
    todo: Pass
    shape: Shape
    earlier: tuple[Part, ...]
    slab: int

    @property
    def paths(self) -> dict[int, Path]:
        """By number, in the order in which a tile serves them: by y slot."""
        paths = self.spec.paths
        return {index: paths[index] for index in sorted(self.part.paths, key=lambda index: (paths[index].y, index))}

    @property
    def mul(self) -> int:
        """The channels of all paths."""
        return self.spec.irreps_x[self.spec.paths[self.part.paths[0]].x].mul

    @property
    def arrays(self) -> tuple[str, ...]:
        """What the couplings load, but for the weights."""
        steps = (step for path in self.paths.values() for step in self.todo.steps(path))
        loaded = {step.expression for step in steps if step.kind == "load"}
        return tuple(name for name in ("x", "y", "g", "vx", "vy") if name in loaded)

    @property
    def reads(self) -> tuple[str, ...]:
        """The arrays that the kernel reads, in the order of its arguments."""
        return self.arrays + self.rows + self.matrices

    @property
    def writes(self) -> tuple[str, ...]:
        """The arrays that it writes, in the order of its arguments, which come next."""
        return tuple(self.todo.writes)

    @property
    def rows(self) -> tuple[str, ...]:
        """The hidden features that the products read."""
        made = (rows for products in self.todo.products_of_weights.values() for rows, _ in products)
        followed = (rows for _, rows in self.todo.products_of_matrix)
        return tuple(sorted({*made, *followed}))

    @property
    def matrices(self) -> tuple[str, ...]:
        """The matrices that the products read."""
        made = (matrix for products in self.todo.products_of_weights.values() for _, matrix in products)
        followed = (matrix for _, matrix in self.todo.products_of_h)
        return tuple(sorted({*made, *followed}))

    def values_of(self, kind: str, slots: set[int] | None = None) -> list[tuple[int, int, int]]:
        """Slot, component and place in a row of the values of x or g that the paths (or these slots) touch."""
        irreps = {"x": self.spec.irreps_x, "g": self.spec.irreps_out}[kind]
        touched = slots or {path.x if kind == "x" else path.out for path in self.paths.values()}
        starts = offsets(irreps)
        return [
            (slot, component, starts[slot] + component * irreps[slot].mul)
            for slot in sorted(touched)
            for component in range(irreps[slot].ir.dim)
        ]

    def before(self, kind: str) -> set[int]:
        """The slots of this side to which an earlier part has written."""
        paths = [self.spec.paths[index] for part in self.earlier for index in part.paths]
        return {path.x if kind == "x" else path.out for path in paths}

    def dim(self, name: str) -> int:
        """The length of a row of x or g."""
        return {"x": self.spec.dim_x, "g": self.spec.dim_out}[name[-1]]

    def load(self, name: str, offset: int, mask: str) -> str:
        """A value at this place of a row of x or g."""
        return f"tl.load({name}_row + {offset}" + (f", mask={mask}, other=0)" if mask else ")") + f".to({self.real})"

    def load_matrix(self, matrix: str, index: int) -> str:
        """The (hidden, channels) block of a matrix that makes the weights of a path."""
        at = f"{matrix} + k[:, None] * {self.spec.dim_w} + {weight_offsets(self.spec)[index]} + c[None, :]"
        mask = f", mask={self.matrix_mask}, other=0" if self.matrix_mask else ""
        return f"tl.load({at}{mask}).to({self.real})"

    def zeros(self, *sizes: int) -> str:
        """A sum of nothing."""
        return f"tl.zeros({list(sizes)}, {self.real})"

    @staticmethod
    def mask(*conditions: str) -> str:
        """All conditions that there are."""
        return " & ".join(condition for condition in conditions if condition)

    @property
    def masked(self) -> bool:
        """Whether the last block of channels is not full."""
        return self.mul % self.part.block != 0

    @property
    def ragged(self) -> bool:
        """Whether there are fewer hidden features than a matrix product takes."""
        return self.shape.hidden != self.shape.padded

    @property
    def matrix_mask(self) -> str:
        """Of the (hidden, channels) block of a matrix; empty where it is full."""
        return self.mask("filled[:, None]" if self.ragged else "", "mask[None, :]" if self.masked else "")

    @property
    def slab_row(self) -> str:
        """The row of an edge in the slab of this part and block of channels."""
        return f"(({self.slab} + tl.program_id(1)) * count + row)"

    @property
    def how(self) -> str:
        """The keywords of a matrix product."""
        return f'input_precision="{self.shape.precision}", out_dtype={self.real}'
