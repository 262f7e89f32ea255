"""Tests of Triton kernels run in a process of their own, where Triton interprets them on CPU tensors.

Triton decides when it is imported whether it interprets, for good; the process of the tests also compiles kernels.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from tests.kernels.memory import full_of_nan

Test = TypeVar("Test", bound=Callable[..., None])


def interpreted(test: Test) -> Test:
    """Run a test (a function at the top of its module) in the interpreting process; one process serves all such tests.

    Arguments travel by pickle: parameters do, and fixtures that are plain values. What a fixture does to its own
    process does not reach the test, in which memory that torch.empty returns is full of NaN.
    """

    @functools.wraps(test)
    def run(*arguments: Any, **keywords: Any) -> None:
        if _interpreting():
            with full_of_nan():
                test(*arguments, **keywords)
        else:
            _worker().submit(_call, test.__module__, test.__name__, arguments, keywords).result()

    return run  # type: ignore[return-value]


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    os.environ.update(TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


def _call(module: str, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    getattr(importlib.import_module(module), name)(*arguments, **keywords)
