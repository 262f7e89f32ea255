"""Checks of arguments, before anything is launched: what was found, and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)


def traced() -> bool:
    """Whether a compiler or a tracer watches what is done with tensors."""
    tracing = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return tracing or bool(torch._C._len_torch_dispatch_stack())


def readable(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor can be read here: those of a tracer have none, or must not reach the trace."""
    return not traced() and type(tensor) in PLAIN


def check_type(name: str, value: object, expected: type) -> None:
    """Raise ValueError unless `value` is an instance of `expected`."""
    if not isinstance(value, expected):
        raise ValueError(f"{name}: found {type(value).__name__}, expected {expected.__name__}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless it is a tensor of this shape; None stands for any length."""
    check_type(name, tensor, Tensor)
    if tensor.dim() != len(shape) or any(
        want is not None and want != have for have, want in zip(tensor.shape, shape, strict=True)
    ):
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(f"{name}: found shape {tuple(tensor.shape)}, expected ({wanted})")


def check_alike(name: str, x: Tensor, **others: Tensor) -> None:
    """Raise ValueError unless x is a floating tensor and the others are tensors of its dtype on its device."""
    for given, tensor in {name: x, **others}.items():
        check_type(given, tensor, Tensor)
    if not torch.is_floating_point(x):
        raise ValueError(f"{name}: found {x.dtype}, expected a floating point dtype")
    for other, tensor in others.items():
        if tensor.dtype != x.dtype:
            raise ValueError(f"{other}: found {tensor.dtype}, expected {x.dtype} as {name}")
        if tensor.device != x.device:
            raise ValueError(f"{other}: found on {tensor.device}, expected on {x.device} as {name}")


def check_device(name: str, tensor: Tensor, x_name: str, x: Tensor) -> None:
    """Raise ValueError unless the tensor, or the index of `name`, is one that lies where x does."""
    check_type(name, tensor, Tensor)
    if tensor.device != x.device:
        raise ValueError(f"{name}: found on {tensor.device}, expected on {x.device} as {x_name}")


def check_index(name: str, index: Tensor, rows: int) -> None:
    """Raise ValueError unless all entries lie within 0..rows - 1; skipped where they cannot be read."""
    check_type(name, index, Tensor)
    if not readable(index) or not index.numel():
        return
    least, most = (int(value) for value in torch.aminmax(index))
    if least < 0 or most >= rows:
        raise ValueError(f"{name}: found {least}..{most}, expected within 0..{rows - 1}")


def check_range(name: str, value: int, least: int, most: int) -> None:
    """Raise ValueError unless `value` is an integer within least..most."""
    if not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name}: found {value!r}, expected an integer within {least}..{most}")
