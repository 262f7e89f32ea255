"""Protein records (atoms, residues) to graphs: ``atoms`` for energies and forces, ``residues`` for residue types.

The ``residues`` kind keeps the backbone alone: fine nodes N, CA, C, O of every residue that has all four, so that no
side chain tells its type, with a one-hot of these four roles as scalars; coarse nodes are those residues, renumbered in
order, each at the mean of its four atoms. Sequence neighbours are told apart by geometry only. The frame N, CA, C of a
residue gives its vectors in both kinds; an atom that is missing leaves a zero.
"""

import numpy as np
import torch

from sciml.data.neighbors import neighbors
from sciml.data.records import Record
from sciml.data.writer import backbone_atoms
from sciml.domains.common import (
    Rows,
    atoms_counts,
    atoms_graph,
    coarse_fields,
    floats,
    frame_roles,
    integers,
    make_graph,
    noise_fields,
)
from sciml.graph import RESIDUES, Graph

KINDS = ("atoms", "residues")
BACKBONE = ("N", "CA", "C", "O")

_ROLES = np.eye(len(BACKBONE))


def graph(
    record: Record,
    kind: str,
    cutoff: float,
    dtype: torch.dtype = torch.float32,
    coarse_cutoff: float | None = None,
) -> Graph | None:
    """A graph of ``kind`` with edges within ``cutoff`` [Å], and between residues within ``coarse_cutoff``.

    None for a kind that is not in KINDS, and for ``residues`` of a record without one complete residue. Which records
    of a store become graphs of atoms is told by their labels, see :meth:`sciml.data.store.Store.serves`.
    """
    if kind == "atoms":
        return atoms_graph(record, "biology", cutoff, dtype, coarse_cutoff)
    return _residues_graph(record, cutoff, dtype, coarse_cutoff) if kind == "residues" else None


def _residues_graph(record: Record, cutoff: float, dtype: torch.dtype, coarse_cutoff: float | None) -> Graph | None:
    atoms = backbone_atoms(record)
    if not len(atoms):
        return None
    residues = np.asarray(record["parent"])[atoms[:, 0]]
    chosen = atoms.reshape(-1)
    positions = np.asarray(record["positions"], dtype=np.float64)[chosen]
    senders, receivers, shifts = neighbors(positions, np.zeros((3, 3)), np.zeros(3, dtype=bool), cutoff)
    residue_types = integers(np.asarray(record["residue_types"])[residues])
    known = residue_types < len(RESIDUES)
    parent = np.arange(len(residues)).repeat(len(BACKBONE))
    roles = frame_roles(np.asarray(record["atom_names"])[chosen], parent)
    fields = {
        "types": integers(np.asarray(record["types"])[chosen]),
        "positions": floats(positions, dtype),
        "scalars": floats(np.tile(_ROLES, (len(residues), 1)), dtype),
        "senders": torch.from_numpy(senders),
        "receivers": torch.from_numpy(receivers),
        "shifts": floats(shifts, dtype),
        "cell": torch.zeros(1, 3, 3, dtype=dtype),
        "pbc": torch.zeros(1, 3, dtype=torch.bool),
        "residue_types": torch.where(known, residue_types, -1),
        **coarse_fields(
            parent, np.ones(len(parent)), positions, residue_types.numpy() + 1, coarse_cutoff, dtype, roles
        ),
        **noise_fields(record, "residues", chosen, dtype),
    }
    return make_graph("biology", 0.0, 1.0, dtype, fields)


def rows(record: Record, kind: str, level: str) -> np.ndarray | slice:
    """Which fine or coarse nodes of a record its graph of ``kind`` has, in the order of the graph's."""
    if kind == "residues":
        atoms = backbone_atoms(record)
        return atoms.reshape(-1) if level == "fine" else np.asarray(record["parent"])[atoms[:, 0]]
    return slice(None) if level == "fine" else np.unique(record["parent"])


def counts(data: Rows, kind: str, indices: np.ndarray) -> dict[str, float]:
    """Number of labels per target in the records ``indices``; residue types of complete and known residues."""
    if kind == "atoms":
        return atoms_counts(data, indices)
    if kind != "residues":
        return {}
    return {"residue_types": float(sum(_known_residues(data[int(index)]) for index in np.asarray(indices)))}


def _known_residues(record: Record) -> int:
    residues = np.asarray(record["parent"])[backbone_atoms(record)[:, 0]]
    return int((np.asarray(record["residue_types"])[residues] < len(RESIDUES)).sum())
