"""Backbones of made-up proteins, folded, with sequences that suit them: structures without energies.

A chain is drawn as helices, hairpins of strands, and loops. Monte Carlo moves of the angles of its loops fold it until
it is compact and nothing overlaps. Then every residue is drawn from what is published of its surroundings: the
composition of proteins, preferences for helix, strand and turn (Chou and Fasman, 1978), hydrophobicities (Fauchère and
Pliska, 1983) by how many residues its side chain would face (half-sphere exposure: Hamelryck, 2005), the angles of Gly,
Pro, Asn and Asp, and the first residues of helices (Richardson and Richardson, 1988). Nothing of a protein of nature is
in it; what the backbone tells of a residue here is about as much as these preferences tell.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sciml.data.records import Record
from sciml.ingest.generate.common import run_tasks, task_seeds
from sciml.ingest.generate.peptides import PREFERENCES, RESIDUES

DATASET = "backbones"
HELIX, STRAND, TURN, LOOP = range(4)

# per cent of residues in Swiss-Prot
COMPOSITION = {
    "A": 8.3, "C": 1.4, "D": 5.5, "E": 6.7, "F": 3.9, "G": 7.1, "H": 2.3, "I": 5.9, "K": 5.8, "L": 9.7,
    "M": 2.4, "N": 4.1, "P": 4.7, "Q": 3.9, "R": 5.5, "S": 6.6, "T": 5.4, "V": 6.9, "W": 1.1, "Y": 2.9,
}  # fmt: skip
# Fauchère and Pliska, Eur. J. Med. Chem. 18, 369 (1983): log10 of the partition between octanol and water
HYDROPHOBICITY = {
    "A": 0.31, "C": 1.54, "D": -0.77, "E": -0.64, "F": 1.79, "G": 0.0, "H": 0.13, "I": 1.80, "K": -0.99, "L": 1.70,
    "M": 1.23, "N": -0.60, "P": 0.72, "Q": -0.22, "R": -1.01, "S": -0.04, "T": 0.26, "V": 1.22, "W": 2.25, "Y": 0.96,
}  # fmt: skip
BURIAL = 0.7  # nats for a unit of hydrophobicity and a deviation of the count of neighbours
# (phi, psi) in degrees and how often: of loops; the last three are for Gly, Asn and Asp above all
COIL = (
    ((-70, 150), 0.36), ((-120, 135), 0.22), ((-63, -43), 0.18), ((-90, 0), 0.11),
    ((57, 40), 0.06), ((85, 5), 0.04), ((80, -170), 0.03),
)  # fmt: skip
IDEAL = {HELIX: (-63, -43), STRAND: (-115, 135)}
TURNS = (((60, 30), (90, 0)), ((60, -120), (-80, 0)))  # of types I' and II'
SPREADS = {HELIX: 5.0, STRAND: 10.0, TURN: 8.0, LOOP: 15.0}  # degrees
# Engh and Huber (1991): lengths in Å and angles in degrees
N_CA, CA_C, C_N, C_O = 1.458, 1.525, 1.329, 1.231
N_CA_C, CA_C_N, C_N_CA, CA_C_O = 111.0, 116.6, 121.7, 120.5
_ATOMS = np.array([7, 6, 6, 8], np.uint8)  # N, CA, C, O


class Task(NamedTuple):
    """One chain."""

    name: str
    seed: int
    length: tuple[int, int]


def generate(seed: int, chains: int = 250, length: tuple[int, int] = (50, 120), workers: int = 1) -> Iterator[Record]:
    """Yield ``chains`` folded backbones of ``length`` residues, from and to, biology records without energies."""
    tasks = [Task(f"chain{number}", one, length) for number, one in enumerate(task_seeds(seed, chains))]
    yield from run_tasks(sample, tasks, workers)


def sample(task: Task) -> list[Record]:
    """The record of one chain."""
    rng = np.random.default_rng(task.seed)
    states, angles = draw_angles(rng, int(rng.integers(task.length[0], task.length[1] + 1)))
    chain = fold(build(angles), states, rng)
    odds = preferences(chain, states)
    types = np.array([rng.choice(len(RESIDUES), p=row) for row in odds], np.int8)
    atoms = (chain + rng.normal(0.0, 0.05, chain.shape)).reshape(-1, 3)
    return [
        {
            "id": task.name,
            "group": "".join(RESIDUES[index] for index in types),
            "types": np.tile(_ATOMS, len(types)),
            "positions": (atoms - atoms.mean(axis=0)).astype(np.float32),
            "atom_names": np.tile(np.arange(1, 5, dtype=np.uint8), len(types)),
            "parent": np.repeat(np.arange(len(types), dtype=np.int32), 4),
            "residue_types": types,
            "chain": np.zeros(len(types), np.int16),
        }
    ]


def draw_angles(rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Secondary structure (length,) and phi, psi in radians (length, 2): helices and hairpins with loops between."""
    centres: list[tuple[int, tuple[float, float]]] = []
    while len(centres) < length:
        centres += _loop(rng)
        centres += _helix(rng) if rng.random() < 0.45 else _strands(rng)
    chosen = centres[: length - 2] + _loop(rng)[:2]
    states = np.array([state for state, _ in chosen])
    spread = np.array([SPREADS[int(state)] for state in states])[:, None]
    return states, np.radians(rng.normal([centre for _, centre in chosen], spread))


def _loop(rng: np.random.Generator) -> list[tuple[int, tuple[float, float]]]:
    odds = np.array([often for _, often in COIL])
    return [(LOOP, COIL[index][0]) for index in rng.choice(len(COIL), size=int(rng.integers(3, 8)), p=odds)]


def _helix(rng: np.random.Generator) -> list[tuple[int, tuple[float, float]]]:
    return [(HELIX, IDEAL[HELIX])] * int(rng.integers(8, 19))


def _strands(rng: np.random.Generator) -> list[tuple[int, tuple[float, float]]]:
    """A strand, or several of the same length with tight turns between."""
    strand: list[tuple[int, tuple[float, float]]] = [(STRAND, IDEAL[STRAND])] * int(rng.integers(4, 9))
    found = list(strand)
    while rng.random() < 0.6:
        found += [(TURN, centre) for centre in TURNS[int(rng.random() < 0.4)]] + strand
    return found


def build(angles: np.ndarray) -> np.ndarray:
    """N, CA, C and O (n, 4, 3) in Å of the phi and psi (n, 2), in radians, with ideal lengths and angles."""
    chain = np.zeros((len(angles), 4, 3))
    bend = np.radians(180.0 - N_CA_C)
    chain[0, 1, 0] = N_CA
    chain[0, 2] = N_CA + CA_C * np.cos(bend), CA_C * np.sin(bend), 0.0
    for i, (phi, psi) in enumerate(angles):
        here = chain[i]
        if i:
            before = chain[i - 1]
            here[0] = _place(before[0], before[1], before[2], C_N, CA_C_N, angles[i - 1, 1])
            here[1] = _place(before[1], before[2], here[0], N_CA, C_N_CA, np.pi)
            here[2] = _place(before[2], here[0], here[1], CA_C, N_CA_C, phi)
        here[3] = _place(here[0], here[1], here[2], C_O, CA_C_O, psi + np.pi)
    return chain


def _place(a: np.ndarray, b: np.ndarray, c: np.ndarray, length: float, angle: float, dihedral: float) -> np.ndarray:
    """A fourth atom bound to ``c``; ``angle`` in degrees, ``dihedral`` in radians."""
    along = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, along)
    normal /= np.linalg.norm(normal)
    across = np.cross(normal, along)
    bend = np.radians(angle)
    turned = np.cos(dihedral) * across + np.sin(dihedral) * normal
    return c + length * (np.sin(bend) * turned - np.cos(bend) * along)


def fold(chain: np.ndarray, states: np.ndarray, rng: np.random.Generator, moves: int = 5000) -> np.ndarray:
    """The backbone (n, 4, 3) of secondary structure ``states`` after Monte Carlo moves of its angles, cooled from 3 to
    0.2: large and small ones in loops, small ones in strands and turns.

    A move turns all that follows about one bond, so only pairs of residues on its two sides change; the change of all
    but those next to the bond decides.
    """
    loops, others = (
        np.flatnonzero(chosen[1:-1]) + 1 for chosen in (states == LOOP, (states == STRAND) | (states == TURN))
    )
    size = 2.2 * len(chain) ** 0.38  # Å, of folded proteins
    for move in range(moves):
        temperature = 3.0 * (0.2 / 3.0) ** (move / moves)
        small = rng.random() < 0.5
        place = int(rng.choice(others if small and len(others) and rng.random() < 0.6 else loops))
        turned = _turned(chain, place, bool(rng.random() < 0.5), rng.normal(0.0, 0.05 if small else 0.35))
        change = _energy(turned, place, size) - _energy(chain, place, size)
        if change < 0 or rng.random() < np.exp(-change / temperature):
            chain = turned
    return chain


def _turned(chain: np.ndarray, place: int, phi: bool, angle: float) -> np.ndarray:
    """The chain with phi or psi of the residue at ``place`` changed by ``angle`` radians."""
    first = 1 if phi else 2  # the second atom of the bond that is turned about
    origin = chain[place, first]
    axis = origin - chain[place, first - 1]
    axis = axis / np.linalg.norm(axis)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    turned = chain.copy()
    turned[place, first + 1 :] = (chain[place, first + 1 :] - origin) @ rotation.T + origin
    turned[place + 1 :] = (chain[place + 1 :] - origin) @ rotation.T + origin
    return turned


def _energy(chain: np.ndarray, place: int, size: float) -> float:
    """Of the residues before ``place`` with those behind, its own neighbour before it left out: overlaps, contacts of
    side chains, hydrogen bonds; and a penalty on a radius of gyration above ``size``.
    """
    side = side_chains(chain, 2.4)
    before, behind = slice(0, max(place - 1, 1)), slice(place + 1, None)
    alphas = _distances(chain[before, 1], chain[behind, 1])
    sides = _distances(side[before], side[behind])
    bonds = np.minimum(_distances(chain[before, 3], chain[behind, 0]), _distances(chain[behind, 3], chain[before, 0]).T)
    overlaps = (
        5 * (np.maximum(4.2 - alphas, 0) ** 2).sum()
        + 3 * (np.maximum(3.8 - sides, 0) ** 2).sum()
        + 5 * (np.maximum(2.7 - bonds, 0) ** 2).sum()
    )
    contacts = 0.4 * (1 / (1 + np.exp(sides - 6.5))).sum() + np.exp(-(((bonds - 2.9) / 0.5) ** 2)).sum()
    middle = chain[:, 1] - chain[:, 1].mean(axis=0)
    radius = np.sqrt((middle**2).sum(axis=1).mean())
    return float(overlaps - contacts + 2 * max(radius - size, 0) ** 2)


def side_chains(chain: np.ndarray, length: float) -> np.ndarray:
    """Points (n, 3) at ``length`` Å from CA where side chains are, from N, CA and C."""
    toward = chain[:, 1] - chain[:, 0], chain[:, 2] - chain[:, 1]
    normal = np.cross(*toward)
    direction = 0.568 * toward[0] - 0.541 * toward[1] - 0.583 * normal
    return chain[:, 1] + length * direction / np.linalg.norm(direction, axis=1, keepdims=True)


def _distances(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    squared = (one**2).sum(axis=1)[:, None] + (two**2).sum(axis=1) - 2 * one @ two.T
    return np.sqrt(np.maximum(squared, 1e-9))


def backbone_angles(chain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """phi and psi (n,) in degrees; those that the ends lack are of an extended chain."""
    nitrogen, alpha, carbon = chain[:, 0], chain[:, 1], chain[:, 2]
    phi, psi = np.full(len(chain), -70.0), np.full(len(chain), 150.0)
    phi[1:] = _dihedrals(carbon[:-1], nitrogen[1:], alpha[1:], carbon[1:])
    psi[:-1] = _dihedrals(nitrogen[:-1], alpha[:-1], carbon[:-1], nitrogen[1:])
    return phi, psi


def _dihedrals(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    axis = (c - b) / np.linalg.norm(c - b, axis=1, keepdims=True)
    one, two = np.cross(a - b, axis), np.cross(d - c, axis)
    return np.degrees(np.arctan2((np.cross(one, two) * axis).sum(axis=1), (one * two).sum(axis=1)))


def preferences(chain: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Odds (n, 20) of the residue types at every place of a backbone (n, 4, 3) of secondary structure ``states``."""
    phi, psi = backbone_angles(chain)
    counts = (_distances(side_chains(chain, 3.0), chain[:, 1]) < 10.0).sum(axis=1)
    buried = np.clip((counts - 16.0) / 6.0, -2.0, 2.0)
    left, wide = phi > 20, (phi > 20) & ((psi < -60) | (psi > 90))
    column = np.choose(states, [0, 1, 2, 2])
    first = (states != HELIX) & np.append(states[1:] == HELIX, False)
    inside = (states == HELIX) & np.append([False] * 3, states[:-3] == HELIX)
    odds = np.zeros((len(chain), len(RESIDUES)))
    for index, letter in enumerate(RESIDUES):
        odds[:, index] = np.log(COMPOSITION[letter]) + np.log(PREFERENCES[letter])[column]
        odds[:, index] += BURIAL * (HYDROPHOBICITY[letter] - 0.45) * buried
        odds[:, index] += left * {"G": 1.6, "N": 1.0, "D": 0.4}.get(letter, -2.5 if letter in "VITP" else -1.0)
        odds[:, index] += wide * (2.0 if letter == "G" else -1.0)
        odds[:, index] += first * {"S": 1.0, "T": 0.9, "D": 1.1, "N": 0.8, "G": 0.4}.get(letter, -0.2)
        if letter == "P":
            odds[:, index] += np.where(np.abs(phi + 65) < 18, 1.2, -3.0) - 2.0 * inside
    odds = np.exp(odds - odds.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)
