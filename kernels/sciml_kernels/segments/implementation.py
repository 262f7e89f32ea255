"""Which module runs segment operations on a backend: both have the same functions."""

from __future__ import annotations

from types import ModuleType

from sciml_kernels.segments import cpu


def of(backend: str) -> ModuleType:
    """The module of "cpu" or "triton"."""
    return cpu
