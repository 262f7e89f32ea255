"""What works together: heads, strategies, precisions, kernels and options of a training run, without importing torch.

Each pair is either proven by a test on two ranks (``tests/train/test_strategies.py``) or refused here by name, with the
nearest one that works.
"""

from typing import Any

CONSERVATIVE = ("energy",)  # registered heads whose forces are derivatives of an energy
ZERO = ("zero1", "zero2", "zero3")
SHARDED = (*ZERO, "fsdp2")  # strategies in which no rank holds everything


def refused(config: Any) -> str | None:
    """The sentence, without its full stop, that refuses a training configuration; None where all of it works."""
    for rule in RULES:
        if sentence := rule(config):
            return sentence
    return None


def _devices(config: Any) -> str | None:
    if config.strategy.name != "single":
        return None
    for key in ("devices", "nodes"):
        if (found := getattr(config.trainer, key)) > 1:
            return f"trainer.{key}: found {found} with strategy=single, expected 1, or strategy=ddp"
    return None


def _conservative(config: Any) -> str | None:
    """ZeRO-3 takes parameters away after a layer's forward pass, where forces still differentiate through them."""
    if config.strategy.name != "zero3" or not config.data.bins_per_step.atoms:
        return None
    terms = config.objective.terms
    if not any(terms[target]["weight"] for target in ("energy", "forces", "stress")):
        return None
    for key, options in config.heads.items():
        if options.get("name", key) in CONSERVATIVE:
            return (
                f"strategy: found zero3 with heads.{key}, whose forces are derivatives of its energy, expected "
                "strategy=fsdp2, which cuts as much, or heads=direct"
            )
    return None


def _precision(config: Any) -> str | None:
    name, precision = config.strategy.name, config.trainer.precision
    if name in ZERO and precision != "32":
        return (
            f"trainer.precision: found {precision} with strategy={name}, which keeps one precision for everything, "
            "expected 32, or strategy=fsdp2 or ddp"
        )
    return None


def _compile(config: Any) -> str | None:
    if not config.trainer.compile:
        return None
    name, heads = config.strategy.name, config.heads.items()
    if name in SHARDED:
        return f"trainer.compile: found true with strategy={name}, which is not proven, expected false or strategy=ddp"
    charges = [f"heads.{key}.charges" for key, options in heads if options.get("charges")]
    charges += ["model.reciprocal.charges"] if config.model.reciprocal.charges else []
    if charges:
        return (
            f"trainer.compile: found true with {charges[0]}, whose sums over waves have sizes that a compiler cannot "
            "know, expected false"
        )
    return None


def _recompute(config: Any) -> str | None:
    if not config.trainer.recompute:
        return None
    if config.trainer.compile:
        return "trainer.recompute: found true with trainer.compile=true, which cannot trace it, expected one of them"
    if config.strategy.name == "zero3":
        return (
            "trainer.recompute: found true with strategy=zero3, which has put the parameters of a block away by then, "
            "expected strategy=fsdp2"
        )
    return None


def _out_of_memory(config: Any) -> str | None:
    """Where the backward pass itself talks to other ranks, one that fails leaves the others waiting."""
    name = config.strategy.name
    if config.strategy.out_of_memory == "split" and name not in ("single", "ddp"):
        return (
            f"strategy.out_of_memory: found split with strategy={name}, whose ranks talk to each other during a "
            "backward pass, expected stop, or strategy=ddp"
        )
    return None


def _find_batch(config: Any) -> str | None:
    if not config.data.find_batch:
        return None
    if config.trainer.ranks > 1:
        return (
            f"data.find_batch: found true with {config.trainer.ranks} ranks, expected one device to "
            "measure on; find the limits there, and give them in data.batch"
        )
    for kind, bins in config.data.bins_per_step.model_dump().items():
        if bins and getattr(config.data.batch, kind).max_edges is None:
            return f"data.batch.{kind}.max_edges: found null with data.find_batch=true, expected a number to begin with"
    return None


def _adapt(config: Any) -> str | None:
    """What cuts parameters or their states counts on all of them having a gradient, and on their plain names."""
    name, adapt = config.strategy.name, config.adapt.name
    if adapt != "full" and name in SHARDED:
        return f"adapt: found {adapt} with strategy={name}, expected adapt=full, or strategy=ddp"
    if adapt == "lora" and config.trainer.recompute:
        return "trainer.recompute: found true with adapt=lora, expected false, or adapt=full"
    return None


def _kernels(config: Any) -> str | None:
    backend, accelerator = config.model.backend, config.trainer.accelerator
    if (backend, accelerator) in {("cpu", "gpu"), ("triton", "cpu")}:
        return f"model.backend: found {backend} with trainer.accelerator={accelerator}, expected auto"
    return None


RULES = (
    _devices,
    _conservative,
    _precision,
    _compile,
    _adapt,
    _recompute,
    _out_of_memory,
    _find_batch,
    _kernels,
)
