"""Every fault of the ledger, made in real processes."""

from pathlib import Path

import pytest

from sciml.doctor.faults.row import Row
from sciml.doctor.faults.suite import NAME, Fault, faults, run_fault, takes_thorough

SEVEN_TRAININGS = {"fault_16_strategies"}  # two minutes on two cores
SHORT = [
    pytest.param(fault, False, id=fault.__name__, marks=[pytest.mark.slow] if fault.__name__ in SEVEN_TRAININGS else [])
    for fault in faults()
]
LONG = [
    pytest.param(fault, True, id=f"{fault.__name__}-thorough", marks=pytest.mark.slow)
    for fault in faults()
    if takes_thorough(fault)
]


@pytest.mark.parametrize(("fault", "thorough"), SHORT + LONG)
def test_a_fault_does_what_is_expected_of_it(fault: Fault, thorough: bool, tmp_path: Path) -> None:
    row = run_fault(fault, tmp_path, thorough)
    assert isinstance(row, Row)
    found = NAME.fullmatch(fault.__name__)
    assert found is not None
    assert row.number == int(found[1])
    assert row.passed, f"{row.fault}: expected {row.expectation}, found {row.figure}"
