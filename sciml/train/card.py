"""The words and numbers that a published model carries beside its weights."""

from typing import Any

from sciml.data.datamodule import Source
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
    elements = sorted({int(z) for table in context["references"].values() for z in table})
    return {
        "sciml_version": _version(),
        "model": description,
        "units": UNITS,
        "elements": elements,
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
    elements = ", ".join(str(z) for z in config["elements"]) or "none"
    units = "\n".join(f"- {quantity}: {unit}" for quantity, unit in config["units"].items())
    return (
        f"# {name}\n\nAn O(3)-equivariant model with the heads {heads}, made with sciml {config['sciml_version']}.\n\n"
        f"## Trained on\n\n{data}\n\nAtomic numbers: {elements}\n\n## Units\n\n{units}\n\n"
        f"## Errors on held-out records\n\n```\n{table}\n```\n\n"
        "Load it with `sciml.load(PATH)`; atoms also with `sciml.calculator(PATH)` for ASE.\n"
    )


def _version() -> str:
    from sciml import __version__

    return __version__
