"""What ``sciml inspect`` prints of a model: parameters, memory and operations of its parts, on one record."""

from pathlib import Path
from typing import Any

import torch

from sciml import registry
from sciml.config import compose
from sciml.data.store import Store
from sciml.evaluate.cost import BYTES, COPIES, Cost, measure
from sciml.graph import Graph, collate
from sciml.ingest.ingest import open_data
from sciml.models.model import Model, build_model
from sciml.package import load
from sciml.schema import SAMPLES

EXAMPLES = {"atoms": "peptides", "jets": "jets", "residues": "peptides"}
"""The sample whose first record is the example of a kind."""


def summary_of_configuration(backbone: dict[str, Any], source: str | None) -> str:
    """The table of the model that ``sciml train`` would build with the section ``model`` and its default heads, with
    those of denoising and masked types.

    The example of each kind is the first record of ``source`` that can serve it; without one, of an embedded sample.
    """
    defaults = compose("train")
    kinds = list(EXAMPLES)
    stores = {kind: Store(SAMPLES / name) for kind, name in EXAMPLES.items()}
    if source is not None:
        store = open_data(source)
        stores = {kind: store for kind in kinds if store.serves(kind).any()}
    backbone = dict(backbone)
    backbone |= backbone.pop("options")
    description = {
        "backbone": backbone,
        "heads": {key: dict(options) for key, options in defaults["heads"].items()},
        "kinds": kinds,
        "cutoffs": defaults["data"]["cutoff"],
        "context": {
            "datasets": sorted({store.dataset for store in stores.values()}),
            "classes": next((s.manifest["classes"] for s in stores.values() if s.manifest.get("classes")), []),
        },
        "mean_neighbors": {},
    }
    if backbone["coarse_layers"]:
        cutoffs = defaults["data"]["coarse_cutoff"]
        description["coarse"] = {"cutoffs": cutoffs, "mean_children": {}, "mean_neighbors": {}}
    return _summary(build_model(description), description, stores)


def summary_of_package(path: str) -> str:
    """The table of a published model; the examples are embedded samples."""
    package = load(path)
    stores = {kind: Store(SAMPLES / EXAMPLES[kind]) for kind in package.kinds}
    return _summary(package.model, package.config["model"], stores)


def _summary(model: Model, description: dict[str, Any], stores: dict[str, Store]) -> str:
    number = sum(parameter.numel() for parameter in model.parameters())
    lines = [
        f"parameters  {number:,}",
        f"memory      {_mib(number * BYTES)} of weights, {_mib(number * BYTES * COPIES)} in training (with gradients, "
        "two moments of the optimizer, moving average), in 32 bits",
    ]
    for kind, store in stores.items():
        record = int(store.serves(kind).argmax())
        graph = _graph(store, record, kind, description)
        cost = measure(model, collate([graph]), kind)
        lines += ["", f"{kind}: {_named(store.path)}, record {record}, {_sizes(graph)}", "", *_table(cost)]
        lines += [f"memory kept for the backward passes: {_mib(cost.activations)}"]
    return "\n".join([*lines, "", "flops: of the forward pass, in matrix and tensor products (a + b c counts as two)"])


def _graph(store: Store, record: int, kind: str, description: dict[str, Any]) -> Graph:
    """One record as the model takes it."""
    coarse = description.get("coarse", {}).get("cutoffs", {})
    options = {"coarse_cutoff": coarse[kind]} if kind in coarse else {}
    domain = registry.resolve("domains", store.domain)
    graph: Graph = domain.graph(store[record], kind, description["cutoffs"][kind], **options)
    graph.dataset = torch.tensor([0])
    return graph


def _sizes(graph: Graph) -> str:
    text = f"{len(graph.types):,} nodes and {len(graph.senders):,} edges"
    if "coarse_senders" not in graph:
        return text
    return f"{text}, {len(graph.coarse_types):,} coarse nodes and {len(graph.coarse_senders):,} edges among them"


def _table(cost: Cost) -> list[str]:
    header = f"{'part':<22}{'parameters':>12}{'flops/node':>14}{'flops/edge':>14}{'flops':>14}"
    rows = [
        f"{part.name:<22}{part.parameters:>12,}{part.per_node:>14,}{part.per_edge:>14,}{_giga(part.total):>14}"
        for part in cost.parts
    ]
    total = f"{'all':<22}{cost.parameters:>12,}{'':>28}{_giga(cost.flops):>14}"
    return [header, "-" * len(header), *rows, total]


def _named(path: Path) -> str:
    return f"samples:{path.name}" if path.parent == SAMPLES else str(path)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _giga(flops: int) -> str:
    return f"{flops / 1e9:,.3f} G"
