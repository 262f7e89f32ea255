"""The keys of ``sciml train``, and of ``sciml doctor``, which examines what they describe."""

from typing import Literal

from pydantic import Field, model_validator

from sciml.combinations import refused
from sciml.schema.adapt import Adapt
from sciml.schema.data import Data
from sciml.schema.heads import Heads
from sciml.schema.model import Model
from sciml.schema.objective import Objective
from sciml.schema.section import KINDS, Count, DataPaths, Section, Text
from sciml.schema.trainer import Logger, Optimizer, Strategy, Sweep, Trainer


class TrainConfig(Section):
    """``sciml train``."""

    train: DataPaths | None = Field(description="files or stores to train on: a path, [a,b], or samples:NAME")
    val: DataPaths | None = Field(description="files or stores for validation; null splits them off train")
    test: DataPaths | None = Field(description="files or stores for the table at the end; null for the validation set")
    init: Text | None = Field(description="package to start from (fine-tuning); null starts from random weights")
    run_dir: Text | None = Field(description="folder of the run; null for runs/<name>/<time>")
    resume: bool = Field(description="continue the run in run_dir from its newest checkpoint")
    name: Text = Field(description="name of the run")
    seed: Count = Field(description="seed of weights, splits and batches")
    data: Data = Field(description="batches, splits, edges")
    model: Model = Field(description="the backbone")
    heads: Heads = Field(
        description="readouts: {name of a registered head: its options}, or {a target of yours: {name: target, level: "
        "graph|fine|coarse, irreps: 0e, unit: '', extensive: false, classes, kind, column}}; null leaves one out"
    )
    objective: Objective = Field(description="the loss")
    adapt: Adapt = Field(description="fine-tuning: what of the package of init is trained and kept")
    uncertainty: Count = Field(
        description="records of each store that uncertainties are made of, in training and validation; 0 for none"
    )
    optimizer: Optimizer = Field(description="the optimizer")
    trainer: Trainer = Field(description="device, precision, duration")
    strategy: Strategy = Field(description="how devices work together")
    logger: Logger = Field(description="mirrors of metrics.jsonl")
    sweep: Sweep = Field(description="several runs of one command")

    @model_validator(mode="after")
    def _combinations(self) -> "TrainConfig":
        if self.train is None:
            raise ValueError("train: found nothing, expected train=FILE_OR_STORE or experiment=quickstart")
        if self.resume and self.run_dir is None:
            raise ValueError("resume: found true without run_dir, expected run_dir=FOLDER of the run to continue")
        if self.init is None and (problem := self.adapt.without_package()):
            raise ValueError(problem)
        if refusal := refused(self):
            raise ValueError(refusal)
        ranks = self.trainer.ranks
        for kind in KINDS:
            bins = getattr(self.data.bins_per_step, kind)
            if bins % ranks:
                nodes = f" x trainer.nodes={self.trainer.nodes}" if self.trainer.nodes > 1 else ""
                raise ValueError(
                    f"data.bins_per_step.{kind}: found {bins}, expected a multiple of "
                    f"trainer.devices={self.trainer.devices}{nodes}, such as data.bins_per_step={ranks}"
                )
        if ranks > 1 and (self.run_dir is None or self.trainer.max_steps is None):
            raise ValueError(
                f"run_dir and trainer.max_steps: found null with strategy={self.strategy.name}, expected values that "
                "all processes share"
            )
        if ranks > 1 and self.trainer.max_time is not None:
            raise ValueError(
                f"trainer.max_time: found {self.trainer.max_time} with strategy={self.strategy.name}, expected null: "
                "each process would fit other steps into it; give trainer.max_steps, and trainer.segment_time where a "
                "job has a limit"
            )
        if not any(getattr(self.data.bins_per_step, kind) for kind in KINDS):
            raise ValueError("data.bins_per_step: found 0 for every kind, expected at least one above 0")
        return self


class DoctorConfig(TrainConfig):
    """``sciml doctor``: the keys of the training that it examines, and its own."""

    faults: bool | Literal["thorough"] = Field(
        description="make every fault of the suite instead, in small runs of its own; thorough: with long sweeps"
    )
    output: Text | None = Field(description="folder for doctor.json and faults.json; null for doctor/<name>")

    @model_validator(mode="after")
    def _combinations(self) -> "DoctorConfig":
        if not self.faults:
            super()._combinations()  # type: ignore[operator]
        return self
