"""Small trilinear problems, and every derivative of an operation up to the second order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sciml_kernels import Edges, Spec
from sciml_kernels.trilinear.spec import offsets, weight_offsets

# More than 16 channels meet the vector loop and its tail, fewer the tail alone.
SPECS = {
    "separate": Spec.separate("20x0e+20x1o", "0e+1o+2e", "0e+1o+2e"),
    "summed, both parities": Spec.summed("3x0o+3x1e+3x1o", "0e+1o", "0e+0o+1o+1e"),
    "unequal multiplicities": Spec.separate("20x0e+6x1e+2x2e", "0e+1e", "0e+1e+2e"),
    "y channels": Spec.summed("17x0e+17x1o", "17x0e+17x1o", "0e+1o", y_channels=True),
}
# The paths of problems 2 to 4 of the benchmark, with few channels.
PROBLEM_PATHS = {
    2: Spec.separate("2x0e+2x1o+2x2e", "0e+1o+2e+3o", "0e+1o+2e+3o"),
    3: Spec.separate("+".join(f"1x{l}{p}" for l in range(4) for p in "oe"), "0e+1o+2e+3o", "0e+1o+2e+3o"),  # noqa: E741
    4: Spec.separate("4x0e+3x1e+2x2e+1x3e", "0e+1e+2e+3e", "0e+1e+2e+3e"),
}


def edges(num_nodes: int, num_edges: int, seed: int = 0) -> Edges:
    """Random edges; the last node receives and sends none where there are several."""
    generator = torch.Generator().manual_seed(seed)
    top = max(1, num_nodes - 1)
    receivers = torch.randint(top, (num_edges,), generator=generator).sort().values
    return Edges(torch.randint(top, (num_edges,), generator=generator), receivers, num_nodes)


def inputs(spec: Spec, nodes: int, rows: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random flat x (nodes), y and w (rows)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((nodes, spec.dim_x), (rows, spec.dim_y), (rows, spec.dim_w))
    x, y, w = (torch.randn(size, dtype=dtype, generator=generator) for size in sizes)
    return x, y, w


def derivatives(function: Callable[..., Tensor], arguments: Sequence[Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Value, first and second derivatives of function(x, y, w), against fixed random directions."""
    generator = torch.Generator().manual_seed(seed)

    def direction(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    leaves = [argument.detach().clone().requires_grad_() for argument in arguments]
    value = function(*leaves)
    g = direction(value).requires_grad_()
    first = torch.autograd.grad(value, leaves, g, create_graph=True)
    second = torch.autograd.grad(first, [*leaves, g], [direction(gradient) for gradient in first])
    names = ("out", "dx", "dy", "dw", "ddx", "ddy", "ddw", "ddg")
    return {name: tensor.detach() for name, tensor in zip(names, (value, *first, *second), strict=True)}


def blocks(spec: Spec, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A result cut into the slots of its side, or the paths of the weights."""
    if name.endswith("w"):
        starts = weight_offsets(spec)
        muls = [spec.irreps_x[path.x].mul for path in spec.paths]
        parts = [slice(start, start + mul) for start, mul in zip(starts, muls, strict=True)]
    else:
        irreps = {"x": spec.irreps_x, "y": spec.irreps_y}.get(name[-1], spec.irreps_out)
        parts = [slice(start, start + part.dim) for start, part in zip(offsets(irreps), irreps, strict=True)]
    return {f"{name} block {index}": tensor[:, part] for index, part in enumerate(parts)}


def assert_equal_blocks(spec: Spec, found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every slot and every path within `tolerance` of the largest entry of its block."""
    for name, tensor in expected.items():
        wanted = blocks(spec, name, tensor)
        for block, part in blocks(spec, name, found[name]).items():
            scale = max(1.0, float(wanted[block].abs().max())) if wanted[block].numel() else 1.0
            error = float((part - wanted[block]).abs().max()) if part.numel() else 0.0
            assert error <= tolerance * scale, f"{block}: off by {error} of {scale}"
