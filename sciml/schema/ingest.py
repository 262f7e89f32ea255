"""The keys of ``sciml ingest``, ``inspect``, ``audit``, ``split`` and ``heat``, which work on data."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sciml.schema.heads import Targets
from sciml.schema.model import Model
from sciml.schema.section import (
    SPLIT_BY,
    Count,
    DataPath,
    DataPaths,
    Identity,
    Positive,
    PositiveFloat,
    Section,
    Share,
    SplitBy,
    Text,
)


class IngestConfig(Section):
    """``sciml ingest``."""

    source: DataPaths | None = Field(description="files to read: a path, a pattern such as data/*.xyz, or [a,b]")
    output: Text | None = Field(description="folder of the new store")
    format: Text | None = Field(description="reader: ase, mlearn, jetclass, pfnano, ...; null to tell from the file")
    dataset: Text | None = Field(description="level of theory, such as pbe-def2svp; null for the name of the source")
    licence: Text | None = Field(description="licence of the data, written into the manifest")
    energy_key: Text | None = Field(description="name of the energy in the file; null for the usual names")
    forces_key: Text | None = Field(description="name of the forces in the file; null for the usual names")
    stress_key: Text | None = Field(description="name of the stress in the file; null for the usual names")
    energy_unit: Text | None = Field(description="unit of energies in the file; null for the format's own")
    length_unit: Text | None = Field(description="unit of lengths in the file; null for the format's own")
    forces_unit: Text | None = Field(description="unit of forces in the file; null for that of energy by length")
    stress_unit: Text | None = Field(description="unit of stresses in the file; null for the format's own")
    only: Text | None = Field(description="names of the records to keep: a JSON list in FILE.json, or FILE.json:KEY")
    targets: Targets = Field(
        description="own targets: {name: {level: graph|fine|coarse, kind, irreps: 0e, unit: '', classes, column}}"
    )
    unlabelled: bool = Field(description="the files hold structures without energies, to pretrain on")
    overwrite: bool = Field(description="replace a store that is already there")

    @model_validator(mode="after")
    def _required(self) -> "IngestConfig":
        self.require(source="FILES", output="STORE")
        return self


class InspectConfig(Section):
    """``sciml inspect``."""

    source: DataPath | None = Field(description="store, file or package to describe, or samples:NAME")
    model: Model | None = Field(description="model to describe, on the first record of source or of the samples")
    output: Text | None = Field(description="folder for the histograms; null for inspect/<name> in the working folder")

    @model_validator(mode="after")
    def _required(self) -> "InspectConfig":
        if self.source is None and self.model is None:
            raise ValueError("source: found nothing, expected source=STORE_OR_FILE or model=NAME")
        if self.model is not None and self.output is not None:
            raise ValueError(f"output: found {self.output!r} with model=, which draws no histograms; leave it out")
        return self


class AuditConfig(Section):
    """``sciml audit``."""

    source: DataPaths | None = Field(description="store or files to look at: a path, a pattern, [a,b], or samples:NAME")
    against: DataPaths | None = Field(description="another store or files that should share no record or group with it")
    output: Text | None = Field(description="JSON file for the findings; null prints them alone")

    @model_validator(mode="after")
    def _required(self) -> "AuditConfig":
        self.require(source="STORE_OR_FILES")
        return self


class Fractions(Section):
    """Parts of a split."""

    train: Share = Field(description="part to train on")
    val: Share = Field(description="part for validation; 0 for none")
    test: Share = Field(description="part for the test; 0 for none")

    @model_validator(mode="after")
    def _whole(self) -> "Fractions":
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + val + test: found {total:g}, expected 1")
        return self


class SplitConfig(Section):
    """``sciml split``."""

    source: DataPaths | None = Field(description="store to split, or files: a path, a pattern, [a,b], or samples:NAME")
    output: Text | None = Field(description="folder of the parts and of split.json, which says how they were made")
    fractions: Fractions = Field(description="parts")
    by: SplitBy = Field(description=SPLIT_BY)
    identity: Identity = Field(description="share of identical residues from which on two sequences are homologs")
    write: Literal["stores", "lists"] = Field(
        description="stores: one per part; lists: split.json alone, for sciml ingest only=split.json:PART"
    )
    seed: Count = Field(description="seed of the order in which groups are dealt out")
    overwrite: bool = Field(description="replace a split that is already there")

    @model_validator(mode="after")
    def _required(self) -> "SplitConfig":
        self.require(source="STORE_OR_FILES", output="FOLDER")
        return self


class HeatConfig(Section):
    """``sciml heat``."""

    source: DataPaths | None = Field(description="molecules to start from: a path, a pattern, [a,b], or samples:NAME")
    output: Text | None = Field(description="folder of the new store")
    records: Positive = Field(description="configurations to make")
    temperatures: Annotated[list[PositiveFloat], Field(min_length=1)] = Field(
        description="temperatures [K] of the thermostats of the trajectories, in turn; each lasts 90 fs"
    )
    turn: bool = Field(description="draw the torsions of rotatable bonds anew at every second start")
    workers: Positive = Field(description="processes")
    seed: Count = Field(description="seed of torsions and velocities")
    overwrite: bool = Field(description="replace a store that is already there")

    @model_validator(mode="after")
    def _required(self) -> "HeatConfig":
        self.require(source="FILES", output="STORE")
        return self
