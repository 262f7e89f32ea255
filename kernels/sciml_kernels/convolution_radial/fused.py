"""The Triton kernels with the radial layer inside: from tensors to the kernels of a pass and back."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from sciml_kernels import triton_source
from sciml_kernels.convolution_radial import tiles, triton
from sciml_kernels.convolution_radial.passes import Pass
from sciml_kernels.edges import Tables
from sciml_kernels.trilinear import gpu, tuned
from sciml_kernels.trilinear.parts import WARP, Walk, choose_walk
from sciml_kernels.trilinear.spec import Spec
from sciml_kernels.trilinear.triton import HELD, Text
from sciml_kernels.triton_launch import allows_tf32

MOST_HIDDEN = 128  # a tile of edges of h, and a block of W, must fit into registers
LEAST_EDGES = 8  # for each node: tiles of fewer are mostly empty
TURNS = 1  # of the loop around each path, see `triton`
MOST_PROGRAMS = 512  # along the pieces, where each writes a partial gradient to W


def serves(gpu_name: str, dtype: torch.dtype, hidden: int, nodes: int, edges: int, todo: Pass) -> bool:
    """Whether the fused kernels are the ones to use; known from shapes, so nothing waits for the device.

    Those of this order must have been measured on this GPU and have been faster than the other way.
    """
    fits = dtype != torch.float64 and hidden <= MOST_HIDDEN and edges >= LEAST_EDGES * nodes
    return fits and tiles.measured(gpu_name, todo)


def precision(dtype: torch.dtype) -> str:
    """Of the matrix products: TF32 where torch's own may use it, else three products that give single precision."""
    if dtype == torch.float64 or torch.version.hip:
        return "ieee"  # a native instruction there
    return "tf32" if dtype == torch.bfloat16 or allows_tf32() else "tf32x3"


def split(todo: Pass) -> tuple[Pass, ...]:
    """The gradients to h and to W apart: they need no weights of edges, and all at once need too many registers."""
    wants = ("".join(want for want in todo.wants if want in group) for group in ("xyg", "h", "W"))
    return tuple(Pass(todo.tangents, want) for want in wants if want)


@functools.cache
def plan(
    key: str, hidden: int, dtype: torch.dtype, exact: str, by_sender: bool, todo: Pass, device: torch.device | None
) -> gpu.Plan:
    """Generated on first use, one lookup per call afterwards."""
    spec = Spec.from_key(key)
    walk = choose_walk(spec, todo.terms, todo.trilinear_wants, by_sender)
    config = tiles.config(tuned.name_of(device), key, hidden, dtype, walk, todo)
    return build(spec, hidden, dtype, exact, walk, todo, config, warp=64 if torch.version.hip else WARP)


def build(
    spec: Spec,
    hidden: int,
    dtype: torch.dtype,
    exact: str,
    walk: Walk,
    todo: Pass,
    config: tiles.Config,
    warp: int = WARP,
) -> gpu.Plan:
    """The kernels of a pass in a launch configuration, jitted but not compiled; `warp` is its number of threads."""
    parts = tiles.cut(spec, hidden, walk, todo, config)
    shape = tiles.Shape(config.tile, hidden, config.step, exact)
    kernels, slabs = [], 0
    for index, part in enumerate(parts):
        text = triton.source(spec, part, dtype, walk, todo, shape, parts[:index], slabs)
        function = triton_source.load(text.source, triton.NAME)
        kernels.append(gpu.Kernel(function, text, config.threads // warp, config.maxnreg))
        slabs += text.blocks
    dims = {"x": spec.dim_x, "y": spec.dim_y, "h": hidden, "W": spec.dim_w, "g": spec.dim_out}
    return gpu.Plan(tuple(kernels), walk, slabs, dims, gpu.gaps(spec))


def signature(text: Text, dtype: torch.dtype) -> dict[str, str]:
    """The Triton types of a kernel's arguments, for `sciml_kernels.aot`."""
    own, sums = gpu.POINTER[dtype], gpu.POINTER[gpu.wide(dtype)]
    reads, writes = dict.fromkeys(text.reads, own), dict.fromkeys(text.writes, sums)
    return {**reads, **writes, **dict.fromkeys(text.tables, "*i64"), **dict.fromkeys(triton.NUMBERS, "i64")}


def programs_of(pieces: int, edges: int, hidden: int) -> int:
    """How many programs share the pieces where each writes a partial gradient to W: half the numbers of w at most."""
    return min(pieces, MOST_PROGRAMS, max(1, edges // (2 * hidden)))


def launch(key: str, arrays: Mapping[str, Tensor], tables: Tables, tangents: str, wants: str) -> dict[str, Tensor]:
    """The gradients `wants` of a pass (see `passes.Pass`); arguments as of `cpu.launch`."""
    x, hidden = arrays["x"], arrays["W"].shape[0]
    device = x.device if x.is_cuda else None
    found: dict[str, Tensor] = {}
    for todo in split(Pass(tangents, wants)):
        by_sender = tables.sender_pieces is not None
        kernels = plan(key, hidden, x.dtype, precision(x.dtype), by_sender, todo, device)
        found |= execute(kernels, arrays, tables, todo.wants)
    return {want: found[want] for want in wants}


def execute(todo: gpu.Plan, arrays: Mapping[str, Tensor], tables: Tables, wants: str) -> dict[str, Tensor]:
    """Run the kernels of a pass and sum what they wrote apart."""
    x, edges, hidden = arrays["x"], *arrays["h"].shape
    tables = Tables(*(None if table is None else table.contiguous() for table in tables))
    inputs = {name: tensor.contiguous() for name, tensor in arrays.items()}
    pieces = gpu.pieces_of(tables, HELD[todo.walk])
    programs = programs_of(pieces.shape[0], edges, hidden) if "W" in wants else pieces.shape[0]
    outputs = {want: _allocate(want, todo, x, edges, tables, programs) for want in wants}
    listed = {**tables._asdict(), "pieces": pieces}
    with torch.cuda.device_of(x):
        for kernel in todo.kernels if programs else ():
            tensors = [inputs[name] for name in kernel.text.reads] + list(outputs.values())
            tensors += [listed[name] for name in kernel.text.tables]
            grid = (programs, kernel.text.blocks)
            kernel.function[grid](*tensors, edges, pieces.shape[0], TURNS, **kernel.options)
        return {want: _finish(want, tensor, todo, x, tables) for want, tensor in outputs.items()}


def _allocate(want: str, todo: gpu.Plan, x: Tensor, edges: int, tables: Tables, programs: int) -> Tensor:
    """What the kernels write: gradients to h and to W in slabs, as those to y."""
    if want not in "hW":
        return gpu.allocate(want, todo, x, edges, tables)
    rows = (todo.slabs, edges) if want == "h" else (programs, todo.dims["h"])
    return x.new_empty((*rows, todo.dims[want]), dtype=gpu.wide(x.dtype))


def _finish(want: str, tensor: Tensor, todo: gpu.Plan, x: Tensor, tables: Tables) -> Tensor:
    if want not in "hW":
        return gpu.finish(want, tensor, todo, x, tables)
    return (tensor[0] if tensor.shape[0] == 1 else tensor.sum(0)).to(x.dtype)
