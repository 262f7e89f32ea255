"""``sciml evaluate properties=FILE``: crystals and dimers of a file, each property beside the value that it gives.

The file is YAML or JSON::

    crystals:
      silicon:
        structure: {name: Si, crystalstructure: diamond, a: 5.43}  # of ase.build.bulk, or a file that ASE reads
        expected: {volume: 20.5, bulk_modulus: 89, C11: 153, C12: 57, C44: 75, phonons: [15.2, 15.2, 15.2]}
        properties: [equation_of_state, elastic]  # all where it is left out
    diatomics:
      Si-Si: {distances: [1.8, 2.2, 3.0, 5.0], energies: [0.3, -1.9, -1.0, 0.0]}

Units are Å^3/atom, GPa, eV and THz; phonons are the optical ones, those beyond the lowest three. Energies of dimers are
compared from the farthest point on. ``diatomics: {source: FILE, key: PBE, pairs: [Si-Si]}`` takes them from a file of
curves by level of theory, as Matbench Discovery's.
"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase import Atoms

from sciml.errors import UserError
from sciml.evaluate import crystal
from sciml.evaluate.plots import COLOURS, INK, figure
from sciml.files import write_text

UNITS = {"volume": "Å^3/atom", "vacancy": "eV", "phonons": "THz", "energy": "eV/atom", "bulk_modulus_derivative": ""}
"""Of every other property GPa."""
_WELL = 2.0  # eV above the farthest point: where curves of dimers are compared, without the repulsive wall


def run(path: Path, calculator: Any, output: Path, plots: bool = True) -> str:
    """Compute everything in the file with an ASE ``calculator``; writes ``properties.json`` and plots, returns a table.

    Raises UserError for what is wrong with the file, before anything is computed.
    """
    content = read(path)
    structures = {name: _structure(entry, f"{path}: crystals.{name}") for name, entry in content["crystals"].items()}
    results: dict[str, Any] = {"crystals": {}, "diatomics": {}}
    for name, entry in content["crystals"].items():
        atoms = structures[name]
        atoms.calc = calculator
        values = crystal_properties(atoms, entry.get("properties") or list(PROPERTIES))
        results["crystals"][name] = {"values": values, "expected": entry.get("expected") or {}}
    for name, curve in content["diatomics"].items():
        results["diatomics"][name] = _dimer(name, curve, calculator)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "properties.json", json.dumps(results, indent=1) + "\n")
    if plots:
        draw(results, output)
    return table(results)


def read(path: Path) -> dict[str, Any]:
    """The checked content of a file of properties: ``crystals`` and ``diatomics``, empty where there are none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"properties: {path} cannot be read as YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict) or not content or set(content) - {"crystals", "diatomics"}:
        raise UserError(f"properties: {path} holds {_found(content)}, expected the keys crystals and diatomics.")
    crystals, dimers = content.get("crystals") or {}, content.get("diatomics") or {}
    for name, entry in crystals.items():
        _check_crystal(entry, f"{path}: crystals.{name}")
    if "source" in dimers:
        dimers = _curves_of(dimers, path)
    for name, curve in dimers.items():
        _check_curve(name, curve, f"{path}: diatomics.{name}")
    return {"crystals": crystals, "diatomics": dimers}


def _found(content: Any) -> str:
    return ", ".join(map(str, content)) if isinstance(content, dict) and content else f"a {type(content).__name__}"


def _check_crystal(entry: Any, where: str) -> None:
    if not isinstance(entry, dict) or "structure" not in entry:
        raise UserError(f"{where}: {_found(entry)} found, expected a structure, and properties and expected.")
    known = {"structure", "properties", "expected"}
    if set(entry) - known:
        raise UserError(f"{where}: key {min(set(entry) - known)} found, expected one of {', '.join(sorted(known))}.")
    for name in entry.get("properties") or ():
        if name not in PROPERTIES:
            raise UserError(f"{where}: properties: {name!r} found, expected one of {', '.join(PROPERTIES)}.")
    for name, value in (entry.get("expected") or {}).items():
        numbers = value if isinstance(value, list) else [value]
        if name not in EXPECTED or not all(isinstance(number, int | float) for number in numbers):
            raise UserError(f"{where}: expected: {name}={value} found; give numbers of {', '.join(EXPECTED)}.")


def _check_curve(name: str, curve: Any, where: str) -> None:
    from ase.data import atomic_numbers

    elements = name.split("-")
    if len(elements) != 2 or any(element not in atomic_numbers for element in elements):
        raise UserError(f"{where}: {name!r} found, expected two elements such as Si-Si.")
    columns: list[Any] = [curve.get(key) for key in ("distances", "energies")] if isinstance(curve, dict) else [None]
    sound = all(isinstance(column, list) and len(column) > 2 for column in columns)
    if not sound or len({len(column) for column in columns}) > 1 or np.min(np.diff(columns[0])) <= 0:
        raise UserError(f"{where}: expected distances in ascending order and as many energies, three or more.")


def _curves_of(entry: dict[str, Any], path: Path) -> dict[str, Any]:
    """Curves of a file {level of theory: {pair: {distances, energies}}}, gzipped or not."""
    source = path.parent / str(entry["source"])
    try:
        opener: Any = gzip.open if source.suffix == ".gz" else open
        with opener(source, "rt", encoding="utf-8") as file:
            curves = json.load(file)
        curves = curves[entry["key"]] if "key" in entry else curves
        return {pair: curves[pair] for pair in entry.get("pairs") or curves}
    except KeyError as error:
        raise UserError(f"{path}: diatomics: {source} has no {error.args[0]!r}, name a key or pair in it.") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: diatomics: {source} cannot be read as JSON ({error}).") from None


def _structure(entry: dict[str, Any], where: str) -> Atoms:
    """The atoms of an entry; raises UserError where ASE cannot build or read them, or they are not periodic."""
    import ase.build
    import ase.io

    structure = entry["structure"]
    try:
        atoms: Any = ase.build.bulk(**structure) if isinstance(structure, dict) else ase.io.read(structure)
    except Exception as error:  # ASE raises whatever its parsers meet
        raise UserError(f"{where}: structure: ASE cannot make it ({type(error).__name__}: {error}).") from None
    if not atoms.pbc.all():
        raise UserError(f"{where}: structure: not periodic in three directions, expected a crystal.")
    return atoms


def crystal_properties(atoms: Atoms, names: list[str]) -> dict[str, Any]:
    """{property: value} of the relaxed crystal, of the groups ``names`` of PROPERTIES."""
    atoms = crystal.relaxed(atoms, cell=True)
    values: dict[str, Any] = {}
    for name in names:
        values |= PROPERTIES[name](atoms)
    return values


def _equation_of_state(atoms: Atoms) -> dict[str, Any]:
    found = crystal.equation_of_state(atoms)
    return {
        "volume": found.volume,
        "energy": found.energy,
        "bulk_modulus": found.bulk_modulus,
        "bulk_modulus_derivative": found.derivative,
        "curve": {"volumes": found.volumes.tolist(), "energies": found.energies.tolist()},
    }


def _elastic(atoms: Atoms) -> dict[str, Any]:
    constants = crystal.elastic_constants(atoms)
    names = {f"C{i + 1}{j + 1}": float(constants[i, j]) for i in range(6) for j in range(i, 6)}
    return {
        **(crystal.cubic_constants(constants) or names),
        "elastic_bulk_modulus": crystal.moduli(constants)["bulk_modulus"],
        "shear_modulus": crystal.moduli(constants)["shear_modulus"],
        "elastic_constants": constants.tolist(),
    }


def _vacancy(atoms: Atoms) -> dict[str, Any]:
    return {"vacancy": crystal.vacancy_energy(atoms)}


def _phonons(atoms: Atoms) -> dict[str, Any]:
    return {"phonons": crystal.gamma_phonons(atoms)[3:].tolist()}


PROPERTIES: dict[str, Callable[[Atoms], dict[str, Any]]] = {
    "equation_of_state": _equation_of_state,
    "elastic": _elastic,
    "vacancy": _vacancy,
    "phonons": _phonons,
}
EXPECTED = (
    "volume", "energy", "bulk_modulus", "bulk_modulus_derivative", "elastic_bulk_modulus", "shear_modulus", "vacancy",
    "phonons", *(f"C{i}{j}" for i in range(1, 7) for j in range(i, 7)),
)  # fmt: skip


def _dimer(name: str, curve: dict[str, Any], calculator: Any) -> dict[str, Any]:
    """A curve beside the given one: shapes of both, and their difference in the well."""
    distances, given = np.array(curve["distances"], float), np.array(curve["energies"], float)
    first, second = name.split("-")
    found = crystal.dimer_energies(first, second, distances.tolist(), calculator)
    given, found = given - given[-1], found - found[-1]
    well = given < _WELL
    return {
        "values": crystal.dimer(distances, found)._asdict(),
        "expected": crystal.dimer(distances, given)._asdict(),
        "mae": float(np.abs(found - given)[well].mean()),
        "curve": {"distances": distances.tolist(), "energies": found.tolist(), "expected": given.tolist()},
    }


def table(results: dict[str, Any]) -> str:
    """One row per property that is a number, and per phonon."""
    rows = [("of", "property", "found", "expected", "error", "unit")]
    for name, entry in results["crystals"].items():
        for key, value in entry["values"].items():
            if key in EXPECTED:
                wanted = entry["expected"].get(key)
                several = isinstance(value, list)
                pairs = zip(value, wanted or [None] * len(value), strict=False) if several else [(value, wanted)]
                rows += [(name, key, *_numbers(*pair), UNITS.get(key, "GPa")) for pair in pairs]
    for name, entry in results["diatomics"].items():
        units = {"bond": "Å", "depth": "eV"}
        rows += [(name, key, *_numbers(entry["values"][key], entry["expected"][key]), units.get(key, ""))
                 for key in entry["values"]]  # fmt: skip
        rows.append((name, "MAE in the well", f"{entry['mae']:.4g}", "", "", "eV"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _numbers(found: float, expected: float | None) -> tuple[str, str, str]:
    if expected is None:
        return f"{found:.4g}", "", ""
    share = f"{found - expected:+.3g}" + (f" ({found / expected - 1:+.1%})" if expected else "")
    return f"{found:.4g}", f"{expected:.4g}", share


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """``equation_of_state.png`` and ``diatomics.png`` where there are such curves; returns their paths."""
    paths = []
    curves = {name: entry["values"] for name, entry in results["crystals"].items() if "curve" in entry["values"]}
    if curves:
        drawing, axes = figure(4.2 * len(curves), 3.4, len(curves))
        for axis, (name, values) in zip(axes, curves.items()):
            energies = np.array(values["curve"]["energies"]) - values["energy"]
            axis.plot(values["curve"]["volumes"], 1e3 * energies, "o-", markersize=4, linewidth=1, color=COLOURS[0])
            axis.set_title(f"{name}: bulk modulus {values['bulk_modulus']:.1f} GPa", fontsize=9)
            expected = results["crystals"][name]["expected"].get("volume")
            if expected:
                axis.axvline(expected, color=INK, linewidth=0.8, linestyle="--", label="expected volume")
                axis.legend(fontsize=8, frameon=False)
            axis.set_xlabel("volume / Å^3 per atom", fontsize=8)
            axis.set_ylabel("energy above the minimum / meV per atom", fontsize=8)
        paths.append(folder / "equation_of_state.png")
        drawing.savefig(paths[-1], dpi=150)
    if results["diatomics"]:
        drawing, axes = figure(4.2 * len(results["diatomics"]), 3.4, len(results["diatomics"]))
        for axis, (name, entry) in zip(axes, results["diatomics"].items()):
            curve = entry["curve"]
            axis.plot(curve["distances"], curve["expected"], color=INK, linewidth=1, label="expected")
            axis.plot(curve["distances"], curve["energies"], "o-", markersize=3, color=COLOURS[1], label="model")
            lowest = min(*curve["expected"], *curve["energies"])
            axis.set_ylim(lowest - 0.5, max(_WELL, -0.5 * lowest))
            axis.set_title(f"{name}: MAE {entry['mae']:.3g} eV in the well", fontsize=9)
            axis.set_xlabel("distance / Å", fontsize=8)
            axis.set_ylabel("energy / eV", fontsize=8)
            axis.legend(fontsize=8, frameon=False)
        paths.append(folder / "diatomics.png")
        drawing.savefig(paths[-1], dpi=150)
    return paths
