"""The public symmetric contraction: checks the arguments, then one kernel, or the chain of products that defines it."""

from __future__ import annotations

import torch
from torch import Tensor

from sciml_kernels.backends import choose
from sciml_kernels.checks import check_alike, check_index, check_shape, check_type
from sciml_kernels.half import in_single
from sciml_kernels.product import symmetric_cpu
from sciml_kernels.product.op import product
from sciml_kernels.product.symmetric_library import contraction
from sciml_kernels.product.symmetric_spec import SymmetricSpec
from sciml_kernels.trilinear.spec import flat_rows, rows_of, shaped_rows


def symmetric_contraction(
    x: Tensor, weights: Tensor, species: Tensor, spec: SymmetricSpec, backend: str = "auto"
) -> Tensor:
    """MACE's many-body features of every node, by weights of its species; differentiable twice.

    The definition and its evaluation are described in `sciml_kernels.product.symmetric_spec`. On a CPU a contraction
    of few entries runs as one kernel; everything else runs as two or more calls of `product`.

    Args:
        x: node features, (nodes, components, channels) or flat (nodes, spec.irreps_x.dim).
        weights: (species, len(spec.couplings), channels).
        species: (nodes,) int64, the row of `weights` that a node has.
        spec: the contraction.
        backend: as for `product`.

    Raises:
        ValueError: an argument of wrong shape, dtype or device, or a backend that is not possible here.
    """
    check_type("spec", spec, SymmetricSpec)
    flat = flat_rows("x", x, rows_of("x", x), spec.dim_x, spec.channels)
    check_shape("weights", weights, (None, len(spec.couplings), spec.channels))
    check_shape("species", species, (x.shape[0],))
    check_alike("x", x, weights=weights)
    if species.dtype != torch.int64 or species.device != x.device:
        raise ValueError(f"species: found {species.dtype} on {species.device}, expected torch.int64 on {x.device} as x")
    chosen = choose(backend, x)
    if chosen == "cpu" and symmetric_cpu.fits(spec):
        out = contraction(flat, _reduced(weights, spec), species, spec.key)
    else:
        out = _chained(flat, weights, species, spec, chosen)
    return shaped_rows(out, x, spec.dim_out)


def _reduced(weights: Tensor, spec: SymmetricSpec) -> Tensor:
    """The weights of independent chains, (species, chains * channels)."""
    return torch.matmul(spec.reduction_like(weights), weights).flatten(1)


def _rows(weights: Tensor, species: Tensor) -> Tensor:
    """The weights of every node; the gradient is summed in a fixed order."""
    if weights.device.type != "cpu":
        return weights[species]  # its gradient sorts the nodes, where that of index_select would add in any order
    check_index("species", species, weights.shape[0])
    return weights.index_select(0, species)


@in_single  # what one product hands to the next is not rounded
def _chained(x: Tensor, weights: Tensor, species: Tensor, spec: SymmetricSpec, backend: str) -> Tensor:
    """T2 = x (x) x, T3 = T2 (x) x, ...; then (1, x, T2, ...) (x) x with the weights of every node."""
    *powers, last = spec.steps
    parts = [x.new_ones(x.shape[0], spec.channels), x][: spec.correlation]
    for step in powers:
        parts.append(product(parts[-1], x, x.new_ones(x.shape[0], step.dim_w), step, backend))
    return product(torch.cat(parts, dim=1), x, _rows(_reduced(weights, spec), species), last, backend)
