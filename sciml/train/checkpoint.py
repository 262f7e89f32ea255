"""Checkpoints that are either whole or absent."""

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import Callback

from sciml.errors import UserError
from sciml.files import atomic
from sciml.models.model import build_model
from sciml.package import Package
from sciml.train.adapt.strategy import load_weights


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint through :func:`sciml.files.atomic`.

    Lightning's own writer goes through ``$TMPDIR``, which on a cluster is another filesystem, where a kill during the
    save leaves a truncated file under the final name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint without running code from it. Raises UserError when it is damaged."""
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"{path}: no such checkpoint.") from None
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{path} is not a readable checkpoint ({reason}); resume from an older one.") from None

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpoints(Callback):
    """Saves ``step=N.ckpt`` every ``every`` optimizer steps (None: at every validation) and at the end; keeps the
    newest.
    """

    def __init__(self, folder: Path, every: int | None, keep: int = 2) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self._saved = -1

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._saved = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if self.every and trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if self.every is None and not trainer.sanity_checking:
            self.save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Save now, unless this step is saved already."""
        if trainer.global_step == self._saved:
            return
        self._saved = trainer.global_step
        trainer.save_checkpoint(self.folder / f"step={trainer.global_step:09d}.ckpt")
        if trainer.is_global_zero:
            for old in sorted(self.folder.glob("step=*.ckpt"))[: -self.keep]:
                old.unlink(missing_ok=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in ``folder`` (``step=000123.ckpt``), or None."""
    found = sorted(folder.glob("step=*.ckpt"))
    return found[-1] if found else None


def package_of_checkpoint(path: Path, device: str = "cpu") -> Package | None:
    """The model of a checkpoint, or of the newest one in a run folder or its ``checkpoints``, in evaluation mode.

    It has the averaged weights, as a package of that step would have. None where there is no checkpoint. Raises
    UserError for one that is damaged or does not describe its model.
    """
    path = Path(path)
    found = path if path.suffix == ".ckpt" else newest_checkpoint(path) or newest_checkpoint(path / "checkpoints")
    if found is None:
        return None
    stored = AtomicCheckpointIO().load_checkpoint(found)
    if not stored.get("package"):
        raise UserError(f"{found} does not describe its model, an older sciml wrote it; give the package of the run.")
    model = build_model(stored["package"]["model"])
    prefix = "model."
    weights = {k.removeprefix(prefix): v for k, v in stored["state_dict"].items() if k.startswith(prefix)}
    averages = stored.get("callbacks", {}).get("ExponentialAverage", {}).get("averages", [])
    config = dict(stored["package"])
    load_weights(model, weights, averages, config.pop("low_rank", {}))
    return Package(model.to(device).eval(), config, found)
