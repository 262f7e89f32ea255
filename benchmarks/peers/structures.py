"""The structures on which both sides run: made once, written to a file, read by both workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

CUTOFF = 5.0  # Å, on both sides of every comparison
ELEMENTS = ("Al", "Cr", "Fe", "Co", "Ni")


def write_alloy(path: Path, cells: tuple[int, ...] = (4, 4, 4), seed: int = 0) -> None:
    """Write the structure of a timed training step: 128 atoms, periodic, about 6,600 directed edges within 5 Å.

    `cells` of a body-centred AlCrFeCoNi alloy with random sites and displacements of 0.1 Å at its experimental
    lattice constant (2.88 Å). Energy and forces are random numbers: they set nothing but the value of the loss.
    """
    from ase.build import bulk
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    rng = np.random.default_rng(seed)
    atoms = bulk("Fe", "bcc", a=2.88, cubic=True).repeat(cells)
    atoms.set_initial_magnetic_moments(None)
    atoms.set_chemical_symbols(rng.choice(ELEMENTS, size=len(atoms)).tolist())
    atoms.positions += rng.normal(scale=0.1, size=(len(atoms), 3))
    energy = float(rng.normal(scale=0.1) * len(atoms))
    forces = rng.normal(size=(len(atoms), 3))
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces - forces.mean(axis=0))
    write(path, atoms, format="extxyz")


def read_frames(path: Path) -> list[str]:
    """The frames of an (ext)xyz file as text, each with its count and comment line."""
    lines = path.read_text().splitlines()
    frames, start = [], 0
    while start < len(lines):
        stop = start + int(lines[start]) + 2
        frames.append("\n".join(lines[start:stop]) + "\n")
        start = stop
    return frames


def split_frames(source: Path, train: Path, val: Path, held_out: int, seed: int) -> None:
    """Split `source` into two files as text, `held_out` random frames going to `val`."""
    frames = read_frames(source)
    chosen = set(np.random.default_rng(seed).permutation(len(frames))[:held_out].tolist())
    train.write_text("".join(frame for i, frame in enumerate(frames) if i not in chosen))
    val.write_text("".join(frame for i, frame in enumerate(frames) if i in chosen))


def write_without_copies(source: Path, others: Path, target: Path) -> int:
    """Write the frames of `source` whose elements and positions (to 1e-5 Å) are in no frame of `others`; return how
    many are in one.
    """
    known = {_content(frame) for frame in read_frames(others)}
    frames = read_frames(source)
    kept = [frame for frame in frames if _content(frame) not in known]
    target.write_text("".join(kept))
    return len(frames) - len(kept)


def _content(frame: str) -> tuple[tuple[str, ...], ...]:
    """Elements and positions of a frame as text, from its first four columns."""
    rows = (line.split()[:4] for line in frame.splitlines()[2:])
    return tuple((element, *(f"{float(x) + 0.0:.5f}" for x in position)) for element, *position in rows)


def edge_fingerprint(vectors: np.ndarray) -> dict[str, float]:
    """Count and mean length [Å] of the edge vectors (E, 3) a side really uses: equal on both sides, or no result."""
    lengths = np.linalg.norm(np.asarray(vectors, dtype=np.float64), axis=1)
    return {"edges": int(lengths.size), "mean_length": float(lengths.mean())}


def labels(path: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Energies (n,) [eV] and the list of forces (atoms, 3) [eV/Å] in an extxyz file."""
    from ase.io import read

    frames = read(path, index=":")
    energies = np.array([frame.get_potential_energy() for frame in frames])
    return energies, [frame.get_forces() for frame in frames]
