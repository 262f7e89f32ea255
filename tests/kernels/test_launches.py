"""Every launch that is counted in benchmarks/kernels/launches.py, compiled ahead of time for every target."""

from __future__ import annotations

import importlib

import pytest

from sciml_kernels import aot
from tests.kernels.test_compile import MOST_SECONDS
from tests.kernels.test_offsets import FOLDER, OPERATIONS

QUICK = ("coulomb_pairs",)


@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize(
    "operation", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OPERATIONS]
)
def test_launches_compile_without_spills(operation: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    launches = importlib.import_module("launches")
    for launch in launches.OPERATIONS[operation]():
        for kernel in launch.kernels(64 if target.startswith("gfx") else 32):
            given = (kernel.function, kernel.types, kernel.constants, target, kernel.warps)
            found = aot.report(*given)
            if found.spills:  # some by choice, so that one more program runs: none where all registers may be taken
                found = aot.report(*given, maxnreg=255)
            assert found.spills == 0, (launch.problem, launch.name, found)
            assert found.seconds < MOST_SECONDS, (launch.problem, launch.name, found)
