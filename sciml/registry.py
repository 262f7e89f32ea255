"""The closed table from names in configs and packages to classes.

A name maps to ``module:attribute``. Names come from this table or from the entry points of an installed distribution
(group ``sciml.<kind>``, for example ``sciml.heads``); nothing that travels with data or weights can add one, so a
package can never choose the code that runs.
"""

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from sciml.errors import UserError

BUILTIN: dict[str, dict[str, str]] = {
    "models": {
        "backbone": "sciml.models.backbone:Backbone",
        "transformer": "sciml.models.transformer:Transformer",
    },
    "heads": {
        "energy": "sciml.domains.materials.heads:EnergyHead",
        "direct_forces": "sciml.domains.materials.heads:DirectForcesHead",
        "jet_class": "sciml.domains.hep.heads:JetClassHead",
        "energy_flow": "sciml.domains.hep.energy_flow:EnergyFlowHead",
        "jet_kinematics": "sciml.domains.hep.heads:JetKinematicsHead",
        "four_momenta": "sciml.domains.hep.heads:FourMomentaHead",
        "residue_type": "sciml.domains.biology.heads:ResidueTypeHead",
        "denoise_atoms": "sciml.objectives.denoise:DenoiseAtomsHead",
        "denoise_residues": "sciml.objectives.denoise:DenoiseResiduesHead",
        "masked_atoms": "sciml.objectives.masked:MaskedAtomsHead",
        "masked_jets": "sciml.objectives.masked:MaskedJetsHead",
        "target": "sciml.models.target_head:TargetHead",
    },
    "losses": {
        "mse": "sciml.objectives.losses:squared_error",
        "mae": "sciml.objectives.losses:absolute_error",
        "huber": "sciml.objectives.losses:huber",
        "cross_entropy": "sciml.objectives.losses:cross_entropy",
    },
    "domains": {
        "materials": "sciml.domains.materials.graphs",
        "hep": "sciml.domains.hep.graphs",
        "biology": "sciml.domains.biology.graphs",
    },
    "readers": {
        "ase": "sciml.ingest.formats.ase",
        "mlearn": "sciml.ingest.formats.mlearn",
        "jetclass": "sciml.ingest.formats.jetclass",
        "pfnano": "sciml.ingest.formats.pfnano",
        "jetclass_root": "sciml.ingest.formats.jetclass_root",
        "protein": "sciml.ingest.formats.protein",
        "complexes": "sciml.ingest.formats.complexes",
        "mptrj": "sciml.ingest.formats.mptrj",
        "aselmdb": "sciml.ingest.formats.aselmdb",
        "spice": "sciml.ingest.formats.spice",
        "toptagging": "sciml.ingest.formats.toptagging",
        "quarkgluon": "sciml.ingest.formats.quarkgluon",
    },
}


def names(kind: str) -> list[str]:
    """Return every name of ``kind`` that can be used here, built in or installed as an entry point."""
    return sorted({*BUILTIN[kind], *_installed(kind)})


def resolve(kind: str, name: str) -> Any:
    """Return the object behind ``name``; built-in names cannot be replaced by an entry point.

    Raises UserError when the name is unknown, with the names that exist.
    """
    if name in BUILTIN[kind]:
        module, _, attribute = BUILTIN[kind][name].partition(":")
        loaded = import_module(module)
        return getattr(loaded, attribute) if attribute else loaded
    if name in _installed(kind):
        return _installed(kind)[name].load()
    raise UserError(f"{kind}: {name!r} is not known; use one of {', '.join(names(kind))}.")


@cache  # a domain is looked up for every graph, and reading the metadata of all distributions takes milliseconds
def _installed(kind: str) -> dict[str, EntryPoint]:
    """The entry points of ``kind`` by name."""
    return {point.name: point for point in entry_points(group=f"sciml.{kind}")}
