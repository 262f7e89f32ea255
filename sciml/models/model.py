"""A backbone with its heads: what is trained, evaluated and published."""

import copy
import functools
import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from sciml import registry
from sciml.data.far_field import FarField, with_far_field
from sciml.errors import UserError
from sciml.graph import FOUR_MOMENTA, KINDS, LABELS
from sciml.models.embedding import without_spurions
from sciml.models.layers import at_nodes, full_precision
from sciml.models.readout import Features, Geometry, Head, HeadContext


class Model(nn.Module):
    """Predictions of every head that reads the batch's kind.

    Forces and stress are derivatives taken inside ``forward``, because data-parallel wrappers only see what happens
    there.
    """

    def __init__(self, backbone: nn.Module, heads: dict[str, Head]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the parameters."""
        return next(self.parameters()).dtype

    @property
    def far_field(self) -> FarField:
        """What graphs of atoms need beyond their edges."""
        parts = [self.backbone, *self.heads.values()]
        return functools.reduce(operator.or_, (getattr(part, "far_field", FarField()) for part in parts))

    @property
    def spurions(self) -> bool:
        """Whether the directions of time and beam reach the model."""
        return bool(getattr(self.backbone, "spurions", True))

    def heads_for(self, kind: str) -> list[Head]:
        """The heads that read graphs of ``kind``."""
        return [head for head in self.heads.values() if isinstance(head, Head) and head.kind == kind]

    def levels(self, kind: str) -> dict[str, str]:
        """{prediction: graph, fine or coarse} of the predictions whose heads say what has a row."""
        return {name: level for head in self.heads_for(kind) for name, level in head.levels.items()}

    def forward(self, batch: Batch, kind: str, create_graph: bool = False) -> dict[str, Tensor]:
        """Return {target: prediction} for a batch of one kind; units and shapes as in :mod:`sciml.graph`.

        ``create_graph`` keeps the graph of the forces, so that a loss on them reaches the parameters. What the graphs
        lack of the far field is made here, on the CPU.
        """
        if kind == "atoms" and (needed := self.far_field):
            batch = with_far_field(batch, needed)
        batch = floating_inputs_to(batch, self.dtype)
        if not self.spurions and not torch.compiler.is_compiling():  # a compiled step has done so before
            batch = without_spurions(batch, kind)  # of heads too, some of which read the inputs themselves
        heads = self.heads_for(kind)
        differentiate = any(head.differentiates for head in heads)
        with torch.set_grad_enabled(torch.is_grad_enabled() or differentiate):
            geometry = self._geometry(batch, differentiate, create_graph)
            features = self.backbone(batch, kind, geometry.positions_strained, geometry.cell_strained)
            features = self._in_own_precision(features)
            predictions: dict[str, Tensor] = {}
            with full_precision(features.fine):
                for head in heads:
                    predictions |= head(features, batch, geometry)
        return predictions if torch.is_grad_enabled() else {name: value.detach() for name, value in predictions.items()}

    def _in_own_precision(self, features: Features) -> Features:
        coarse = features.coarse
        return Features(features.fine.to(self.dtype), None if coarse is None else coarse.to(self.dtype))

    def _geometry(self, batch: Batch, differentiate: bool, create_graph: bool) -> Geometry:
        """Leaf positions, and the same strained by a symmetric zero tensor where a stress is defined."""
        positions = batch.positions.to(self.dtype)
        cell = batch.cell.to(self.dtype)
        strain = positions.new_zeros((batch.num_graphs, 3, 3))
        if not differentiate:
            return Geometry(positions, positions, cell, strain, create_graph)
        if "strain" in batch:  # a compiler cannot make leaves: they come with the batch, see sciml.train.compiled
            strain = batch.strain.to(self.dtype)
        else:
            positions = positions.detach().requires_grad_()
            if not batch.has_crystals:
                return Geometry(positions, positions, cell, strain, create_graph)
            strain.requires_grad_()
        deformation = 0.5 * (strain + strain.transpose(1, 2))
        with full_precision(positions):
            of_nodes = at_nodes(deformation, batch, getattr(self.backbone, "backend", "auto"))
            strained = positions + torch.einsum("ni,nij->nj", positions, of_nodes)
            return Geometry(positions, strained, cell + cell @ deformation, strain, create_graph)


def floating_inputs_to(batch: Batch, dtype: torch.dtype) -> Batch:
    """The same batch with its floating inputs in ``dtype``, as a shallow copy where any of them changes.

    Labels stay as they are: what is computed with them is the objective's choice. So do the four-momenta of jets.
    """
    kept = (*LABELS, *FOUR_MOMENTA)
    inputs = {key: batch[key] for key in batch.keys() if key not in kept}  # noqa: SIM118 (a Batch iterates graphs)
    inputs = {key: value for key, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()}
    changed = {key: value.to(dtype) for key, value in inputs.items() if value.dtype != dtype}
    if not changed:
        return batch
    batch = copy.copy(batch)
    for key, value in changed.items():
        batch[key] = value
    return batch


def build_model(description: dict[str, Any]) -> Model:
    """Build an untrained model from its description, the ``model`` part of a package's ``config.json``.

    Keys: ``backbone`` {name, **options}, ``heads`` {key: {name, **options}}, ``kinds``, ``cutoffs`` {kind: length},
    ``context`` {datasets, references, scales, spreads, classes, targets}, ``mean_neighbors`` {kind: count}; with a
    coarse level ``coarse`` {cutoffs {kind: length}, mean_children {kind: count}, mean_neighbors {kind: count}};
    ``lmax_out`` where the backbone was trained for heads that read higher degrees than these.
    Raises UserError for an unknown name or option, and for two heads of one target.
    """
    backbone_options = dict(description["backbone"])
    backbone_class = registry.resolve("models", backbone_options.pop("name"))
    context = HeadContext(
        backbone_options["channels"],
        cutoffs=description["cutoffs"],
        lmax=lmax_out(description),
        backend=backbone_options.get("backend", "auto"),
        **description["context"],
    )
    head_classes = _head_classes(description)
    coarse = description.get("coarse")
    if any(head.reads_noise for head in head_classes.values()):
        backbone_options["noise"] = True
    backbone = _construct(
        backbone_class,
        f"model {description['backbone']['name']}",
        kinds=description["kinds"],
        cutoffs=description["cutoffs"],
        num_datasets=len(context.datasets),
        lmax_out=lmax_out(description),
        **({"coarse_cutoffs": coarse["cutoffs"]} if coarse else {}),
        **backbone_options,
    )
    _set_means(backbone.mean_neighbors, description["mean_neighbors"])
    if coarse:
        _set_means(backbone.coarse.mean_children, coarse["mean_children"])
        _set_means(backbone.coarse.mean_neighbors, coarse["mean_neighbors"])
    heads = {}
    for key, head in head_classes.items():
        options = {name: value for name, value in description["heads"][key].items() if name != "name"}
        arguments = (context, key) if head.takes_key else (context,)
        heads[key] = _construct(head, f"heads.{key}", *arguments, **options)
    return Model(backbone, heads)


def lmax_out(description: dict[str, Any]) -> int:
    """The highest degree of features that the heads of a description read, or that its weights were trained to give."""
    return max([description.get("lmax_out", 0), *(head.lmax for head in _head_classes(description).values())])


def _head_classes(description: dict[str, Any]) -> dict[str, Any]:
    """{key: class} of the heads; raises UserError where two predict the same."""
    heads = description["heads"]
    classes = {key: registry.resolve("heads", options.get("name", key)) for key, options in heads.items()}
    owners: dict[tuple[str, str], str] = {}
    for key, head in classes.items():
        kind, targets = head.facts(key, heads[key])
        for target in targets:
            other = owners.setdefault((kind, target), key)
            if other != key:
                raise UserError(f"heads: {other} and {key} both predict {target}; set one of them to null.")
    return classes


def _set_means(buffer: Tensor, means: dict[str, float]) -> None:
    for kind, mean in means.items():
        buffer[KINDS.index(kind)] = mean


def _construct(factory: Any, name: str, *args: Any, **options: Any) -> Any:
    try:
        return factory(*args, **options)
    except TypeError as error:
        raise UserError(f"{name}: {error}; check the options given to it in the config.") from error
