"""The Triton backend: from tensors to the kernels of a pass and back."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml_kernels import triton_source
from sciml_kernels.trilinear import triton, tuned
from sciml_kernels.trilinear.emit import Term
from sciml_kernels.trilinear.parts import WARP, Config, Walk, choose_walk, cut
from sciml_kernels.trilinear.spec import Spec

MOST_PROGRAMS = 65536  # of a product; further rows are served in turn
POINTER = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16"}
TILE, BLOCK = 8, 128  # of the sums of rows: rows and columns that a program has in flight


class Tables(NamedTuple):
    """The tables of `Edges.tables`, by name; the last three are absent where x needs no gradient."""

    senders: Tensor
    pointers: Tensor
    receivers: Tensor
    pieces: Tensor
    extras: Tensor
    order: Tensor | None = None
    sender_pieces: Tensor | None = None
    sender_extras: Tensor | None = None

    def side(self, kind: str) -> tuple[Tensor, Tensor]:
        """Pieces and extras of the receivers ("g") or the senders ("x")."""
        pieces, extras = (self.pieces, self.extras) if kind == "g" else (self.sender_pieces, self.sender_extras)
        if pieces is None or extras is None:
            raise ValueError("tables: found those of the receivers alone, expected those of the senders too")
        return pieces, extras


class Kernel(NamedTuple):
    """A jitted function and how it is launched."""

    function: Any
    text: triton.Text
    warps: int


class Plan(NamedTuple):
    """A pass: its kernels in order, and what their results are.

    Attributes:
        walk: what a program walks along.
        slabs: how many partial gradients to a y without channels there are.
        dims: length of a row of each side.
        gaps: sides with slots that no path touches, whose gradient is 0.
    """

    kernels: tuple[Kernel, ...]
    walk: Walk
    slabs: int
    dims: dict[str, int]
    gaps: str


@functools.cache
def plan(
    key: str, dtype: torch.dtype, terms: tuple[Term, ...], wants: str, tables: int, device: torch.device | None
) -> Plan:
    """Generated on first use; one lookup per call afterwards. `tables` is how many the edges have, 0 for a product."""
    spec = Spec.from_key(key)
    walk = choose_walk(spec, terms, wants, by_sender=tables > 5) if tables else "rows"
    config = tuned.config(tuned.name_of(device), key, dtype, walk, terms, wants)
    return build(spec, dtype, walk, terms, wants, config, warp=64 if torch.version.hip else WARP)


def build(
    spec: Spec, dtype: torch.dtype, walk: Walk, terms: tuple[Term, ...], wants: str, config: Config, warp: int = WARP
) -> Plan:
    """The kernels of a pass in a launch configuration, jitted but not compiled."""
    parts = cut(spec, 8 if dtype == torch.float64 else 4, terms, wants, config, warp)
    kernels, slabs = [], 0
    for index, part in enumerate(parts):
        text = triton.source(spec, part, dtype, walk, terms, wants, parts[:index], slabs)
        kernels.append(Kernel(triton_source.load(text.source, triton.NAME), text, config.warps))
        slabs += text.blocks
    dims = {"x": spec.dim_x, "y": spec.dim_y, "w": spec.dim_w, "g": spec.dim_out}
    return Plan(tuple(kernels), walk, 0 if spec.y_channels else slabs, dims, _gaps(spec))


def signature(text: triton.Text, dtype: torch.dtype) -> dict[str, str]:
    """The Triton types of a kernel's arguments, for `sciml_kernels.aot`."""
    own = POINTER[dtype]
    wide = POINTER[_wide(dtype)]
    written = {name: own if name == "out_w" else wide for name in text.writes}
    return {**dict.fromkeys(text.reads, own), **written, **dict.fromkeys(text.tables, "*i64"), "count": "i64"}


def launch(
    key: str, arrays: Mapping[str, Tensor], tables: Sequence[Tensor], terms: tuple[Term, ...], wants: str
) -> dict[str, Tensor]:
    """Gradients `wants` of the sum of `terms`, of a convolution where there are tables, else of a node-wise product.

    Args:
        key: of the spec.
        arrays: x, y, w and, where the terms need them, g and tangents vx, vy, vw, all flat.
        tables: of `Edges.tables`, or none.
        terms, wants: see `sciml_kernels.trilinear.emit`.
    """
    x = arrays["x"]
    device = x.device if x.is_cuda else None
    return execute(plan(key, x.dtype, terms, wants, len(tables), device), arrays, tables, wants)


def execute(todo: Plan, arrays: Mapping[str, Tensor], tables: Sequence[Tensor], wants: str) -> dict[str, Tensor]:
    """What `launch` does, with kernels at hand."""
    x, rows = arrays["x"], arrays["w"].shape[0]
    found = Tables(*(table.contiguous() for table in tables)) if tables else None
    inputs = {name: tensor.contiguous() for name, tensor in arrays.items()}
    outputs = {want: _allocate(want, todo, x, rows, found) for want in wants}
    with torch.cuda.device_of(x):
        for kernel in todo.kernels:
            _run(kernel, inputs, outputs, rows, todo.walk, found)
        return {want: _finish(want, tensor, todo, x, found) for want, tensor in outputs.items()}


def _run(
    kernel: Kernel,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    rows: int,
    walk: Walk,
    tables: Tables | None,
) -> None:
    if tables is None:
        index: list[Tensor | None] = []
        programs = min(rows, MOST_PROGRAMS)
    else:
        pieces, _ = tables.side(triton.HELD[walk])
        index = [pieces, tables.senders] if walk == "receiver" else [pieces, tables.order, tables.receivers]
        programs = pieces.shape[0]
    if programs:
        tensors = [*(inputs[name] for name in kernel.text.reads), *outputs.values(), *index]
        kernel.function[(programs, kernel.text.blocks)](*tensors, rows, num_warps=kernel.warps, num_stages=1)


def _allocate(want: str, todo: Plan, x: Tensor, rows: int, tables: Tables | None) -> Tensor:
    """What the kernels write: the result itself, or parts of sums in the precision of the arithmetic."""
    dim = todo.dims[want]
    make = x.new_zeros if want in todo.gaps else x.new_empty
    dtype = x.dtype if want == "w" else _wide(x.dtype)  # alone the gradient to w has one term
    if want == "y" and todo.slabs:
        return x.new_empty((todo.slabs, rows, dim), dtype=dtype)
    if tables is not None and want == triton.HELD[todo.walk]:
        rows = tables.side(want)[0].shape[0]
    return make((rows, dim), dtype=dtype)


def _finish(want: str, tensor: Tensor, todo: Plan, x: Tensor, tables: Tables | None) -> Tensor:
    """The result: slabs are added, rows of edges summed per node, pieces of a node joined."""
    if want == "y" and todo.slabs:
        tensor = tensor[0] if todo.slabs == 1 else tensor.sum(0)
    elif tables is not None and want in "xg":
        pieces, extras = tables.side(want)
        if want == triton.OTHER[todo.walk]:
            tensor = _sum_rows(tensor, tables.order if want == "x" else None, pieces)
        tensor = _join(tensor, pieces, extras)
    return tensor.to(x.dtype)


def _sum_rows(rows: Tensor, order: Tensor | None, pieces: Tensor) -> Tensor:
    from sciml_kernels.trilinear.sums import sum_rows

    dim = rows.shape[1]
    out = rows.new_empty(pieces.shape[0], dim)
    if out.numel():
        listed = pieces if order is None else order
        grid = (out.shape[0], -(-dim // BLOCK))
        sum_rows[grid](rows, listed, pieces, out, dim, GATHER=order is not None, TILE=TILE, BLOCK=BLOCK)
    return out


def _join(out: Tensor, pieces: Tensor, extras: Tensor) -> Tensor:
    from sciml_kernels.trilinear.sums import join_pieces

    nodes, dim = extras.shape[0] - 1, out.shape[1]
    if out.shape[0] > nodes and dim:
        grid = (out.shape[0] - nodes, -(-dim // BLOCK))
        join_pieces[grid](out, pieces, extras, nodes, dim, BLOCK=BLOCK)
    return out[:nodes]


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of the arithmetic and of whatever is summed further."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _gaps(spec: Spec) -> str:
    touched = {
        "x": {path.x for path in spec.paths},
        "y": {path.y for path in spec.paths},
        "g": {path.out for path in spec.paths},
    }
    slots = {"x": spec.irreps_x, "y": spec.irreps_y, "g": spec.irreps_out}
    return "".join(kind for kind, used in touched.items() if len(used) < len(slots[kind]))
