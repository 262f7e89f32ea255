"""When a run saves a checkpoint, and the thread that writes it while training goes on."""

import contextlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from sciml.errors import UserError
from sciml.train.checkpoint import (
    STATE,
    Part,
    checkpoints_in,
    commit,
    manifest_of,
    newest_checkpoint,
    partial_folder,
    rank_file,
    remove,
    remove_leftovers,
    step_of,
    write_part,
)
from sciml.train.rng import generator_states


class Checkpoints(Callback):
    """Saves ``folder/step=N`` every ``every`` optimizer steps (None: at every validation) and at the end.

    Of those committed, the newest ``keep`` stay, the ``best`` of lowest validation loss, and the newest of which the
    run was in good order. Where a validation is due at a step, the checkpoint follows it and knows its loss; one that
    has to be saved before says so in ``validation_due``.

    A save copies the state to CPU memory and returns; a thread writes it. Each rank writes, syncs and hashes its own
    file, then all meet, and the first rank alone commits. An error of any rank is raised by :meth:`check` on all.

    The state is that of the strategy's ``lightning_module_state_dict`` and ``optimizer_state``, which are called on all
    ranks and must return whole tensors in the layout of one process, and None or anything on other ranks than the
    first.
    """

    def __init__(self, folder: Path, every: int | None, keep: int = 2, best: int = 1) -> None:
        self.folder, self.every, self.keep, self.best = folder, every, keep, best
        self.in_order: Callable[[], bool] = lambda: True
        self._saved = self._validated = -1
        self._group: Any = None
        self._writer: threading.Thread | None = None
        self._error: Exception | None = None
        self._loss: float | None = None

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.world_size > 1 and self._group is None:
            # Of its own, so that the thread's meetings do not mix with those of the training step.
            self._group = torch.distributed.new_group(backend="gloo")
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
        trainer.strategy.barrier("checkpoints")

    def on_load_checkpoint(self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        self._saved = checkpoint["global_step"]
        self._validated = -1 if checkpoint["validation_due"] else checkpoint["global_step"]

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if self._saved < 0:
            self._saved = self._validated = trainer.global_step  # a run that has just begun has nothing to save

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if self.every and trainer.global_step % self.every == 0 and not self.validation_due(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.sanity_checking:
            return
        self._validated = trainer.global_step
        loss = trainer.callback_metrics.get("val/loss")
        self._loss = None if loss is None else float(loss)
        if self.every is None or trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self.save(trainer)
        self.wait()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        if self._writer is not None:
            self._writer.join(timeout=10.0)  # what is being written is worth a moment; ranks may be gone

    def validation_due(self, trainer: lightning.Trainer) -> bool:
        """Whether a validation belongs to this step and is not done yet."""
        interval = trainer.val_check_batch
        if not isinstance(interval, int) or self._validated == trainer.global_step:
            return False
        return trainer.global_step * trainer.accumulate_grad_batches % interval == 0

    def save(self, trainer: lightning.Trainer) -> None:
        """Save now, on all ranks, unless this step is saved already; returns while the thread writes."""
        step = trainer.global_step
        if step == self._saved:
            return
        self.wait()
        due = self.validation_due(trainer)
        state = training_state(trainer) | {"validation_due": due}
        parts = {rank_file(trainer.global_rank): {"generators": generator_states(trainer.strategy.root_device)}}
        if trainer.is_global_zero:
            parts[STATE] = state
        facts = {
            "step": step,
            "ranks": trainer.world_size,
            "validation_loss": self._loss if self._validated == step else None,
            "in_order": self.in_order(),
        }
        path = self.folder / f"step={step:09d}"
        if trainer.is_global_zero:
            self._prepare(path)
        trainer.strategy.barrier("checkpoint")
        self._saved = step
        self._writer = threading.Thread(
            target=self._write, args=(path, snapshot(parts), facts, trainer.global_rank), name="checkpoint", daemon=True
        )
        self._writer.start()

    @property
    def failed(self) -> bool:
        """Whether a save has failed since the last :meth:`wait`."""
        return self._error is not None

    def wait(self) -> None:
        """Wait until the thread is done. Raises UserError where it could not write the checkpoint."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _prepare(self, path: Path) -> None:
        """An empty folder for the files of a checkpoint."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(partial_folder(path))
        with contextlib.suppress(OSError):  # a full disk: the thread will say so
            partial_folder(path).mkdir(parents=True)

    def _write(self, path: Path, parts: dict[str, Any], facts: dict[str, Any], rank: int) -> None:
        """The thread: write the files of this rank, meet, commit."""
        try:
            error: Exception | None = None
            written = []
            try:
                written = [write_part(partial_folder(path), name, content) for name, content in parts.items()]
            except Exception as caught:
                error = caught
            others = self._meet(written)
            if others is None and error is None:
                error = UserError(f"{path}: another rank could not write its part of this checkpoint.")
            if rank == 0 and error is None and others is not None:
                try:
                    commit(path, others, facts)
                    self._prune()
                except Exception as caught:
                    error = caught
            if self._meet([] if error else written) is None and error is None:
                error = UserError(f"{path}: the first rank could not commit this checkpoint.")
            if error is not None:
                if rank == 0:
                    shutil.rmtree(partial_folder(path), ignore_errors=True)
                self._error = self._sentence(path, error)
        except Exception as caught:  # a rank is gone, and the meeting with it
            self._error = UserError(f"{path}: the ranks could not meet to commit this checkpoint ({caught}).")

    def _sentence(self, path: Path, error: Exception) -> Exception:
        """The error as a person reads it, with what is still there."""
        if not isinstance(error, OSError):
            return error
        left = newest_checkpoint(self.folder)
        rest = f"{left.name} is the newest whole one" if left else "there is no older one"
        return UserError(
            f"{path}: the checkpoint cannot be written ({error.strerror}), {rest}; make room and continue with "
            "resume=true."
        )

    def _meet(self, parts: list[Part]) -> list[Part] | None:
        """The files that all ranks have written, None where a rank has none; all ranks wait for each other."""
        if self._group is None:
            return parts or None
        size = torch.distributed.get_world_size(self._group)
        mine = torch.zeros(2, 41, dtype=torch.uint8)  # up to two files: whether it is there, 8 bytes of size, the hash
        for row, part in zip(mine, parts):
            row[:] = torch.tensor([1, *part.bytes.to_bytes(8), *bytes.fromhex(part.sha256)], dtype=torch.uint8)
        tables = [torch.empty_like(mine) for _ in range(size)]
        torch.distributed.all_gather(tables, mine, group=self._group)
        if any(not table.any() for table in tables):
            return None
        found = []
        for rank, table in enumerate(tables):
            for name, row in zip((rank_file(rank), STATE), table.tolist()):
                if row[0]:
                    found.append(Part(name, bytes(row[9:]).hex(), int.from_bytes(bytes(row[1:9]))))
        return found

    def _prune(self) -> None:
        """Delete the checkpoints that need not stay."""
        found = checkpoints_in(self.folder)
        facts = {}
        for path in found:
            with contextlib.suppress(OSError, ValueError):
                facts[path] = manifest_of(path)
        losses = {path: loss for path, fact in facts.items() if (loss := fact.get("validation_loss")) is not None}
        staying = {*found[: self.keep], *sorted(losses, key=lambda path: (losses[path], -step_of(path)))[: self.best]}
        staying.update([path for path in found if facts.get(path, {}).get("in_order")][:1])
        for path in found:
            if path not in staying:
                remove(path)


def training_state(trainer: lightning.Trainer) -> dict[str, Any]:
    """What all ranks share of a run at the end of an optimizer step; called on all ranks."""
    state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    del state["loops"]  # counted from the step: see sciml.train.resume
    return state


def snapshot(value: Any) -> Any:
    """A copy in CPU memory of nested dicts, lists and tuples of tensors; other values are plain and stay."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([snapshot(inner) for inner in value])
    return value
