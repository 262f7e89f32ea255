"""Small raw records for tests."""

from typing import Any

import numpy as np


def molecule(atoms: int = 5, seed: int = 0) -> dict[str, Any]:
    """A molecule on a jittered grid of 1.5 Å, with energy and forces."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(8)] * 3), axis=-1).reshape(-1, 3)[:atoms] * 1.5
    return {
        "id": f"molecule#{seed}",
        "group": f"group{seed % 3}",
        "types": generator.choice([1, 6, 8], atoms),
        "positions": grid + generator.normal(size=(atoms, 3)) * 0.05,
        "forces": generator.normal(size=(atoms, 3)),
        "energy": float(generator.normal()) - 100.0 * atoms,
    }


def crystal(atoms: int = 8, seed: int = 0) -> dict[str, Any]:
    """A triclinic crystal with stress."""
    generator = np.random.default_rng(seed)
    cell = np.eye(3) * 6.0 + generator.normal(size=(3, 3)) * 0.4
    stress = generator.normal(size=(3, 3)) * 0.01
    return {
        **molecule(atoms, seed),
        "id": f"crystal#{seed}",
        "positions": generator.random((atoms, 3)) @ cell,
        "cell": cell,
        "pbc": np.ones(3, bool),
        "stress": (stress + stress.T) / 2,
        "config_type": "bulk",
    }


def jet(constituents: int = 12, seed: int = 0) -> dict[str, Any]:
    """A jet of massive constituents."""
    generator = np.random.default_rng(seed)
    momentum = generator.normal(size=(constituents, 3)) + np.array([50, 0, 20])
    energy = np.sqrt((momentum**2).sum(axis=1) + 0.02)
    return {
        "id": f"jet#{seed}",
        "group": f"jet#{seed}",
        "types": generator.integers(1, 7, constituents),
        "momenta": np.concatenate([energy[:, None], momentum], axis=1),
        "particle_charge": generator.integers(-1, 2, constituents),
        "label": seed % 4,
    }


def peptide(residues: int = 3, seed: int = 0) -> dict[str, Any]:
    """Backbone atoms N, CA, C, O of a peptide, without labels of energy."""
    generator = np.random.default_rng(seed)
    atoms = 4 * residues
    return {
        "id": f"peptide#{seed}",
        "group": f"sequence{seed}",
        "types": np.tile([7, 6, 6, 8], residues),
        "positions": np.cumsum(generator.normal(size=(atoms, 3)) + np.array([1, 0, 0]), axis=0),
        "atom_names": np.tile([1, 2, 3, 4], residues),
        "parent": np.repeat(np.arange(residues), 4),
        "residue_types": generator.integers(0, 20, residues),
        "chain": np.zeros(residues, int),
    }
