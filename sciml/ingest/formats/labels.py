"""Labels of targets that a configuration names, from what a file writes to what a store keeps."""

from typing import Any

import numpy as np

from sciml.data.targets import Target
from sciml.physics.tensors import to_irreps


def read_label(target: Target, value: Any) -> np.ndarray | None:
    """The value of one record as a Target says, None where a graph has no number.

    Cartesian tensors become irreps. Classes are written as their names or their numbers from 0 on; a missing one is
    empty, None or -1. Raises ValueError, which names the target, for a value of another shape, symmetry or class.
    """
    try:
        if target.classes:
            return _classes(target, value)
        if target.level == "graph":
            found = to_irreps(value, target.irreps)
            return None if np.isnan(found).all() else found
        return np.stack([to_irreps(row, target.irreps) for row in np.asarray(value, dtype=np.float64)])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{target.source}: {error}") from None


def _classes(target: Target, value: Any) -> np.ndarray:
    """Indices of classes, () for a graph and (rows,) for nodes."""
    array = np.asarray(value)
    if array.ndim != (0 if target.level == "graph" else 1):
        raise ValueError(f"shape {array.shape}, expected {'one class' if target.level == 'graph' else 'one a node'}")
    return np.array([_class(target, one) for one in array.reshape(-1).tolist()], dtype=np.int16).reshape(array.shape)


def _class(target: Target, value: Any) -> int:
    if value is None or value in ("", -1):
        return -1
    if str(value) in target.classes:
        return target.classes.index(str(value))
    if isinstance(value, int | float) and value == int(value) and 0 <= value < len(target.classes):
        return int(value)
    raise ValueError(f"class {value!r}, expected one of {', '.join(target.classes)}")
