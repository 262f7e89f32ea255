"""The certificate: the laws, one row per law and output, and their form as JSON and as text."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sciml.files import write_text

FORMAT = 1
Verdict = Literal["pass", "fail", "not applicable", "information"]


@dataclass(frozen=True)
class Law:
    """A physical law: its group, what it says, and the laws that may fail with it because they need it."""

    group: str
    statement: str
    consequences: tuple[str, ...] = ()


LAWS: dict[str, Law] = {
    "rotation": Law("symmetry", "outputs turn with the system", ("inversion", "Lorentz invariance")),
    "inversion": Law("symmetry", "outputs follow a reflection through the origin", ("Lorentz invariance",)),
    "translation": Law("symmetry", "the place of a system changes nothing", ("size extensivity", "size consistency")),
    "permutation": Law("symmetry", "the order of nodes changes nothing", ("size extensivity", "size consistency")),
    "repeatability": Law("symmetry", "the same input gives the same bits"),
    "forces": Law("derivatives", "forces are minus the derivative of the energy", ("energy conservation",)),
    "stress": Law("derivatives", "stress is the derivative of the energy against strain, by volume"),
    "precision": Law("derivatives", "forces in fp32 are those in fp64"),
    "energy conservation": Law("dynamics", "the total energy of an NVE run does not drift"),
    "cutoff: value": Law(
        "cutoff", "nothing jumps as an atom, or a residue, crosses its cutoff", ("cutoff: slope", "energy conservation")
    ),
    "cutoff: slope": Law("cutoff", "no slope jumps there", ("energy conservation",)),
    "net force": Law("conservation", "direct forces add up to zero", ("net torque",)),
    "net torque": Law("conservation", "torques of direct forces add up to zero"),
    "total charge": Law("conservation", "charges add up to the total charge", ("size extensivity", "size consistency")),
    "size extensivity": Law(
        "conservation", "two copies far apart, or a doubled crystal, have twice the energy", ("size consistency",)
    ),
    "size consistency": Law("conservation", "two different molecules far apart do not feel each other"),
    "Lorentz geometry": Law("jets", "the geometry does not know the frame of the momenta", ("Lorentz invariance",)),
    "Lorentz invariance": Law("jets", "outputs do not know the frame of the momenta"),
    "infrared safety": Law("jets", "a particle of vanishing energy changes nothing", ("collinear safety",)),
    "collinear safety": Law("jets", "a splitting at a vanishing angle changes nothing"),
}


@dataclass(frozen=True)
class Row:
    """One measurement: of a law, on one output (``subject``), in one precision.

    ``value`` is the worst over ``inputs``, found on ``worst``; it passes up to ``tolerance``. ``note`` says what the
    value is or why there is none.
    """

    law: str
    subject: str
    precision: str
    verdict: Verdict
    inputs: str = ""
    worst: str = ""
    value: float | None = None
    tolerance: float | None = None
    unit: str = ""
    note: str = ""


def judged(law: str, subject: str, precision: str, value: float, tolerance: float, **facts: str) -> Row:
    """The row of a measured value; a value that is not a number fails."""
    verdict: Verdict = "pass" if value <= tolerance else "fail"
    return Row(law, subject, precision, verdict, value=float(value), tolerance=tolerance, **facts)


def informed(law: str, subject: str, precision: str, value: float, tolerance: float, **facts: str) -> Row:
    """The row of a value that the model does not claim to keep within the tolerance."""
    return Row(law, subject, precision, "information", value=float(value), tolerance=tolerance, **facts)


def not_applicable(law: str, reason: str, subject: str = "") -> Row:
    """The row of a law that this model cannot be asked for."""
    return Row(law, subject, "", "not applicable", note=reason)


@dataclass
class Certificate:
    """All rows, the curves of the page, and what was certified: {name: value} of plain data."""

    facts: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        """Names of the laws with a failed row, in the order of LAWS."""
        broken = {row.law for row in self.rows if row.verdict == "fail"}
        return [law for law in LAWS if law in broken]

    def count(self, verdict: Verdict) -> int:
        """How many rows have a verdict."""
        return sum(row.verdict == verdict for row in self.rows)

    def sorted(self) -> list[Row]:
        """The rows in the order of the laws."""
        order = list(LAWS)
        return sorted(self.rows, key=lambda row: order.index(row.law))

    def write(self, path: Path) -> None:
        """Write ``certificate.json``; numbers that JSON cannot hold become texts (``"inf"``, ``"nan"``)."""
        laws = {name: asdict(law) for name, law in LAWS.items()}
        content = {
            "format": FORMAT,
            "verdict": "fail" if self.failed else "pass",
            "failed": self.failed,
            "facts": self.facts,
            "rows": [asdict(row) for row in self.sorted()],
            "laws": laws,
            "curves": self.curves,
        }
        write_text(path, json.dumps(_plain(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n")

    @property
    def table(self) -> str:
        """The worst row of every law, precision and verdict as text, failures one by one."""
        header = ("law", "output", "precision", "value", "tolerance", "verdict", "worst on")
        lines = [header, *(_cells(row, others) for row, others in condensed(self.sorted()))]
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        counts = ", ".join(f"{self.count(v)} {v}" for v in ("pass", "fail", "information", "not applicable"))
        return "\n".join([text[0], "-" * max(map(len, text)), *text[1:], "", f"rows: {counts}"])


def condensed(rows: Iterable[Row]) -> list[tuple[Row, int]]:
    """(the row nearest to its tolerance, how many others it stands for) per law, precision and verdict; failures and
    what is not applicable stand for themselves.
    """
    groups: dict[Any, list[Row]] = {}
    for number, row in enumerate(rows):
        alone = row.verdict in ("fail", "not applicable")
        groups.setdefault((row.law, row.precision, row.verdict, row.unit, number if alone else None), []).append(row)
    return [(max(group, key=_strain), len(group) - 1) for group in groups.values()]


def _strain(row: Row) -> float:
    """How near a value comes to its tolerance."""
    if row.value is None or not row.tolerance:
        return 0.0
    return row.value / row.tolerance


def number(value: float | None) -> str:
    """A value or tolerance for people."""
    return "" if value is None else f"{value:.2g}"


def _cells(row: Row, others: int) -> tuple[str, ...]:
    subject = f"{row.subject} (+{others})" if others else row.subject
    unit = f" {row.unit}" if row.unit else ""
    where = row.note if row.verdict == "not applicable" else row.worst
    value = f"{number(row.value)}{unit}" if row.value is not None else ""
    return row.law, subject, row.precision, value, number(row.tolerance), row.verdict, where


def _plain(value: Any) -> Any:
    """The same with texts for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
