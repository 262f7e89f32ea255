"""Checks that need many records: are lengths and forces of the size that nature has?

The verb ``sciml audit`` looks at a whole store; its checks are in :mod:`sciml.ingest.findings`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from sciml.errors import UserError
from sciml.ingest.formats import ingest_words
from sciml.units import KCAL_PER_MOL

_NEAREST = (0.4, 6.0)  # Å: H2 under pressure is above, the loosest solids are below
_MAX_FORCE_RMS = 1_000.0  # eV/Å
_USUAL_FORCE_RMS = 15.0  # eV/Å: molecules at 1000 K have 2 and are above in kcal/mol, compressed or random ones may be
_HYDROGEN_REACH = 1.6  # Å: bonded hydrogen is at 0.7 to 1.35
_SAMPLE = 200  # records looked at; medians need no more
_MAX_ATOMS = 2_000


class Audit:
    """Looks at the first records of a file of atoms and says whether their units can be right."""

    def __init__(self) -> None:
        self._records = 0
        self._nearest: list[np.ndarray] = []
        self._hydrogen: list[np.ndarray] = []
        self._forces: list[np.ndarray] = []

    def observe(self, record: Mapping[str, Any]) -> None:
        """Take one raw record into account (Å, eV/Å); records of other domains are ignored."""
        if self._records >= _SAMPLE or "positions" not in record or len(record["positions"]) > _MAX_ATOMS:
            return
        positions = np.asarray(record["positions"], np.float64)
        if not np.isfinite(positions).all() or positions.ndim != 2:
            return
        self._records += 1
        distances = nearest_distances(positions, record.get("cell"), record.get("pbc"))
        finite = np.isfinite(distances)
        self._nearest.append(distances[finite])
        self._hydrogen.append(distances[finite & (np.asarray(record["types"]) == 1)])
        if "forces" in record:
            self._forces.append(np.square(np.asarray(record["forces"], np.float64)).ravel())

    def verdict(self, where: str, length_unit: str, energy_unit: str, source: str = "FILE") -> list[str]:
        """Return warnings, with the command that reads ``source`` in other units.

        Raises UserError when the lengths or forces are impossible in the stated units.
        """
        ingesting = partial(ingest_words, source)
        nearest = np.concatenate([*self._nearest, np.zeros(0)])
        if len(nearest):
            median = float(np.median(nearest))
            if not _NEAREST[0] <= median <= _NEAREST[1]:
                guess, unit = (
                    ("nm", "nm") if median < _NEAREST[0] else ("another one (Å is assumed by default)", "UNIT")
                )
                raise UserError(
                    f"{where}: positions: the median distance to the nearest atom is {median:.3g} Å, expected "
                    f"{_NEAREST[0]} to {_NEAREST[1]} Å; the length unit is probably not {length_unit} but {guess}, use "
                    f"{ingesting(f'length_unit={unit}')}."
                )
        squares = np.concatenate([*self._forces, np.zeros(0)])
        rms = float(np.sqrt(squares.mean())) if len(squares) else 0.0
        if rms > _MAX_FORCE_RMS:
            raise UserError(
                f"{where}: forces: their RMS is {rms:.3g} eV/Å, expected less than {_MAX_FORCE_RMS:,.0f}; the energy "
                f"unit is probably not {energy_unit}, use {ingesting('energy_unit=UNIT')}."
            )
        warnings = []
        hydrogen = np.concatenate([*self._hydrogen, np.zeros(0)])
        if len(hydrogen) > 10 and np.median(hydrogen) > _HYDROGEN_REACH:
            warnings.append(
                f"{where}: positions: hydrogen has its nearest atom at {np.median(hydrogen):.2f} Å (median), 0.7 to "
                f"1.35 is usual; if the file is in bohr, use {ingesting('length_unit=bohr')}."
            )
        if rms > _USUAL_FORCE_RMS:
            warnings.append(
                f"{where}: forces: their RMS is {rms:.3g} eV/Å, above {_USUAL_FORCE_RMS:.0f} is unusual; if the file "
                f"is in kcal/mol (a factor of {1 / KCAL_PER_MOL:.4g}), use {ingesting('energy_unit=kcal/mol')}."
            )
        return warnings


def nearest_distances(positions: np.ndarray, cell: Any = None, pbc: Any = None, reach: float = 12.0) -> np.ndarray:
    """Return the distance (n,) of every atom to its nearest neighbour, infinite where none is within ``reach`` (Å)."""
    from scipy.spatial import cKDTree

    periodic = np.zeros(3, bool) if pbc is None else np.asarray(pbc, bool)
    lattice = np.zeros((3, 3)) if cell is None else np.asarray(cell, np.float64)
    images = positions
    if periodic.any() and np.isfinite(lattice).all():
        # The nearest image of a wrapped crystal is in the same or an adjacent cell, unless the cell is skewed a lot;
        # a median over many atoms does not notice.
        steps = [(-1, 0, 1) if flag else (0,) for flag in periodic]
        shifts = np.array(np.meshgrid(*steps)).reshape(3, -1).T
        shifts = shifts[np.argsort(np.abs(shifts).sum(axis=1), kind="stable")]  # the home cell first
        images = (positions[None] + (shifts @ lattice)[:, None]).reshape(-1, 3)
    if len(images) < 2:
        return np.full(len(positions), np.inf)
    distances, _ = cKDTree(images).query(positions, k=2, distance_upper_bound=reach)
    return distances[:, 1]
