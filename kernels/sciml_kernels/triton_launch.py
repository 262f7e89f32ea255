"""Where Triton kernels are launched."""

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
