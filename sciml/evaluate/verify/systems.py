"""The systems that a model is asked about: random ones of its elements, and real records of stores."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sciml.data.records import SCHEMAS, Record, base_of, kinds
from sciml.data.source import Source
from sciml.data.store import Store, Subset
from sciml.evaluate.verify import random_records
from sciml.graph import KINDS
from sciml.package import Package
from sciml.schema import SAMPLES

MOST_LEVELS = 4  # levels of theory that get random systems of their own
SEARCHED = 200  # records that are looked through for known elements


@dataclass(frozen=True)
class Level:
    """A level of theory of a model: its index and name, the domain of its training data, the elements it knows."""

    index: int
    name: str
    domain: str
    elements: tuple[int, ...]


@dataclass(frozen=True)
class System:
    """One record as a graph of ``kind``; ``real`` tells a measured or computed one from a random one."""

    name: str
    kind: str
    level: Level
    record: Record
    real: bool = False

    @property
    def periodic(self) -> bool:
        """Whether the system is periodic in all directions."""
        return bool(np.all(self.record.get("pbc", False)))

    @property
    def partly_periodic(self) -> bool:
        """Whether the system is a slab or a wire."""
        return bool(np.any(self.record.get("pbc", False))) and not self.periodic


def levels_of(package: Package) -> list[Level]:
    """The levels of theory of every domain in the order of their index.

    A package that does not tell the domains has the built-in one of each kind, with every level of theory.
    """
    table = package.config.get("datasets_of_domain") or {
        domain: package.datasets for domain in SCHEMAS if set(kinds(domain)) & set(package.kinds)
    }
    return [
        Level(index, name, domain, _elements(package, name, domain))
        for index, name in enumerate(package.datasets)
        for domain, names in table.items()
        if name in names
    ]


def levels_of_atoms(package: Package) -> list[Level]:
    """Those of the levels of theory that graphs of atoms are made at: some elements are known there."""
    return [level for level in levels_of(package) if level.elements and "atoms" in kinds(level.domain)]


def _elements(package: Package, name: str, domain: str) -> tuple[int, ...]:
    """Atomic numbers that a level of theory has reference energies of; those of the training data where none has any:
    the model learned from structures alone.
    """
    references = package.config["model"]["context"]["references"]
    found = references.get(name, {})
    if not any(references.values()) and "atoms" in package.kinds and "atoms" in kinds(domain):
        found = package.config.get("elements", ())
    return tuple(sorted(int(z) for z in found))


def random_systems(package: Package, kind: str, seed: int) -> list[System]:
    """Random systems of ``kind``.

    Atoms: a molecule of each level of theory, a cation of the first, and a triclinic crystal of each level of
    materials. Jets: a heavy one, and one of 0.1 GeV at 500 GeV. Residues: a noisy helix.
    """
    rng = np.random.default_rng(seed)
    if kind == "atoms":
        return list(_random_atoms(levels_of_atoms(package)[:MOST_LEVELS], rng))
    levels = [level for level in levels_of(package) if kind in kinds(level.domain)]
    if not levels:
        return []
    if kind == "jets":
        heavy, light = (random_records.random_jet(rng, mass=mass) for mass in (80.0, 0.1))
        return [System("random jet", kind, levels[0], heavy), System("random light jet", kind, levels[0], light)]
    return [System("random helix", kind, levels[0], random_records.random_peptide(rng))]


def _random_atoms(levels: list[Level], rng: np.random.Generator) -> Iterator[System]:
    for level in levels:
        name = level.name if base_of(level.domain) == "materials" else f"{level.name}, {level.domain}"
        molecule = random_records.random_molecule(rng, elements=level.elements)
        yield System(f"random molecule, {name}", "atoms", level, {**molecule, "charge": 0.0, "spin": 1.0})
        if level is levels[0]:
            ion = random_records.random_molecule(rng, atoms=9, elements=level.elements)
            charged = {**ion, "charge": 1.0, "spin": 2.0}
            yield System(f"random cation, {name}", "atoms", level, charged)
        if base_of(level.domain) == "materials":
            crystal = random_records.random_crystal(rng, elements=level.elements)
            yield System(f"random crystal, {name}", "atoms", level, crystal)


def embedded_sources(package: Package) -> list[Source]:
    """The embedded samples that the model can read: at their own level of theory where it knows that, else at one of
    the same domain whose elements it knows.
    """
    levels = levels_of(package)
    sources = []
    for path in sorted(SAMPLES.iterdir()):
        store = Store(path)
        same = [level for level in levels if base_of(level.domain) == store.base]
        for level in sorted(same, key=lambda level: level.name != store.dataset):
            data = _known(store, level)
            if data is not None:
                sources.append(Source(data, level.index, path.name))
                break
    return sources


def _known(store: Store, level: Level) -> Store | Subset | None:
    """The store, or those of its records whose elements a level of theory knows, None without any.

    A level without energies has no elements, and its graphs do not need to know them.
    """
    if store.dataset == level.name or not level.elements:
        return store
    looked = np.unique(np.linspace(0, len(store) - 1, SEARCHED).astype(int))
    fits = [i for i in looked.tolist() if set(np.asarray(store[i]["types"]).tolist()) <= set(level.elements)]
    return Subset(store, np.array(fits)) if fits else None


def real_systems(package: Package, sources: list[Source], samples: int) -> list[System]:
    """``samples`` records of every source, spread over it, for every kind of graph that they and the model serve."""
    result = []
    for source in sources:
        level_name = package.datasets[source.dataset]
        level = Level(
            source.dataset, level_name, source.data.domain, _elements(package, level_name, source.data.domain)
        )
        for kind in (kind for kind in KINDS if kind in package.kinds):
            serves = np.flatnonzero(source.data.serves(kind))
            if not len(serves) or (kind == "atoms" and not level.elements):
                continue
            places = np.unique(np.linspace(0, len(serves) - 1, samples + 2)[1:-1].astype(int))
            name = source.name or Path(source.data.path).name
            for index in map(int, serves[places]):
                result.append(System(f"{name} #{index}", kind, level, dict(source.data[index]), real=True))
    return result
