"""A checkpoint on disk: a folder that is whole or absent, with a hash of every file.

``checkpoints/step=000000123/`` holds ``state.pt`` (everything that all ranks share: parameters, optimizer, schedule,
averages; consolidated to plain tensors whatever the strategy, so that any number of ranks and any strategy can go on
from it), ``rank-00000.pt`` of every rank (what it has of its own, such as its generators) and ``manifest.json``, which
lists the sha256 of each. It is written into ``.step=000000123.partial`` beside and renamed when all of it is on the
disk: the rename is the commit. ``checkpoints/latest`` names the newest. A run of format 1 left ``step=000000123.ckpt``,
one file.
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.fabric.plugins.io import CheckpointIO

from sciml.errors import UserError
from sciml.files import file_sha256, sync, write_text
from sciml.models.model import build_model
from sciml.package import Package
from sciml.train.adapt.strategy import load_weights
from sciml.train.upgrade import FORMAT, upgraded

STATE, MANIFEST, LATEST = "state.pt", "manifest.json", "latest"
_FOLDER, _OLD_FILE = "step=*", ".ckpt"


@dataclass(frozen=True)
class Part:
    """A file of a checkpoint as it was written."""

    name: str
    sha256: str
    bytes: int


class _Hashed:
    """A file that hashes what is written to it, and keeps the error that stopped it: torch reports another."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def rank_file(rank: int) -> str:
    """Name of the file of one rank."""
    return f"rank-{rank:05d}.pt"


def write_part(folder: Path, name: str, content: dict[str, Any]) -> Part:
    """Write one file of a checkpoint and make it survive a crash of the machine. Raises OSError, on a full disk too."""
    with open(folder / name, "wb") as file:
        hashed = _Hashed(file)
        try:
            torch.save(content, cast(IO[bytes], hashed))
        except Exception:
            if hashed.error is not None:
                raise hashed.error from None
            raise
        file.flush()
        os.fsync(file.fileno())
    return Part(name, hashed.digest.hexdigest(), hashed.bytes)


def partial_folder(path: Path) -> Path:
    """Where the files of checkpoint ``path`` lie until it is committed."""
    return path.with_name(f".{path.name}.partial")


def commit(path: Path, parts: Iterable[Part], facts: dict[str, Any]) -> None:
    """Give the written files of :func:`partial_folder` their final name; ``facts`` go into the manifest.

    An undamaged checkpoint of the same name stays, for it holds the same; a damaged one is replaced.
    """
    partial = partial_folder(path)
    files = {part.name: {key: value for key, value in asdict(part).items() if key != "name"} for part in parts}
    write_text(partial / MANIFEST, json.dumps({"format": FORMAT, **facts, "files": files}, indent=1) + "\n")
    if is_checkpoint(path) and damage(path) is None:
        shutil.rmtree(partial)
        return
    if path.exists():
        remove(path)
    os.rename(partial, path)
    sync(path.parent)
    write_text(path.parent / LATEST, path.name + "\n")


def remove(path: Path) -> None:
    """Delete a checkpoint; what a kill leaves of it is no checkpoint."""
    if path.is_dir():
        doomed = path.with_name(f".{path.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half written or half deleted."""
    for path in [*folder.glob(".step=*.partial"), *folder.glob(".step=*.removed")]:
        shutil.rmtree(path, ignore_errors=True)


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a checkpoint, whole or damaged."""
    return path.is_file() if path.suffix == _OLD_FILE else step_of(path) >= 0 and (path / MANIFEST).is_file()


def step_of(path: Path) -> int:
    """The optimizer step of a checkpoint, from its name; -1 for another name."""
    number = path.name.removesuffix(_OLD_FILE).partition("=")[2]
    return int(number) if number.isdecimal() else -1


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, the newest first, damaged ones among them."""
    found = [path for path in folder.glob(_FOLDER) if step_of(path) >= 0 and is_checkpoint(path)]
    return sorted(found, key=lambda path: (step_of(path), path.is_dir()), reverse=True)


def newest_checkpoint(folder: Path, damaged: Callable[[Path, str], None] | None = None) -> Path | None:
    """The newest undamaged checkpoint in ``folder``, None where there is none; ``damaged`` hears of those passed over
    and why.
    """
    for path in checkpoints_in(folder):
        reason = damage(path)
        if reason is None:
            return path
        if damaged is not None:
            damaged(path, reason)
    return None


def manifests_in(folder: Path) -> dict[Path, dict[str, Any]]:
    """{checkpoint: its manifest} of the checkpoints in ``folder`` whose manifest is readable, the newest first."""
    found = {}
    for path in checkpoints_in(folder):
        with suppress(OSError, ValueError):
            found[path] = manifest_of(path)
    return found


def validation_losses(folder: Path) -> dict[Path, float]:
    """{checkpoint: its validation loss} of those that were validated, the lowest first, of equal ones the newest."""
    losses = {path: manifest.get("validation_loss") for path, manifest in manifests_in(folder).items()}
    known = [(loss, path) for path, loss in losses.items() if loss is not None]
    return {path: loss for loss, path in sorted(known, key=lambda pair: pair[0])}


def note_validation(folder: Path, step: int, loss: float) -> None:
    """Write the validation loss of ``step`` into the manifest of its checkpoint, where there is one without."""
    for path, manifest in manifests_in(folder).items():
        if step_of(path) == step and path.is_dir() and manifest.get("validation_loss") is None:
            write_text(path / MANIFEST, json.dumps(manifest | {"validation_loss": loss}, indent=1) + "\n")


def manifest_of(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, of the oldest format an empty one. Raises ValueError where it is not readable."""
    if path.suffix == _OLD_FILE:
        return {"format": 1, "files": {}}
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError("its manifest is not one of a checkpoint")
    return manifest


def damage(path: Path) -> str | None:
    """What is wrong with the bytes of a checkpoint, None for nothing."""
    try:
        if path.suffix == _OLD_FILE:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            return f"{broken} in it is damaged" if broken else None
        files = manifest_of(path)["files"]
        for name, expected in files.items():
            if (path / name).stat().st_size != expected["bytes"]:
                return f"{name} has {(path / name).stat().st_size:,} bytes, expected {expected['bytes']:,}"
            if file_sha256(path / name) != expected["sha256"]:
                return f"{name} does not have the hash that was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename or '').name} is missing"
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    return None if STATE in files else f"its manifest does not name {STATE}"


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of any format as one of the newest, without running code from it.

    ``ranks`` in it holds what each rank had of its own. Raises UserError when it is absent or damaged.
    """
    path = Path(path)
    if not is_checkpoint(path):
        raise UserError(f"{path}: no such checkpoint.")
    reason = damage(path)
    if reason is None:
        try:
            manifest = manifest_of(path)
            if manifest["format"] > FORMAT:
                raise UserError(
                    f"{path} has format {manifest['format']}, expected {FORMAT} or older; a newer sciml wrote it."
                )
            state = torch.load(path / STATE if path.is_dir() else path, map_location=map_location, weights_only=True)
            names = sorted(name for name in manifest["files"] if name != STATE)
            state["ranks"] = [torch.load(path / name, map_location="cpu", weights_only=True) for name in names]
            return upgraded(state, manifest["format"])
        except UserError:
            raise
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
    raise UserError(f"{path} is not a readable checkpoint ({reason}); resume from an older one.")


class CheckpointReader(CheckpointIO):
    """Reads checkpoints for Lightning; they are written by :class:`sciml.train.saving.Checkpoints` alone."""

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See :func:`read_checkpoint`."""
        return read_checkpoint(Path(path), map_location or "cpu")

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        raise NotImplementedError("checkpoints are written by sciml.train.saving.Checkpoints")

    def remove_checkpoint(self, path: Any) -> None:
        remove(Path(path))


def package_of_checkpoint(path: Path, device: str = "cpu") -> Package | None:
    """The model of a checkpoint, or of the newest one in a run folder or its ``checkpoints``, in evaluation mode.

    It has the averaged weights, as a package of that step would have. None where there is no checkpoint. Raises
    UserError for one that is damaged or does not describe its model.
    """
    path = Path(path)
    if path.suffix == _OLD_FILE or is_checkpoint(path):
        found: Path | None = path
    else:
        found = newest_checkpoint(path) or newest_checkpoint(path / "checkpoints")
    if found is None:
        return None
    stored = read_checkpoint(found)
    if not stored.get("package"):
        raise UserError(f"{found} does not describe its model, an older sciml wrote it; give the package of the run.")
    model = build_model(stored["package"]["model"])
    prefix = "model."
    weights = {k.removeprefix(prefix): v for k, v in stored["state_dict"].items() if k.startswith(prefix)}
    averages = stored.get("callbacks", {}).get("ExponentialAverage", {}).get("averages", [])
    config = dict(stored["package"])
    load_weights(model, weights, averages, config.pop("low_rank", {}))
    return Package(model.to(device).eval(), config, found)
