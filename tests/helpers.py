"""What property tests share: random systems (``sciml.evaluate.verify.random_records``), transformations
(``sciml.physics.symmetry``), real jets and the check of equivariance.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sciml.data.records import Record
from sciml.evaluate.verify.random_records import (
    ELEMENTS,
    random_crystal,
    random_jet,
    random_molecule,
    random_peptide,
    spread_out,
)
from sciml.graph import Graph
from sciml.physics.lorentz import random_boost
from sciml.physics.symmetry import (
    boost,
    lorentz_transform,
    permute,
    random_orthogonal,
    random_rotation,
    relative_rms,
    rotate,
    translate,
)

__all__ = [
    "ELEMENTS",
    "Rows",
    "boost",
    "check_equivariance",
    "lorentz_transform",
    "permute",
    "random_boost",
    "random_crystal",
    "random_jet",
    "random_molecule",
    "random_orthogonal",
    "random_peptide",
    "random_rotation",
    "read_jets",
    "relative_rms",
    "rotate",
    "spread_out",
    "translate",
]


class Rows:
    """A list of records with the read API of a Store that counts need."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.sizes = np.array([len(record["types"]) for record in records])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def has(self, target: str) -> np.ndarray:
        """Presence of a target per record."""
        return np.array([target in record for record in self.records])


def read_jets(path: Path, limit: int = 20) -> list[Record]:
    """Jet records of a JetClass-style parquet file; energies are raised in float64 until no mass is imaginary."""
    import pyarrow.parquet as pq

    table = pq.read_table(path).slice(0, limit).to_pylist()
    records = []
    for row in table:
        momentum = np.array([row["part_px"], row["part_py"], row["part_pz"]]).T
        energy = np.maximum(row["part_energy"], np.linalg.norm(momentum, axis=1))
        records.append(
            {
                "types": np.ones(len(energy), dtype=np.uint8),
                "momenta": np.concatenate([energy[:, None], momentum], axis=1),
                "particle_charge": np.array(row["part_charge"], dtype=np.int8),
                "label": row["jet_label"],
            }
        )
    return records


def check_equivariance(
    model: Callable[[Graph], dict[str, torch.Tensor]], graph: Graph, tolerance: float, seed: int = 0
) -> dict[str, float]:
    """Assert that ``model`` is finite and follows rotations, reflections, translations and permutations of one graph.

    Returns the worst relative RMS error per output; edges must be recomputed by nobody, as none of these changes them.
    """
    generator = torch.Generator().manual_seed(seed)
    first = model(graph)
    n = len(graph.types)
    transformed = [rotate(graph, random_orthogonal(generator)) for _ in range(3)]
    transformed.append(rotate(graph, -torch.eye(3, dtype=torch.float64)))
    transformed.append(translate(graph, torch.randn(3, generator=generator, dtype=torch.float64)))
    transformed.append(permute(graph, torch.randperm(n, generator=generator)))
    worst = dict.fromkeys(first, 0.0)
    for sample, action in transformed:
        expected = action(first)
        for name, value in model(sample).items():
            assert torch.isfinite(value).all(), f"{name} is not finite"
            worst[name] = max(worst[name], relative_rms(value, expected[name]))
    failed = {name: error for name, error in worst.items() if not error <= tolerance}
    assert not failed, f"relative RMS errors above {tolerance}: {failed}"
    return worst
