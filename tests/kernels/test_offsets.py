"""No kernel moves a pointer by a 32-bit number that depends on data: tensors of more than 2^31 elements are served.

(Convolutions: `test_triton.py` runs one on a table of that size; `test_compile.py` and
`test_convolution_radial_triton.py` look at their sources.)
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from sciml_kernels import aot

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "kernels"
OPERATIONS = (
    "product", "symmetric_contraction", "edge_embedding", "layers", "segments", "pair_features", "structure_factors",
    "coulomb_pairs",
)  # fmt: skip
DATA = ("tt.load", "tt.get_program_id x", "tt.func", "scf.while")  # where numbers come from that have no bound


def narrow_offsets(text: str) -> list[str]:
    """The lines of Triton's intermediate code that add to a pointer a 32-bit number which has no bound."""
    origin: dict[str, tuple[str, list[str]]] = {}
    for line in text.splitlines():
        names, _, rest = line.strip().partition(" = ")
        loop = re.match(r"(?:%\S+ = )?scf\.for (%\w+) = (.*?) (?:iter_args|:)", line.strip())
        if loop:
            origin[loop[1]] = ("scf.for", re.findall(r"%\w+", loop[2]))
        elif names.startswith("%"):
            origin[names.split(":")[0]] = (rest, re.findall(r"%\w+", rest))

    def unbounded(name: str, seen: frozenset[str] = frozenset()) -> bool:
        if name in seen:
            return False
        if name not in origin:  # an argument of the kernel, or a number that a loop carries
            return True
        operation, operands = origin[name]
        if operation.startswith(DATA) or operation.startswith("arith.trunci"):
            return True
        return any(unbounded(operand, seen | {name}) for operand in operands)

    pattern = r"tt\.addptr %\w+, (%\w+) : .*, (?:tensor<[\dx]+x)?(i\d+)"
    moves = [re.search(pattern, line) for line in text.splitlines() if "tt.addptr" in line]
    assert moves
    assert all(moves)
    return [move[0] for move in moves if move and move[2] != "i64" and unbounded(move[1])]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_offsets_have_64_bits(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import compile as triton_compile

    monkeypatch.syspath_prepend(str(FOLDER))
    launches = importlib.import_module("launches")
    assert set(OPERATIONS) == set(launches.OPERATIONS)
    for launch in launches.OPERATIONS[operation]():
        for kernel in launch.kernels(32):
            source = aot._source(kernel.function, kernel.types, kernel.constants)
            text = triton_compile(source, target=aot._target("sm_90"), options={"num_warps": kernel.warps}).asm["ttir"]
            assert narrow_offsets(text) == [], launch.name


def test_what_is_narrow_is_found() -> None:
    """A node times a length in 32 bits, and the same in 64."""
    narrow = """
    %0 = tt.get_program_id x : i32
    %c4 = arith.constant 4 : i32
    %1 = arith.muli %0, %c4 : i32
    %2 = tt.addptr %arg0, %1 : !tt.ptr<f32>, i32
    """
    assert len(narrow_offsets(narrow)) == 1
    wide = narrow.replace(": !tt.ptr<f32>, i32", ": !tt.ptr<f32>, i64")
    assert narrow_offsets(wide) == []
