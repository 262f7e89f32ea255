"""How, where and how long a run trains: ``optimizer``, ``trainer``, ``strategy``, ``logger`` and ``sweep``."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sciml.schema.section import (
    Accelerator,
    Count,
    Fraction,
    Positive,
    PositiveFloat,
    Section,
    Text,
    Weight,
    as_text,
)


class Optimizer(Section):
    """The optimizer and its schedule."""

    name: Literal["adamw"] = Field(description="adamw")
    learning_rate: PositiveFloat = Field(description="highest learning rate")
    reference_channels: Positive | None = Field(
        description="channels that the learning rate was chosen at, which it then holds for any; null for one rate"
    )
    weight_decay: Weight = Field(description="decoupled weight decay of matrices")
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = Field(description="decay of the two moments")
    eps: PositiveFloat = Field(description="added to the root of the second moment")
    warmup_steps: Count = Field(description="steps of linear warm-up")
    schedule: Literal["cosine", "constant"] = Field(description="the learning rate after the warm-up")
    final_fraction: Annotated[float, Field(ge=0, le=1)] = Field(description="last learning rate / highest one (cosine)")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(description="moving average of the weights; 0 for none")
    gradient_clip: PositiveFloat | None = Field(description="largest norm of the gradient; null for no limit")


class Guard(Section):
    """What is done about steps that would harm the model; a loss or gradient that is no number is always left out."""

    window: Count = Field(description="steps whose losses tell what is usual; 0 leaves no step out for its loss")
    threshold: PositiveFloat = Field(
        description="a step is left out whose loss is so many deviations (robust, of the window) above the median"
    )
    patience: Positive = Field(description="steps left out in a row after which the weights go back to a checkpoint")
    rewinds: Count = Field(description="how often they may go back in a run before it ends with an error")


class Trainer(Section):
    """Where and how long."""

    accelerator: Accelerator = Field(description="cpu, gpu, or auto for a gpu where there is one")
    devices: Positive = Field(description="devices of a machine, each with a process")
    nodes: Positive = Field(description="machines that train together; SLURM or torchrun starts their processes")
    precision: Annotated[Literal["32", "64", "bf16-mixed"], BeforeValidator(as_text)] = Field(
        description="32, 64 or bf16-mixed; geometry and reductions are never below 32"
    )
    compile: bool = Field(description="compile the training step with torch.compile, which takes minutes at the start")
    recompute: bool = Field(
        description="keep only the inputs of each block and compute it again in backward passes: less memory, more time"
    )
    max_steps: Positive | None = Field(description="optimizer steps; null where max_time decides")
    max_time: str | None = Field(description="wall-clock budget HH:MM:SS or DD:HH:MM:SS; null where max_steps decides")
    segment_time: str | None = Field(description="stop resumably (exit code 143) after HH:MM:SS; null runs to the end")
    val_every: Positive | None = Field(description="steps between validations; null for about ten in the run")
    log_every: Positive = Field(description="steps between lines of metrics.jsonl")
    checkpoint_every: Positive | None = Field(description="steps between checkpoints; null for one at each validation")
    checkpoint_keep: Positive = Field(description="newest checkpoints that are kept")
    checkpoint_best: Count = Field(description="checkpoints of lowest validation loss that are kept beside the newest")
    publish: Literal["last", "best"] = Field(
        description="the averaged weights that become the package: of the last step, or of the lowest validation loss"
    )
    guard: Guard = Field(description="what is done about steps that would harm the model")
    progress: bool = Field(description="show a progress bar")
    profile: bool = Field(description="write a trace and a table of where the time of three steps goes to profile/")
    threads: Positive | None = Field(description="CPU threads of each process; null leaves torch's choice")

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        return self.devices * self.nodes

    @property
    def max_seconds(self) -> float | None:
        """The wall-clock budget in seconds, None without one."""
        return None if self.max_time is None else seconds("max_time", self.max_time)

    @property
    def segment_seconds(self) -> float | None:
        """The wall-clock budget of this process in seconds, None without one."""
        return None if self.segment_time is None else seconds("segment_time", self.segment_time)

    @model_validator(mode="after")
    def _duration(self) -> "Trainer":
        for name, found in (("max_time", self.max_seconds), ("segment_time", self.segment_seconds)):
            if found is not None and found <= 0:
                raise ValueError(f"{name}: found {getattr(self, name)!r}, expected more than zero seconds")
        if self.max_steps is None and self.max_time is None:
            raise ValueError("max_steps and max_time: found null for both, expected one of them to end the run")
        if self.publish == "best" and not self.checkpoint_best:
            raise ValueError("publish: found best with checkpoint_best=0, expected checkpoint_best=1, which keeps it")
        return self


def seconds(key: str, duration: str) -> float:
    """Return the seconds in ``HH:MM:SS`` or ``DD:HH:MM:SS``; raises ValueError that names ``key`` otherwise."""
    if not re.fullmatch(r"(\d+:)?\d+:\d\d?:\d\d?", duration):
        raise ValueError(f"{key}: found {duration!r}, expected HH:MM:SS or DD:HH:MM:SS, in quotes in a YAML file")
    scales = (1, 60, 3600, 86400)
    return float(sum(scale * int(part) for scale, part in zip(scales, reversed(duration.split(":")))))


class Strategy(Section):
    """How devices work together."""

    name: Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"] = Field(
        description="single device; or a process per device that holds everything (ddp) or a part of the optimizer "
        "states (zero1), of the gradients too (zero2), of the parameters too (zero3, fsdp2)"
    )
    out_of_memory: Literal["split", "stop"] = Field(
        description="where a step does not fit into memory: all devices compute it again in smaller pieces, or stop"
    )


class Logger(Section):
    """Mirrors of metrics.jsonl."""

    wandb: Literal["offline", "online", "disabled"] = Field(description="where Weights & Biases writes")
    project: Text = Field(description="project name in Weights & Biases")


class Sweep(Section):
    """Several runs of one command, with ``-m``."""

    launcher: Literal["serial", "submitit"] = Field(
        description="with -m: runs one after the other here, or as jobs of SLURM by submitit (extra sweep)"
    )
    folder: Text | None = Field(description="with -m: folder of the runs and a summary; null for sweeps/<name>/<time>")
    trials: Positive | None = Field(description="with -m: runs whose values Optuna draws (extra sweep); null for all")
    slurm: dict[str, Any] = Field(description="with -m: parameters of submitit: sweep.slurm.slurm_partition=gpu")
