"""A published model as an ASE calculator."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress

from sciml.data.records import ATOM_NAMES, UNKNOWN_RESIDUE, base_of
from sciml.domains.common import atoms_graph
from sciml.errors import UserError
from sciml.evaluate.uncertainty import captured, features_of, from_tensors
from sciml.graph import RESIDUE_NAMES, collate
from sciml.package import Package, load

RESIDUE_ARRAYS = ("residuenumbers", "residuenames", "atomtypes")


class SciMLCalculator(Calculator):
    """Energy (eV), forces (eV/Å) and, for cells periodic in all directions, stress (eV/Å^3, Voigt order of ASE).

    Where the package has uncertainties, ``energy_uncertainty`` (eV) is the standard deviation of the energy.

    ``dataset`` is the level of theory whose energies are wanted; it may be left out where the package has one.
    Atoms are given the domain of that level's training data, materials where it has several.
    ``atoms.info`` may carry ``charge`` (e) and ``spin`` (multiplicity). A model with a coarse level asks for the
    residues of a protein, which ``atoms.arrays`` hold where ASE read a PDB file.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, package: Package, dataset: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.package = package
        self.dataset = _dataset(package, dataset)
        self.rigidities = from_tensors(package.uncertainty)
        if "energy" in self.rigidities:
            self.implemented_properties = [*self.implemented_properties, "energy_uncertainty"]
        self.domain = _domain(package, package.datasets[self.dataset])

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation: ASE's list, and ``info`` where charge or spin is another."""
        changes = super().check_state(atoms, tol)
        before = {} if self.atoms is None else self.atoms.info
        changed = any(before.get(key) != atoms.info.get(key) for key in ("charge", "spin"))
        return [*changes, "info"] if changed else changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill ``results``. Raises UserError for an element that the level of theory does not have."""
        super().calculate(atoms, properties or ["energy"], system_changes)
        assert self.atoms is not None  # set by the base class
        record = self._record(self.atoms)
        model = self.package.model
        description = self.package.config["model"]
        if self.domain == "biology" and "coarse" in description:
            record |= residues_of(self.atoms)
        coarse_cutoff = description.get("coarse", {}).get("cutoffs", {}).get("atoms")
        graph = atoms_graph(record, self.domain, description["cutoffs"]["atoms"], model.dtype, coarse_cutoff)
        graph.dataset = torch.tensor([self.dataset])
        batch = collate([graph]).to(next(model.parameters()).device)
        with captured(model, "atoms") as found:
            outputs = model(batch, "atoms")
        predictions = {name: value.detach().cpu().double().numpy() for name, value in outputs.items()}
        energy = float(predictions["energy"][0])
        self.results = {"energy": energy, "free_energy": energy, "forces": predictions["forces"]}
        if "energy" in self.rigidities:
            variance = self.rigidities["energy"].variance(features_of(found, "energy", batch))
            self.results["energy_uncertainty"] = float(variance[0].sqrt())
        if "stress" in predictions and np.isfinite(predictions["stress"]).all():
            self.results["stress"] = full_3x3_to_voigt_6_stress(predictions["stress"][0])

    def _record(self, atoms: Atoms) -> dict[str, Any]:
        name = self.package.datasets[self.dataset]
        known = {int(number) for number in self.package.config["model"]["context"]["references"].get(name, {})}
        unknown = sorted(set(atoms.numbers.tolist()) - known)
        if unknown:
            raise UserError(
                f"atoms: {chemical_symbols[unknown[0]]} was not in the training data of {name!r}, which has "
                f"{', '.join(chemical_symbols[number] for number in sorted(known))}; fine-tune the model on data "
                "with this element."
            )
        return {
            "types": atoms.numbers,
            "positions": atoms.positions,
            "cell": atoms.cell.array,
            "pbc": atoms.pbc,
            "charge": atoms.info.get("charge", 0.0),
            "spin": atoms.info.get("spin", 1.0),
        }


def residues_of(atoms: Atoms) -> dict[str, np.ndarray]:
    """The residues of atoms as fields of a biology record, from the arrays that ASE reads out of a PDB file.

    Raises UserError where an array is missing.
    """
    missing = [name for name in RESIDUE_ARRAYS if name not in atoms.arrays]
    if missing:
        raise UserError(
            f"atoms.arrays: no {missing[0]!r} found, which a model with a coarse level needs to tell the residues of a "
            f"protein; read the atoms from a PDB file, or set {', '.join(RESIDUE_ARRAYS)}."
        )
    numbers, names, places = (atoms.arrays[name] for name in RESIDUE_ARRAYS)
    first = _first_atoms(numbers.tolist(), names.tolist(), places.tolist())
    types = {name: code for code, name in enumerate(RESIDUE_NAMES)}
    codes = {name: code for code, name in enumerate(ATOM_NAMES)}
    return {
        "parent": np.cumsum(first) - 1,
        "residue_types": np.array([types.get(name.strip(), UNKNOWN_RESIDUE) for name in names[first].tolist()]),
        "atom_names": np.array([codes.get(name.strip(), 0) for name in places.tolist()]),
    }


def _first_atoms(numbers: list[int], names: list[str], places: list[str]) -> np.ndarray:
    """Which atoms begin a residue, bool: number or name changes, or, in another chain, a backbone begins anew."""
    first = np.zeros(len(numbers), dtype=bool)
    before, seen = None, set[str]()
    for index, (residue, place) in enumerate(zip(zip(numbers, names), map(str.strip, places))):
        if residue != before or (place == "N" and "C" in seen):
            first[index], seen = True, set()
        before = residue
        seen.add(place)
    return first


def _dataset(package: Package, name: str | None) -> int:
    """Index of a level of theory with energies."""
    references = package.config["model"]["context"]["references"]
    known = [dataset for dataset in package.datasets if references.get(dataset)]
    if not known:
        raise UserError(
            f"{package.path} has no energies, its kinds are {', '.join(package.kinds)}; give another package."
        )
    if name is None and len(known) == 1:
        name = known[0]
    if name not in known:
        raise UserError(
            f"dataset={name!r}: {package.path} has the levels of theory {', '.join(known)}; give one of them."
        )
    return package.datasets.index(name)


def _domain(package: Package, dataset: str) -> str:
    """The built-in domain whose records had the level of theory ``dataset`` in training."""
    table = package.config.get("datasets_of_domain", {})
    bases = {base_of(domain) for domain, names in table.items() if dataset in names} - {"hep"}
    return "materials" if "materials" in bases or not bases else bases.pop()


def calculator(
    path: str | Path, dataset: str | None = None, device: str = "cpu", dtype: torch.dtype | None = None
) -> SciMLCalculator:
    """Return an ASE calculator over the package at ``path`` (or over the package of a run folder)."""
    return SciMLCalculator(load(path, device=device, dtype=dtype), dataset)
