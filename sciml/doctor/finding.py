"""What a check found: a verdict, one sentence, and what to do."""

import shutil
import textwrap
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """``check`` names what was looked at, ``found`` says in one sentence what is there, ``advice`` what to do."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, advice: str) -> Finding:
    """The training runs, but probably not as it was meant."""
    return Finding(check, "warning", found, advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """The training fails, or what it does is lost."""
    return Finding(check, "problem", found, advice)


def table(findings: list[Finding], width: int | None = None) -> str:
    """One row a finding, its advice below; the last line counts the verdicts. Long sentences are wrapped."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    column = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        head = f"{finding.verdict:<8} {finding.check:<{column}}  "
        text = finding.found + (f" -> {finding.advice}" if finding.advice else "")
        room = max(width, len(head) + 40)
        lines += textwrap.wrap(text, room, initial_indent=head, subsequent_indent=" " * len(head))
    return "\n".join([*lines, "", summary(findings)])


def summary(findings: list[Finding]) -> str:
    """How many findings there are of each verdict."""
    count = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in ("problem", "warning")}
    words = [f"{number} {name}{'s' * (number != 1)}" for name, number in count.items() if number]
    return ", ".join(words) or "no problems found"


def megabytes(size: float) -> str:
    """Bytes for people: MiB, or GiB from one on."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds for people, in the form that the configuration takes: HH:MM:SS, with days in front of them."""
    whole = round(seconds)
    days, rest = divmod(whole, 86_400)
    text = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}:{text}" if days else text
