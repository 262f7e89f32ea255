"""Start a model from the weights of another."""

from typing import Any

import torch

from sciml.data.targets import described_targets, mismatch
from sciml.errors import UserError
from sciml.models.model import Model, lmax_out
from sciml.package import Package

_INSTEAD = {"irreps": "classes", "classes": "irreps"}  # options of a head that exclude each other
_DESCRIBED = ("cutoffs", "mean_neighbors", "mean_children", "by_type")
"""Ends of the names of buffers that the merged description sets, for kinds of graph and types that the package has not
too.
"""


def merged_description(package: Package, description: dict[str, Any]) -> dict[str, Any]:
    """The description of a model for new data that keeps everything the package knows.

    The backbone, its cutoffs and its means of neighbours are the package's; kinds, heads and datasets are the union,
    where a new head replaces an old one of its key and the features keep the degrees that they had;
    reference energies and scales of a known dataset stay as they were, those of elements it lacks are added.
    """
    old, new = package.config["model"], description
    check_same_targets(old["heads"], new["heads"])
    references = dict(new["context"]["references"])
    for name, known in old["context"]["references"].items():
        references[name] = {**references.get(name, {}), **known}
    classes = new["context"]["classes"]
    known_classes = classes == old["context"]["classes"][: len(classes)]
    context = {
        "datasets": new["context"]["datasets"],
        "references": references,
        "scales": {**new["context"]["scales"], **old["context"]["scales"]},
        "spreads": {**new["context"]["spreads"], **old["context"]["spreads"]},
        "classes": old["context"]["classes"] if known_classes else new["context"]["classes"],
        "targets": _merged_targets(old["context"], new["context"]),
    }
    merged = {
        "backbone": old["backbone"],
        "kinds": list(dict.fromkeys([*old["kinds"], *new["kinds"]])),
        "cutoffs": {**new["cutoffs"], **old["cutoffs"]},
        "mean_neighbors": {**new["mean_neighbors"], **old["mean_neighbors"]},
        "heads": {**old["heads"], **new["heads"]},
        "context": context,
    }
    highest = max(lmax_out(old), lmax_out(new))
    if highest > lmax_out(merged):
        merged["lmax_out"] = highest
    if "coarse" in old:
        added = new.get("coarse", {})
        merged["coarse"] = {key: {**added.get(key, {}), **known} for key, known in old["coarse"].items()}
    return merged


def check_same_targets(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> None:
    """Raise UserError where one of the ``new`` heads is to predict something else than that of its key among the
    ``old`` ones, the package's.
    """
    known = described_targets(old)
    for target in described_targets(new):
        if problem := mismatch(target, known):
            raise UserError(
                f"heads.{target.name}: the package that training starts from has this target, but there {problem}; "
                f"give labels as they are there, or the head another name, such as heads.{target.name}_new."
            )


def _merged_targets(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Facts of the labels of targets of two contexts: the package's, and what it lacks of types."""
    old, new = old.get("targets", {}), new.get("targets", {})
    merged = {**new, **old}
    for name in old.keys() & new.keys():
        if "by_type" in old[name]:
            merged[name] = {**old[name], "by_type": {**new[name].get("by_type", {}), **old[name]["by_type"]}}
    return merged


def heads_of_package(
    heads: dict[str, dict[str, Any]], known: dict[str, dict[str, Any]], defaults: dict[str, dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The ``heads`` of a configuration with the options that the same heads of a package, ``known``, have, and these as
    "heads.KEY.option=value". An option that is not that of the ``defaults`` was given, by the command or its recipe,
    and stays; one that is may not have been. ``column`` tells of a file and not of a head.
    """
    completed, taken = {}, []
    for key, options in heads.items():
        kept = {}
        if key in known and known[key].get("name", key) == options.get("name", key):
            default = defaults.get(key, {})
            given = {name for name, value in options.items() if name not in default or value != default[name]}
            given |= {"column", *(_INSTEAD[name] for name in given & _INSTEAD.keys())}
            kept = {name: value for name, value in known[key].items() if name not in given}
        taken += [f"heads.{key}.{name}={value}" for name, value in kept.items() if options.get(name) != value]
        completed[key] = {**options, **kept}
    return completed, taken


def ignored_settings(package: Package, description: dict[str, Any]) -> list[str]:
    """Keys of the configuration that differ from the package, whose own values are kept, as "key=value (kept)"."""
    old, new = package.config["model"], description
    groups = [
        ("model", new["backbone"], old["backbone"]),
        ("data.cutoff", new["cutoffs"], old["cutoffs"]),
        ("data.coarse_cutoff", new.get("coarse", {}).get("cutoffs", {}), old.get("coarse", {}).get("cutoffs", {})),
    ]
    found = []
    while groups:
        prefix, given, kept = groups.pop(0)
        for key, value in given.items():
            if isinstance(value, dict) and isinstance(kept.get(key), dict):
                groups.append((f"{prefix}.{key}", value, kept[key]))
            elif key in kept and kept[key] != value:
                found.append(f"{prefix}.{key}={value} ({kept[key]})")
    return found


def renamed_classes(package: Package, classes: list[str]) -> str | None:
    """A sentence where ``classes`` are not the package's: heads that tell classes keep the rows of those of the same
    name, and start anew where there is none.
    """
    old = package.config["model"]["context"]["classes"]
    if not old or old == classes:
        return None
    kept = [name for name in classes if name in old]
    what = f"{', '.join(kept)} keep what was learned of them" if kept else "their head starts anew"
    return f"the classes are now {', '.join(classes)}, the package has {', '.join(old)}: {what}"


def _heads_of_classes(model: Model) -> tuple[str, ...]:
    """Beginnings of the names of parameters whose rows are classes."""
    return tuple(f"heads.{key}." for key, head in model.heads.items() if "label" in getattr(head, "targets", ()))


def merged_datasets(package: Package, datasets: dict[str, list[str]]) -> dict[str, list[str]]:
    """Names of the levels of theory by domain: the package's, then those that ``datasets`` adds."""
    merged = {domain: list(names) for domain, names in package.config.get("datasets_of_domain", {}).items()}
    for domain, names in datasets.items():
        merged[domain] = list(dict.fromkeys([*merged.get(domain, []), *names]))
    return merged


def merged_baselines(package: Package, baselines: dict[str, Any]) -> dict[str, Any]:
    """Baselines of the new training data, and the package's where the new data have none."""
    old = package.config.get("baselines", {})
    return {**old, **{name: found for name, found in baselines.items() if name not in old or _any(found)}}


def _any(found: Any) -> bool:
    return any(found.values() if isinstance(found, dict) else found)


def copy_weights(model: Model, package: Package, classes: list[str]) -> list[str]:
    """Copy every tensor of the package that has the same name and shape; rows of new datasets start at the mean of
    the known. A head that tells ``classes`` where the package has others takes over the rows of those of the same name,
    and keeps its random start where there is none.

    Returns the names of the parameters that keep their random start.
    """
    source = package.model.state_dict()
    target = model.state_dict()
    fresh = []
    anew = _heads_of_classes(model) if renamed_classes(package, classes) else ()
    old_classes = package.config["model"]["context"]["classes"]
    sizes = len(classes), len(old_classes)
    rows = [(classes.index(name), old_classes.index(name)) for name in classes if name in old_classes]
    for name, value in target.items():
        known = source.get(name)
        if name.endswith(_DESCRIBED):
            continue
        if name.startswith(anew) and (not rows or known is None):
            fresh.append(name)
        elif name.startswith(anew) and known is not None and sizes == (len(value), len(known)):
            value[[new for new, _ in rows]] = known[[old for _, old in rows]]
        elif known is not None and known.shape == value.shape:
            value.copy_(known)
        elif name.endswith("embedding.dataset.weight") and known is not None:
            value[: len(known)] = known
            value[len(known) :] = known.mean(dim=0)
        elif not name.endswith(("references", "scales", "spreads", "unit_of_error")):
            fresh.append(name)
    with torch.no_grad():
        model.load_state_dict(target)
    return fresh
