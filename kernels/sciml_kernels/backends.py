"""Which implementation of an operation runs: the plain-torch reference, generated C++ or Triton."""

from __future__ import annotations

import functools
import os
import warnings

import torch
from torch import Tensor

from sciml_kernels import cache, triton_source

CPU_DTYPES = (torch.float32, torch.float64)
TRITON_DTYPES = (torch.float32, torch.float64, torch.bfloat16)

_PROBE = """#include <cstdint>
extern "C" int run() { int sum = 0;
#pragma omp parallel for reduction(+ : sum) num_threads(1)
  for (int i = 0; i < 3; i++) sum += i;
  return sum; }
"""

_TRITON_PROBE = """import triton


@triton.jit
def probe(x):
    pass
"""


def choose(backend: str, x: Tensor) -> str:
    """The backend that runs: "auto" resolved for this tensor, an impossible choice refused.

    "auto" is "triton" on a GPU, "cpu" (generated C++) on a CPU, and "reference" with one warning where neither can be.

    Raises:
        ValueError: an unknown backend, or one that is not possible here; the reason is named.
    """
    if backend not in ("auto", "reference", "cpu", "triton"):
        raise ValueError(f"backend: found {backend!r}, expected 'auto', 'reference', 'cpu' or 'triton'")
    if backend == "reference":
        return backend
    if backend == "auto":
        backend, wanted = ("cpu" if x.device.type == "cpu" else "triton"), False
    else:
        wanted = True
    reason = _cpu_refusal(x) if backend == "cpu" else _triton_refusal(x)
    if not reason:
        return backend
    if wanted:
        raise ValueError(f"backend: {backend!r} is not possible, {reason}")
    if x.device.type in ("cpu", "cuda") and not torch.compiler.is_compiling():
        _warn(reason)
    return "reference"


@functools.cache
def no_compiler() -> str:
    """Why compiled C++ kernels are not possible in this process; empty where they are."""
    try:
        cache.load(_PROBE)
    except (cache.CompilerError, OSError) as error:
        return str(error)
    return ""


def interpreting() -> bool:
    """Whether Triton kernels are interpreted, which is how they run on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _cpu_refusal(x: Tensor) -> str:
    if x.device.type != "cpu":
        return f"x is on {x.device}, expected on the CPU"
    if x.dtype not in CPU_DTYPES:
        return f"x is {x.dtype}, expected float32 or float64"
    return _no_compiler()


def _triton_refusal(x: Tensor) -> str:
    if x.dtype not in TRITON_DTYPES:
        return f"x is {x.dtype}, expected float32, float64 or bfloat16"
    if x.device.type != "cuda" and not (x.device.type == "cpu" and interpreting()):
        return f"x is on {x.device}, expected on a GPU (or on the CPU with TRITON_INTERPRET=1)"
    return _no_triton()


@functools.cache
def no_triton() -> str:
    """Why Triton kernels are not possible in this process; empty where they are."""
    try:
        triton_source.load(_TRITON_PROBE, "probe")
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    except cache.CompilerError as error:
        return str(error)
    return ""


@torch.compiler.assume_constant_result  # torch.compile must not look into the search for a compiler
def _no_compiler() -> str:
    return no_compiler()


@torch.compiler.assume_constant_result
def _no_triton() -> str:
    return no_triton()


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(f"sciml_kernels runs on its slower plain-torch reference: {reason}.", stacklevel=4)
