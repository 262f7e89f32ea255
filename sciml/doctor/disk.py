"""The disks: where the run writes, where its data lie, where temporary files go."""

import os
import shutil
import time
from pathlib import Path

from sciml.doctor.finding import Finding, megabytes, ok, problem, warning

PROBE_BYTES = 64 * 2**20
SLOW = 20 * 2**20  # bytes a second, below which a disk holds training up
MORE = 2  # checkpoints at once beside the newest and the best: the last in good order, and one that is being written
ROOM = 2.0  # times what is needed, below which a disk that others fill too is called short
SMALL_TEMPORARY = 2**30  # bytes
SHARED_PER_WORKER = 64 * 2**20  # bytes of shared memory: the batches that a worker has ready
NETWORK = ("nfs", "nfs4", "lustre", "gpfs", "cifs", "ceph", "fuse.sshfs", "beegfs")


def examine_disks(run_dir: Path, data: list[Path], checkpoint_bytes: int, kept: int, workers: int) -> list[Finding]:
    """Speed and room of the disks of a run that keeps ``kept`` checkpoints of ``checkpoint_bytes`` each."""
    found = [run_folder(run_dir, checkpoint_bytes, kept), *(data_folder(path) for path in data), _temporary(run_dir)]
    return [*found, *([_shared_memory(workers)] if workers else [])]


def run_folder(run_dir: Path, checkpoint_bytes: int, kept: int) -> Finding:
    """Room for the checkpoints, and how long one takes to be written."""
    parent = existing(run_dir)
    if not os.access(parent, os.W_OK):
        return problem("run folder", f"{parent} cannot be written", "give another run_dir")
    at_once = kept + MORE
    free, needed = shutil.disk_usage(parent).free, at_once * checkpoint_bytes
    text = (
        f"{megabytes(free)} free on {filesystem(parent)}, {megabytes(needed)} needed by {at_once} checkpoints at once"
    )
    if free < needed:
        return problem("run folder", text, "free some, or give a run_dir on another disk")
    speed = write_speed(parent, min(PROBE_BYTES, free // 4))
    seconds = checkpoint_bytes / speed
    text += f"; {megabytes(speed)}/s written, so one of {megabytes(checkpoint_bytes)} takes {seconds:.1f} s"
    if free < ROOM * needed:
        return warning("run folder", text, "free some: other files grow too")
    if speed < SLOW:
        return warning("run folder", text, "give a run_dir on a faster disk, or save less often")
    return ok("run folder", text)


def data_folder(path: Path) -> Finding:
    """How fast a store or file can be read."""
    file = max(path.glob("*.arrow"), key=lambda shard: shard.stat().st_size, default=path) if path.is_dir() else path
    size, seconds = read_speed(file)
    text = f"{path.name} on {filesystem(path)}: {megabytes(size / seconds)}/s read (or from memory)"
    if size > PROBE_BYTES // 2 and size / seconds < SLOW:
        return warning("data disk", text, "copy the data to a local disk first")
    return ok("data disk", text)


def _temporary(run_dir: Path) -> Finding:
    """``$TMPDIR`` on another filesystem, where a file cannot be renamed into the run's folder."""
    folder = Path(os.environ.get("TMPDIR") or "/tmp")
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        return problem("$TMPDIR", f"{folder} is no folder that can be written", "set TMPDIR to one that can")
    free = shutil.disk_usage(folder).free
    other = os.stat(folder).st_dev != os.stat(existing(run_dir)).st_dev
    text = f"{folder}, {megabytes(free)} free, " + (
        "on another filesystem than the run: nothing is renamed across, checkpoints are written in the run's folder"
        if other
        else "on the filesystem of the run"
    )
    if free < SMALL_TEMPORARY:
        return warning("$TMPDIR", text, "set TMPDIR to a larger disk: kernels are compiled and files ingested there")
    return ok("$TMPDIR", text)


def _shared_memory(workers: int) -> Finding:
    """Batches come from the workers through /dev/shm, which is small in containers."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return warning("shared memory", "/dev/shm is not there", "use data.workers=0")
    text = f"{megabytes(free)} free in /dev/shm for {workers} workers"
    if free < workers * SHARED_PER_WORKER:
        return problem("shared memory", text, "start the container with a larger --shm-size, or use data.workers=0")
    return ok("shared memory", text)


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def filesystem(path: Path) -> str:
    """Mount point and type of the filesystem of a path, from the kernel's table."""
    try:
        lines = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return "an unknown filesystem"
    mounts = [(line[1], line[2]) for line in lines if path.resolve().is_relative_to(line[1])]
    point, kind = max(mounts, key=lambda mount: len(mount[0]), default=("/", "unknown"))
    return f"{point} ({kind}{', a network' if kind in NETWORK else ''})"


def write_speed(folder: Path, size: int) -> float:
    """Bytes a second that reach the disk: written and synced in a file that is removed again."""
    probe, block = folder / f".sciml-doctor-{os.getpid()}", os.urandom(2**20)
    start = time.perf_counter()
    try:
        with open(probe, "wb") as file:
            for _ in range(max(1, size // len(block))):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return max(1, size // len(block)) * len(block) / (time.perf_counter() - start)
    finally:
        probe.unlink(missing_ok=True)


def read_speed(file: Path) -> tuple[int, float]:
    """Bytes that were read from the beginning of a file, and the seconds it took."""
    start = time.perf_counter()
    with open(file, "rb") as opened:
        size = len(opened.read(PROBE_BYTES))
    return size, max(time.perf_counter() - start, 1e-9)
