"""The words and numbers that a published model carries beside its weights."""

from typing import Any

from ase.data import chemical_symbols

from sciml.data.source import Source
from sciml.data.statistics import elements_of
from sciml.train.sources import datasets_of_domain

UNITS = {
    "positions": "Å",
    "energy": "eV",
    "forces": "eV/Å",
    "stress": "eV/Å^3, tensile positive",
    "momenta": "GeV",
    "charge": "e",
}


def package_config(description: dict[str, Any], sources: list[Source], baselines: dict[str, Any]) -> dict[str, Any]:
    """The content of a package's ``config.json``: the model, its units, and what it was trained on."""
    context = description["context"]
    elements = {int(z) for table in context["references"].values() for z in table}
    elements |= {number for source in sources if source.data.base != "hep" for number in elements_of(source.data)}
    return {
        "sciml_version": _version(),
        "model": description,
        "units": UNITS,
        "elements": sorted(elements),
        "datasets_of_domain": datasets_of_domain(sources, context["datasets"]),
        "baselines": baselines,
        "data": [
            {
                "name": source.name,
                "domain": source.data.domain,
                "level_of_theory": context["datasets"][source.dataset],
                "records": len(source.data),
                "licence": source.data.manifest.get("licence"),
                "hash": source.data.data_hash,
            }
            for source in sources
        ],
    }


def model_card(name: str, config: dict[str, Any], table: str) -> str:
    """MODEL_CARD.md: what the model is, what it was trained on, its units and its errors on held-out data."""
    model = config["model"]
    data = "\n".join(
        f"- {entry['name']}: {entry['records']:,} records, {entry['domain']}, "
        f"level of theory {entry['level_of_theory']}, licence {entry['licence'] or 'not stated'}"
        for entry in config["data"]
    )
    heads = ", ".join(model["heads"])
    elements = ", ".join(chemical_symbols[z] for z in config["elements"]) or "none"
    notes = "".join(f"{note}\n\n" for note in _physics(model))
    units = "\n".join(f"- {quantity}: {unit}" for quantity, unit in config["units"].items())
    return (
        f"# {name}\n\nAn O(3)-equivariant model with the heads {heads}, made with sciml {config['sciml_version']}.\n\n"
        f"{notes}"
        f"## Trained on\n\n{data}\n\nElements: {elements}\n\n## Units\n\n{units}\n\n"
        f"## Errors on held-out records\n\n```\n{table}\n```\n\n"
        "Load it with `sciml.load(PATH)`; atoms also with `sciml.calculator(PATH)` for ASE.\n"
    )


def _physics(model: dict[str, Any]) -> list[str]:
    """Sentences on what the atoms of a model are made to obey beyond its learned energy."""
    head, sets = model["heads"].get("energy", {}), model["backbone"].get("reciprocal", {}).get("charges", 0)
    notes = []
    if any("direct_forces" in (key, options.get("name")) for key, options in model["heads"].items()):
        notes.append(
            "Its forces are read out directly and are no derivative of its energy: without net force and torque, but "
            "not for long dynamics, whose energy drifts."
        )
    if head.get("charges"):
        how = "equilibrated" if head.get("equilibration") else "flowing along edges"
        notes.append(
            f"Its energy has the electrostatics of {head['charges']} sets of Gaussian charges ({how}), the first of "
            "which sums to the total charge; a charged cell is neutralised by a uniform background."
        )
    if sets:
        notes.append(f"Its features feel the long-range potentials of {sets} sets of latent charges.")
    if head.get("repulsion"):
        notes.append("Nuclei repel each other by the potential of Ziegler, Biersack and Littmark.")
    if head.get("dispersion"):
        notes.append(f"Dispersion is that of Grimme (2006) up to {head['dispersion']['radius']} Å.")
    return notes


def _version() -> str:
    from sciml import __version__

    return __version__
