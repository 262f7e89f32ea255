"""``events.jsonl``: what happened to a run beside its losses (steps left out, rewinds, damaged checkpoints), one line
each, complete across resumes without repeats.
"""

import json
from pathlib import Path
from typing import Any

from sciml.files import write_text

EVENTS = "events.jsonl"


def add_event(folder: Path, step: int, event: str, **facts: Any) -> None:
    """Append one line to the events of the run in ``folder``."""
    with open(folder / EVENTS, "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "event": event, **facts}, ensure_ascii=False) + "\n")


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of the run in ``folder``; a last line at which the process was killed is left out."""
    try:
        *whole, _ = (folder / EVENTS).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in whole]


def cut_events(folder: Path, step: int) -> None:
    """Drop events past ``step``, from which the run goes on, for they will happen again."""
    if (folder / EVENTS).exists():
        kept = [event for event in read_events(folder) if event["step"] <= step]
        write_text(folder / EVENTS, "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in kept))
