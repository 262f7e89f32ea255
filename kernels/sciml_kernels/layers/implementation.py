"""Which module runs the layers on a backend: both have the same functions."""

from __future__ import annotations

from types import ModuleType

from sciml_kernels.layers import cpu, gpu


def of(backend: str) -> ModuleType:
    """The module of "cpu" or "triton"."""
    return gpu if backend == "triton" else cpu
