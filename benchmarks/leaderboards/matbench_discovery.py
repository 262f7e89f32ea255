"""Matbench Discovery (Riebesell et al., Nature Machine Intelligence 7, 836, 2025): its inputs, outputs and metrics.

    matbench_discovery.py relax --package runs/mine --structures wbm-initial-atoms.extxyz.zip --output relaxed.extxyz
        [--part 1/100]
    matbench_discovery.py kappa --package runs/mine --structures phononDB-PBE-103-structures.extxyz --output kappa.jsonl
        [--part 1/100] [--displacement 0.01] [--retry]
    matbench_discovery.py score --relaxed relaxed*.extxyz --summary wbm-summary.csv.gz
        [--dft-structures wbm-dft.extxyz] [--kappa kappa*.jsonl --dft-kappa kappas-phononDB-PBE-noNAC.json.gz]
        [--output results/matbench_discovery.json]

``relax`` and ``kappa`` take extended XYZ, in a zip of one file per structure too, with a ``material_id`` each, and go
on where they were stopped; ``--retry`` tries once more what failed. ``kappa`` needs phono3py (the extra ``phonons``),
``score`` no other package. They differ from the leaderboard's own code in this: the RMSD takes the sites in the order
of the input, where theirs looks for the best match with pymatgen, so ours is never smaller; space groups are those of
spglib, not of moyo; and the published conductivities come from an older solver of the Wigner equation than phono3py
has today.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import io
import json
import math
import sys
import zipfile
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.geometry import cell_to_cellpar, cellpar_to_cell
from ase.optimize import FIRE

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))

from conductivity import (
    DISPLACEMENT,
    KEYS,
    LARGEST_ERROR,
    conductivity,
    failed,
    named,
    read_table,
    symmetric_errors,
)
from workers import write_result

from sciml.errors import UserError

FORCE, STEPS = 0.05, 500  # eV/Å; as the leaderboard's submissions relax
UNPHYSICAL = 5.0  # eV/atom: a formation energy that is further away counts as no prediction
MOST_STABLE = 10_000
FAILURES = (UserError, ValueError, RuntimeError, ArithmeticError)  # an unknown element, a cell that blew up
UNMATCHED = 1.0  # RMSD of a structure that is missing or has other sites
ENERGY, HULL = "uncorrected_energy", "e_above_hull_mp2020_corrected_ppd_mp"  # columns of the summary


def structures(path: Path) -> Iterator[Atoms]:
    """The frames of an extended XYZ file, or of all such files in a zip. Raises UserError where there is no file."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a file of structures of the leaderboard.")
    if path.suffix != ".zip":
        yield from ase.io.iread(path, index=":", format="extxyz")
        return
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            text = io.StringIO(archive.read(name).decode())
            yield from ase.io.iread(text, index=":", format="extxyz")


def relax(atoms: Atoms, calculator: Any) -> Atoms:
    """Positions and cell relaxed by FIRE; ``info`` says in how many steps, and whether they were enough."""
    moved = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    moved.calc = calculator
    steps = FIRE(FrechetCellFilter(moved), logfile=None)
    converged = bool(steps.run(fmax=FORCE, steps=STEPS))
    result = Atoms(moved.numbers, positions=moved.positions, cell=moved.cell, pbc=True)
    result.info = {"material_id": atoms.info["material_id"], "steps": steps.nsteps, "converged": converged}
    result.calc = SinglePointCalculator(result, energy=moved.get_potential_energy())
    return result


def run_relax(options: argparse.Namespace) -> None:
    """Relax the structures of this part that are not in the output yet; one that fails is left out and named."""
    done = {atoms.info["material_id"] for atoms in structures(options.output)} if options.output.exists() else set()
    model = calculator_of(options)
    for atoms in remaining(options, done):
        try:
            ase.io.write(options.output, relax(atoms, model), format="extxyz", append=True)
        except FAILURES as error:
            print(f"{atoms.info['material_id']}: {error}", file=sys.stderr)


def run_kappa(options: argparse.Namespace) -> None:
    """Conductivities of the structures of this part that are not in the output yet; a failure is written and named.

    Raises UserError without phono3py, or where a structure lacks what it needs.
    """
    if importlib.util.find_spec("phono3py") is None:
        raise UserError("kappa: phono3py is not installed, see the extra phonons of the project.")
    if options.output.suffix != ".jsonl":
        raise UserError(f"--output: found {options.output}, expected a file of JSON lines that ends in .jsonl.")
    done = read_table(options.output) if options.output.exists() else {}
    if options.retry:
        done = {name: material for name, material in done.items() if not failed(material)}
    waiting = [named(atoms, KEYS) for atoms in remaining(options, done)]
    model = calculator_of(options)
    _write_lines(options.output, done.values())
    for atoms in waiting:
        name = atoms.info["material_id"]
        try:
            found = conductivity(atoms, model, options.displacement)
        except FAILURES as error:
            found = {"failure": str(error) or type(error).__name__}
        if failed(found):
            print(f"{name}: {found['failure']}", file=sys.stderr)
        with open(options.output, "a", encoding="utf-8") as file:
            file.write(json.dumps({"material_id": name, **found}) + "\n")


def _write_lines(path: Path, materials: Iterable[dict[str, Any]]) -> None:
    """Whole lines alone, those of earlier runs."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(material) + "\n" for material in materials), encoding="utf-8")
    partial.replace(path)


def calculator_of(options: argparse.Namespace) -> Any:
    """The ASE calculator of the package, in double precision."""
    import torch

    from sciml.export.ase import calculator

    return calculator(options.package, options.dataset, options.device, torch.float64)


def remaining(options: argparse.Namespace, done: Container[str]) -> Iterator[Atoms]:
    """The structures of this part that are not done."""
    part, parts = (int(number) for number in options.part.split("/"))
    for index, atoms in enumerate(structures(options.structures)):
        if index % parts == part - 1 and named(atoms, ["material_id"]).info["material_id"] not in done:
            yield atoms


def read_summary(path: Path) -> dict[str, dict[str, Any]]:
    """{material_id: {energy, hull (eV/atom), sites, prototype}} of the table of the test set."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return {
            row["material_id"]: {
                "energy": float(row[ENERGY]),
                "hull": float(row[HULL]),
                "sites": int(row["n_sites"]),
                "prototype": row["unique_prototype"] == "True",
            }
            for row in csv.DictReader(file)
        }


def hull_distances(summary: dict[str, dict[str, Any]], energies: dict[str, float]) -> dict[str, float]:
    """Predicted energy above the hull [eV/atom] of every material, NaN where there is none.

    References of the elements and corrections are those of the DFT energy, so that the distance moves by as much as the
    energy per atom.
    """
    result = {}
    for name, row in summary.items():
        difference = (energies.get(name, math.nan) - row["energy"]) / row["sites"]
        result[name] = row["hull"] + difference if abs(difference) <= UNPHYSICAL else math.nan
    return result


def stability(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Metrics of stable (at or below the hull) against unstable, and of the distances (n,) where there is a prediction.

    A material without prediction counts as predicted unstable. ``DAF`` is precision over prevalence: how many times
    more stable materials are found than by chance.
    """
    stable, called = true <= 0, predicted <= 0  # NaN <= 0 is False
    positives = int((stable & called).sum())
    precision, recall = positives / max(int(called.sum()), 1), positives / max(int(stable.sum()), 1)
    known = np.isfinite(predicted)
    error, spread = (predicted - true)[known], true[known] - true[known].mean()
    return {
        "F1": 2 * precision * recall / (precision + recall) if positives else 0.0,
        "DAF": precision / stable.mean() if stable.any() else math.nan,
        "precision": precision,
        "recall": recall,
        "accuracy": float((stable == called).mean()),
        "prevalence": float(stable.mean()),
        "MAE": float(np.abs(error).mean()),
        "RMSE": float(np.sqrt(np.square(error).mean())),
        "R2": float(1 - np.square(error).sum() / np.square(spread).sum()),
        "materials": len(true),
        "missing": int((~known).sum()),
    }


def structure_rmsd(first: Atoms, second: Atoms) -> float:
    """RMS distance of the sites of two crystals in units of (volume per atom)^(1/3), in the mean of their lattices and
    at the best common shift; UNMATCHED where their sites are others or the result is larger.
    """
    if first.numbers.tolist() != second.numbers.tolist():
        return UNMATCHED
    lattice = cellpar_to_cell((cell_to_cellpar(first.cell) + cell_to_cellpar(second.cell)) / 2)
    difference = first.get_scaled_positions(wrap=False) - second.get_scaled_positions(wrap=False)
    best = math.inf
    for anchor in difference:  # the shift that one site suggests, then their mean
        apart = difference - anchor
        apart -= np.rint(apart)
        apart -= apart.mean(axis=0)
        best = min(best, float(np.square(apart @ lattice).sum(axis=1).mean()))
    scale = (abs(np.linalg.det(lattice)) / len(first)) ** (1 / 3)
    return min(math.sqrt(best) / scale, UNMATCHED)


def score(
    summary: dict[str, dict[str, Any]],
    relaxed: dict[str, Atoms],
    dft: dict[str, Atoms] | None = None,
    kappa: tuple[dict[str, Any], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Every metric: of all materials, of unique prototypes and of the 10,000 of these predicted most stable."""
    names = list(summary)
    distances = hull_distances(summary, {name: atoms.get_potential_energy() for name, atoms in relaxed.items()})
    true = np.array([summary[name]["hull"] for name in names])
    predicted = np.array([distances[name] for name in names])
    unique = np.flatnonzero([summary[name]["prototype"] for name in names])
    lowest = unique[np.argsort(predicted[unique])][:MOST_STABLE]  # NaN last
    subsets = {"all": np.arange(len(names)), "unique_prototypes": unique, "most_stable_10k": lowest}
    result: dict[str, Any] = {
        name: stability(true[rows], predicted[rows]) for name, rows in subsets.items() if len(rows)
    }
    if dft is not None:
        values = [structure_rmsd(relaxed[name], atoms) if name in relaxed else UNMATCHED for name, atoms in dft.items()]
        result["RMSD"] = float(np.mean(values))
    if kappa is not None:
        result |= conductivities(*kappa)
    return result


def conductivities(ours: dict[str, dict[str, Any]], dft: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean symmetric errors over the materials of the reference, and how many have no conductivity of ours.

    Raises UserError where none of them is among ours.
    """
    if not ours.keys() & dft.keys():
        raise UserError(
            f"--kappa: found no material of the reference among {len(ours)}, expected those of {', '.join(dft)[:100]}."
        )
    found = np.array([symmetric_errors(ours.get(name), material) for name, material in dft.items()])
    of_modes, of_sums = (float(value) for value in found.mean(axis=0))
    lost = sum(failed(ours.get(name)) for name in dft)
    return {"kappa_SRME": of_modes, "kappa_SRE": of_sums, "kappa_materials": len(dft), "kappa_failed": lost}


def by_id(paths: list[Path]) -> dict[str, Atoms]:
    """{material_id: structure} of several files."""
    return {atoms.info["material_id"]: atoms for path in paths for atoms in structures(path)}


def run_score(options: argparse.Namespace) -> None:
    """Print and write the metrics; what cannot be computed is said."""
    dft = by_id([options.dft_structures]) if options.dft_structures else None
    if bool(options.kappa) != bool(options.dft_kappa):
        raise UserError("score: --kappa (ours) and --dft-kappa (the published ones) belong together; give both.")
    kappa = None
    if options.kappa:
        ours = {name: material for path in options.kappa for name, material in read_table(path).items()}
        kappa = ours, read_table(options.dft_kappa)
    result = score(read_summary(options.summary), by_id(options.relaxed), dft, kappa)
    for name, values in result.items():
        if isinstance(values, dict):
            print(name, ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
        else:
            print(name, f"{values:.4g}")
    if dft is None:
        print("RMSD: give --dft-structures, the relaxed structures of the test set")
    if kappa is None:
        print("kappa_SRME: give --kappa, what the command kappa makes, and --dft-kappa, the published conductivities")
    elif result["kappa_failed"]:
        print(f"kappa_failed: each counts as an error of {LARGEST_ERROR:g}")
    write_result(options.output, result)


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    relaxing, conducting = commands.add_parser("relax"), commands.add_parser("kappa")
    for running, runs in ((relaxing, run_relax), (conducting, run_kappa)):
        running.add_argument("--package", type=Path, required=True)
        running.add_argument("--structures", type=Path, required=True)
        running.add_argument("--output", type=Path, required=True)
        running.add_argument("--part", default="1/1", help="I/N: every Nth structure, from the Ith on")
        running.add_argument("--dataset", help="level of theory; that of the package where it has one")
        running.add_argument("--device", default="cpu")
        running.set_defaults(run=runs)
    conducting.add_argument("--displacement", type=float, default=DISPLACEMENT, help="of an atom, in Å")
    conducting.add_argument("--retry", action="store_true", help="try once more what failed")
    scoring = commands.add_parser("score")
    scoring.add_argument("--relaxed", type=Path, nargs="+", required=True)
    scoring.add_argument("--summary", type=Path, required=True)
    scoring.add_argument("--dft-structures", type=Path)
    scoring.add_argument("--kappa", type=Path, nargs="+", help="what the command kappa wrote")
    scoring.add_argument("--dft-kappa", type=Path, help="the published conductivities")
    scoring.add_argument(
        "--output", type=Path, default=Path(__file__).resolve().parents[1] / "results" / "matbench_discovery.json"
    )
    scoring.set_defaults(run=run_score)
    options = parser.parse_args()
    try:
        options.run(options)
    except (UserError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
