"""The ledger of faults: every fault made on this machine, one row each, as a table and as ``faults.json``."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sciml import __version__
from sciml.doctor.faults.row import Row
from sciml.doctor.faults.suite import Fault, faults, run_fault
from sciml.files import write_text
from sciml.train.progress import say


def examine_faults(output: Path, thorough: bool = False) -> int:
    """Make every fault, print the ledger and write it to ``output/faults.json``; returns 1 where one was not borne."""
    rows = make_faults(faults(), thorough)
    output.mkdir(parents=True, exist_ok=True)
    write(output / "faults.json", rows, thorough)
    print(table(rows))
    print(f"ledger  {output / 'faults.json'}")
    return int(not all(row.passed is not False for row in rows))


def make_faults(chosen: Sequence[Fault], thorough: bool = False) -> list[Row]:
    """Make faults one after the other, each in an empty folder of its own that is removed again.

    An exception in one is a row that did not pass: the others still run.
    """
    rows = []
    for fault in chosen:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="sciml-fault-", ignore_cleanup_errors=True) as folder:
            try:
                row = run_fault(fault, Path(folder), thorough)
            except Exception as error:
                what = (fault.__doc__ or fault.__name__).splitlines()[0]
                row = Row(
                    number_of(fault), what, "the fault can be made here", f"{type(error).__name__}: {error}", False
                )
        rows.append(row)
        say(f"{row.number:>2} {row.verdict} {row.fault} ({time.perf_counter() - start:.0f} s)")
    return sorted(rows, key=lambda row: row.number)


def number_of(fault: Fault) -> int:
    """The number in the name of a fault."""
    return int(fault.__name__.split("_")[1])


def write(path: Path, rows: list[Row], thorough: bool) -> None:
    """The rows with the machine they were made on."""
    facts: dict[str, Any] = {
        "sciml": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "thorough": thorough,
    }
    write_text(path, json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1, ensure_ascii=False) + "\n")


def table(rows: list[Row]) -> str:
    """One line a fault: its number, what was done, what was measured, whether it held."""
    lines = [f"{row.number:>3}  {row.verdict:<8}  {row.fault}: {row.figure}" for row in rows]
    made = [row for row in rows if row.passed is not None]
    borne = sum(bool(row.passed) for row in made)
    return "\n".join([*lines, "", f"{borne} of {len(made)} faults were borne as expected"])
