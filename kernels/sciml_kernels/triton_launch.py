"""Where Triton kernels are launched, and how precise their products may be."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def on_device(function: Function) -> Function:
    """Run a function that launches kernels on the GPU of its first tensor: Triton takes the current one."""

    @functools.wraps(function)
    def run(*arguments: Any, **keywords: Any) -> Any:
        first = next(value for value in arguments if isinstance(value, Tensor))
        with torch.cuda.device_of(first):
            return function(*arguments, **keywords)

    return run  # type: ignore[return-value]


def allows_tf32() -> bool:
    """Whether torch may compute fp32 matrix products of its own in TF32 (`torch.set_float32_matmul_precision`).

    The setting is read, never set. Its older names raise once a program has used both the older and the newer ones.
    """
    matmul = torch.backends.cuda.matmul
    try:
        return bool(matmul.fp32_precision == "tf32")
    except AttributeError:  # before torch 2.9
        return bool(matmul.allow_tf32)
