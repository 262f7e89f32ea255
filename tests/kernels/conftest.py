"""What the tests of several kernels share."""

from collections.abc import Iterator

import pytest

from tests.kernels.memory import full_of_nan


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that torch.empty returns is full of NaN: what a kernel does not write is seen."""
    with full_of_nan():
        yield
