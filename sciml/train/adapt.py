"""Start a model from the weights of another."""

from typing import Any

import torch

from sciml.models.model import Model
from sciml.package import Package


def merged_description(package: Package, description: dict[str, Any]) -> dict[str, Any]:
    """The description of a model for new data that keeps everything the package knows.

    The backbone, its cutoffs and its mean neighbours are the package's; kinds, heads and datasets are the union;
    reference energies and scales of a known dataset stay as they were.
    """
    old, new = package.config["model"], description
    context = {
        "datasets": new["context"]["datasets"],
        "references": {**new["context"]["references"], **old["context"]["references"]},
        "scales": {**new["context"]["scales"], **old["context"]["scales"]},
        "classes": new["context"]["classes"] or old["context"]["classes"],
    }
    return {
        "backbone": old["backbone"],
        "kinds": list(dict.fromkeys([*old["kinds"], *new["kinds"]])),
        "cutoffs": {**new["cutoffs"], **old["cutoffs"]},
        "mean_neighbors": {**new["mean_neighbors"], **old["mean_neighbors"]},
        "heads": {**old["heads"], **new["heads"]},
        "context": context,
    }


def copy_weights(model: Model, package: Package) -> list[str]:
    """Copy every tensor of the package that has the same name and shape; rows of new datasets start at the mean of
    the known.

    Returns the names of the parameters that keep their random start.
    """
    source = package.model.state_dict()
    target = model.state_dict()
    fresh = []
    for name, value in target.items():
        known = source.get(name)
        if known is not None and known.shape == value.shape:
            value.copy_(known)
        elif name.endswith("embedding.dataset.weight") and known is not None:
            value[: len(known)] = known
            value[len(known) :] = known.mean(dim=0)
        elif not name.endswith(("references", "scales")):
            fresh.append(name)
    with torch.no_grad():
        model.load_state_dict(target)
    return fresh
