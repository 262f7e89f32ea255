"""The keys of ``sciml evaluate`` and ``sciml verify``, which measure a trained model."""

from pydantic import Field, model_validator

from sciml.schema.data import Batch
from sciml.schema.section import Accelerator, Count, DataPaths, Positive, PositiveFloat, Section, Text


class EvaluateConfig(Section):
    """``sciml evaluate``."""

    package: Text | None = Field(description="the package, or the run folder that holds it")
    store: DataPaths | None = Field(description="files or stores to evaluate on: a path, [a,b], or samples:NAME")
    properties: Text | None = Field(
        description="YAML or JSON file of crystals and dimers whose properties are computed, with the values expected"
    )
    denoise_levels: list[PositiveFloat] | None = Field(
        description="perturb coordinates by these standard deviations, Å, and report the RMSD before and after the "
        "head that finds noise has taken it out; null for none"
    )
    dataset: Text | None = Field(description="level of theory of the properties; null where the package has one only")
    output: Text | None = Field(description="folder for metrics.json and plots; null for one in the run's folder")
    batch: Batch = Field(description="limits of a batch, per kind of graph")
    device: Accelerator = Field(description="cpu, gpu, or auto for a gpu where there is one")
    plots: bool = Field(description="draw parity plots and ROC curves")

    @model_validator(mode="after")
    def _required(self) -> "EvaluateConfig":
        self.require(package="PACKAGE_OR_RUN_FOLDER")
        if self.store is None and self.denoise_levels:
            raise ValueError("denoise_levels: found without store, expected store=FILE_OR_STORE to perturb")
        if self.store is None and self.properties is None:
            raise ValueError("store: found nothing, expected store=FILE_OR_STORE, or properties=FILE of crystals")
        return self


class NVE(Section):
    """The runs at constant energy."""

    ps: PositiveFloat = Field(description="length of a run in ps; the drift is judged after a fifth of it")
    timestep: PositiveFloat | None = Field(description="time step in fs; null for 0.5 with hydrogen, 2 without")
    temperature: PositiveFloat = Field(description="temperature of a run in K")
    cells: Positive = Field(description="cubic cells of silicon along each axis: 2 for 64 atoms")


class VerifyConfig(Section):
    """``sciml verify``."""

    package: Text | None = Field(description="the package, the run folder that holds it, or a run's checkpoints")
    store: DataPaths | None = Field(description="files or stores of real inputs; null for the embedded samples")
    output: Text | None = Field(description="folder for certificate.json and its page; null for one in the run")
    samples: Count = Field(description="records of each store that are measured on, for every kind of graph")
    nve: NVE = Field(description="runs at constant energy")
    device: Accelerator = Field(description="cpu, gpu, or auto for a gpu where there is one")
    seed: Count = Field(description="seed of random systems, transformations and velocities")

    @model_validator(mode="after")
    def _required(self) -> "VerifyConfig":
        self.require(package="PACKAGE_OR_RUN_FOLDER")
        return self
