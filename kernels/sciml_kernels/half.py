"""Half precision in the definitions: computed in single precision and rounded once, as the Triton kernels do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")  # a tensor or several
HALF = (torch.bfloat16, torch.float16)


def in_single(definition: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorator of a function of tensors: half precision goes in and comes out, sums and products are in single."""

    @functools.wraps(definition)
    def rounded_once(*arguments: Any, **options: Any) -> Any:
        half = next((value.dtype for value in arguments if _is_half(value)), None)
        if half is None:
            return definition(*arguments, **options)
        found: Any = definition(*(value.float() if _is_half(value) else value for value in arguments), **options)
        return found.to(half) if isinstance(found, Tensor) else tuple(part.to(half) for part in found)

    return rounded_once


def _is_half(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype in HALF
