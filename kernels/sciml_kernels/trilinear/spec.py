"""What a trilinear equivariant operation is: irreps of its three sides and the paths between them.

    out[k, c] = sum over paths, i, j of  C[i, j, k] * w[path, c] * x[i, c] * y[j(, c)]

Memory layout of every side: one row per node or edge; within a row one (dim, mul) block per irrep, component-major.
With equal multiplicities a row is simply [component, channel].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import cache, cached_property

from e3nn import o3
from torch import Tensor

from sciml_kernels.checks import check_type

Entry = tuple[int, int, int, float]


@cache
def clebsch_gordan(l_x: int, l_y: int, l_out: int) -> tuple[Entry, ...]:
    """Nonzero (i, j, k, value) of a coupling of degrees, 'component' normalised: wigner_3j * sqrt(2 l_out + 1)."""
    import torch  # wigner_3j follows the default dtype; ask for fp64 whatever the caller has set

    values = o3.wigner_3j(l_x, l_y, l_out, dtype=torch.float64) * (2 * l_out + 1) ** 0.5
    return tuple((i, j, k, float(values[i, j, k])) for i, j, k in values.abs().gt(1e-9).nonzero().tolist())


@dataclasses.dataclass(frozen=True)
class Path:
    """One coupling: slot `x` of irreps_x with slot `y` of irreps_y into slot `out` of irreps_out, and their degrees."""

    x: int
    y: int
    out: int
    degrees: tuple[int, int, int]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Nonzero Clebsch-Gordan entries (i, j, k, value), components counted within the three slots."""
        return clebsch_gordan(*self.degrees)


@dataclasses.dataclass(frozen=True)
class Spec:
    """A trilinear operation in channel mode 'uvu': a path has the channels (multiplicity) of its x slot.

    Make one with `Spec.separate` or `Spec.summed`. Weights have one (mul,) block per path, in the order of `paths`.

    Attributes:
        irreps_x, irreps_y, irreps_out: the slots of each side. Without y channels every y slot has multiplicity 1.
        paths: the couplings.
        y_channels: False, y is shared by all channels (edge harmonics); True, y carries the channel axis like x.
    """

    irreps_x: o3.Irreps
    irreps_y: o3.Irreps
    irreps_out: o3.Irreps
    paths: tuple[Path, ...]
    y_channels: bool = False

    def __post_init__(self) -> None:
        for path in self.paths:
            self._check_slots(path)
            x, y, out = self.irreps_x[path.x], self.irreps_y[path.y], self.irreps_out[path.out]
            if path.degrees != (x.ir.l, y.ir.l, out.ir.l) or out.ir not in x.ir * y.ir:
                raise ValueError(f"paths: {x.ir} (x) {y.ir} -> {out.ir} as {path} is no coupling of these slots")
            wanted = x.mul if self.y_channels else 1
            if out.mul != x.mul or y.mul != wanted:
                raise ValueError(
                    f"paths: multiplicities {x.mul} (x) {y.mul} -> {out.mul} in {path}, expected "
                    f"{x.mul} (x) {wanted} -> {x.mul} (channel mode 'uvu', y_channels={self.y_channels})"
                )
        if not self.paths:
            raise ValueError(f"paths: none couples {self.irreps_x} (x) {self.irreps_y} into the wanted output")

    def _check_slots(self, path: Path) -> None:
        for name, slot in (("irreps_x", path.x), ("irreps_y", path.y), ("irreps_out", path.out)):
            count = len(getattr(self, name))
            if not 0 <= slot < count:
                raise ValueError(f"paths: found slot {slot} of {name} in {path}, expected within 0..{count - 1}")

    @classmethod
    def separate(
        cls,
        irreps_x: str | o3.Irreps,
        irreps_y: str | o3.Irreps,
        keep: str | o3.Irreps,
        *,
        y_channels: bool = False,
        ordered: bool = False,
    ) -> Spec:
        """Every path has its own output slot; slots are sorted by irrep (the e3nn and MACE convolution).

        Args:
            irreps_x: node features, any irreps, e.g. "128x0e+128x1o".
            irreps_y: e.g. "0e+1o+2e+3o"; without y channels a multiplicity n stands for n slots.
            keep: irreps wanted in the output (multiplicities are ignored); those no path reaches are left out.
            y_channels: see the class.
            ordered: keep only paths with l_x <= l_y, enough for x (x) x.

        Raises:
            ValueError: no path is left, or multiplicities that do not fit.
        """
        x, y = o3.Irreps(irreps_x), _slots(irreps_y, y_channels)
        found = sorted(_couplings(x, y, keep, y_channels, ordered), key=lambda found: found[2])
        out = o3.Irreps([(x[i].mul, ir) for i, _, ir in found])
        paths = tuple(Path(i, j, k, (x[i].ir.l, y[j].ir.l, ir.l)) for k, (i, j, ir) in enumerate(found))
        return cls(x, y, out, paths, y_channels)

    @classmethod
    def summed(
        cls,
        irreps_x: str | o3.Irreps,
        irreps_y: str | o3.Irreps,
        keep: str | o3.Irreps,
        *,
        y_channels: bool = False,
        ordered: bool = False,
    ) -> Spec:
        """All paths to the same output irrep and multiplicity are summed in one slot: a smaller output, fewer bytes.

        Arguments and errors as for `separate`.
        """
        x, y = o3.Irreps(irreps_x), _slots(irreps_y, y_channels)
        found = sorted(_couplings(x, y, keep, y_channels, ordered), key=lambda found: found[2])
        slots = sorted({(ir, x[i].mul) for i, _, ir in found}, key=lambda slot: (slot[0], -slot[1]))
        out = o3.Irreps([(mul, ir) for ir, mul in slots])
        paths = tuple(Path(i, j, slots.index((ir, x[i].mul)), (x[i].ir.l, y[j].ir.l, ir.l)) for i, j, ir in found)
        return cls(x, y, out, paths, y_channels)

    @cached_property
    def key(self) -> str:
        """The spec as one line of text, from which `Spec.from_key` makes an equal one; ops and caches carry it."""
        paths = " ".join(f"{path.x},{path.y},{path.out}" for path in self.paths)
        return f"{self.irreps_x}|{self.irreps_y}|{self.irreps_out}|{int(self.y_channels)}|{paths}"

    @staticmethod
    @cache
    def from_key(key: str) -> Spec:
        """The spec that wrote this key."""
        x_text, y_text, out_text, y_channels, path_text = key.split("|")
        x, y, out = o3.Irreps(x_text), o3.Irreps(y_text), o3.Irreps(out_text)
        slots = [tuple(int(slot) for slot in text.split(",")) for text in path_text.split()]
        paths = tuple(Path(i, j, k, (x[i].ir.l, y[j].ir.l, out[k].ir.l)) for i, j, k in slots)
        return Spec(x, y, out, paths, y_channels == "1")

    @cached_property
    def channels(self) -> int | None:
        """The multiplicity common to all slots, or None where they differ and tensors are flat."""
        sides = [self.irreps_x, self.irreps_out] + ([self.irreps_y] if self.y_channels else [])
        muls = {mul for irreps in sides for mul, _ in irreps}
        return muls.pop() if len(muls) == 1 else None

    @cached_property
    def dim_x(self) -> int:
        """Length of a flat row of x."""
        return self.irreps_x.dim

    @cached_property
    def dim_y(self) -> int:
        """Length of a flat row of y."""
        return self.irreps_y.dim

    @cached_property
    def dim_out(self) -> int:
        """Length of a flat row of the output."""
        return self.irreps_out.dim

    @cached_property
    def dim_w(self) -> int:
        """Length of a flat row of the weights: the multiplicities of all paths."""
        return sum(self.irreps_x[path.x].mul for path in self.paths)


def offsets(irreps: o3.Irreps) -> tuple[int, ...]:
    """Where each slot's (dim, mul) block begins in a flat row."""
    return tuple(part.start for part in irreps.slices())


def weight_offsets(spec: Spec) -> tuple[int, ...]:
    """Where each path's (mul,) block begins in a flat row of weights."""
    starts = [0]
    for path in spec.paths:
        starts.append(starts[-1] + spec.irreps_x[path.x].mul)
    return tuple(starts[:-1])


def rows_of(name: str, tensor: Tensor) -> int:
    """How many rows a tensor has; ValueError where it is none, or a scalar."""
    check_type(name, tensor, Tensor)
    if tensor.dim() == 0:
        raise ValueError(f"{name}: found a scalar, expected rows of features")
    return tensor.shape[0]


def flat_rows(name: str, tensor: Tensor, rows: int, dim: int, channels: int | None) -> Tensor:
    """The tensor as flat rows (rows, dim); ValueError where it is neither flat nor (rows, dim / channels, channels)."""
    check_type(name, tensor, Tensor)
    shape = tensor.shape
    if len(shape) == 2 and shape[0] == rows and shape[1] == dim:
        return tensor
    if len(shape) == 3 and shape[0] == rows and shape[2] == channels and shape[1] * shape[2] == dim:
        return tensor.reshape(rows, dim)
    shaped = f" or ({rows}, {dim // channels}, {channels})" if channels else ""
    raise ValueError(f"{name}: found shape {tuple(shape)}, expected ({rows}, {dim}){shaped}")


def shaped_rows(out: Tensor, x: Tensor, dim: int) -> Tensor:
    """Flat rows in the form of x: as they are where x was flat, else (rows, components, channels)."""
    return out if x.dim() == 2 else out.reshape(out.shape[0], dim // x.shape[2], x.shape[2])


def _slots(irreps: str | o3.Irreps, y_channels: bool) -> o3.Irreps:
    irreps = o3.Irreps(irreps)
    return irreps if y_channels else o3.Irreps([(1, ir) for mul, ir in irreps for _ in range(mul)])


def _couplings(
    x: o3.Irreps, y: o3.Irreps, keep: str | o3.Irreps, y_channels: bool, ordered: bool
) -> Iterable[tuple[int, int, o3.Irrep]]:
    kept = {ir for _, ir in o3.Irreps(keep)}
    for i, (mul_x, ir_x) in enumerate(x):
        for j, (mul_y, ir_y) in enumerate(y):
            if (y_channels and mul_x != mul_y) or (ordered and ir_x.l > ir_y.l):
                continue
            for ir in ir_x * ir_y:
                if ir in kept:
                    yield i, j, ir
