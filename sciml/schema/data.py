"""The section ``data``: how stores become batches."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from sciml.schema.section import (
    KINDS,
    SPLIT_BY,
    Count,
    Fraction,
    Identity,
    Positive,
    PositiveFloat,
    Section,
    SplitBy,
    Weight,
)


def _every_kind(value: Any) -> Any:
    """Let one number stand for every kind of graph."""
    return dict.fromkeys(KINDS, value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class Budget(Section):
    """What one micro-batch of one kind may hold."""

    max_graphs: Positive | None = Field(description="most graphs in a micro-batch; null for no limit")
    max_nodes: Positive | None = Field(description="most atoms, particles or backbone atoms in a micro-batch")
    max_edges: Positive | None = Field(description="most edges (estimated from the cutoff) in a micro-batch")


class Batch(Section):
    """A budget per kind of graph."""

    atoms: Budget = Field(description="molecules, crystals and peptides with energies or forces")
    jets: Budget = Field(description="jets")
    residues: Budget = Field(description="protein backbones")


class BinsPerStep(Section):
    """Micro-batches of each kind that one optimizer step accumulates."""

    atoms: Count = Field(description="micro-batches of atoms in an optimizer step, over all devices; 0 leaves them out")
    jets: Count = Field(description="micro-batches of jets in an optimizer step, over all devices; 0 leaves them out")
    residues: Count = Field(description="micro-batches of backbones in an optimizer step; 0 leaves them out")


class Cutoff(Section):
    """Radius of the edges."""

    atoms: PositiveFloat = Field(description="radius of the edges between atoms, Å")
    jets: PositiveFloat = Field(description="radius of the edges between particles in the rest frame; above 2 for all")
    residues: PositiveFloat = Field(description="radius of the edges between backbone atoms, Å")


class CoarseCutoff(Section):
    """Radius of the edges between coarse nodes."""

    atoms: PositiveFloat = Field(description="radius of the edges between residues of whole molecules, Å")
    jets: PositiveFloat = Field(description="radius of the edges between subjets in the rest frame; above 2 for all")
    residues: PositiveFloat = Field(description="radius of the edges between residues of backbones, Å")


class Data(Section):
    """How stores become batches."""

    batch: Batch = Field(description="limits of a micro-batch, per kind of graph")
    bins_per_step: Annotated[BinsPerStep, BeforeValidator(_every_kind)] = Field(
        description="micro-batches in an optimizer step, per kind of graph; one number sets all"
    )
    find_batch: bool = Field(
        description="grow the limits of `batch` before training until memory or throughput ends it; the run keeps them"
    )
    temperature: PositiveFloat = Field(description="mixing of several stores: 1 by size, larger values towards equal")
    weights: dict[str, PositiveFloat] = Field(
        description="factors of how often stores are drawn, beside the temperature: {name of a store: factor}"
    )
    val_fraction: Fraction = Field(description="part split off the training set where val is not given")
    test_fraction: Fraction = Field(description="part split off the training set where test is not given")
    split_by: SplitBy = Field(description=SPLIT_BY)
    split_identity: Identity = Field(description="share of identical residues from which on sequences are homologs")
    workers: Count = Field(description="processes that load data; 0 loads in the training process")
    cache_mib: Weight = Field(description="memory for built graphs of each of training and validation, in MiB")
    cutoff: Cutoff = Field(description="radius of the edges, per kind of graph")
    coarse_cutoff: CoarseCutoff = Field(description="radius of the edges between coarse nodes, per kind of graph")

    @model_validator(mode="after")
    def _fractions(self) -> "Data":
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction + test_fraction: found {self.val_fraction + self.test_fraction:g}, "
                "expected less than 1, so that something is left to train on"
            )
        return self
