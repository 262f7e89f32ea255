"""What the hardware asks at least of each pass: bytes that must move, and the operations of convolutions."""

from __future__ import annotations

import math
from typing import Any

from measure import PASSES

COPY_BYTES, FLOPS, FLOPS_FP64 = 4.3e12, 67e12, 34e12  # a second, on an H200: a copy, its fp32 and its fp64 rate
PRODUCT_FLOPS = {"tf32": 400e12, "tf32x3": 133e12}  # matrix products; three TF32 ones make one of single precision


PRODUCTS = (1, 2, 5)  # matrix products h W, or as large, that each pass of conv_radial needs


def limits(plain: dict[str, Any], device: str, bytes_per_second: float, flops_per_second: float) -> dict[str, float]:
    """ms of each pass at least: bytes at the speed of a copy or, for convolutions, operations at that of a product of
    matrices, whichever takes longer. On a GPU the rows of edges that a deterministic sum needs count as well.
    """
    flops = dict.fromkeys(PASSES, 0)
    if plain["operation"] in ("conv", "radial"):
        from sciml_kernels import Spec

        spec = Spec.from_key(plain["key"])
        flops = {name: operations(spec, name) * plain["edges"] for name in PASSES}
    if plain["operation"] == "radial":
        product = 2 * plain["edges"] * math.prod(plain["shapes"][3])
        flops = {name: flops[name] + count * product for name, count in zip(PASSES, PRODUCTS, strict=True)}
    copies = copy_times(plain, device, bytes_per_second)
    return {name: round(max(copies[name], 1e3 * flops[name] / flops_per_second), 3) for name in PASSES}


def copy_times(plain: dict[str, Any], device: str, bytes_per_second: float) -> dict[str, float]:
    """ms of each pass that its bytes take at the speed of a copy."""
    moved = smallest_traffic(plain)
    if device == "cuda" and plain["operation"] == "conv":
        from sciml_kernels import Spec

        spec = Spec.from_key(plain["key"])
        moved = {name: traffic(spec, name, plain["nodes"], plain["edges"])[0] for name in PASSES}
    return {name: 1e3 * moved[name] / bytes_per_second for name in PASSES}


def smallest_traffic(plain: dict[str, Any]) -> dict[str, int]:
    """Bytes in fp32 when every input is read once and every output written once, in each pass."""
    sizes = [math.prod(shape) for shape in plain["shapes"]]
    inputs, first, out = sum(sizes), sum(sizes[i] for i in plain["first"]), math.prod(plain["out"])
    counts = (inputs + out, inputs + out + first, 2 * (inputs + out) + first)
    return {name: 4 * count for name, count in zip(PASSES, counts, strict=True)}


def traffic(spec: Any, name: str, nodes: int, edges: int) -> tuple[int, int]:
    """Bytes that a pass of the Triton kernels must move, and those that every edge reads again of the other node.

    Rows of edges that are summed at their nodes, and partial gradients to y, are written and read. What is read again
    at every edge comes from the cache where the nodes fit into it.
    """
    import torch

    from sciml_kernels.trilinear import gpu
    from sciml_kernels.trilinear.emit import PASSES as TERMS
    from sciml_kernels.trilinear.parts import arrays_read, choose_walk
    from sciml_kernels.trilinear.triton import HELD, OTHER
    from sciml_kernels.trilinear.tuned import default

    terms, wants = TERMS[name]
    walk = choose_walk(spec, terms, wants, by_sender=True)
    todo = gpu.build(spec, torch.float32, walk, terms, wants, default(terms, wants))
    rows = {"x": nodes, "y": edges, "w": edges, "g": nodes}
    dims = {"x": spec.dim_x, "y": spec.dim_y, "w": spec.dim_w, "g": spec.dim_out}
    reads = [array[-1] for array in arrays_read(terms, wants)]
    numbers = sum(rows[kind] * dims[kind] for kind in (*reads, *wants))
    other = OTHER[walk]
    numbers += 2 * edges * dims[other] * (other in wants)
    numbers += 2 * edges * dims["y"] * todo.slabs * ("y" in wants and todo.slabs > 1)
    index = 8 * edges * (1 + (HELD[walk] == "x") + (other in wants))
    return 4 * numbers + index, 4 * edges * dims[other] * reads.count(other)


def operations(spec: Any, name: str) -> int:
    """Additions and multiplications of a pass of the convolution for one edge."""
    from sciml_kernels.trilinear.emit import PASSES as TERMS

    return count(spec, *TERMS[name])


def count(spec: Any, terms: Any, wants: str) -> int:
    """Additions and multiplications for one edge; those of y alone once for all channels and paths that share them."""
    from sciml_kernels.trilinear.emit import emit

    shared: set[tuple[int, str]] = set()
    total = 0
    for path in spec.paths:
        seen: set[str] = set()
        for step in emit(path, terms, wants):
            found = step.expression.count("*") + step.expression.count(" + ")
            found += step.kind == "add" or step.name in seen
            seen.add(step.name)
            if step.kind != "matrix" or spec.y_channels:
                total += found * spec.irreps_x[path.x].mul
            elif (path.y, step.expression) not in shared:
                shared.add((path.y, step.expression))
                total += found
    return total


def radial_traffic(spec: Any, hidden: int, name: str, nodes: int, edges: int) -> tuple[int, int]:
    """The same as `traffic` of the kernels with the radial layer inside.

    Partial gradients to h and W are written and read as those to y. From the cache come the rows of the other node of
    each edge and, for each tile of edges, all of W.
    """
    import torch

    from sciml_kernels.convolution_radial import fused, tiles
    from sciml_kernels.convolution_radial.passes import PASSES as RADIAL
    from sciml_kernels.convolution_radial.passes import Pass
    from sciml_kernels.trilinear.parts import choose_walk
    from sciml_kernels.trilinear.triton import HELD, OTHER

    sizes = {
        "x": nodes * spec.dim_x, "g": nodes * spec.dim_out, "y": edges * spec.dim_y, "h": edges * hidden,
        "W": hidden * spec.dim_w,
    }  # fmt: skip
    numbers = index = cached = 0
    for todo in fused.split(Pass(*RADIAL[name])):
        walk = choose_walk(spec, todo.terms, todo.trilinear_wants, by_sender=True)
        other, held = OTHER[walk], HELD[walk]
        kernels = fused.build(spec, hidden, torch.float32, "tf32", walk, todo, tiles.default(todo))
        reads = sorted({array for kernel in kernels.kernels for array in kernel.text.reads})
        numbers += sum(sizes[array[-1]] for array in (*reads, *todo.wants))
        slabs = {"y": kernels.slabs, "h": kernels.slabs, "W": fused.programs_of(nodes, edges, hidden)}
        slabs |= {other: edges / nodes}
        numbers += sum(2 * sizes[want] * slabs.get(want, 0) for want in todo.wants if slabs.get(want, 0) > 1)
        index += 8 * edges * (1 + (held == "x") + (other in todo.wants))
        rows = {"x": spec.dim_x, "g": spec.dim_out}[other] * sum(array[-1] == other for array in reads)
        matrices = sum(array[-1] == "W" for array in reads)
        cached += edges * rows + sizes["W"] * matrices * edges // tiles.Config().tile
    return int(4 * numbers + index), 4 * cached


def radial_operations(spec: Any, hidden: int, name: str) -> tuple[int, int]:
    """Operations for one edge: of the couplings, and of the matrix products."""
    from sciml_kernels.convolution_radial import fused
    from sciml_kernels.convolution_radial.passes import PASSES as RADIAL
    from sciml_kernels.convolution_radial.passes import Pass

    couplings = products = 0
    for todo in fused.split(Pass(*RADIAL[name])):
        couplings += count(spec, todo.terms, todo.trilinear_wants)
        made = sum(len(pairs) for pairs in todo.products_of_weights.values())
        products += made + len(todo.products_of_h) + len(todo.products_of_matrix)
    return couplings, 2 * products * hidden * spec.dim_w
