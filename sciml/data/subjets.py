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
    momenta = np.array(momenta, dtype=np.float64)
    count, total = len(momenta), momenta.sum(axis=0)
    frame = total + EPSILON * (total * _METRIC) @ time * time
    momentum = np.linalg.norm(frame[1:])
    scale = 2.0 / float((frame[0] - momentum) * (frame[0] + momentum))
    energies = momenta @ (frame * _METRIC)
    ratio = energies[:, None] / energies
    distances = scale * np.minimum(ratio, ratio.T) * (momenta @ (momenta * _METRIC).T)
    np.fill_diagonal(distances, np.inf)
    parent = np.arange(count)
    while True:
        first, second = divmod(int(distances.argmin()), count)
        if not distances[first, second] < resolution:
            break
        momenta[first] += momenta[second]
        energies[first] += energies[second]
        parent[parent == second] = first
        distances[second] = distances[:, second] = np.inf
        ratio = energies / energies[first]
        row = scale * np.minimum(ratio, 1.0 / ratio) * (momenta @ (momenta[first] * _METRIC))
        row[np.isinf(distances[first])] = np.inf
        distances[first] = distances[:, first] = row
    kept, labels = np.unique(parent, return_inverse=True)
    order = np.argsort(-energies[kept], kind="stable")
    return np.argsort(order)[labels]
