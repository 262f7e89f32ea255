"""A model in two precisions, the systems it is asked about, and its answers graph by graph."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sciml import registry
from sciml.data.far_field import add_far_field
from sciml.data.records import Record
from sciml.evaluate.verify.systems import System
from sciml.graph import Graph, collate, graph_of_rows
from sciml.models.readout import Head
from sciml.package import Package, to_float_dtype
from sciml.physics.symmetry import RANKS

Outputs = dict[str, Tensor]
NAMES = {torch.float32: "fp32", torch.float64: "fp64"}
MOST_NODES = 640  # in one batch


class Probe:
    """Asks a package for predictions in fp32 and fp64.

    ``systems`` are those of every law, less the slabs and wires that a model with Ewald sums refuses.
    """

    def __init__(self, package: Package, systems: list[System]) -> None:
        self.package = package
        self.device = next(package.model.parameters()).device
        self.models = {dtype: copy.deepcopy(package.model) for dtype in NAMES}
        for dtype, model in self.models.items():
            to_float_dtype(model, dtype)
        self.far_field = package.model.far_field
        self.all_systems = [system for system in systems if not (self.far_field.ewald and system.partly_periodic)]
        self.kinds = [kind for kind in package.kinds if package.model.heads_for(kind)]

    def systems(self, kind: str, real: bool | None = None) -> list[System]:
        """The systems of a kind; ``real`` True or False takes those or the random ones alone."""
        return [system for system in self.all_systems if system.kind == kind and real in (None, system.real)]

    def heads(self, kind: str) -> list[Head]:
        """The heads of a kind."""
        return self.package.model.heads_for(kind)

    def ranks(self, kind: str) -> dict[str, int | str]:
        """{output: spatial axes, or irreps} of the outputs that turn with space."""
        return RANKS | {name: rank for head in self.heads(kind) for name, rank in head.ranks.items()}

    def graph(
        self,
        system: System,
        dtype: torch.dtype = torch.float64,
        record: Record | None = None,
        wider: float = 0.0,
        **options: Any,
    ) -> Graph:
        """The graph of a system, or of another ``record`` at its level of theory.

        ``wider`` is added to the cutoffs; ``options`` reach the domain's ``graph``.
        """
        cutoff, coarse = self.cutoff(system.kind) + wider, self.coarse_cutoff(system.kind)
        if coarse is not None:
            options["coarse_cutoff"] = coarse + wider
        domain = registry.resolve("domains", system.level.domain)
        record = system.record if record is None else record
        graph = domain.graph(record, system.kind, cutoff, dtype=dtype, **options)
        graph.dataset = torch.tensor([system.level.index])
        return add_far_field(graph, self.far_field) if self.far_field and system.kind == "atoms" else graph

    def cutoff(self, kind: str) -> float:
        """The cutoff of a kind, in the unit of its positions."""
        return self.package.config["model"]["cutoffs"][kind]

    def coarse_cutoff(self, kind: str) -> float | None:
        """The cutoff of a kind on the coarse level, None without that level."""
        found: float | None = self.package.config["model"].get("coarse", {}).get("cutoffs", {}).get(kind)
        return found

    def predict(self, kind: str, graphs: Sequence[Graph], dtype: torch.dtype = torch.float64) -> list[Outputs]:
        """The outputs of every graph, on the CPU; a graph that has no stress beside one that has gets NaN."""
        results: list[Outputs] = []
        part: list[Graph] = []
        for graph in [*graphs, None]:
            full = part and (graph is None or sum(len(g.types) for g in part) + len(graph.types) > MOST_NODES)
            if full:
                results += self._predict(kind, part, dtype)
                part = []
            if graph is not None:
                part.append(graph)
        return results

    def _predict(self, kind: str, graphs: list[Graph], dtype: torch.dtype) -> list[Outputs]:
        batch = collate(graph.clone() for graph in graphs)
        if "residue_types" in batch:
            batch.coarse_types = torch.zeros_like(batch.coarse_types)  # targets, hidden as in evaluation
        batch = batch.to(self.device)
        with torch.no_grad():
            found = self.models[dtype](batch, kind)
        levels = self.models[dtype].levels(kind)
        rows = {name: graph_of_rows(batch, value, levels.get(name)).cpu() for name, value in found.items()}
        values = {name: value.detach().cpu() for name, value in found.items()}
        return [{n: value[rows[n] == i] for n, value in values.items()} for i in range(len(graphs))]


def fine_outputs(outputs: Mapping[str, Tensor], graph: Graph) -> tuple[str, ...]:
    """Names of the outputs with one row per fine node of a graph of two nodes or more."""
    nodes = len(graph.types)
    return tuple(name for name, value in outputs.items() if nodes > 1 and len(value) == nodes)


def energy_of(outputs: Mapping[str, Tensor]) -> str | None:
    """Name of the energy that forces derive from, None without one; reference energies are no part of it."""
    return next((name for name in ("interaction_energy", "energy") if name in outputs), None)


def typical(outputs: Sequence[Outputs]) -> dict[str, float]:
    """Median over systems of the RMS of every output, where it does not vanish: the least scale of an error."""
    found: dict[str, list[float]] = {}
    for one in outputs:
        for name, value in one.items():
            rms = float(value.double()[~value.isnan()].square().mean().sqrt())
            if rms > 0:
                found.setdefault(name, []).append(rms)
    return {name: sorted(values)[len(values) // 2] for name, values in found.items()}


class Worst:
    """The worst value of every subject and the system it was found on."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[float, str]] = {}
        self.counts: dict[str, int] = {}

    def add(self, subject: str, value: float, where: str) -> None:
        """Keep ``value`` if it is larger than all before; a value that is no number is the worst."""
        before = self.values.get(subject, (-1.0, ""))[0]
        if value > before or math.isnan(value):
            self.values[subject] = (value, where)
        self.counts[subject] = self.counts.get(subject, 0) + 1

    def items(self) -> list[tuple[str, float, str, str]]:
        """(subject, worst value, where, how many inputs)."""
        return [(name, value, where, f"{self.counts[name]} inputs") for name, (value, where) in self.values.items()]
