"""Measure every law on a package: ``certificate.json``, the table and the page."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sciml.data.source import Source
from sciml.errors import UserError
from sciml.evaluate.verify.certificate import Certificate
from sciml.evaluate.verify.conservation import net_force_and_torque, size_extensivity, total_charge
from sciml.evaluate.verify.cutoff import smoothness
from sciml.evaluate.verify.derivatives import derivatives, precision
from sciml.evaluate.verify.dynamics import Dynamics, energy_conservation
from sciml.evaluate.verify.jets import lorentz_invariance, safety
from sciml.evaluate.verify.page import write_page
from sciml.evaluate.verify.probe import Probe
from sciml.evaluate.verify.symmetries import equivariance, repeatability
from sciml.evaluate.verify.systems import random_systems, real_systems
from sciml.package import Package


def certify(package: Package, sources: list[Source], samples: int, nve: Dynamics, seed: int) -> Certificate:
    """Ask ``package`` for every law, on random systems and on ``samples`` records of every source.

    Raises UserError where no kind of graph that the model reads has a head.
    """
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    systems = [system for kind in package.kinds for system in random_systems(package, kind, seed)]
    probe = Probe(package, systems + real_systems(package, sources, samples))
    if not any(probe.systems(kind) for kind in probe.kinds):
        raise UserError(f"{package.path}: its kinds {', '.join(package.kinds)} have no head or no known system.")
    certificate = Certificate(_facts(probe, sources, samples, nve, seed))
    measurements = (
        equivariance(probe, generator),
        repeatability(probe),
        derivatives(probe, generator),
        precision(probe),
        energy_conservation(probe, nve, seed, certificate.curves),
        smoothness(probe, certificate.curves),
        net_force_and_torque(probe),
        total_charge(probe),
        size_extensivity(probe),
        lorentz_invariance(probe, generator, certificate.curves),
        safety(probe, generator, certificate.curves),
    )
    for rows in measurements:
        certificate.rows += rows
    certificate.facts["seconds"] = round(time.perf_counter() - start, 1)
    return certificate


def _facts(probe: Probe, sources: list[Source], samples: int, nve: Dynamics, seed: int) -> dict[str, Any]:
    """What was certified, on what, and on which machine."""
    package = probe.package
    return {
        "package": str(package.path),
        "sciml_version": package.config.get("sciml_version", ""),
        "parameters": sum(parameter.numel() for parameter in package.model.parameters()),
        "kinds": probe.kinds,
        "heads": list(package.config["model"]["heads"]),
        "levels_of_theory": package.datasets,
        "stores": [source.name for source in sources],
        "systems": {kind: [system.name for system in probe.systems(kind)] for kind in probe.kinds},
        "samples": samples,
        "seed": seed,
        "nve": asdict(nve),
        "device": str(probe.device),
        "torch": torch.__version__,
    }


def write(certificate: Certificate, folder: Path) -> Path:
    """Write ``certificate.json`` and ``certificate.html``; returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    certificate.write(folder / "certificate.json")
    return write_page(certificate, folder / "certificate.html")
