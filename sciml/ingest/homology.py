"""Which protein sequences are homologs, so that none lies on two sides of a split.

Two sequences are homologs where the identical residues of their best alignment are at least ``identity`` of the shorter
one, and more than chance gives a sequence of its length (Sander & Schneider, Proteins 9, 56, 1991: 25 % from 80
residues on, 43 % at 30). MMseqs2 (Steinegger & Söding, 2017) searches where its program ``mmseqs`` is installed;
without it sequences are aligned here, all pairs of up to EXHAUSTIVE sequences and beyond that those that share words of
three residues.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sciml.errors import UserError
from sciml.graph import RESIDUES

EXHAUSTIVE = 500
"""Sequences of which every pair is aligned."""
_LETTERS = len(RESIDUES) + 1  # and the unknown residue, which is identical to none
_WORD, _BAND, _SHARED = 3, 32, 2  # words of three residues, two of them within a band of diagonals
# Identities alone are scored, so that an alignment holds about as many of them as any. The gap is what keeps
# sequences without common origin below chance's line (measured: 200 random pairs of each length of 20 to 400).
_MATCH, _MISMATCH, _GAP = 4, -1, 5
_COUNT = np.int64(1) << 20  # a score carries the number of identities below this digit
_CHUNK = 64  # sequences that are aligned with one at once


def least_identity(identity: float, length: np.ndarray | int) -> np.ndarray:
    """The share of identical residues from which on sequences are homologs, the shorter of so many residues."""
    return np.maximum(identity, 2.9015 * np.minimum(np.maximum(length, 1), 80) ** -0.562)


def homologous_groups(sequences: Sequence[np.ndarray], identity: float) -> tuple[np.ndarray, str]:
    """Return a group (n,) per sequence, and by what they were compared: homologs, and homologs of homologs, share one.

    ``sequences`` are residue types (length,), 0 to 19 and 20 for an unknown one.
    """
    keys = [np.asarray(sequence, np.uint8).tobytes() for sequence in sequences]
    distinct = list(dict.fromkeys(keys))
    number = {key: index for index, key in enumerate(distinct)}
    unique = [np.frombuffer(key, np.uint8) for key in distinct]
    program = shutil.which("mmseqs")
    if program:
        pairs, how = _found_by_mmseqs(unique, identity, program), "MMseqs2"
    else:
        if len(unique) > EXHAUSTIVE:
            print(f"aligning {len(unique):,} sequences; this takes minutes, and less where MMseqs2 is installed")
        pairs, how = _aligned(unique, identity), "alignment of all pairs"
        if len(unique) > EXHAUSTIVE:
            how = "alignment of pairs with common words of 3 residues (MMseqs2, not installed here, finds remoter ones)"
    groups = connected(pairs, len(unique))
    return groups[np.array([number[key] for key in keys], dtype=int)], how


def connected(pairs: Iterable[tuple[int, int]], number: int) -> np.ndarray:
    """Return the group (number,) of every item: items of a pair are of one."""
    first, second = np.array([*pairs], dtype=np.int64).reshape(-1, 2).T
    _, groups = connected_components(coo_array((np.ones(len(first)), (first, second)), (number, number)), False)
    return groups


def identities(query: np.ndarray, targets: Sequence[np.ndarray]) -> np.ndarray:
    """Identical residues of the best alignment of ``query`` with each of ``targets`` over the length of the shorter.

    The alignment is global with free ends (Needleman & Wunsch, 1970), by the same scores for every pair of residues and
    a linear gap, a row of the table for all targets at once.
    """
    if not len(query):
        return np.zeros(len(targets))
    lengths = np.array([len(target) for target in targets])
    padded = np.full((max(1, lengths.max()), len(targets)), 255, np.uint8)
    for column, target in enumerate(targets):
        padded[: len(target), column] = target
    same = {letter: (padded == letter) & (letter < len(RESIDUES)) for letter in np.unique(query)}
    scores = {letter: np.where(found, _MATCH * _COUNT + 1, _MISMATCH * _COUNT) for letter, found in same.items()}
    ramp = np.arange(len(padded) + 1, dtype=np.int64)[:, None] * _GAP * _COUNT
    row, columns = np.zeros((len(padded) + 1, len(targets)), np.int64), np.arange(len(targets))
    best = np.zeros(len(targets), np.int64)
    ahead = np.empty_like(row)
    for letter in query:
        ahead[0] = 0
        np.add(row[:-1], scores[letter], out=ahead[1:])
        np.maximum(ahead[1:], row[1:] - _GAP * _COUNT, out=ahead[1:])
        # A gap in the query from any residue before: the largest of score + gap * place, less gap * place.
        ahead += ramp
        np.maximum.accumulate(ahead, axis=0, out=row)
        row -= ramp
        np.maximum(best, row[lengths, columns], out=best)
    best = np.maximum(best, np.where(np.arange(len(row))[:, None] <= lengths, row, 0).max(axis=0))
    return (best % _COUNT) / np.maximum(np.minimum(len(query), lengths), 1)


def _aligned(sequences: list[np.ndarray], identity: float) -> list[tuple[int, int]]:
    """The pairs of homologs by alignment."""
    lengths = np.array([len(sequence) for sequence in sequences])
    words = None if len(sequences) <= EXHAUSTIVE else _Words(sequences)
    pairs: list[tuple[int, int]] = []
    for index, sequence in enumerate(sequences):
        others = np.arange(index + 1, len(sequences)) if words is None else words.sharing(index)
        others = others[np.argsort(lengths[others], kind="stable")]  # chunks of about one length
        for start in range(0, len(others), _CHUNK):
            chosen = others[start : start + _CHUNK]
            found = identities(sequence, [sequences[other] for other in chosen])
            homologs = found >= least_identity(identity, np.minimum(lengths[index], lengths[chosen]))
            pairs += [(index, int(other)) for other in chosen[homologs]]
    return pairs


class _Words:
    """Where the words of three residues are in all sequences."""

    def __init__(self, sequences: list[np.ndarray]) -> None:
        self.words = [_words_of(sequence) for sequence in sequences]
        counts = [len(words) for words in self.words]
        every = np.concatenate(self.words)
        order = np.argsort(every, kind="stable")
        self.starts = np.searchsorted(every[order], np.arange(_LETTERS**_WORD + 1))
        self.owner = np.repeat(np.arange(len(sequences)), counts)[order]
        self.place = np.concatenate([np.arange(count) for count in counts])[order]
        self.reach = 2 * (max(counts) + _BAND)

    def sharing(self, index: int) -> np.ndarray:
        """The later sequences that share words with this one, two or more on near diagonals."""
        owners, diagonals = [], []
        for place, word in enumerate(self.words[index]):
            hits = slice(self.starts[word], self.starts[word + 1])
            later = self.owner[hits] > index
            owners.append(self.owner[hits][later])
            diagonals.append(self.place[hits][later] - place + self.reach // 2)
        owner, diagonal = np.concatenate([*owners, []]).astype(int), np.concatenate([*diagonals, []]).astype(int)
        found = []
        for shift in (0, _BAND // 2):  # two bands that overlap, so that no border parts two near diagonals
            keys, counts = np.unique(owner * self.reach + (diagonal + shift) // _BAND, return_counts=True)
            found.append(keys[counts >= _SHARED] // self.reach)
        return np.unique(np.concatenate(found))


def _words_of(sequence: np.ndarray) -> np.ndarray:
    """The number of each word of three residues, (length - 2,)."""
    letters = sequence.astype(np.int64)
    length = max(0, len(letters) - _WORD + 1)
    return sum((letters[k : k + length] * _LETTERS**k for k in range(_WORD)), np.zeros(length, np.int64))


def _found_by_mmseqs(sequences: list[np.ndarray], identity: float, program: str) -> list[tuple[int, int]]:
    """The pairs of homologs that a search of all sequences in all of them finds.

    Not its clusters: two members of different clusters may still be alike. Raises UserError where the program fails.
    """
    letters = np.array([*RESIDUES, "X"])
    with tempfile.TemporaryDirectory(prefix="sciml-mmseqs-") as folder:
        fasta, result = Path(folder) / "all.fasta", Path(folder) / "hits.tsv"
        entries = (f">{index}\n{''.join(letters[sequence])}\n" for index, sequence in enumerate(sequences))
        fasta.write_text("".join(entries))
        words = [program, "easy-search", str(fasta), str(fasta), str(result), str(Path(folder) / "tmp")]
        # Identity over the shorter sequence, highest sensitivity, as many hits as there are sequences.
        words += ["--min-seq-id", f"{identity:g}", "--seq-id-mode", "1", "-s", "7.5", "-v", "1"]
        words += ["--max-seqs", str(len(sequences)), "--format-output", "query,target"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise UserError(f"mmseqs: its easy-search ended with {done.returncode} ({last}); repair its installation.")
        rows = (line.split("\t") for line in result.read_text().splitlines())
        return [(int(query), int(target)) for query, target in rows]
