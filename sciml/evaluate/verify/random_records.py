"""Random records of every kind: systems that no store holds, for certificates and for tests of properties.

Records here are in float64 where a store holds float32, so that a symmetry can be tested beyond float32.
"""

import numpy as np

from sciml.data.records import Record
from sciml.graph import RESIDUES

ELEMENTS = (1, 6, 8, 14, 29)


def _labels(rng: np.random.Generator, atoms: int) -> Record:
    return {"energy": float(rng.normal()), "forces": rng.normal(size=(atoms, 3))}


def spread_out(rng: np.random.Generator, atoms: int, cell: np.ndarray, apart: float) -> np.ndarray:
    """Positions (n, 3) [Å] in a cell, at least ``apart`` from each other and from each other's nearest images."""
    inverse = np.linalg.inv(cell)
    images = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3), axis=-1).reshape(-1, 3) @ cell
    chosen: list[np.ndarray] = []
    while len(chosen) < atoms:
        candidate = rng.random(3) @ cell
        if chosen:
            difference = (candidate - np.array(chosen)) @ inverse
            vectors = (difference - np.round(difference)) @ cell
            if np.linalg.norm(vectors[:, None] + images, axis=2).min() < apart:
                continue
        chosen.append(candidate)
    return np.array(chosen)


def random_molecule(rng: np.random.Generator, atoms: int = 12, elements: tuple[int, ...] = ELEMENTS) -> Record:
    """A materials record: a cluster at liquid density, atoms 0.9 Å apart or more, with random labels."""
    side = (atoms * 12.0) ** (1 / 3)
    return {
        "id": "molecule#0",
        "types": rng.choice(elements, atoms).astype(np.uint8),
        "positions": spread_out(rng, atoms, side * np.eye(3), 0.9),
        **_labels(rng, atoms),
    }


def random_crystal(
    rng: np.random.Generator,
    atoms: int = 8,
    elements: tuple[int, ...] = ELEMENTS,
    pbc: tuple[bool, bool, bool] = (True, True, True),
) -> Record:
    """A materials record in a triclinic cell (angles 60 to 120 degrees), several elements, atoms 1.5 Å apart."""
    while True:
        cell = rng.normal(size=(3, 3))
        cell /= np.linalg.norm(cell, axis=1, keepdims=True)
        if np.abs(cell @ cell.T - np.eye(3)).max() < 0.5 and np.linalg.det(cell) > 0.5:
            break
    cell *= rng.uniform(0.9, 1.2, size=(3, 1))
    cell *= (20.0 * atoms / np.linalg.det(cell)) ** (1 / 3)
    return {
        "id": "crystal#0",
        "types": np.resize(rng.permutation(elements), atoms).astype(np.uint8),
        "positions": spread_out(rng, atoms, cell, 1.5),
        "cell": cell * np.array(pbc)[:, None],
        "pbc": np.array(pbc),
        "stress": 0.01 * (lambda s: s + s.T)(rng.normal(size=(3, 3))),
        **_labels(rng, atoms),
    }


def random_jet(
    rng: np.random.Generator, particles: int = 30, energy: float = 500.0, mass: float = 80.0, massless: float = 0.5
) -> Record:
    """A hep record: ``particles`` of roughly the given total energy and mass [GeV], a share of them massless.

    Constituents are isotropic in a rest frame, boosted near mid-rapidity; a small mass makes the jet nearly collinear.
    """
    momentum = rng.normal(size=(particles, 3)) * rng.exponential(size=(particles, 1))
    momentum -= momentum.mean(axis=0)
    heavy = 0.14 * (rng.random(particles) > massless) * min(1.0, mass / (0.14 * particles))
    scale = mass / np.linalg.norm(momentum, axis=1).sum()
    momentum *= scale
    energies = np.hypot(np.linalg.norm(momentum, axis=1), heavy)
    direction = np.array([rng.normal(), rng.normal(), 0.5 * rng.normal()])
    gamma = max(energy / energies.sum(), 1.0)
    unit = direction / np.linalg.norm(direction)
    moved = momentum + np.outer((gamma - 1.0) * (momentum @ unit) + np.sqrt(gamma**2 - 1.0) * energies, unit)
    kinds = np.where(heavy > 0, 1, 3).astype(np.uint8)
    return {
        "id": "jet#0",
        "types": kinds,
        "momenta": np.concatenate([np.hypot(np.linalg.norm(moved, axis=1), heavy)[:, None], moved], axis=1),
        "particle_charge": (np.where(heavy > 0, rng.choice([-1, 1], particles), 0)).astype(np.int8),
        "label": int(rng.integers(2)),
    }


def random_peptide(rng: np.random.Generator, residues: int = 8, labelled: bool = True) -> Record:
    """A biology record: a noisy helix of N, CA, C, O (and CB) with random residue types, the last one unknown."""
    atoms = (  # element, code of the name, place in the helix frame [Å]
        (7, 1, (1.46, 0.0, 0.0)),
        (6, 2, (2.28, 0.48, 0.9)),
        (6, 3, (1.68, 1.2, 1.9)),
        (8, 4, (2.0, 1.6, 3.0)),
        (6, 5, (3.3, 0.9, 0.5)),
    )
    rows = []
    for residue in range(residues):
        angle = np.deg2rad(100.0 * residue)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        for element, code, place in atoms:
            rows.append((element, code, residue, turn @ place + (0, 0, 1.5 * residue)))
    types, names, parent, positions = zip(*rows, strict=True)
    record = {
        "id": "peptide#0",
        "types": np.array(types, dtype=np.uint8),
        "atom_names": np.array(names, dtype=np.uint8),
        "parent": np.array(parent, dtype=np.int32),
        "positions": np.array(positions) + 0.05 * rng.normal(size=(len(rows), 3)),
        "residue_types": np.append(rng.integers(len(RESIDUES), size=residues - 1), len(RESIDUES)).astype(np.int8),
        "chain": np.zeros(residues, dtype=np.int16),
        "charge": 0.0,
        "spin": 1.0,
    }
    return {**record, **_labels(rng, len(rows))} if labelled else record
