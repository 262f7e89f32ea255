"""The generated Triton kernels of convolution and product, interpreted, against the plain-torch definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from sciml_kernels import Edges, Spec, conv, product
from sciml_kernels.trilinear.emit import FIRST_ORDER
from sciml_kernels.trilinear.parts import choose_walk
from tests.kernels.interpreted import interpreted
from tests.kernels.problems import SPECS, assert_equal_blocks, derivatives, edges, inputs

NODES, EDGES = 3, 7
# Few outputs: edges are walked by sender in the backward passes.
BY_SENDER = Spec.summed("3x0e+3x1o", "0e+1o", "0e")
WITH_GAPS = Spec.summed("3x0e+3x2e", "0e+1o+2e", "1o")  # nothing couples to the harmonics 0e and 2e


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that torch.empty returns is full of NaN: what a kernel does not write is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def compare(spec: Spec, function: Callable[..., Tensor], arguments: tuple[Tensor, ...], tolerance: float) -> None:
    """function(x, y, w, backend) to second order."""
    with poisoned():
        found = derivatives(lambda *leaves: function(*leaves, "triton"), arguments)
    expected = derivatives(lambda *leaves: function(*leaves, "reference"), arguments)
    assert_equal_blocks(spec, found, expected, tolerance)


def compare_conv(spec: Spec, graph: Edges, dtype: torch.dtype = torch.float64, tolerance: float = 1e-13) -> None:
    arguments = inputs(spec, graph.num_senders, graph.num_edges, dtype)
    compare(spec, lambda x, y, w, backend: conv(x, y, w, graph, spec, backend), arguments, tolerance)


@pytest.mark.parametrize("name", SPECS)
@interpreted
def test_convolution_equals_its_definition(name: str) -> None:
    compare_conv(SPECS[name], edges(NODES, EDGES))


@interpreted
def test_single_precision() -> None:
    compare_conv(SPECS["separate"], edges(NODES, EDGES), torch.float32, 1e-5)


@interpreted
def test_walk_by_sender() -> None:
    assert choose_walk(BY_SENDER, FIRST_ORDER, "xyw", True) == "sender"
    compare_conv(BY_SENDER, edges(NODES, EDGES))


@interpreted
def test_slots_that_no_path_touches() -> None:
    compare_conv(WITH_GAPS, edges(NODES, EDGES))


@pytest.mark.parametrize("name", ["separate", "y channels"])
@interpreted
def test_product_equals_its_definition(name: str) -> None:
    spec = SPECS[name]
    compare(spec, lambda x, y, w, backend: product(x, y, w, spec, backend), inputs(spec, 5, 5, torch.float64), 1e-13)
