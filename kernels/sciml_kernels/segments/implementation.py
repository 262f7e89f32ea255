"""Which module runs segment sums on a backend: both have the same functions, `cpu` has the momentum projection too."""

from __future__ import annotations

from types import ModuleType

from sciml_kernels.segments import cpu, gpu


def of(backend: str) -> ModuleType:
    """The module of "cpu" or "triton"."""
    return gpu if backend == "triton" else cpu
