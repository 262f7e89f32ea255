"""Net force and torque of direct forces, total charge, and size extensivity."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sciml.data.records import Record, schema
from sciml.evaluate.verify.certificate import Row, informed, judged, not_applicable
from sciml.evaluate.verify.derivatives import MOST_ATOMS, direct
from sciml.evaluate.verify.probe import NAMES, Outputs, Probe, Worst, fine_outputs, typical
from sciml.evaluate.verify.symmetries import TOLERANCES
from sciml.evaluate.verify.systems import System
from sciml.physics.symmetry import relative_rms

APART = 1e5  # Å: beyond any cutoff, and of the potential of a dipole at 1 Å there is 1e-10 left
EXTENSIVITY_TOLERANCE = 1e-8
EXTENSIVE = ("energy", "interaction_energy")  # of a graph; outputs of atoms stay as they are
CHARGES = "charges"
PROJECTED = "the projection of direct forces knows the whole system"
SHARED = "equilibrated charges flow between different molecules however far they are from each other"


def net_force_and_torque(probe: Probe) -> Iterator[Row]:
    """Rows of direct forces: |sum F| over sum |F|, and, without periodic directions, |sum r x F| over sum |r| |F|."""
    if not direct(probe):
        why = "forces are the derivative of an energy" if "atoms" in probe.kinds else "the model does not read atoms"
        for law in ("net force", "net torque"):
            yield not_applicable(law, f"no head predicts forces directly: {why}")
        return
    systems = [s for s in probe.systems("atoms") if len(s.record["types"]) > 1]
    for dtype, tolerance in TOLERANCES.items():
        force, torque = Worst(), Worst()
        graphs = [probe.graph(system, dtype) for system in systems]
        for system, graph, found in zip(systems, graphs, probe.predict("atoms", graphs, dtype), strict=True):
            forces = found["forces"].double()
            force.add("forces", _cancelled(forces), system.name)
            if not np.any(system.record.get("pbc", False)):
                arms = graph.positions.double() - graph.positions.double().mean(dim=0)
                scale = (arms.norm(dim=1) * forces.norm(dim=1)).sum()
                torque.add("forces", float(_torque(arms, forces).norm() / scale) if scale else 0.0, system.name)
        for law, worst in (("net force", force), ("net torque", torque)):
            for name, value, where, inputs in worst.items():
                yield judged(law, name, NAMES[dtype], value, tolerance, inputs=inputs, worst=where)
    if not torque.values:
        yield not_applicable("net torque", "every system is periodic")


def _cancelled(vectors: Tensor) -> float:
    scale = vectors.norm(dim=1).sum()
    return float(vectors.sum(dim=0).norm() / scale) if scale else 0.0


def _torque(arms: Tensor, forces: Tensor) -> Tensor:
    return torch.linalg.cross(arms, forces).sum(dim=0)


def total_charge(probe: Probe) -> Iterator[Row]:
    """Rows of the prediction ``charges``: the sum against the total charge of neutral and charged systems, in e."""
    systems = probe.systems("atoms") if "atoms" in probe.kinds else []
    if not systems or CHARGES not in probe.predict("atoms", [probe.graph(systems[0])])[0]:
        yield not_applicable("total charge", f"no head predicts {CHARGES}")
        return
    for dtype, tolerance in TOLERANCES.items():
        worst = Worst()
        graphs = [probe.graph(system, dtype) for system in systems]
        for system, found in zip(systems, probe.predict("atoms", graphs, dtype), strict=True):
            charges = found[CHARGES].double()
            expected = float(system.record.get("charge", 0.0))
            error = (charges.sum(dim=0) - expected).abs().max() / charges.abs().sum().clamp_min(1.0)
            worst.add(CHARGES, float(error), system.name)
        for name, value, where, inputs in worst.items():
            yield judged("total charge", name, NAMES[dtype], value, tolerance, unit="e", inputs=inputs, worst=where)


def size_extensivity(probe: Probe) -> Iterator[Row]:
    """Rows of neutral singlets: two copies far apart and doubled crystals; two different molecules far apart.

    Direct forces are information: the projection that makes their sum zero knows the whole system; so is consistency
    where charges are equilibrated.
    """
    systems = [_neutral(s) for s in probe.systems("atoms")] if "atoms" in probe.kinds else []
    outputs = probe.predict("atoms", [probe.graph(system) for system in systems])
    alone = {id(system): found for system, found in zip(systems, outputs, strict=True)}
    wholes = list(_wholes(systems))
    graphs = [probe.graph(parts[0], record=record) for _, _, parts, record in wholes]
    floors, worst = typical(outputs), {(law, what): Worst() for law, what, _, _ in wholes}
    for (law, what, parts, _), graph, whole in zip(wholes, graphs, probe.predict("atoms", graphs), strict=True):
        where = " + ".join(dict.fromkeys(part.name for part in parts))
        for output, expected in _sum(whole, fine_outputs(whole, graph), [alone[id(part)] for part in parts]).items():
            error = relative_rms(whole[output], expected, floors.get(output, 0.0))
            worst[law, what].add(output, error, where)
    for (law, what), found in worst.items():
        for output, value, where, inputs in found.items():
            note = ""
            if output == "forces" and direct(probe) and what != "doubled crystal":
                note = PROJECTED
            elif what == "two molecules" and any(head.shares_charge for head in probe.heads("atoms")):
                note = SHARED
            verdict = informed if note else judged
            facts = {"inputs": inputs, "worst": where, "note": note}
            yield verdict(law, f"{output}, {what}", "fp64", value, EXTENSIVITY_TOLERANCE, **facts)
    for law in ("size extensivity", "size consistency"):
        if not any(found.values for (of_law, _), found in worst.items() if of_law == law):
            yield not_applicable(law, "no such systems" if systems else "the model does not read atoms")


def _wholes(systems: list[System]) -> Iterator[tuple[str, str, list[System], Record]]:
    """(law, what is joined, its parts, the joined record)."""
    molecules = [s for s in systems if not np.any(s.record.get("pbc", False)) and len(s.record["types"]) <= MOST_ATOMS]
    for one in molecules:
        yield "size extensivity", "two copies", [one, one], _joined(one, one)
    for one, other in itertools.pairwise(molecules):
        if one.level == other.level:
            yield "size consistency", "two molecules", [one, other], _joined(one, other)
    for crystal in systems:
        if crystal.periodic:
            yield "size extensivity", "doubled crystal", [crystal, crystal], _doubled(crystal.record)


def _sum(whole: Outputs, fine: tuple[str, ...], parts: list[Outputs]) -> Outputs:
    """What the whole should be: energies add up, outputs of atoms follow each other."""
    expected = {name: torch.cat([part[name] for part in parts]) for name in fine}
    energies = {name: torch.stack([part[name] for part in parts]).sum(dim=0) for name in EXTENSIVE if name in whole}
    return expected | energies


def _neutral(system: System) -> System:
    record = {**system.record, "charge": 0.0, "spin": 1.0}
    return System(system.name, system.kind, system.level, record, system.real)


def _joined(one: System, other: System) -> Record:
    """Two molecules APART along x, so that the box of a cell list stays thin; residues stay with their atoms."""
    first, second = dict(one.record), dict(other.record)
    for record, place in ((first, 0.0), (second, APART)):
        positions = np.asarray(record["positions"], dtype=np.float64)
        record["positions"] = positions - positions.mean(axis=0) + [place, 0.0, 0.0]
    if "parent" in first and "parent" in second:
        second["parent"] = np.asarray(second["parent"]) + len(first["residue_types"])
    rows = [name for name, field in schema(one.level.domain).items() if field.level != "graph"]
    joined = {n: np.concatenate([first[n], second[n]]) for n in rows if n in first and n in second}
    return {**joined, "charge": 0.0, "spin": 1.0, "energy": 0.0}


def _doubled(record: Record) -> Record:
    """The crystal in a cell that is twice as long along its first vector."""
    cell = np.asarray(record["cell"], dtype=np.float64)
    positions = np.asarray(record["positions"], dtype=np.float64)
    return {
        "types": np.tile(record["types"], 2),
        "positions": np.concatenate([positions, positions + cell[0]]),
        "cell": cell * np.array([[2.0], [1.0], [1.0]]),
        "pbc": record["pbc"],
    }
