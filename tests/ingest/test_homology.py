"""Homologs are found whatever measures them, chance is not, and large sets and MMseqs2 give the same families."""

import os
import stat

import numpy as np
import pytest

from sciml.errors import UserError
from sciml.graph import RESIDUES
from sciml.ingest import homology
from sciml.ingest.homology import homologous_groups, identities, least_identity


def sequence(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.integers(0, 20, length).astype(np.uint8)


def relative(rng: np.random.Generator, parent: np.ndarray, kept: float) -> np.ndarray:
    """A descendant in which a share of the residues is ``kept``, with one insertion and one deletion."""
    child = np.where(rng.random(len(parent)) < kept, parent, (parent + rng.integers(1, 20, len(parent))) % 20)
    cut, put = np.sort(rng.integers(10, len(child) - 10, 2))
    return np.concatenate([child[:cut], child[cut + 2 : put], sequence(rng, 3), child[put:]]).astype(np.uint8)


def families(rng: np.random.Generator, count: int, size: int, kept: float = 0.7) -> list[np.ndarray]:
    parents = [sequence(rng, int(rng.integers(80, 160))) for _ in range(count)]
    return [relative(rng, parent, kept) for parent in parents for _ in range(size)]


def reference_identity(first: np.ndarray, second: np.ndarray) -> float:
    """Identical residues in biotite's best local alignment by BLOSUM62, over its columns; 0 below half of a chain."""
    align = pytest.importorskip("biotite.sequence.align")
    from biotite.sequence import ProteinSequence

    both = [ProteinSequence("".join(np.array([*RESIDUES])[chain])) for chain in (first, second)]
    matrix = align.SubstitutionMatrix.std_protein_matrix()
    best = align.align_optimal(*both, matrix, gap_penalty=(-11, -1), local=True, max_number=1)[0]
    covered = len(best.trace) >= 0.5 * min(len(first), len(second))
    return float(align.get_sequence_identity(best, mode="all")) if covered else 0.0


def test_identity_of_simple_pairs():
    query = np.arange(20, dtype=np.uint8).repeat(3)[:50]
    half = query.copy()
    half[::2] = (half[::2] + 7) % 20
    part, unknown = query[10:40], np.full(50, 20, np.uint8)
    found = identities(query, [query, part, half, unknown, np.concatenate([query[:20], query[24:]])])
    assert found == pytest.approx([1.0, 1.0, found[2], 0.0, 1.0])
    assert found[2] >= 0.5
    assert identities(unknown, [unknown]).tolist() == [0.0]  # unknown residues are identical to none


def test_no_two_groups_hold_homologs_by_another_measure():
    rng = np.random.default_rng(0)
    sequences = families(rng, 8, 3)
    groups, how = homologous_groups(sequences, 0.3)
    assert "alignment" in how
    assert len(set(groups)) > 4
    for first in range(len(sequences)):
        for second in range(first):
            if groups[first] != groups[second]:
                assert reference_identity(sequences[first], sequences[second]) < 0.3
    assert all(len(set(groups[start : start + 3])) == 1 for start in range(0, len(groups), 3))
    assert min(reference_identity(*sequences[start : start + 2]) for start in range(0, 24, 3)) > 0.3  # it sees them


@pytest.mark.parametrize("length", [30, 60, 150])
def test_chance_makes_no_homologs(length):
    rng = np.random.default_rng(length)
    groups, _ = homologous_groups([sequence(rng, length) for _ in range(40)], 0.3)
    assert len(set(groups)) >= 38  # of 780 pairs of short sequences one may pass


def test_short_sequences_need_more_identity():
    assert least_identity(0.3, 30) == pytest.approx(0.43, abs=0.01)
    assert least_identity(0.3, 200) == pytest.approx(0.3)
    assert least_identity(0.1, 500) == pytest.approx(0.247, abs=0.002)
    peptides = [np.array([0, 1, 2, 3, 4, 5, 6, 7]), np.array([0, 1, 2, 3, 14, 15, 16, 17])]
    assert len(set(homologous_groups(peptides, 0.3)[0])) == 2


def test_words_find_the_families_that_all_pairs_find(monkeypatch):
    rng = np.random.default_rng(1)
    sequences = families(rng, 6, 4, kept=0.6)
    exhaustive, _ = homologous_groups(sequences, 0.4)
    monkeypatch.setattr(homology, "EXHAUSTIVE", 5)
    by_words, how = homologous_groups(sequences, 0.4)
    assert "words" in how
    assert np.array_equal(exhaustive, by_words)


def test_copies_share_a_group_and_order_does_not_matter():
    rng = np.random.default_rng(2)
    sequences = families(rng, 4, 2)
    sequences.append(sequences[0].copy())
    groups, _ = homologous_groups(sequences, 0.3)
    assert groups[-1] == groups[0]
    order = rng.permutation(len(sequences))
    shuffled, _ = homologous_groups([sequences[index] for index in order], 0.3)
    together = groups[order][:, None] == groups[order]
    assert np.array_equal(together, shuffled[:, None] == shuffled)


def program(folder, monkeypatch, body: str) -> None:
    """A program named mmseqs, first on the path."""
    path = folder / "mmseqs"
    path.write_text(f"#!/usr/bin/env python3\nimport sys\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_hits_of_mmseqs_are_joined(tmp_path, monkeypatch):
    """The program gets a FASTA file of the distinct sequences, and its hits, chains of them too, make the groups."""
    program(
        tmp_path,
        monkeypatch,
        "query, target, result, folder = sys.argv[2:6]\n"
        "assert sys.argv[1] == 'easy-search' and query == target\n"
        "assert sys.argv[sys.argv.index('--min-seq-id') + 1] == '0.35'\n"
        "names = [line[1:].strip() for line in open(query) if line[0] == '>']\n"
        "assert names == ['0', '1', '2', '3']\n"
        "open(result, 'w').write('0\\t0\\n0\\t1\\n1\\t3\\n2\\t2\\n')",
    )
    rng = np.random.default_rng(3)
    distinct = [sequence(rng, 50) for _ in range(4)]
    groups, how = homologous_groups([*distinct, distinct[2]], 0.35)
    assert how == "MMseqs2"
    assert groups.tolist() == [0, 0, 1, 0, 1]


def test_a_broken_mmseqs_is_named(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, "sys.stderr.write('no such database\\n'); sys.exit(3)")
    with pytest.raises(UserError, match=r"mmseqs: its easy-search ended with 3 \(no such database\)"):
        homologous_groups([np.zeros(40, np.uint8)], 0.3)
