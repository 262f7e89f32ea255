"""Subjets of a jet: its particles in groups, the same in every Lorentz frame."""

import numpy as np

RESOLUTION = 5e-4
"""Distance, in units of the squared mass, above which two subjets stay apart: about seven subjets a jet."""
EPSILON = 1e-4
"""Share of the time direction in the regulated total momentum, as in sciml.physics.lorentz: no jet is massless."""

_LABORATORY = np.array([1.0, 0.0, 0.0, 0.0])
_METRIC = np.array([1.0, -1.0, -1.0, -1.0])


def cluster(momenta: np.ndarray, time: np.ndarray = _LABORATORY, resolution: float = RESOLUTION) -> np.ndarray:
    """Return the subjet of every particle, int64 (n,): 0 is the one of largest energy in the jet's rest frame.

    ``momenta`` (n, 4) are E, px, py, pz in GeV, ``time`` (4,) is the time direction of the laboratory, in which the
    momenta are regulated: P' = P + EPSILON (P.t) t of mass M. Subjets are merged, the nearest pair first, by adding
    their momenta, until no pair is nearer than ``resolution`` in the distance

        d = 2 min(E / E', E' / E) p.p' / M^2,  E = p.P' / M,

    which for massless momenta is 2 min(E, E')^2 (1 - cos theta) / M^2 in the rest frame (Catani et al., 1991, Phys.
    Lett. B 269, 432). It is made of Minkowski products alone, and vanishes for a soft or a collinear particle, which
    therefore leaves the others' subjets as they are.
    """
    momenta = np.asarray(momenta, dtype=np.float64).copy()
    total = momenta.sum(axis=0)
    frame = total + EPSILON * (total * _METRIC) @ time * time
    mass_squared = float((frame[0] - np.linalg.norm(frame[1:])) * (frame[0] + np.linalg.norm(frame[1:])))
    parent = np.arange(len(momenta))
    distances = _distances(momenta, momenta, frame) / mass_squared
    np.fill_diagonal(distances, np.inf)
    while True:
        first, second = np.unravel_index(np.argmin(distances), distances.shape)
        if not distances[first, second] < resolution:
            break
        momenta[first] += momenta[second]
        parent[parent == second] = first
        row = _distances(momenta[first : first + 1], momenta, frame)[0] / mass_squared
        row[np.isinf(distances[first])] = np.inf
        distances[first], distances[:, first] = row, row
        distances[second] = distances[:, second] = np.inf
        distances[first, second] = distances[second, first] = np.inf
    kept, labels = np.unique(parent, return_inverse=True)
    order = np.argsort(-(momenta[kept] @ (frame * _METRIC)), kind="stable")
    return np.argsort(order)[labels]


def _distances(rows: np.ndarray, columns: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """2 min(E / E', E' / E) p.p' [GeV^2] of momenta (n, 4) and (m, 4), E the energies in the rest frame."""
    covariant = columns * _METRIC
    ratio = (rows @ (frame * _METRIC))[:, None] / (covariant @ frame)
    return 2.0 * np.minimum(ratio, 1.0 / ratio) * (rows @ covariant.T)
