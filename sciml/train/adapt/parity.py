"""Step-0 parity: before the first update the adapted model gives what the base model gives."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from sciml.data.graph_dataset import GraphDataset
from sciml.data.source import Source
from sciml.errors import UserError
from sciml.graph import collate
from sciml.models.model import Model
from sciml.package import Package

TOLERANCE = 1e-5
"""Largest difference over the RMS of the base model's output: rounding of float32, with room for the order of sums."""
GRAPHS = 2  # of every source and kind
CANDIDATES = 200  # records of every source and kind that are read to find those


def assert_parity(model: Model, package: Package, sources: Sequence[Source], description: dict[str, Any]) -> int:
    """Compare the model with its base on some graphs of ``sources``: the features of both levels over their common
    degrees and every output of a head that both have. Returns how many graphs could be compared: those of which the
    base knows all elements, among at most ``CANDIDATES`` records of a source; of a level of theory that it does not
    know, at one that it does. Total energies are left out where the base lacks the reference energy of an element at
    the level, interaction energies are compared.

    Raises UserError with the first output that differs, by how much, and the first parameter that is another.
    """
    compared = 0
    model.eval(), package.model.eval()
    renewed = _renewed(package, description)
    for kind, name, graph in _graphs(model, package, sources, description):
        expected, found = (_outputs(one, graph.clone(), kind, renewed) for one in (package.model, model))
        meant = without_references(graph.types, int(graph.dataset), package)
        for output in (output for output in expected if output in found and output not in meant):
            _compare(output, expected[output], found[output], f"{name} as a graph of {kind}", model, package)
        compared += 1
    model.train()
    return compared


def _graphs(
    model: Model, package: Package, sources: Sequence[Source], description: dict[str, Any]
) -> Iterator[tuple[str, str, Any]]:
    """(kind, name of the record, graph) of a few records that the base can read, spread over every source."""
    coarse = description.get("coarse", {}).get("cutoffs")
    dataset = GraphDataset(list(sources), description["cutoffs"], coarse_cutoffs=coarse, far_field=model.far_field)
    for kind in (kind for kind in package.kinds if kind in description["kinds"]):
        for index, source in enumerate(sources):
            records = np.flatnonzero(source.data.serves(kind))
            if len(records) > CANDIDATES:
                records = records[np.linspace(0, len(records) - 1, CANDIDATES).astype(int)]
            readable = (i for i in records.tolist() if kind != "atoms" or knows_elements(source.data[i], package))
            chosen = [i for i, _ in zip(readable, range(GRAPHS), strict=False)]
            for record in chosen:
                graph = dataset.graph(index, record, kind).clone()
                graph.dataset = torch.tensor([known_dataset(source, package)])
                yield kind, str(source.data[record].get("id", f"record {record}")), graph


def knows_elements(record: dict[str, Any], package: Package) -> bool:
    """Whether the base was trained on every element of a record."""
    return set(np.asarray(record["types"]).tolist()) <= set(package.config.get("elements", []))


def known_dataset(source: Source, package: Package) -> int:
    """The index of a level of theory that the base knows: the source's, else the first one of its domain."""
    if source.dataset < len(package.datasets):
        return source.dataset
    of_domain = package.config.get("datasets_of_domain", {}).get(source.data.domain) or package.datasets[:1]
    return package.datasets.index(of_domain[0])


def _renewed(package: Package, description: dict[str, Any]) -> set[str]:
    """Heads that are meant to differ: those with other options, and of classes where these are others."""
    old, new = package.config["model"], description
    changed = {key for key in package.model.heads if _meant(new["heads"].get(key)) != _meant(old["heads"][key])}
    if old["context"]["classes"] == new["context"]["classes"]:
        return changed
    return changed | {key for key, head in package.model.heads.items() if "label" in getattr(head, "targets", ())}


def _meant(options: dict[str, Any] | None) -> dict[str, Any] | None:
    """Options of a head without ``column``, which tells of a file."""
    return options and {name: value for name, value in options.items() if name != "column"}


def without_references(types: Tensor | np.ndarray, dataset: int, package: Package) -> set[str]:
    """The total energy, where the base has no reference energy for one of the elements ``types`` at the level of
    theory ``dataset``.
    """
    known = package.config["model"]["context"]["references"].get(package.datasets[dataset], {})
    return set() if {str(number) for number in types.tolist()} <= set(known) else {"energy"}


def _outputs(model: Model, graph: Any, kind: str, left_out: set[str]) -> dict[str, Tensor]:
    """Predictions but of the heads ``left_out``, and the features of both levels."""
    features: dict[str, Tensor] = {}
    ignored: set[str] = set()

    def keep(module: nn.Module, arguments: Any, result: Any) -> None:
        features.update({"fine features": result.fine, "coarse features": result.coarse})

    def ignore(module: nn.Module, arguments: Any, result: dict[str, Tensor]) -> None:
        ignored.update(result)

    handles = [model.backbone.register_forward_hook(keep)]
    handles += [model.heads[key].register_forward_hook(ignore) for key in left_out if key in model.heads]
    try:
        batch: Batch = collate([graph])
        with torch.no_grad():
            found = model(batch, kind)
    finally:
        for handle in handles:
            handle.remove()
    outputs = {**features, **{name: value for name, value in found.items() if name not in ignored}}
    return {name: value.detach() for name, value in outputs.items() if value is not None}


def _compare(name: str, expected: Tensor, found: Tensor, where: str, model: Model, package: Package) -> None:
    if "features" in name:
        degrees = min(expected.shape[1], found.shape[1])
        expected, found = expected[:, :degrees], found[:, :degrees]
    if expected.shape != found.shape:
        raise UserError(
            _sentence(name, f"the shape {tuple(found.shape)} of {tuple(expected.shape)}", where, model, package)
        )
    expected, found = expected.double().nan_to_num(), found.double().nan_to_num()
    rms = float(expected.square().mean().sqrt()) if expected.numel() else 0.0
    worst = float((expected - found).abs().max()) if expected.numel() else 0.0
    if not worst <= TOLERANCE * rms + 1e-12:
        what = f"a difference of {worst:.3g} at an RMS of {rms:.3g}"
        raise UserError(_sentence(name, what, where, model, package))


def _sentence(name: str, what: str, where: str, model: Model, package: Package) -> str:
    first = first_difference(model, package.model)
    return (
        f"adapt: before the first update the model does not give what {package.path} gives: {name} of {where} has "
        f"{what}, expected rounding; the first parameter that is not the package's is {first or 'none'}. Use heads "
        "that read no higher degrees than the package gives, or adapt.parity=false to train from there."
    )


def first_difference(model: Model, base: Model) -> str | None:
    """Name of the first parameter of the base that the model has not, or has with another value; of the levels of
    theory those that the base knows, and elements, of which new ones start anew, at the end.
    """
    tensors = dict(model.state_dict())
    for name, value in sorted(base.named_parameters(), key=lambda item: item[0].endswith("embedding.types.weight")):
        owner, _, leaf = name.rpartition(".")
        found = tensors.get(name, tensors.get(f"{owner}.parametrizations.{leaf}.original"))
        if found is not None and name.endswith("embedding.dataset.weight"):
            found = found[: len(value)]
        if found is None or found.shape != value.shape or not torch.equal(found, value):
            return name
    return None
