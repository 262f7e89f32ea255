"""One line of the ledger of faults."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What was done to a run, what has to happen, what was measured, and whether it held: None where the fault cannot
    be made here.
    """

    number: int
    fault: str
    expectation: str
    figure: str
    passed: bool | None

    @property
    def verdict(self) -> str:
        """What a ledger says of it."""
        return "not made" if self.passed is None else "held" if self.passed else "FAILED"
