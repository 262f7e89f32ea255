"""Materials records (atoms, optional cell, energy, forces, stress) to graphs."""

import numpy as np
import torch

from sciml.data.records import Record
from sciml.domains.common import Rows, atoms_counts, atoms_graph
from sciml.graph import Graph

KINDS = ("atoms",)


def graph(record: Record, kind: str, cutoff: float, dtype: torch.dtype = torch.float32) -> Graph | None:
    """The graph of all atoms within ``cutoff`` [Å] of each other; None for a kind that is not in KINDS."""
    return atoms_graph(record, "materials", cutoff, dtype) if kind in KINDS else None


def counts(data: Rows, kind: str, indices: np.ndarray) -> dict[str, float]:
    """Number of labels per target in the records ``indices``: energy 1, forces 3 n, stress 9 where present."""
    return atoms_counts(data, indices) if kind in KINDS else {}


def sizes(data: Rows, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (N,) and directed pairs within the store's reference radius (N,) per record; zeros for another kind."""
    served = int(kind in KINDS)
    return data.sizes * served, data.pairs * served
