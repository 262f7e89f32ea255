"""Going on with a run: from which checkpoint, with which configuration, and at the same bits."""

from pathlib import Path
from typing import Any

import lightning
import yaml
from lightning.pytorch.callbacks import Callback

from sciml.config import FREE_KEYS
from sciml.errors import UserError
from sciml.files import write_text
from sciml.launch import first_process
from sciml.train.checkpoint import LATEST, newest_checkpoint, step_of
from sciml.train.events import add_event, cut_events
from sciml.train.progress import say
from sciml.train.rng import restore_generators, seed_rank

# What a resumed run may change: where it lies, how long it takes, what it tells, and the machine.
MAY_CHANGE = (
    "run_dir",
    "resume",
    "logger.",
    "sweep.",
    "strategy.",
    "data.workers",
    "data.cache_mib",
    "trainer.guard.",
    *(
        f"trainer.{key}"
        for key in (
            "max_steps",
            "max_time",
            "segment_time",
            "val_every",
            "log_every",
            "checkpoint_every",
            "checkpoint_keep",
            "checkpoint_best",
            "publish",
            "progress",
            "profile",
            "threads",
            "accelerator",
            "devices",
            "nodes",
            "recompute",
        )
    ),
)


def resume_point(folder: Path, resume: bool, damaged: dict[Path, str] | None = None) -> Path | None:
    """The checkpoint to continue from, None for a fresh start: the newest that is not damaged.

    Those that were passed over are added to ``damaged``, with the reasons; nothing is changed.

    Raises UserError where the folder holds a run and ``resume`` is not asked for, or where all its checkpoints are
    damaged. A run is there where it left its configuration or checkpoints; data that a failed command ingested are
    none.
    """
    if not resume:
        if any((folder / name).exists() for name in ("config.yaml", "checkpoints")):
            raise UserError(
                f"run_dir={folder} holds a run already; give another folder, or resume=true to continue it."
            )
        return None
    damaged = {} if damaged is None else damaged
    found = newest_checkpoint(folder / "checkpoints", damaged.__setitem__)
    if damaged and found is None:
        path, reason = next(iter(damaged.items()))
        raise UserError(
            f"{path} is not a readable checkpoint ({reason}), and no other in its folder is; restore one from a copy, "
            "or start anew in another run_dir."
        )
    return found


def put_aside(folder: Path, damaged: dict[Path, str], found: Path) -> None:
    """Rename damaged checkpoints of the run in ``folder`` and tell of them; ``latest`` is then ``found``."""
    for path, reason in damaged.items():
        say(f"resume: {path} is damaged ({reason}), so it becomes damaged-{path.name}; going on from an older one")
        if first_process():
            path.rename(path.with_name(f"damaged-{path.name}"))
            add_event(folder, step_of(found), "damaged checkpoint", checkpoint=path.name, reason=reason)
    if damaged and first_process():
        write_text(found.parent / LATEST, found.name + "\n")


def check_resumed(folder: Path, config: dict[str, Any]) -> None:
    """Raise UserError where the configuration is not that of the run in ``folder``, apart from :data:`MAY_CHANGE`.

    Data are compared by the names of their files: a run and its data may have moved. A key that sciml did not have yet
    when the run was started may have any value.
    """
    try:
        stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{folder / 'config.yaml'}: not readable, so the run cannot be resumed; restore it.") from None
    before, now = _flatten(stored if isinstance(stored, dict) else {}), _flatten(config)
    for key in sorted({*before, *now}):
        new = key not in before and not key.startswith(FREE_KEYS)
        if not new and not key.startswith(MAY_CHANGE) and before.get(key) != now.get(key):
            raise UserError(
                f"{key}: found {now.get(key)!r}, but the run in {folder} was started with {before.get(key)!r}; "
                "resume it with the same configuration, or give another run_dir."
            )


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value}; of paths to data the last part."""
    if isinstance(values, dict) and values:
        return {name: v for key, inner in values.items() for name, v in _flatten(inner, f"{prefix}{key}.").items()}
    key = prefix.removesuffix(".")
    names = key in ("train", "val", "test") and isinstance(values, list)
    return {key: [Path(path).name for path in values] if names else values}


class Resume(Callback):
    """Puts a run back to where its checkpoint was saved; the last of the callbacks.

    Generators are restored when everything is set up, so that what setting up draws is not missing afterwards. A
    validation that was due is made up for before the first step, or after the last, which Lightning would not begin.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self._generators: dict[str, Any] | None = None
        self._validation_due = False
        self._steps: int | None = None

    def on_load_checkpoint(self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        step, rank = checkpoint["global_step"], trainer.global_rank
        checkpoint["loops"] = {"fit_loop": progress_at(trainer, step)}
        self._validation_due = checkpoint["validation_due"]
        loop = trainer.fit_loop.epoch_loop
        if self._validation_due and step >= loop.max_steps:
            self._steps, loop.max_steps = loop.max_steps, step + 1
        if rank < len(checkpoint["ranks"]):
            self._generators = checkpoint["ranks"][rank]["generators"]
        elif rank:
            seed_rank(self.seed, step, rank)
        if trainer.is_global_zero:
            cut_events(self.folder, step)

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if self._generators is not None:
            restore_generators(self._generators, trainer.strategy.root_device)
            self._generators = None
        if self._validation_due:
            self._validation_due = False
            validate_now(trainer)
        if self._steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self._steps = self._steps, None


def progress_at(trainer: lightning.Trainer, step: int) -> dict[str, Any]:
    """The state of Lightning's fit loop when ``step`` optimizer steps are done and the next has not begun.

    It is counted, not stored: the number of micro-batches in a step depends on the number of ranks.
    """
    state = trainer.fit_loop.state_dict()
    optimizer = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for progress, done in (
        (state["epoch_loop.batch_progress"], step * trainer.accumulate_grad_batches),
        (state["epoch_loop.scheduler_progress"], step),
        (optimizer["step"], step),
        (optimizer["zero_grad"], step),
    ):
        for counts in (progress["total"], progress["current"]):
            counts.update(dict.fromkeys(counts, done))
    for counts in (state["epoch_progress"]["total"], state["epoch_progress"]["current"]):
        counts.update(ready=1, started=1, processed=0, completed=0)
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = step
    return state


def validate_now(trainer: lightning.Trainer) -> None:
    """Run a validation between two steps, as Lightning does after one."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    first = trainer._logger_connector._first_loop_iter
    trainer.validating = True
    loop.run()
    trainer.training = True
    trainer._logger_connector._first_loop_iter = first
