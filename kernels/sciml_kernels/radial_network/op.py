"""The public operation: checks the arguments, chooses a backend."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sciml_kernels.backends import choose
from sciml_kernels.checks import check_alike, check_shape
from sciml_kernels.layers import library_rowwise
from sciml_kernels.radial_network import library, reference


def radial_network(
    basis: Tensor,
    shift: Tensor,
    envelope: Tensor,
    parameters: Tensor,
    hidden: Sequence[int],
    backend: str = "auto",
) -> Tensor:
    """Hidden layers of edges from their distances: every layer is silu(W in + b), the last times the envelope.

    What `conv_radial` takes as `h`. On a CPU nothing between the layers reaches memory, in any of the three passes of a
    loss on forces. On a GPU the layers are torch's products, which its library computes at full rate, and SiLU has one
    pass a derivative. Differentiable twice in every tensor.

    Args:
        basis: (edges, numbers), such as the radial basis of `edge_embedding`.
        shift: (edges, hidden[0]), added in the first layer: what the nodes at the ends of an edge tell.
        envelope: (edges, 1), such as that of `edge_embedding`.
        parameters: flat, layer by layer the weight (out, in), row by row, then the bias (out,).
        hidden: outputs of the layers.
        backend: "auto" (compiled where possible), "reference" (plain torch), "cpu" (generated C++), "triton".

    Returns:
        (edges, hidden[-1]).

    Raises:
        ValueError: an argument of wrong shape, dtype or device, or a backend that is not possible here.
    """
    hidden = [int(size) for size in hidden]
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden: found {hidden}, expected one number or more, each at least 1")
    check_shape("basis", basis, (None, None))
    check_shape("shift", shift, (basis.shape[0], hidden[0]))
    check_shape("envelope", envelope, (basis.shape[0], 1))
    sizes = [basis.shape[1], *hidden]
    check_shape("parameters", parameters, (sum(a * b + b for a, b in zip(sizes, hidden, strict=False)),))
    check_alike("basis", basis, shift=shift, envelope=envelope, parameters=parameters)
    chosen = choose(backend, basis)
    if chosen == "cpu" and basis.shape[1]:
        return library.radial_network(basis, shift, envelope, parameters, sizes)
    if chosen == "triton":
        return reference.radial_network(
            basis, shift, envelope, parameters, sizes, lambda x: library_rowwise.silu(x, chosen)
        )
    return reference.radial_network(basis, shift, envelope, parameters, sizes)
