"""Every key that a configuration may have: its type, its range and its explanation.

There are no default values here: the YAML files under ``configs/`` hold each default once. The descriptions feed
``sciml VERB --help``. A combination of keys that cannot work is refused by the validators at the end of each class,
which name the key in the form ``trainer.devices: found 2, expected ...``.
"""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sciml.combinations import refused
from sciml.irreps import parse_irreps
from sciml.registry import BUILTIN, names

KINDS = ("atoms", "jets", "residues")
SAMPLES = Path(__file__).parent / "data" / "samples"
SAMPLE_PREFIX = "samples:"


def _paths(value: Any) -> Any:
    """Turn one path into a list of one."""
    return [value] if isinstance(value, str) else value


def _sample(path: str) -> str:
    """Turn ``samples:NAME`` into the folder of an embedded store; every other path stays as it was typed."""
    return str(SAMPLES / path.removeprefix(SAMPLE_PREFIX)) if path.startswith(SAMPLE_PREFIX) else path


def _text(value: Any) -> Any:
    """Accept a number where a word is meant: ``precision=32``, ``name=7``."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _every_kind(value: Any) -> Any:
    """Let one number stand for every kind of graph."""
    return dict.fromkeys(KINDS, value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _registered(table: str) -> Any:
    """Return a validator for a name of the registry's ``table`` (built in, or an installed entry point)."""

    def check(value: str) -> str:
        if value not in names(table):
            raise ValueError(f"expected one of {', '.join(names(table))}")
        return value

    return check


Text = Annotated[str, BeforeValidator(_text), Field(min_length=1)]
DataPath = Annotated[str, Field(min_length=1), AfterValidator(_sample)]
DataPaths = Annotated[list[DataPath], BeforeValidator(_paths), Field(min_length=1)]
Loss = Annotated[Text, BeforeValidator(_registered("losses"))]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Identity = Annotated[float, Field(gt=0, le=1)]
Accelerator = Literal["cpu", "gpu", "auto"]
SplitBy = Literal["auto", "group", "sequence", "composition", "structure"]
SPLIT_BY = (
    "what stays together: group (trajectory, event or sequence of the file), sequence (homologous proteins), "
    "composition or structure (materials); auto is sequence for proteins, else group"
)


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused and values are not silently converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


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


class Radial(Section):
    """The network of the edge lengths."""

    basis: Positive = Field(description="number of radial basis functions")
    hidden: list[Positive] = Field(min_length=1, description="widths of the hidden layers of the radial network")


class Reciprocal(Section):
    """The long-range block at the end of the backbone."""

    charges: Count = Field(
        description="sets of latent charges whose long-range potentials return into the features of atoms; 0 for none"
    )


class Model(Section):
    """The backbone."""

    name: Annotated[Text, BeforeValidator(_registered("models"))] = Field(
        description="the model: backbone, transformer, or an installed entry point in the group sciml.models"
    )
    channels: Positive = Field(description="channels per component")
    layers: Positive = Field(description="blocks of convolution, many-body product and feed-forward")
    coarse_layers: Count = Field(description="blocks among residues or subjets, after `layers`; 0 for no coarse level")
    layers_after: Count = Field(description="blocks after the coarse level; at least 1 where there is one")
    lmax_node: Annotated[int, Field(ge=0, le=4)] = Field(description="highest degree of the node features")
    lmax_edge: Annotated[int, Field(ge=0, le=6)] = Field(description="highest degree of the spherical harmonics")
    correlation: Annotated[int, Field(ge=1, le=3)] = Field(description="order of the many-body product, 1 to 3")
    radial: Radial = Field(description="the radial network")
    feed_forward: Positive = Field(description="width of the feed-forward layer, in multiples of the channels")
    reciprocal: Reciprocal = Field(description="the long-range block")
    spurions: bool = Field(description="time and beam directions as inputs of jets; false leaves them out")
    backend: Literal["auto", "reference", "cpu", "triton"] = Field(
        description="kernels: auto takes the fastest one that this machine has, reference is plain torch"
    )
    options: dict[str, Any] = Field(description="keys of a model of your own, handed to it as they are")

    @model_validator(mode="after")
    def _coarse_level(self) -> "Model":
        if self.coarse_layers and not self.layers_after:
            raise ValueError(
                f"layers_after: found 0 with coarse_layers={self.coarse_layers}, expected 1 or more to read what comes "
                "down from the coarse level"
            )
        return self


def _without_nulls(value: Any) -> Any:
    """Leave out the entries that a user set to null."""
    return {key: inner for key, inner in value.items() if inner is not None} if isinstance(value, dict) else value


def _heads(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Check that every head is registered under its ``name``, which is its key where it has none."""
    for key, options in value.items():
        name = options.get("name", key)
        if name not in names("heads"):
            close = [f" (did you mean {found}?)" for found in get_close_matches(str(name), names("heads"), n=1)]
            raise ValueError(f"{key}: found {name!r}, expected one of {', '.join(names('heads'))}{''.join(close)}")
        if name == "target":
            _check_target(key, options, OPTIONS_OF_TARGET)
    return value


def _targets(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Check the targets that are mapped when a file is read."""
    for key, facts in value.items():
        _check_target(key, facts, FACTS_OF_TARGET)
    return value


FACTS_OF_TARGET = ("level", "irreps", "unit", "classes", "column")
OPTIONS_OF_TARGET = ("name", *FACTS_OF_TARGET, "kind", "extensive", "hidden", "channels")


def _check_target(key: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raise ValueError, which names the key, where a target of a configuration is not as a TargetHead takes it."""
    for name in options:
        if name not in known:
            close = [f" (did you mean {found}?)" for found in get_close_matches(name, known, n=1)]
            raise ValueError(f"{key}.{name}: this key is not known, expected one of {', '.join(known)}{''.join(close)}")
    for name, expected in (("level", ("graph", "fine", "coarse")), ("kind", KINDS), ("extensive", (True, False))):
        if options.get(name, expected[0]) not in expected:
            words = ", ".join(str(one).lower() for one in expected)
            raise ValueError(f"{key}.{name}: found {options[name]!r}, expected one of {words}")
    irreps, level, kind = options.get("irreps", "0e"), options.get("level", "graph"), options.get("kind", "atoms")
    try:
        scalars = all(degree == 0 for _, degree in parse_irreps(str(irreps)))
    except ValueError as error:
        raise ValueError(f"{key}.irreps: {error}") from None
    classes = options.get("classes")
    enough = isinstance(classes, list) and len(set(map(str, classes))) >= 2
    if classes is not None and (not enough or "irreps" in options):
        raise ValueError(f"{key}.classes: found {classes!r}, expected the names of two classes or more, and no irreps")
    if kind == "jets" and (level == "coarse" or not scalars):
        raise ValueError(f"{key}: found {irreps} of level {level} for jets, expected scalars of graph or fine level")
    if options.get("extensive") is True and (level != "graph" or classes):
        raise ValueError(f"{key}.extensive: found true, expected it with numbers of level=graph alone")


class Regression(Section):
    """A term of the loss for numbers."""

    weight: Weight = Field(description="weight in the loss; 0 switches the term off")
    loss: Loss = Field(description="huber, mse, mae, or an installed entry point in the group sciml.losses")
    delta: PositiveFloat = Field(description="where huber turns linear, in units of the target's scale")


class Classification(Section):
    """A term of the loss for classes."""

    weight: Weight = Field(description="weight in the loss; 0 switches the term off")
    loss: Loss = Field(description="cross_entropy, or an installed entry point in the group sciml.losses")


class WeighedClassification(Classification):
    """A term of the loss for classes of different weight."""

    class_weights: list[Weight] | None = Field(
        description="factor of the loss of each class, in their order; null for one"
    )


class OfAtomsAndResidues(Section):
    """A weight for each kind of graph that has coordinates."""

    atoms: Weight = Field(description="weight in the loss for atoms; 0 switches it off")
    residues: Weight = Field(description="weight in the loss for protein backbones; 0 switches it off")


class OfAtomsAndJets(Section):
    """A weight for each kind of graph that has types to hide."""

    atoms: Weight = Field(description="weight in the loss for elements; 0 switches it off")
    jets: Weight = Field(description="weight in the loss for kinds of particles; 0 switches it off")


class Denoise(Section):
    """Coordinate denoising."""

    weight: OfAtomsAndResidues = Field(description="weight in the loss, per kind of graph")
    loss: Loss = Field(description="mse, mae or huber of the noise in units of its level, or an entry point")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        description="part of the samples whose positions are shifted; atoms then lose their other labels"
    )
    levels: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)] = Field(
        description="smallest and largest standard deviation of the shift of a coordinate, Å"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Denoise":
        if self.levels[0] > self.levels[1]:
            raise ValueError(f"levels: found {self.levels}, expected the smallest first")
        return self


class Masked(Section):
    """Masked types."""

    weight: OfAtomsAndJets = Field(description="weight in the loss, per kind of graph")
    loss: Loss = Field(description="cross_entropy, or an installed entry point in the group sciml.losses")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        description="part of the samples with hidden types; atoms then lose their other labels"
    )
    nodes: Annotated[float, Field(gt=0, lt=1)] = Field(description="part of the nodes whose type is hidden there")


class OwnTerm(Classification):
    """A term of the loss for the target of a head of one's own; further keys are options of its loss."""

    model_config = ConfigDict(extra="allow")


class Objective(Section):
    """The terms of the loss; a target that the data do not have is left out."""

    energy: Regression = Field(description="energy per atom")
    forces: Regression = Field(description="forces")
    stress: Regression = Field(description="stress of periodic cells")
    label: WeighedClassification = Field(description="class of a jet")
    true_momenta: Regression = Field(description="true four-momenta of a jet's particles")
    residue_types: Classification = Field(description="masked residue types")
    denoise: Denoise = Field(description="coordinate denoising: noise in the positions is found again")
    masked: Masked = Field(description="masked types: hidden elements and kinds of particles are found again")
    others: dict[str, OwnTerm] = Field(description="terms of heads of your own: {target: {weight, loss, ...}}")

    @model_validator(mode="after")
    def _something(self) -> "Objective":
        if not any(term["weight"] for term in self.terms.values()):
            raise ValueError("weight: found 0 for every target, expected at least one above 0")
        return self

    @property
    def terms(self) -> dict[str, dict[str, Any]]:
        """Every target with its weight, loss and options."""
        names = ("energy", "forces", "stress", "true_momenta", "label", "residue_types")
        supervised = {name: getattr(self, name) for name in names}
        terms = {name: _of_its_loss(term.model_dump()) for name, term in {**supervised, **self.others}.items()}
        for target, objective in (("noise", self.denoise), ("masked", self.masked)):
            for kind, weight in objective.weight.model_dump().items():
                terms[f"{target}_{kind}"] = {"weight": weight, "loss": objective.loss}
        return terms


def _of_its_loss(term: dict[str, Any]) -> dict[str, Any]:
    """Drop what another of our losses than this one takes, and class weights that are null."""
    taken = {"delta": "huber", "class_weights": "cross_entropy"}
    return {
        key: value
        for key, value in term.items()
        if not (key in taken and term["loss"] in BUILTIN["losses"] and term["loss"] != taken[key])
        and not (key == "class_weights" and value is None)
    }


class Replay(Section):
    """What the base model knows, mixed into its fine-tuning."""

    fraction: Fraction = Field(description="part of the draws that replay what the package knows; 0 for none")
    stores: DataPaths | None = Field(
        description="files or stores to replay; null for the embedded samples of the package's levels of theory"
    )
    records: Positive = Field(description="most records of a store that are replayed")
    pseudo_labels: bool = Field(
        description="let the package label the replayed structures, once, where the true labels cannot be had"
    )

    @model_validator(mode="after")
    def _used(self) -> "Replay":
        for key in ("stores", "pseudo_labels"):
            if getattr(self, key) and not self.fraction:
                raise ValueError(f"{key}: found {getattr(self, key)} with fraction=0, expected a fraction above 0")
        return self


class Retained(Section):
    """Records of base tasks that are measured before and after."""

    stores: DataPaths | None = Field(
        description="files or stores; null for parts, never replayed, of the replay stores or else the embedded samples"
    )
    records: Count = Field(description="most records of a store that are measured; 0 measures no forgetting")


class Adapt(Section):
    """What of the package that training starts from is trained, and what is kept."""

    name: Literal["full", "frozen", "last_n", "lora"] = Field(
        description="what of the package is trained: all, the heads alone, the last blocks, low-rank updates"
    )
    blocks: Positive = Field(description="last_n: blocks at the end of the backbone that are trained")
    rank: Positive = Field(description="lora: rank of the update of every linear map, for each degree")
    alpha: PositiveFloat = Field(description="lora: the update is multiplied by alpha / rank")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        description="learning rate of a block by that of the block after it; heads have the highest; 1 for one rate"
    )
    parity: bool = Field(
        description="stop where the outputs before the first update are not those of the package; false trains on"
    )
    replay: Replay = Field(description="what the package knows, mixed into the new data")
    retained: Retained = Field(description="records that forgetting is measured on")
    from_scratch: bool = Field(
        description="train a model from random weights on the new data too, for equal time, to compare with"
    )

    def without_package(self) -> str | None:
        """The first key that has no meaning without a package to start from, as a sentence; None for none."""
        given = [
            ("adapt", self.name, self.name != "full"),
            ("adapt.layer_decay", f"{self.layer_decay:g}", self.layer_decay != 1),
            ("adapt.replay.fraction", f"{self.replay.fraction:g}", self.replay.fraction > 0),
            ("adapt.from_scratch", "true", self.from_scratch),
        ]
        for key, value, meant in given:
            if meant:
                return f"{key}: found {value} without init, expected init=PACKAGE, the model to start from"
        return None


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
    precision: Annotated[Literal["32", "64", "bf16-mixed"], BeforeValidator(_text)] = Field(
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
    heads: Annotated[dict[str, dict[str, Any]], BeforeValidator(_without_nulls), AfterValidator(_heads)] = Field(
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
        if self.package is None:
            raise ValueError("package: found nothing, expected package=PACKAGE_OR_RUN_FOLDER")
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
        if self.package is None:
            raise ValueError("package: found nothing, expected package=PACKAGE_OR_RUN_FOLDER")
        return self


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
    stress_unit: Text | None = Field(description="unit of stresses in the file; null for the format's own")
    only: Text | None = Field(description="names of the records to keep: a JSON list in FILE.json, or FILE.json:KEY")
    targets: Annotated[dict[str, dict[str, Any]], AfterValidator(_targets)] = Field(
        description="targets of your own: {name: {level: graph|fine|coarse, irreps: 0e, unit: '', classes, column}}"
    )
    unlabelled: bool = Field(description="the files hold structures without energies, to pretrain on")
    overwrite: bool = Field(description="replace a store that is already there")

    @model_validator(mode="after")
    def _required(self) -> "IngestConfig":
        if self.source is None:
            raise ValueError("source: found nothing, expected source=FILES")
        if self.output is None:
            raise ValueError("output: found nothing, expected output=STORE")
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
        if self.source is None:
            raise ValueError("source: found nothing, expected source=STORE_OR_FILES")
        if self.output is None:
            raise ValueError("output: found nothing, expected output=FOLDER")
        return self


class AuditConfig(Section):
    """``sciml audit``."""

    source: DataPaths | None = Field(description="store or files to look at: a path, a pattern, [a,b], or samples:NAME")
    against: DataPaths | None = Field(description="another store or files that should share no record or group with it")
    output: Text | None = Field(description="JSON file for the findings; null prints them alone")

    @model_validator(mode="after")
    def _required(self) -> "AuditConfig":
        if self.source is None:
            raise ValueError("source: found nothing, expected source=STORE_OR_FILES")
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


CONFIGS: dict[str, type[Section]] = {
    "ingest": IngestConfig,
    "inspect": InspectConfig,
    "audit": AuditConfig,
    "split": SplitConfig,
    "train": TrainConfig,
    "doctor": DoctorConfig,
    "evaluate": EvaluateConfig,
    "verify": VerifyConfig,
}
