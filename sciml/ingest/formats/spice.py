"""SPICE, molecules for drug-like chemistry in HDF5 (Eastman et al., 2023; https://zenodo.org/records/10975225).

A group of the file is a molecule with ``atomic_numbers`` (n,), ``smiles``, ``subset``, ``conformations`` (c, n, 3) in
bohr, ``dft_total_energy`` (c,) in hartree and ``dft_total_gradient`` (c, n, 3) in hartree/bohr, which is minus the
force. The total charge is the sum of the partial charges ``mbis_charges`` where there are any, else that of the formal
charges in ``smiles``. Every molecule of SPICE is a singlet. All conformations of a molecule share a group.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.records import Record
from sciml.errors import UserError
from sciml.ingest.formats import Options, Rejected, present, refuse_unused
from sciml.units import factor

DOMAIN = "materials"
EXTENSIONS = (".hdf5", ".h5")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_BRACKET = re.compile(r"\[[^\]]*?((?:\+|-)+)(\d*)(?::\d+)?\]")


def sniff(path: Path) -> bool:
    """Return whether the file is HDF5 and a group of it holds conformations."""
    if not path.name.lower().endswith(EXTENSIONS) or not is_hdf5(path):
        return False
    try:
        import h5py

        with h5py.File(path, "r") as file:
            first = next(iter(file.values()), None)
            return isinstance(first, h5py.Group) and "conformations" in first
    except (ImportError, OSError):  # a truncated file cannot be opened; reading says so
        return path.name.lower().startswith("spice")


def is_hdf5(path: Path) -> bool:
    """Return whether the file begins as HDF5 does."""
    with open(path, "rb") as file:
        return file.read(len(_SIGNATURE)) == _SIGNATURE


def read(path: Path, options: Options) -> Iterator[Record | Rejected]:
    """Yield one record per conformation; a conformation whose energy is NaN did not converge and is refused.

    Raises UserError where h5py is missing, the file cannot be read, or a key of the user that no molecule has.
    """
    refuse_unused(path, options, ("energy_key", "forces_key", "energy_unit", "length_unit"))
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: reading SPICE needs h5py; install sciml[sets].") from None
    try:
        with h5py.File(path, "r") as file:
            for name, molecule in file.items():
                if not isinstance(molecule, h5py.Group) or "conformations" not in molecule:
                    yield Rejected(f"{path.name}#{name}", "conformations: missing")
                    continue
                missing = [key for key in ("atomic_numbers", "smiles") if key not in molecule]
                if missing:
                    yield Rejected(f"{path.name}#{name}", f"{missing[0]}: missing")
                    continue
                yield from _conformations(path, name, molecule, options)
    except OSError as error:
        raise UserError(f"{path}: not a readable HDF5 file, truncated perhaps ({error}).") from None


def _conformations(path: Path, name: str, molecule: Any, options: Options) -> Iterator[Record | Rejected]:
    energy_key = options.energy_key or "dft_total_energy"
    gradient_key = options.forces_key or "dft_total_gradient"
    length = factor(options.length_unit or "bohr")
    energy = factor(options.energy_unit or "hartree")
    for option, key in (("energy_key", energy_key), ("forces_key", options.forces_key)):
        if key is not None and key not in molecule:
            listed = ", ".join(molecule)
            raise UserError(f"{path}: {name} has no {key!r}; its data are {listed}; name one with {option}=.")
    positions = molecule["conformations"][:].astype(np.float64) * length
    energies = molecule[energy_key][:].astype(np.float64) * energy
    gradient = molecule[gradient_key][:].astype(np.float64) * (energy / length) if gradient_key in molecule else None
    types, charge = molecule["atomic_numbers"][:], _charge(molecule)
    for index, total in enumerate(energies):
        frame = f"{path.name}#{name}/{index}"
        if not np.isfinite(total):
            yield Rejected(frame, f"{energy_key}: NaN or infinite")
            continue
        yield present(
            {
                "id": frame,
                "group": f"{path.name}:{name}",
                "types": types,
                "positions": positions[index],
                "charge": charge,
                "energy": float(total),
                "forces": None if gradient is None else -gradient[index],
            }
        )


def _charge(molecule: Any) -> float:
    """Total charge of a molecule."""
    if "mbis_charges" in molecule:
        charges = molecule["mbis_charges"][0].sum()
        if np.isfinite(charges):
            return float(np.rint(charges))
    smiles = molecule["smiles"][()]
    smiles = smiles[0] if isinstance(smiles, np.ndarray) else smiles
    return formal_charge(smiles.decode() if isinstance(smiles, bytes) else str(smiles))


def formal_charge(smiles: str) -> float:
    """Sum of the formal charges in the brackets of a SMILES: [NH3+], [O-:3], [Ca+2], [Mg++]."""
    total = 0
    for signs, number in _BRACKET.findall(smiles):
        total += (1 if signs[0] == "+" else -1) * (int(number) if number else len(signs))
    return float(total)
