"""One line of the ledger of faults."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What was done to a run, what has to happen, what was measured, and whether it held."""

    number: int
    fault: str
    expectation: str
    figure: str
    passed: bool
