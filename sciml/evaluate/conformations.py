"""``sciml evaluate denoise_levels=[...]``: conformations from perturbed coordinates by the head that finds noise.

Noise of a known level is put on every coordinate. The head tells the noise, and the positions go back in steps, each to
a lower level along the noise that was told (the deterministic sampler of Song, Meng & Ermon, 2021). What counts is the
RMSD from the unperturbed structure after superposition, before and after.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sciml.data.far_field import add_far_field
from sciml.data.records import Record
from sciml.data.source import Source, source_names
from sciml.data.writer import backbone_atoms
from sciml.errors import UserError
from sciml.evaluate.plots import COLOURS, figure
from sciml.files import write_text
from sciml.graph import collate
from sciml.models.model import Model

SAMPLE = 100  # records of each store, evenly spread
STEPS = 5
_LOWEST = 0.1  # of the first level, that of the last step
HEADS = {"atoms": "noise_atoms", "residues": "noise_residues"}


def rmsd(first: np.ndarray, second: np.ndarray) -> float:
    """Root-mean-square distance [Å] of two structures (n, 3) after the best superposition, without reflections (Kabsch,
    Acta Cryst. A32, 922, 1976).
    """
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    left, _, right = np.linalg.svd(first.T @ second)
    turn = np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    return float(np.sqrt(np.square(first @ left @ turn @ right - second).sum(axis=1).mean()))


class Denoiser:
    """A model with a head that finds noise in graphs of ``kind``; ``description`` is that of its package."""

    def __init__(self, model: Model, description: dict[str, Any], kind: str) -> None:
        self.model, self.kind, self.cutoff = model, kind, description["cutoffs"][kind]
        coarse = description.get("coarse", {}).get("cutoffs", {})
        self.options = {"coarse_cutoff": coarse[kind]} if kind in coarse else {}

    def chosen(self, record: Record) -> np.ndarray:
        """The atoms (m,) of a record that its graph has: all, or those of whole backbones."""
        return backbone_atoms(record).reshape(-1) if self.kind == "residues" else np.arange(len(record["types"]))

    def noise(self, source: Source, record: Record, positions: np.ndarray, level: float) -> np.ndarray:
        """The noise (m, 3), in units of its ``level`` [Å], that the model finds at ``positions`` (n, 3)."""
        unlabelled = {key: value for key, value in record.items() if key not in ("forces", "stress")}
        shifted = {**unlabelled, "positions": positions, "noise": np.zeros_like(positions), "noise_level": level}
        graph = source.domain.graph(shifted, self.kind, self.cutoff, self.model.dtype, **self.options)
        graph.dataset = torch.tensor([source.dataset])
        if self.kind == "atoms" and self.model.far_field:
            graph = add_far_field(graph, self.model.far_field)
        batch = collate([graph]).to(next(self.model.parameters()).device)
        if "residue_types" in batch:
            batch.coarse_types = torch.zeros_like(batch.coarse_types)  # as in training: they are targets
        with torch.no_grad():
            return self.model(batch, self.kind)[HEADS[self.kind]].double().cpu().numpy()

    def denoise(
        self, source: Source, record: Record, positions: np.ndarray, level: float, steps: int = STEPS
    ) -> np.ndarray:
        """``positions`` (n, 3) [Å] with noise of ``level``, without it; atoms that the graph lacks stay."""
        chosen, positions = self.chosen(record), positions.copy()
        levels = [*np.geomspace(level, level * _LOWEST, steps)[: max(steps, 1)], 0.0]
        for now, after in pairwise(levels):
            positions[chosen] -= (now - after) * self.noise(source, record, positions, now)
        return positions


def measure(
    model: Model, sources: list[Source], description: dict[str, Any], levels: Sequence[float], seed: int = 0
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """{store: {kind: {level: {before, after, improved, count}}}}: mean RMSD in Å, and the share that came nearer.

    Raises UserError where the model has no head that finds noise in anything that the sources hold.
    """
    heads = {target for kind in description["kinds"] for head in model.heads_for(kind) for target in head.targets}
    result: dict[str, dict[str, Any]] = {}
    for name, source in zip(source_names(sources), sources):
        kinds = [kind for kind, head in HEADS.items() if head in heads and source.data.serves(kind).any()]
        for kind in kinds:
            denoiser = Denoiser(model, description, kind)
            result.setdefault(name, {})[kind] = {
                f"{level:g}": _at_level(denoiser, source, level, seed) for level in levels
            }
    if not result:
        raise UserError(
            "denoise_levels: the model has no head that finds noise in these data, expected denoise_atoms or "
            "denoise_residues (objective.denoise in training); leave denoise_levels out."
        )
    return result


def _at_level(denoiser: Denoiser, source: Source, level: float, seed: int) -> dict[str, float]:
    """Mean RMSD before and after over up to SAMPLE records; the noise is a function of seed, level and record alone."""
    serving = np.flatnonzero(source.data.serves(denoiser.kind))
    records = serving[np.unique(np.linspace(0, len(serving) - 1, SAMPLE).astype(int))]
    before, after = [], []
    for index in records.tolist():
        record = source.data[index]
        chosen, clean = denoiser.chosen(record), np.asarray(record["positions"], np.float64)
        if len(chosen) < 4:
            continue
        noise = np.random.default_rng([seed, index, round(1e6 * level)]).standard_normal(clean.shape)
        perturbed = clean + level * (noise - noise.mean(axis=0))
        found = denoiser.denoise(source, record, perturbed, level)
        before.append(rmsd(perturbed[chosen], clean[chosen]))
        after.append(rmsd(found[chosen], clean[chosen]))
    if not before:
        return {"before": float("nan"), "after": float("nan"), "improved": float("nan"), "count": 0}
    improved = float(np.mean(np.array(after) < np.array(before)))
    return {"before": float(np.mean(before)), "after": float(np.mean(after)), "improved": improved, "count": len(after)}


def write(result: dict[str, Any], folder: Path, plots: bool = True) -> str:
    """Write ``conformations.json`` and, with ``plots``, ``conformations.png``; returns a table."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "conformations.json", json.dumps(result, indent=1) + "\n")
    titles = f"{'noise / Å':>10}{'RMSD before':>13}{'after':>8}{'came nearer':>13}{'records':>9}"
    header = f"{'store':<20}{'kind':<10}{titles}"
    lines = [header, "-" * len(header)]
    rows = [(store, kind, found) for store, kinds in result.items() for kind, found in kinds.items()]
    for store, kind, found in rows:
        for level, values in found.items():
            distances = f"{values['before']:>13.3f}{values['after']:>8.3f}"
            shares = f"{values['improved']:>13.0%}{values['count']:>9,}"
            lines.append(f"{store:<20}{kind:<10}{level:>10}{distances}{shares}")
    if plots:
        drawing, axes = figure(4.2 * len(rows), 3.4, len(rows))
        for axis, (store, kind, found) in zip(axes, rows):
            levels = [float(level) for level in found]
            for key, colour in (("before", COLOURS[1]), ("after", COLOURS[0])):
                axis.plot(levels, [values[key] for values in found.values()], "o-", color=colour, label=key)
            axis.set_ylim(bottom=0.0)
            axis.set_title(f"{store}: {kind}", fontsize=9)
            axis.set_xlabel("noise on a coordinate / Å", fontsize=8)
            axis.set_ylabel("RMSD / Å", fontsize=8)
            axis.legend(fontsize=8, frameon=False)
        drawing.savefig(folder / "conformations.png", dpi=150)
    return "\n".join(lines)
