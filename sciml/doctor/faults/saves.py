"""Checkpoints that are being written, damaged, too large for the disk, or old."""

import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sciml.doctor.faults.processes import codes, ended, start, start_function, wait_until
from sciml.doctor.faults.row import Row
from sciml.doctor.faults.small import checkpoint, train_here, words
from sciml.errors import UserError
from sciml.package import load, save
from sciml.train.checkpoint import (
    STATE,
    checkpoints_in,
    damage,
    newest_checkpoint,
    package_of_checkpoint,
    rank_file,
    read_checkpoint,
    step_of,
)
from sciml.train.events import read_events
from sciml.train.resume import put_aside, resume_point
from sciml.train.writer import Writer

OTHER_FILESYSTEM = Path("/dev/shm")
FROZEN = Path(__file__).parent / "frozen"
"""A small run with a checkpoint of every format there ever was."""


def _has_newer(folder: Path, step: int) -> bool:
    """Whether there is a checkpoint of a later step."""
    return max(map(step_of, checkpoints_in(folder)), default=0) > step


def _write(folder: Path, steps: range) -> None:
    """Write checkpoints of 2 MB one after the other."""
    if OTHER_FILESYSTEM.is_dir():
        os.environ["TMPDIR"] = str(OTHER_FILESYSTEM)
    writer = Writer(folder, keep=3)
    for step in steps:
        state = {"global_step": step, "weights": torch.full((500_000,), float(step)), "validation_due": False}
        path = writer.prepare(step)
        writer.start(path, {STATE: state, rank_file(0): {"generators": {}}}, {"step": step, "in_order": True})
        writer.wait()


def fault_02_kill_during_saves(folder: Path, thorough: bool = False) -> Row:
    """Kill a process that saves all the time, at random moments, with $TMPDIR on another filesystem."""
    moments, kills = random.Random(0), 40 if thorough else 10
    unreadable = seen = 0
    newest = 0
    for _ in range(kills):
        process = start_function(_write, folder, range(newest + 1, 10**9))
        with ended([process]):
            wait_until(partial(_has_newer, folder, newest), [process])
            time.sleep(moments.uniform(0.0, 0.05))
        found = checkpoints_in(folder)
        for path in found:
            seen += 1
            whole = damage(path) is None and read_checkpoint(path)["global_step"] == step_of(path)
            unreadable += not (whole and bool((read_checkpoint(path)["weights"] == step_of(path)).all()))
        newest = step_of(found[0])
    return Row(
        2,
        f"kill -9 at {kills} random moments while checkpoints are written, $TMPDIR on another filesystem",
        "every checkpoint that has its name is whole",
        f"{unreadable} of {seen} unreadable",
        unreadable == 0 and seen >= kills,
    )


def fault_07_damaged_checkpoint(folder: Path) -> Row:
    """Cut the newest checkpoint short, and flip one bit of it."""
    outcomes = []
    for damage_of in (_cut_short, _flip_a_bit):
        run = folder / damage_of.__name__
        _write(run / "checkpoints", range(1, 4))
        damage_of(run / "checkpoints" / "step=000000003" / STATE)
        damaged: dict[Path, str] = {}
        found = resume_point(run, True, damaged)
        assert found is not None
        put_aside(run, damaged, found)
        (event,) = read_events(run)
        named = event["checkpoint"] == "step=000000003"
        outcomes.append(named and found == run / "checkpoints" / "step=000000002" and damage(found) is None)
    try:
        read_checkpoint(folder / "_flip_a_bit" / "checkpoints" / "damaged-step=000000003")
        outcomes.append(False)
    except UserError:
        outcomes.append(True)
    return Row(
        7,
        "the newest checkpoint is cut short, or one of its bits is flipped",
        "it is named, never read, and the next older good one is taken",
        f"{sum(outcomes)} of {len(outcomes)} as expected",
        all(outcomes),
    )


def _cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def fault_08_full_disk(folder: Path) -> Row:
    """Train into a disk that is full after some checkpoints."""
    with _small_disk(folder / "disk") as small:
        where = "a filesystem of 1 MB" if small else "a limit of the size of a file"
        place = folder / "disk"
        process = start(["train", *words(place, "trainer.max_steps=200")], folder / "output.txt")
        with ended([process]):
            if not small:
                wait_until(lambda: newest_checkpoint(place / "run" / "checkpoints") is not None, [process])
                resource.prlimit(process.pid or 0, resource.RLIMIT_FSIZE, (4096, 4096))
            (code,) = codes([process])
        said = [line for line in (folder / "output.txt").read_text().splitlines() if line.startswith("sciml: ")]
        found = checkpoints_in(place / "run" / "checkpoints")
        whole = [path for path in found if damage(path) is None]
        left = list((place / "run" / "checkpoints").glob(".step=*"))
    return Row(
        8,
        f"the disk is full ({where})",
        "one sentence, exit code 2, every committed checkpoint whole, nothing half written",
        f"exit code {code}, {len(said)} sentence, {len(whole)} of {len(found)} whole, {len(left)} left over",
        code == 2 and len(said) == 1 and len(whole) == len(found) > 0 and not left,
    )


@contextmanager
def _small_disk(path: Path) -> Iterator[bool]:
    """A filesystem of 1 MB at ``path`` where this process may mount one; else an ordinary folder, and False."""
    path.mkdir()
    mount = shutil.which("mount")
    mounted = mount is not None and os.geteuid() == 0
    if mounted:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True)
        mounted = done.returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(path)], check=True)


def fault_17_old_checkpoints(folder: Path) -> Row:
    """Load, resume and export a run of every format of checkpoint."""
    outcomes: dict[str, bool] = {}
    for frozen in sorted(FROZEN.iterdir()):
        place = folder / frozen.name
        (folder / frozen.name).mkdir(parents=True)
        words(place)
        shutil.copytree(frozen, place / "run")
        outcomes[frozen.name] = _lives(place)
    return Row(
        17,
        "checkpoints of every older format, and of this one, from a file frozen when the format was new",
        "each loads, resumes and exports",
        ", ".join(f"{name} {'does' if good else 'does not'}" for name, good in outcomes.items()),
        all(outcomes.values()) and len(outcomes) >= 2,
    )


def _lives(place: Path) -> bool:
    package = package_of_checkpoint(place / "run")
    if package is None or step_of(package.path) != 2:
        return False
    save(place / "package", package.model, {**package.config, "sciml_version": ""}, "A model of a test.")
    exported: Any = load(place / "package").model.state_dict()
    same = all(torch.equal(value, exported[name]) for name, value in package.model.state_dict().items())
    train_here(place, "resume=true", "trainer.checkpoint_every=2")
    return same and damage(checkpoint(place, 4)) is None
