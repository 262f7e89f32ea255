"""Generated Triton source as jitted functions.

Triton reads the text of a function from the file in which it was defined, so generated text must lie in a file that
stays. The file is an entry of the folder of `cache.py`; what runs is the text in hand, not what a file happens to hold.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

from sciml_kernels import cache


def load(source: str, name: str) -> Any:
    """The jitted function `name` of a generated Triton source; keep it, every call makes a new one.

    Args:
        source: a whole Python file with its imports, from which Triton can compile the function.
        name: the function; it also begins the name of the file, so that profilers show it.

    Raises:
        CompilerError: the cache folder cannot be used.
        ImportError: Triton is not installed.
    """
    path = write(source, name)
    module = types.ModuleType(f"sciml_kernels.generated.{path.stem}")
    module.__file__ = str(path)
    exec(compile(source, str(path), "exec"), module.__dict__)
    return getattr(module, name)


def write(source: str, name: str) -> Path:
    """The file of a generated source, written unless it is there already, word for word.

    Raises:
        CompilerError: the cache folder cannot be used.
        ImportError: Triton is not installed.
    """
    import triton

    path = cache.folder() / f"{name}_{cache.address(source, triton.__version__)}.py"
    if not _holds(path, source):
        cache.publish(path, source.encode())
    return path


def _holds(path: Path, source: str) -> bool:
    try:
        return path.read_bytes() == source.encode()
    except OSError:
        return False
