"""One run, one folder: a lock that another process, on this host or another, respects."""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sciml.errors import UserError

NAME = ".lock"
BEAT = 5.0  # seconds between the signs of life of a process that holds a lock


@contextmanager
def run_lock(folder: Path, beat: float = BEAT) -> Iterator[None]:
    """Hold ``folder`` for this process; raises UserError where another one does.

    The system's lock on the file ``.lock`` ends with its process, however that ends. Where the filesystem does not
    carry locks from host to host, the holder's signs of life (the file's time, renewed every ``beat`` seconds) tell
    whether it is there. The file says who holds the folder. Folders that were made for it and stayed empty are removed.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    over = threading.Event()
    try:
        _acquire(file, path, beat)
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(_myself()).encode(), 0)
        threading.Thread(target=_live, args=(path, over, beat), name="run lock", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            os.ftruncate(file, 0)  # the file stays: another process may have it open, to lock it next
            if made and [inside.name for inside in folder.iterdir()] == [NAME]:
                path.unlink()
                with suppress(OSError):  # a parent may have other runs by now
                    for empty in made:
                        empty.rmdir()
    finally:
        os.close(file)


def _acquire(file: int, path: Path, beat: float) -> None:
    """Lock the open file, unless its holder lives."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _taken(path, _holder(file)) from None
    except OSError:  # a filesystem without locks: the signs of life have to do
        if _alive(file, beat):
            raise _taken(path, _holder(file)) from None
        return
    holder = _holder(file)
    if holder.get("host", socket.gethostname()) != socket.gethostname() and _alive(file, beat):
        raise _taken(path, holder)


def _alive(file: int, beat: float) -> bool:
    """Whether the file's time moves within three beats; an old one is not waited for."""
    before = os.fstat(file).st_mtime
    if not os.fstat(file).st_size or time.time() - before > 60 * beat:
        return False
    end = time.monotonic() + 3 * beat
    while time.monotonic() < end:
        time.sleep(beat / 4)
        if os.fstat(file).st_mtime != before:
            return True
    return False


def _live(path: Path, over: threading.Event, beat: float) -> None:
    while not over.wait(beat):
        with suppress(OSError):
            os.utime(path)


def _myself() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "process": os.getpid(), "since": now}


def _holder(file: int) -> dict[str, Any]:
    """Who wrote the file, nothing where that is not readable."""
    try:
        found = json.loads(os.pread(file, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _taken(path: Path, holder: dict[str, Any]) -> UserError:
    who = (
        f"process {holder['process']} on {holder['host']} since {holder['since']}"
        if {"process", "host", "since"} <= holder.keys()
        else "another process"
    )
    return UserError(
        f"run_dir={path.parent} is being trained by {who}; wait for it to end or stop it, or give another run_dir."
    )
