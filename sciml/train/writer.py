"""The thread that writes checkpoints while training goes on."""

import contextlib
import shutil
import threading
from pathlib import Path
from typing import Any

import torch

from sciml.errors import UserError
from sciml.train.checkpoint import (
    STATE,
    Part,
    checkpoints_in,
    commit,
    manifests_in,
    newest_checkpoint,
    partial_folder,
    rank_file,
    remove,
    remove_leftovers,
    validation_losses,
    write_part,
)


class Writer:
    """Writes one checkpoint of ``folder`` at a time and deletes those that need not stay.

    Each rank writes, syncs and hashes its own files; then all meet, in a ``group`` of gloo of their own (None for one
    rank), and the first rank alone commits. An error of any rank is an error of all of them. Of the checkpoints, the
    newest ``keep`` stay, the ``best`` of lowest validation loss, and the newest of which the run was in good order.
    """

    def __init__(self, folder: Path, keep: int = 2, best: int = 1, rank: int = 0, group: Any = None) -> None:
        self.folder, self.keep, self.best, self.rank, self.group = folder, keep, best, rank, group
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)

    def prepare(self, step: int) -> Path:
        """Make an empty folder for the files of a checkpoint, on the first rank before any rank starts; returns the
        checkpoint's path.
        """
        path = self.folder / f"step={step:09d}"
        if self.rank == 0:
            shutil.rmtree(partial_folder(path), ignore_errors=True)
            with contextlib.suppress(OSError):  # a full disk: writing into it will say so
                partial_folder(path).mkdir()
        return path

    def start(self, path: Path, parts: dict[str, dict[str, Any]], facts: dict[str, Any]) -> None:
        """Begin to write the ``parts`` {name of a file: content} of this rank; nothing else may change them."""
        self._thread = threading.Thread(target=self.write, args=(path, parts, facts), name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written, which :meth:`wait` will raise."""
        return self._error is not None

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the thread is done, for ``seconds`` at most. Raises UserError for a checkpoint that it could not
        write.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def write(self, path: Path, parts: dict[str, dict[str, Any]], facts: dict[str, Any]) -> None:
        """Write the files of this rank, meet, commit; what fails is kept for :meth:`wait`."""
        error: Exception | None = None
        written: list[Part] = []
        try:
            try:
                written = [write_part(partial_folder(path), name, content) for name, content in parts.items()]
            except Exception as caught:
                error, written = caught, []
            everything = self._meet(written)
            if self.rank == 0 and everything:
                try:
                    commit(path, everything, facts)
                    self._prune()
                except Exception as caught:
                    error, written = caught, []
            if not self._meet(written) and error is None:
                error = UserError(f"{path}: another rank could not write its part of this checkpoint.")
        except Exception as caught:  # a rank is gone, and the meeting with it
            error = error or UserError(f"{path}: the ranks could not meet to commit this checkpoint ({caught}).")
        if error is not None:
            if self.rank == 0:
                shutil.rmtree(partial_folder(path), ignore_errors=True)
            self._error = self._sentence(path, error)

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

    def _meet(self, parts: list[Part]) -> list[Part]:
        """The files that all ranks have written, none where a rank has none; all ranks wait for each other."""
        if self.group is None:
            return parts
        mine = torch.zeros(2, 41, dtype=torch.uint8)  # up to two files: whether it is there, 8 bytes of size, the hash
        for row, part in zip(mine, parts):
            row[:] = torch.tensor([1, *part.bytes.to_bytes(8), *bytes.fromhex(part.sha256)], dtype=torch.uint8)
        tables = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(self.group))]
        torch.distributed.all_gather(tables, mine, group=self.group)
        if not all(table.any() for table in tables):
            return []
        return [
            Part(name, bytes(row[9:]).hex(), int.from_bytes(bytes(row[1:9])))
            for rank, table in enumerate(tables)
            for name, row in zip((rank_file(rank), STATE), table.tolist())
            if row[0]
        ]

    def _prune(self) -> None:
        """Delete the checkpoints that need not stay."""
        found = checkpoints_in(self.folder)
        in_order = [path for path, manifest in manifests_in(self.folder).items() if manifest.get("in_order")]
        staying = {*found[: self.keep], *list(validation_losses(self.folder))[: self.best], *in_order[:1]}
        for path in found:
            if path not in staying:
                remove(path)
