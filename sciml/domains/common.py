"""What the domains share: the conversion of record arrays, the ``atoms`` kind, and counts of labels.

A domain is a module with three names, which :mod:`sciml.registry` finds under ``domains``:

``KINDS``  the kinds of graph it can make of its records;
``graph(record, kind, cutoff, dtype)``  a raw record -> Graph with edges, None when the record cannot serve that kind;
``counts(data, kind, indices)``  number of labels per target in some records, the denominators of the losses.

A domain of one's own, an entry point in the group ``sciml.domains``, builds on a built-in one: ``BASE`` names that, and
its records have the fields of it and those in ``FIELDS`` (:class:`sciml.data.records.Field`), new targets included.
"""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sciml.data.neighbors import neighbors
from sciml.data.records import Record
from sciml.graph import DOMAINS, Graph

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


class Rows(Protocol):
    """What counts need of a Store or a Subset of one."""

    sizes: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def has(self, target: str) -> np.ndarray: ...


def floats(array: Any, dtype: torch.dtype) -> Tensor:
    """Copy an array into a tensor; stores hand out read-only views, which torch must not share."""
    return torch.from_numpy(np.array(array, dtype=_NUMPY[dtype]))


def integers(array: Any) -> Tensor:
    """Copy an array into an int64 tensor."""
    return torch.from_numpy(np.array(array, dtype=np.int64))


def make_graph(domain: str, charge: float, spin: float, dtype: torch.dtype, fields: dict[str, Tensor]) -> Graph:
    """A Graph of ``fields`` with the graph-level conditions that every kind carries."""
    fields["charge"] = torch.tensor([charge], dtype=dtype)
    fields["spin"] = torch.tensor([spin], dtype=dtype)
    fields["domain"] = torch.tensor([DOMAINS.index(domain)])
    return Graph(**fields)


def atoms_graph(record: Record, domain: str, cutoff: float, dtype: torch.dtype) -> Graph:
    """The ``atoms`` kind: all atoms, edges within ``cutoff`` [Å] through the periodic images, the labels there are.

    The energy stays float64 whatever ``dtype``: totals reach 1e5 eV and the reference energies are removed later.
    """
    positions = np.asarray(record["positions"], dtype=np.float64)
    cell = record.get("cell")
    cell = np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=np.float64)
    pbc = np.asarray(record.get("pbc", (False, False, False)), dtype=bool)
    senders, receivers, shifts = neighbors(positions, cell, pbc, cutoff)
    forces, stress = record.get("forces"), record.get("stress")
    nan = float("nan")
    fields = {
        "types": integers(record["types"]),
        "positions": floats(positions, dtype),
        "senders": torch.from_numpy(senders),
        "receivers": torch.from_numpy(receivers),
        "shifts": floats(shifts, dtype),
        "cell": floats(cell, dtype)[None],
        "pbc": torch.tensor(pbc)[None],
        "energy": torch.tensor([float(record.get("energy", nan))], dtype=torch.float64),
        "forces": torch.full((len(positions), 3), nan, dtype=dtype) if forces is None else floats(forces, dtype),
        "stress": torch.full((1, 3, 3), nan, dtype=dtype) if stress is None else floats(stress, dtype)[None],
    }
    return make_graph(domain, float(record.get("charge", 0.0)), float(record.get("spin", 1.0)), dtype, fields)


def atoms_counts(data: Rows, indices: np.ndarray) -> dict[str, float]:
    """Labels of the ``atoms`` kind: one energy and 3 n force components per labelled record."""
    indices = np.asarray(indices)
    return {
        "energy": float(data.has("energy")[indices].sum()),
        "forces": float((3 * data.sizes * data.has("forces"))[indices].sum()),
    }
