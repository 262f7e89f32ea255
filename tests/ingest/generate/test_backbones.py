"""Made-up backbones have the geometry of proteins, are folded without overlaps, and their sequences suit them."""

import numpy as np
import pytest

from sciml.data.checks import check_record
from sciml.ingest.generate import backbones
from sciml.ingest.generate.backbones import HELIX, LOOP, STRAND


@pytest.fixture(scope="module")
def folded() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Secondary structure, the chain as it is built, and folded."""
    rng = np.random.default_rng(1)
    states, angles = backbones.draw_angles(rng, 60)
    chain = backbones.build(angles)
    return states, chain, backbones.fold(chain, states, rng)


def radius_of_gyration(chain: np.ndarray) -> float:
    """Of the CA atoms, Å."""
    middle = chain[:, 1] - chain[:, 1].mean(axis=0)
    return float(np.sqrt((middle**2).sum(axis=1).mean()))


def test_a_chain_has_the_angles_that_it_is_built_from() -> None:
    _, angles = backbones.draw_angles(np.random.default_rng(0), 50)
    found = np.radians(np.stack(backbones.backbone_angles(backbones.build(angles)), axis=1))
    difference = np.angle(np.exp(1j * (found - angles)))
    assert np.abs(difference[1:, 0]).max() < 1e-9
    assert np.abs(difference[:-1, 1]).max() < 1e-9


def test_side_chains_are_on_the_side_of_amino_acids_of_nature() -> None:
    chain = backbones.build(np.radians([[-63.0, -43.0]] * 3))
    beta = backbones.side_chains(chain, 1.53)
    from_nitrogen, from_carbon = (np.linalg.norm(beta - chain[:, atom], axis=1) for atom in (0, 2))
    np.testing.assert_allclose(from_nitrogen, 2.45, atol=0.06)  # of L-amino acids
    np.testing.assert_allclose(from_carbon, 2.50, atol=0.06)
    axis = np.cross(chain[:, 0] - chain[:, 1], chain[:, 2] - chain[:, 1])
    assert (((beta - chain[:, 1]) * axis).sum(axis=1) > 0).all()


def test_folding_makes_chains_compact_and_keeps_their_bonds(folded) -> None:
    states, start, chain = folded
    assert radius_of_gyration(chain) < min(1.15 * 2.2 * len(chain) ** 0.38, radius_of_gyration(start))
    for one, two, length in ((0, 1, backbones.N_CA), (1, 2, backbones.CA_C), (2, 3, backbones.C_O)):
        np.testing.assert_allclose(np.linalg.norm(chain[:, two] - chain[:, one], axis=1), length, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(chain[1:, 0] - chain[:-1, 2], axis=1), backbones.C_N, atol=1e-9)
    alphas = np.linalg.norm(chain[:, None, 1] - chain[None, :, 1], axis=2)
    place = np.arange(len(chain))
    assert alphas[np.abs(place[:, None] - place) > 2].min() > 3.3
    phi, _psi = backbones.backbone_angles(chain)
    turned = np.abs(phi - backbones.backbone_angles(start)[0])[1:-1]
    assert (turned[states[1:-1] == HELIX] < 1e-6).all()
    assert turned[states[1:-1] == LOOP].max() > 10


def test_types_follow_their_surroundings(folded) -> None:
    states, _, chain = folded
    odds = backbones.preferences(chain, states)
    np.testing.assert_allclose(odds.sum(axis=1), 1.0)
    column = {letter: odds[:, index] for index, letter in enumerate(backbones.RESIDUES)}
    phi, _ = backbones.backbone_angles(chain)
    assert column["P"][np.abs(phi + 65) > 18].max() < 0.05
    if (phi > 20).any():
        assert (column["G"] + column["N"])[phi > 20].min() > 0.2
    inside = np.linalg.norm(chain[:, None, 1] - backbones.side_chains(chain, 3.0)[None], axis=2) < 10
    counts = inside.sum(axis=0)
    ratio = np.log(column["L"] / column["K"])
    for state in (HELIX, STRAND):
        chosen = states == state
        assert np.corrcoef(ratio[chosen], counts[chosen])[0, 1] > 0.8


def test_records_are_whole_and_repeat_by_seed() -> None:
    first, second = (list(backbones.generate(3, chains=2, length=(20, 25))) for _ in range(2))
    for record, again in zip(first, second, strict=True):
        assert record.keys() == again.keys()
        assert all(np.array_equal(record[name], again[name]) for name in record)
        assert check_record(record, "biology") is None
        assert 20 <= len(record["residue_types"]) <= 25
        assert len(record["types"]) == 4 * len(record["residue_types"])
    assert first[0]["group"] != first[1]["group"]
