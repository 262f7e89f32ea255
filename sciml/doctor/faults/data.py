"""Faults of the data: bad records, and a process that loads them and dies."""

import json
import os
import signal
from pathlib import Path

import numpy as np

from sciml.data.store import Store
from sciml.doctor.faults.commands import SHORT_RUN, last_line, start, wait_for
from sciml.doctor.faults.processes import loaders_of
from sciml.doctor.faults.row import Row
from sciml.errors import UserError
from sciml.ingest.ingest import ingest
from sciml.train.checkpoint import package_of_checkpoint

GOOD = 20
WATER = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


def fault_13_bad_records(folder: Path) -> Row:
    """Records that are corrupt, not finite or in a wrong unit among good ones, and files that are so as a whole."""
    bad = {
        "NaN in the positions": _frame(positions=WATER * [[np.nan], [1.0], [1.0]]),
        "Inf in the forces": _frame(forces=np.full((3, 3), np.inf)),
        "forces in another unit": _frame(forces=np.full((3, 3), 1e9)),
        "energy in another unit": _frame(energy=-1e12),
        "positions of one digit too few": _frame().replace("0.96", "0.96x"),
        "no such element": _frame().replace("O ", "Qq "),
    }
    good = [_frame(energy=-470.0 + 0.1 * index) for index in range(GOOD)]
    (folder / "mixed.xyz").write_text("".join([*good[:10], *bad.values(), *good[10:]]), encoding="utf-8")
    store = ingest(folder / "mixed.xyz", folder / "mixed")
    entries = [json.loads(line) for line in (folder / "mixed" / "quarantine.jsonl").read_text().splitlines()]
    named = sum(bool(entry["id"] and entry["reason"]) for entry in entries)
    counted = store.manifest["counts"]["quarantined"]

    refused = 0
    (folder / "nanometres.xyz").write_text(
        "".join(_frame(positions=0.1 * WATER) for _ in range(GOOD)), encoding="utf-8"
    )
    (folder / "broken.xyz").write_text("".join(good)[:-40], encoding="utf-8")
    for name in ("nanometres", "broken"):
        refused += _is_refused(lambda name=name: ingest(folder / f"{name}.xyz", folder / name))
    shard = next((folder / "mixed").glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0x10
    shard.write_bytes(content)
    refused += _is_refused(lambda: Store(folder / "mixed", verify=True))
    shard.write_bytes(content[:-100])
    refused += _is_refused(lambda: Store(folder / "mixed"))

    left = [path.name for path in folder.iterdir() if path.is_dir() and path.name != "mixed"]
    passed = named == counted == len(bad) and len(store) == GOOD and refused == 4 and not left
    return Row(
        13,
        f"{len(bad)} bad records (NaN, Inf, wrong units, unreadable) among {GOOD}; files in nm, truncated, bit-flipped",
        "bad records are quarantined with id and reason and counted, good ones kept; such files are refused",
        f"{named} of {len(bad)} quarantined, {counted} counted, {len(store)} of {GOOD} kept, {refused} of 4 refused",
        passed,
    )


def fault_14_loader_dies(folder: Path) -> Row:
    """A process that loads data is killed, as the system does where memory runs out."""
    run = folder / "run"
    words = ("data.workers=1", "trainer.max_steps=100000", "trainer.checkpoint_every=2", "trainer.val_every=100000")
    process = start(folder, "train", *SHORT_RUN, *words, f"run_dir={run}")
    try:
        wait_for(lambda: process.poll() is not None or len(list((run / "checkpoints").glob("step=*"))) > 1)
        for worker in loaders_of(process.pid):
            os.kill(worker, signal.SIGKILL)
        code = process.wait(timeout=120)
    finally:
        process.kill()
        process.wait()
    said = last_line((folder / "output.txt").read_text(encoding="utf-8"))
    named = said.startswith("sciml: ") and "loads data" in said
    whole = package_of_checkpoint(run) is not None
    return Row(
        14,
        "kill -9 of the process that loads data, during training",
        "the run ends at once with one sentence that names it; the newest checkpoint is whole",
        f"exit code {code}, {'named' if named else 'not named'}, checkpoint {'whole' if whole else 'not readable'}",
        code not in (0, 1) and named and whole,
    )


def _frame(positions: np.ndarray = WATER, forces: np.ndarray | None = None, energy: float = -470.0) -> str:
    """A water molecule in extended XYZ."""
    rows = np.concatenate([positions, np.zeros((3, 3)) if forces is None else forces], axis=1)
    atoms = [" ".join([symbol, *(f"{number:.6g}" for number in row)]) for symbol, row in zip("OHH", rows)]
    return "\n".join(["3", f'Properties=species:S:1:pos:R:3:forces:R:3 energy={energy} pbc="F F F"', *atoms]) + "\n"


def _is_refused(action: object) -> bool:
    """Whether an action ends with a sentence for its user."""
    try:
        action()  # type: ignore[operator]
    except UserError:
        return True
    return False
