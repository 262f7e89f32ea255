"""The Triton backend: from tensors to the kernels of a pass and back."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml_kernels import triton_source
from sciml_kernels.edges import Tables
from sciml_kernels.trilinear import triton, tuned
from sciml_kernels.trilinear.emit import Term
from sciml_kernels.trilinear.parts import WARP, Config, Walk, choose_walk, cut
from sciml_kernels.trilinear.spec import Spec

MOST_PROGRAMS = 65536  # of a product; further rows are served in turn
POINTER = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16"}
TILE, BLOCK = 8, 128  # of the sums of rows: rows and columns that a program has in flight


class Kernel(NamedTuple):
    """A jitted function and how it is launched.

    Attributes:
        function, text: the function and its source.
        warps: of a program.
        maxnreg: the most registers of a thread, where this is bounded; NVIDIA's compiler alone knows that bound.
    """

    function: Any
    text: triton.Text
    warps: int
    maxnreg: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """The keywords of a launch."""
        bound = {} if self.maxnreg is None or torch.version.hip else {"maxnreg": self.maxnreg}
        return {"num_warps": self.warps, "num_stages": 1, **bound}


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
    key: str,
    dtype: torch.dtype,
    edges: bool,
    by_sender: bool,
    terms: tuple[Term, ...],
    wants: str,
    device: torch.device | None,
) -> Plan:
    """Generated on first use, one lookup per call afterwards; of a product where there are no edges."""
    spec = Spec.from_key(key)
    walk = choose_walk(spec, terms, wants, by_sender) if edges else "rows"
    config = tuned.config(tuned.name_of(device), key, dtype, walk, terms, wants)
    return build(spec, dtype, walk, terms, wants, config, warp=64 if torch.version.hip else WARP)


def build(
    spec: Spec, dtype: torch.dtype, walk: Walk, terms: tuple[Term, ...], wants: str, config: Config, warp: int = WARP
) -> Plan:
    """The kernels of a pass in a launch configuration, jitted but not compiled."""
    parts = cut(spec, 8 if dtype == torch.float64 else 4, terms, wants, config, warp)
    kernels, slabs = [], 0
    for index, part in enumerate(parts):
        text = triton.source(spec, part, dtype, walk, terms, wants, parts[:index], slabs, config.stages)
        kernels.append(Kernel(triton_source.load(text.source, triton.NAME), text, config.warps))
        slabs += text.blocks
    dims = {"x": spec.dim_x, "y": spec.dim_y, "w": spec.dim_w, "g": spec.dim_out}
    return Plan(tuple(kernels), walk, 0 if spec.y_channels else slabs, dims, gaps(spec))


def signature(text: triton.Text, dtype: torch.dtype) -> dict[str, str]:
    """The Triton types of a kernel's arguments, for `sciml_kernels.aot`."""
    own, sums = POINTER[dtype], POINTER[wide(dtype)]
    written = {name: own if name == "out_w" else sums for name in text.writes}
    return {**dict.fromkeys(text.reads, own), **written, **dict.fromkeys(text.tables, "*i64"), "count": "i64"}


def launch(
    key: str, arrays: Mapping[str, Tensor], tables: Tables, terms: tuple[Term, ...], wants: str
) -> dict[str, Tensor]:
    """Gradients `wants` of the sum of `terms`, of a convolution where there are tables, else of a node-wise product.

    Args:
        key: of the spec.
        arrays: x, y, w and, where the terms need them, g and tangents vx, vy, vw, all flat.
        tables: of `Edges.tables`; empty for a product.
        terms, wants: see `sciml_kernels.trilinear.emit`.
    """
    x = arrays["x"]
    device = x.device if x.is_cuda else None
    edges, by_sender = tables.senders is not None, tables.sender_pieces is not None
    return execute(plan(key, x.dtype, edges, by_sender, terms, wants, device), arrays, tables, wants)


def execute(todo: Plan, arrays: Mapping[str, Tensor], tables: Tables, wants: str) -> dict[str, Tensor]:
    """What `launch` does, with kernels at hand."""
    x, rows = arrays["x"], arrays["w"].shape[0]
    tables = Tables(*(None if table is None else table.contiguous() for table in tables))
    inputs = {name: tensor.contiguous() for name, tensor in arrays.items()}
    outputs = {want: allocate(want, todo, x, rows, tables) for want in wants}
    with torch.cuda.device_of(x):
        for kernel in todo.kernels:
            _run(kernel, inputs, outputs, rows, todo.walk, tables)
        return {want: finish(want, tensor, todo, x, tables) for want, tensor in outputs.items()}


def _run(
    kernel: Kernel,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    rows: int,
    walk: Walk,
    tables: Tables,
) -> None:
    index = {**tables._asdict(), "pieces": None if walk == "rows" else pieces_of(tables, triton.HELD[walk])}
    listed = [index[name] for name in kernel.text.tables]
    programs = min(rows, MOST_PROGRAMS) if walk == "rows" else listed[0].shape[0]
    if programs:
        tensors = [*(inputs[name] for name in kernel.text.reads), *outputs.values(), *listed]
        kernel.function[(programs, kernel.text.blocks)](*tensors, rows, **kernel.options)


def allocate(want: str, todo: Plan, x: Tensor, rows: int, tables: Tables) -> Tensor:
    """What the kernels write: the result itself, or parts of sums in the precision of the arithmetic."""
    dim = todo.dims[want]
    make = x.new_zeros if want in todo.gaps else x.new_empty
    dtype = x.dtype if want == "w" else wide(x.dtype)  # alone the gradient to w has one term
    if want == "y" and todo.slabs:
        return x.new_empty((todo.slabs, rows, dim), dtype=dtype)
    if want == triton.HELD[todo.walk]:
        rows = pieces_of(tables, want).shape[0]
    return make((rows, dim), dtype=dtype)


def finish(want: str, tensor: Tensor, todo: Plan, x: Tensor, tables: Tables) -> Tensor:
    """The result: slabs are added, rows of edges summed per node, pieces of a node joined."""
    if want == "y" and todo.slabs:
        tensor = tensor[0] if todo.slabs == 1 else tensor.sum(0)
    elif todo.walk != "rows" and want in "xg":
        pieces, pointers = pieces_of(tables, want), tables.pointers
        if want == triton.OTHER[todo.walk]:
            tensor = _sum_rows(tensor, tables.order if want == "x" else None, pieces)
        tensor = _join(tensor, pieces, x.shape[0] if want == "x" or pointers is None else pointers.shape[0] - 1)
    return tensor.to(x.dtype)


def pieces_of(tables: Tables, kind: str) -> Tensor:
    """Of the receivers ("g") or the senders ("x")."""
    pieces = tables.pieces if kind == "g" else tables.sender_pieces
    if pieces is None:
        raise ValueError("tables: found those of the receivers alone, expected those of the senders too")
    return pieces


def _sum_rows(rows: Tensor, order: Tensor | None, pieces: Tensor) -> Tensor:
    from sciml_kernels.trilinear.sums import sum_rows

    dim = rows.shape[1]
    out = rows.new_empty(pieces.shape[0], dim)
    if out.numel():
        listed = pieces if order is None else order
        grid = (out.shape[0], -(-dim // BLOCK))
        sum_rows[grid](rows, listed, pieces, out, dim, GATHER=order is not None, TILE=TILE, BLOCK=BLOCK)
    return out


def _join(out: Tensor, pieces: Tensor, nodes: int) -> Tensor:
    from sciml_kernels.trilinear.sums import join_pieces

    dim = out.shape[1]
    if out.shape[0] > nodes and dim:
        grid = (out.shape[0] - nodes, -(-dim // BLOCK))
        join_pieces[grid](out, pieces, nodes, dim, BLOCK=BLOCK)
    return out[:nodes]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of the arithmetic and of whatever is summed further."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def gaps(spec: Spec) -> str:
    """The sides with slots that no path touches."""
    touched = {
        "x": {path.x for path in spec.paths},
        "y": {path.y for path in spec.paths},
        "g": {path.out for path in spec.paths},
    }
    slots = {"x": spec.irreps_x, "y": spec.irreps_y, "g": spec.irreps_out}
    return "".join(kind for kind, used in touched.items() if len(used) < len(slots[kind]))
