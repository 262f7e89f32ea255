"""``sciml evaluate properties=FILE``: crystals and dimers of a file, each property beside the value that it gives.

The file is YAML or JSON::

    crystals:
      silicon:
        structure: {name: Si, crystalstructure: diamond, a: 5.43}  # of ase.build.bulk, or a file that ASE reads
        expected: {volume: 20.5, bulk_modulus: 89, C11: 153, C12: 57, C44: 75, phonons: [15.2, 15.2, 15.2]}
        properties: [equation_of_state, elastic]  # all where it is left out
    diatomics:
      Si-Si: {distances: [1.8, 2.2, 3.0, 5.0], energies: [0.3, -1.9, -1.0, 0.0]}

Units are Å^3/atom, GPa, eV and THz; phonons are the 3n - 3 optical ones in ascending order, imaginary ones negative.
Where ``properties`` is left out, a compound has no vacancy, whose energy depends on chemical potentials. Energies of
dimers are compared from the farthest point on. ``diatomics: {source: FILE, key: PBE, pairs: [Si-Si]}`` takes them from
a file of curves by level of theory, as Matbench Discovery's. Paths, of structures and of curves, are relative to the
folder of the file.
"""

import gzip
import json
import math
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
FILE = "properties.json"
_WELL = 2.0  # eV above the farthest point: where curves of dimers are compared, without the repulsive wall


def run(path: Path, calculator: Any, output: Path, plots: bool = True) -> str:
    """Compute everything in the file with an ASE ``calculator``; writes ``properties.json``, which grows with every
    property, and plots, returns a table.

    Raises UserError for what is wrong with the file, before anything is computed.
    """
    content = read(path)
    structures = {}
    for name, entry in content["crystals"].items():
        structures[name] = _structure(entry, path, f"{path}: crystals.{name}")
        _check_expected(entry, structures[name], f"{path}: crystals.{name}")
    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"crystals": {}, "diatomics": {}}
    try:
        for name, atoms in structures.items():
            atoms.calc = calculator
            _crystal(name, content["crystals"][name], atoms, results, output)
        for name, curve in content["diatomics"].items():
            results["diatomics"][name] = _dimer(name, curve, calculator)
            _write(results, output)
    except UserError as error:
        kept = f" What was computed before is in {output / FILE}." if any(results.values()) else ""
        raise UserError(f"{error}{kept}") from None
    if plots:
        draw(results, output)
    return table(results)


def _crystal(name: str, entry: dict[str, Any], atoms: Atoms, results: dict[str, Any], output: Path) -> None:
    """Compute the properties of an entry into ``results``, which is written after each."""
    wanted, left_out = _wanted(entry, atoms)
    atoms = crystal.relaxed(atoms, cell=True)
    found: dict[str, Any] = {"values": {}, "expected": entry.get("expected") or {}, "left_out": left_out}
    for each in wanted:
        found["values"] |= PROPERTIES[each](atoms)
        if each == "elastic":
            found["values"] |= _expected_constants(found)
        results["crystals"][name] = found
        _write(results, output)


def _wanted(entry: dict[str, Any], atoms: Atoms) -> tuple[list[str], dict[str, str]]:
    """The groups of PROPERTIES to compute, and {group: why} of those that the structure does not have."""
    wanted = entry.get("properties") or list(PROPERTIES)
    if len(set(atoms.numbers)) == 1 or entry.get("properties"):
        return wanted, {}
    why = "the vacancy energy of a compound depends on chemical potentials"
    return [name for name in wanted if name != "vacancy"], {"vacancy": why}


def _expected_constants(found: dict[str, Any]) -> dict[str, float]:
    """The elastic constants that are expected beside the three of a cubic crystal."""
    names = [name for name in found["expected"] if name in CONSTANTS and name not in found["values"]]
    return {name: found["values"]["elastic_constants"][int(name[1]) - 1][int(name[2]) - 1] for name in names}


def _write(results: dict[str, Any], output: Path) -> None:
    write_text(output / FILE, json.dumps(results, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """The checked content of a file of properties: ``crystals`` and ``diatomics``, empty where there are none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"properties: {path} cannot be read as YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict) or not content or set(content) - {"crystals", "diatomics"}:
        raise UserError(f"properties: {path} holds {_found(content)}, expected the keys crystals and diatomics.")
    crystals, dimers = (_named(content.get(key), f"{path}: {key}") for key in ("crystals", "diatomics"))
    for name, entry in crystals.items():
        _check_crystal(entry, f"{path}: crystals.{name}")
    if "source" in dimers:
        dimers = _curves_of(dimers, path)
    for name, curve in dimers.items():
        _check_curve(name, curve, f"{path}: diatomics.{name}")
    return {"crystals": crystals, "diatomics": dimers}


def _named(entries: Any, where: str) -> dict[str, Any]:
    """The same with names of text, empty where there is nothing."""
    if entries is not None and not isinstance(entries, dict):
        raise UserError(f"{where}: {_found(entries)} found, expected a mapping of names to entries.")
    return {str(name): entry for name, entry in (entries or {}).items()}


def _found(content: Any) -> str:
    return ", ".join(map(str, content)) if isinstance(content, dict) and content else f"a {type(content).__name__}"


def _check_crystal(entry: Any, where: str) -> None:
    if not isinstance(entry, dict) or "structure" not in entry:
        raise UserError(f"{where}: {_found(entry)} found, expected a structure, and properties and expected.")
    known = {"structure", "properties", "expected"}
    if set(entry) - known:
        raise UserError(f"{where}: key {min(set(entry) - known)} found, expected one of {', '.join(sorted(known))}.")
    properties, expected = entry.get("properties") or [], entry.get("expected") or {}
    if not isinstance(properties, list):
        raise UserError(f"{where}: properties: {properties!r} found, expected a list of {', '.join(PROPERTIES)}.")
    for name in properties:
        if name not in list(PROPERTIES):
            raise UserError(f"{where}: properties: {name!r} found, expected one of {', '.join(PROPERTIES)}.")
    if not isinstance(expected, dict):
        raise UserError(f"{where}: expected: {expected!r} found, expected values of {', '.join(EXPECTED)}.")
    for name, value in expected.items():
        if name not in EXPECTED or not (_are_numbers(value) if name == "phonons" else _is_number(value)):
            raise UserError(
                f"{where}: expected: {name}={value} found; give numbers of {', '.join(EXPECTED)}, of phonons a list."
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))


def _check_expected(entry: dict[str, Any], atoms: Atoms, where: str) -> None:
    """Raises UserError where a property or an expected value is none of the structure, or would not be computed."""
    wanted, left_out = _wanted(entry, atoms)
    if "vacancy" in wanted and len(set(atoms.numbers)) > 1:
        raise UserError(
            f"{where}: properties: the vacancy energy of a compound such as {atoms.get_chemical_formula()} depends on "
            "chemical potentials; leave vacancy out."
        )
    expected = entry.get("expected") or {}
    for name in expected:
        group = next(group for group, names in VALUES.items() if name in names)
        if group not in wanted:
            why = left_out.get(group, f"properties has no {group}")
            raise UserError(f"{where}: expected: {name} is not computed, as {why}; leave it out or name its group.")
    optical = 3 * len(atoms) - 3
    if "phonons" in expected and len(expected["phonons"]) != optical:
        raise UserError(
            f"{where}: expected: phonons: {len(expected['phonons'])} found; the structure has {len(atoms)} atoms, so "
            f"give all of its {optical} optical frequencies."
        )


def _check_curve(name: str, curve: Any, where: str) -> None:
    from ase.data import atomic_numbers

    elements = name.split("-")
    if len(elements) != 2 or any(element not in atomic_numbers for element in elements):
        raise UserError(f"{where}: {name!r} found, expected two elements such as Si-Si.")
    columns: list[Any] = [curve.get(key) for key in ("distances", "energies")] if isinstance(curve, dict) else [None]
    sound = all(_are_numbers(column) and len(column) > 2 for column in columns)
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
        return {str(pair): curves[pair] for pair in entry.get("pairs") or curves}
    except TypeError:
        raise UserError(
            f"{path}: diatomics: expected pairs as a list, and {source} to hold curves by pair, or by key and pair."
        ) from None
    except KeyError as error:
        raise UserError(f"{path}: diatomics: {source} has no {error.args[0]!r}, name a key or pair in it.") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: diatomics: {source} cannot be read as JSON ({error}).") from None


def _structure(entry: dict[str, Any], path: Path, where: str) -> Atoms:
    """The atoms of an entry, read beside the file ``path``; raises UserError where ASE cannot build or read them, or
    they are not periodic.
    """
    import ase.build
    import ase.io

    structure = entry["structure"]
    try:
        built = isinstance(structure, dict)
        atoms: Any = ase.build.bulk(**structure) if built else ase.io.read(str(path.parent / str(structure)))
    except Exception as error:  # ASE raises whatever its parsers meet
        raise UserError(f"{where}: structure: ASE cannot make it ({type(error).__name__}: {error}).") from None
    if not isinstance(atoms, Atoms):
        raise UserError(f"{where}: structure: {structure} holds several structures, expected one.")
    if not atoms.pbc.all():
        raise UserError(f"{where}: structure: not periodic in three directions, expected a crystal.")
    return atoms


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
    return {"phonons": crystal.gamma_phonons(atoms).tolist()}


PROPERTIES: dict[str, Callable[[Atoms], dict[str, Any]]] = {
    "equation_of_state": _equation_of_state,
    "elastic": _elastic,
    "vacancy": _vacancy,
    "phonons": _phonons,
}
CONSTANTS = tuple(f"C{i}{j}" for i in range(1, 7) for j in range(i, 7))
VALUES = {
    "equation_of_state": ("volume", "energy", "bulk_modulus", "bulk_modulus_derivative"),
    "elastic": ("elastic_bulk_modulus", "shear_modulus", *CONSTANTS),
    "vacancy": ("vacancy",),
    "phonons": ("phonons",),
}
"""What each of PROPERTIES finds that a value may be expected of."""
EXPECTED = tuple(name for names in VALUES.values() for name in names)


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
    """One row per property that is a number, and per phonon; a sentence for what was left out."""
    rows = [("of", "property", "found", "expected", "error", "unit")]
    for name, entry in results["crystals"].items():
        for key, value in entry["values"].items():
            if key in EXPECTED:
                wanted = entry["expected"].get(key)
                several = isinstance(value, list)
                pairs = zip(value, sorted(wanted or []) or [None] * len(value)) if several else [(value, wanted)]
                rows += [(name, key, *_numbers(*pair), UNITS.get(key, "GPa")) for pair in pairs]
    for name, entry in results["diatomics"].items():
        units = {"bond": "Å", "depth": "eV"}
        rows += [(name, key, *_numbers(entry["values"][key], entry["expected"][key]), units.get(key, ""))
                 for key in entry["values"]]  # fmt: skip
        rows.append((name, "MAE in the well", f"{entry['mae']:.4g}", "", "", "eV"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    left_out = [
        f"{name}: {what} is left out, {why}"
        for name, entry in results["crystals"].items()
        for what, why in entry["left_out"].items()
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *left_out])


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
