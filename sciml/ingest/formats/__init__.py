"""Readers: one module per foreign format.

A reader is a module (or an object installed under the entry point group ``sciml.readers``) with ``DOMAIN``,
``sniff(path) -> bool`` and ``read(path, options)``, which yields raw records in sciml's units, and :class:`Rejected`
where one record cannot be read. It raises UserError when the whole file is unusable. ``metadata(paths)`` is optional
and returns manifest entries such as the names of the classes.
"""

import gzip
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

import numpy as np

from sciml.data.records import Record
from sciml.data.targets import Target
from sciml.errors import UserError
from sciml.launch import first_process
from sciml.units import factor

ENERGY_UNITS = ("eV", "meV", "hartree", "rydberg", "kcal/mol", "kJ/mol")
LENGTH_UNITS = ("angstrom", "Å", "nm", "bohr")
STRESS_UNITS = ("eV/Å^3", "GPa", "kbar")
FORCES_UNITS = ("eV/Å", "hartree/bohr", "rydberg/bohr", "kcal/mol/Å", "kJ/mol/nm")


class Rejected(NamedTuple):
    """A record that could not be read, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Options:
    """What a user says about a file: names of the labels and units; None means the usual ones of the format.

    ``unlabelled`` says that structures without any label are meant, which else are taken for a mistake; ``targets`` are
    those that the schema of the domain does not have, see :func:`carries`; with ``may_lack_targets`` those that a file
    does not have are left out of it and said.
    """

    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    energy_unit: str | None = None
    length_unit: str | None = None
    forces_unit: str | None = None
    stress_unit: str | None = None
    unlabelled: bool = False
    targets: tuple[Target, ...] = ()
    may_lack_targets: bool = False

    def __post_init__(self) -> None:
        for key, known in (
            ("energy_unit", ENERGY_UNITS),
            ("length_unit", LENGTH_UNITS),
            ("forces_unit", FORCES_UNITS),
            ("stress_unit", STRESS_UNITS),
        ):
            unit = getattr(self, key)
            if unit is not None and unit not in known:
                raise UserError(f"{key}: {unit!r} is not known; use one of {', '.join(known)}.")

    def lacking(self, sentence: str) -> None:
        """Say that a file lacks a target that it may lack; raise UserError where it must have it."""
        if not self.may_lack_targets:
            raise UserError(sentence)
        say(f"read without it: {sentence}")

    @property
    def energy(self) -> float:
        """Factor from the file's energies to eV."""
        return factor(self.energy_unit or "eV")

    @property
    def length(self) -> float:
        """Factor from the file's lengths to Å."""
        return factor(self.length_unit or "Å")

    @property
    def forces(self) -> float:
        """Factor from the file's forces to eV/Å; by default that of its energy and length."""
        return factor(self.forces_unit) if self.forces_unit else self.energy / self.length

    @property
    def stress(self) -> float:
        """Factor from the file's stresses to eV/Å^3; by default that of its energy and length."""
        return factor(self.stress_unit) if self.stress_unit else self.energy / self.length**3


def carries(reader: Any, target: Target) -> bool:
    """Return whether files of a reader can hold a target: its ``TAKES_TARGETS`` is true for any column, or names some;
    a reader without it takes none.
    """
    taken: bool | tuple[str, ...] = getattr(reader, "TAKES_TARGETS", False)
    return taken if isinstance(taken, bool) else target.source in taken


def ingest_words(path: str | Path, words: str) -> str:
    """The command that makes a store of a file, with ``words`` that ``sciml train`` and others do not know."""
    return f"`sciml ingest source={path} output=STORE {words}`"


def say(text: str) -> None:
    """Print a line, from the first process alone: in training every rank opens the files."""
    if first_process():
        print(text)


class Reader(Protocol):
    """What a reader module provides."""

    DOMAIN: str

    def sniff(self, path: Path) -> bool:
        """Return whether the file looks like this format."""

    def read(self, path: Path, options: Options) -> Iterator[Record | Rejected]:
        """Yield the records of a file."""


def refuse_unused(path: Path, options: Options, used: tuple[str, ...]) -> None:
    """Raise UserError where the user gave an option that the format has no use for; ``used`` names the others."""
    for field in fields(options):
        if field.name not in (*used, "may_lack_targets") and getattr(options, field.name) not in (None, False, ()):
            raise UserError(
                f"{path}: {field.name}={getattr(options, field.name)} does not apply to files of this format, which "
                f"take {', '.join(used) or 'no such key'}; leave it out."
            )


def refuse_absent(path: Path, options: Options, found: set[str], what: str) -> None:
    """Raise UserError where the user named a key of a label that no ``what`` (frame, entry) of the file has."""
    for option in ("energy_key", "forces_key", "stress_key"):
        key = getattr(options, option)
        if key is not None and key not in found:
            listed = ", ".join(sorted(found)) or "none"
            raise UserError(f"{path}: no {what} has the key {key!r} named by {option}; the keys found are {listed}.")


def root_reader(path: Path) -> Any:
    """Return the module that reads ROOT files; raises UserError, for ``path``, where it is not installed."""
    try:
        import awkward  # noqa: F401 (uproot makes its arrays)
        import uproot
    except ImportError:
        raise UserError(f"{path}: reading ROOT files needs uproot and awkward; install sciml[hep].") from None
    return uproot


def open_text(path: Path) -> TextIO:
    """Open a text file, decompressed when it ends in .gz."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8")


def head(path: Path, size: int = 4096) -> str:
    """Return the first characters of a file, decompressed when it ends in .gz; empty when it cannot be read as text."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            return file.read(size).decode("utf-8", errors="replace")
    except (OSError, EOFError):
        return ""


def identifier(path: Path, name: object) -> str:
    """Return the id of a record: the file's name and the entry or frame in it."""
    return f"{path.name}#{name}"


def numeric(values: Any, name: str) -> np.ndarray:
    """Return ``values`` as float64, None as NaN; raises ValueError naming the key."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: not a regular array of numbers") from None


def natural_key(text: str) -> list[Any]:
    """Sort key in which frame 10 comes after frame 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def present(values: Mapping[str, Any]) -> Record:
    """Return the entries that are not None."""
    return {key: value for key, value in values.items() if value is not None}
