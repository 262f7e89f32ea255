"""What the hardware asks at least of each pass: bytes that must move, and the operations of convolutions."""

from __future__ import annotations

import math
from typing import Any

from measure import PASSES

COPY_BYTES, FLOPS = 4.3e12, 67e12  # a second, on an H200: a copy, and its fp32 rate


PRODUCTS = (1, 2, 5)  # matrix products h W, or as large, that each pass of conv_radial needs


def limits(plain: dict[str, Any], device: str, bytes_per_second: float, flops_per_second: float) -> dict[str, float]:
    """ms of each pass at least: bytes at the speed of a copy or, for convolutions, operations at that of a product of
    matrices, whichever takes longer. On a GPU the rows of edges that a deterministic sum needs count as well.
    """
    moved, flops = smallest_traffic(plain), dict.fromkeys(PASSES, 0)
    if plain["operation"] in ("conv", "radial"):
        from sciml_kernels import Spec

        spec = Spec.from_key(plain["key"])
        flops = {name: operations(spec, name) * plain["edges"] for name in PASSES}
        if device == "cuda" and plain["operation"] == "conv":
            moved = {name: traffic(spec, name, plain["nodes"], plain["edges"])[0] for name in PASSES}
    if plain["operation"] == "radial":
        product = 2 * plain["edges"] * math.prod(plain["shapes"][3])
        flops = {name: flops[name] + count * product for name, count in zip(PASSES, PRODUCTS, strict=True)}
    seconds = {name: max(moved[name] / bytes_per_second, flops[name] / flops_per_second) for name in PASSES}
    return {name: round(1e3 * value, 3) for name, value in seconds.items()}


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
    from sciml_kernels.trilinear.tuned import DEFAULT

    terms, wants = TERMS[name]
    walk = choose_walk(spec, terms, wants, by_sender=True)
    todo = gpu.build(spec, torch.float32, walk, terms, wants, DEFAULT)
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
    """Additions and multiplications for one edge; those of y alone once for all channels and paths that share them."""
    from sciml_kernels.trilinear.emit import PASSES as TERMS
    from sciml_kernels.trilinear.emit import emit

    terms, wants = TERMS[name]
    shared: set[tuple[int, str]] = set()
    total = 0
    for path in spec.paths:
        seen: set[str] = set()
        for step in emit(path, terms, wants):
            count = step.expression.count("*") + step.expression.count(" + ")
            count += step.kind == "add" or step.name in seen
            seen.add(step.name)
            if step.kind != "matrix":
                total += count * spec.irreps_x[path.x].mul
            elif (path.y, step.expression) not in shared:
                shared.add((path.y, step.expression))
                total += count
    return total
