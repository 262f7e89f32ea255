"""Materials records (atoms, optional cell, energy, forces, stress) to graphs."""

import numpy as np
import torch

from sciml.data.records import Record
from sciml.domains.common import Rows, atoms_counts, atoms_graph
from sciml.graph import Graph

KINDS = ("atoms",)


def graph(
    record: Record,
    kind: str,
    cutoff: float,
    dtype: torch.dtype = torch.float32,
    coarse_cutoff: float | None = None,
) -> Graph | None:
    """The graph of all atoms within ``cutoff`` [Å] of each other; None for a kind that is not in KINDS."""
    return atoms_graph(record, "materials", cutoff, dtype, coarse_cutoff) if kind in KINDS else None


def counts(data: Rows, kind: str, indices: np.ndarray) -> dict[str, float]:
    """Number of labels per target in the records ``indices``: energy 1, forces 3 n, stress 9 where present."""
    if kind not in KINDS:
        return {}
    return {**atoms_counts(data, indices), "stress": float(9 * data.has("stress")[np.asarray(indices)].sum())}
