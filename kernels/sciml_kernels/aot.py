"""Compile Triton kernels ahead of time, for GPUs that need not be there, and report what the compiler made of them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from sciml_kernels import cache

TARGETS = ("sm_80", "sm_90", "gfx942")


@dataclasses.dataclass(frozen=True)
class Report:
    """What one compilation gave.

    Attributes:
        registers: of one thread.
        spills: bytes a thread moves to or from memory for lack of registers (AMD: that it keeps there); 0 is wanted.
        shared: bytes of shared memory of a program.
        seconds: of processor time that the compilation took, on the machine of the first time.
    """

    registers: int
    spills: int
    shared: int
    seconds: float


def report(
    function: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    target: str,
    num_warps: int = 4,
    num_stages: int = 1,
    maxnreg: int | None = None,
) -> Report:
    """Compile a jitted function, or read the report of the same compilation from the cache folder.

    Args:
        function: of `triton_source.load`, or any `triton.jit` function; not under TRITON_INTERPRET=1.
        signature: Triton type of each argument that is no constant, e.g. {"x": "*fp32", "rows": "i64"}; pointers are
            taken to be aligned to 16 bytes, as those of tensors are.
        constants: value of each `tl.constexpr` argument.
        target: "sm_80", "sm_90", ... or "gfx942".
        num_warps, num_stages, maxnreg: as at a launch; AMD's compiler knows no maxnreg, which is ignored there.

    Raises:
        ValueError: an interpreted function, or a target of another form.
    """
    import triton

    if not isinstance(function, triton.JITFunction):
        raise ValueError(f"function: found {type(function).__name__}, expected a triton.jit function (not interpreted)")
    options = {"num_warps": num_warps, "num_stages": num_stages}
    if maxnreg is not None and target.startswith("sm_"):
        options["maxnreg"] = maxnreg
    source = _source(function, signature, constants)
    address = cache.address(source.hash(), repr(options), target, triton.__version__)
    path = cache.folder() / f"{function.__name__}_{address}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Report(**json.loads(path.read_text()))
    found = _compile(source, _target(target), options)
    cache.publish(path, json.dumps(dataclasses.asdict(found)).encode())
    return found


def _source(function: Any, signature: Mapping[str, str], constants: Mapping[str, Any]) -> Any:
    """The function with the types of its arguments, and what a launch knows of their alignment."""
    from triton.compiler import ASTSource

    types = {name: signature.get(name, "constexpr") for name in function.arg_names}
    specialized = [parameter for parameter in function.params if not parameter.do_not_specialize_on_alignment]
    pointers = [parameter.num for parameter in specialized if types[parameter.name].startswith("*")]
    return ASTSource(function, types, dict(constants), {(index,): [["tt.divisibility", 16]] for index in pointers})


def _target(name: str) -> Any:
    from triton.backends.compiler import GPUTarget

    if re.fullmatch(r"sm_\d+", name):
        return GPUTarget("cuda", int(name[3:]), 32)
    if re.fullmatch(r"gfx9\w+", name):
        return GPUTarget("hip", name, 64)
    raise ValueError(f"target: found {name!r}, expected e.g. one of {', '.join(TARGETS)}")


def _compile(source: Any, target: Any, options: Mapping[str, int]) -> Report:
    from triton import compile as triton_compile
    from triton import knobs

    log, start = io.StringIO(), _processor_time()
    with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True  # a hit of Triton's own cache has no log and takes no time
        compiled = triton_compile(source, target=target, options=dict(options))
    seconds = round(_processor_time() - start, 2)
    if target.backend == "cuda":
        registers, spills = _of_ptxas(log.getvalue())
    else:
        registers, spills = _of_amdgcn(compiled.asm["amdgcn"])
    return Report(registers, spills, compiled.metadata.shared, seconds)


def _processor_time() -> float:
    """Of this process and of the assemblers that it has run: unlike the time of day, the same on a busy machine."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _of_ptxas(log: str) -> tuple[int, int]:
    used = [int(count) for count in re.findall(r"Used (\d+) registers", log)]
    spilled = [int(count) for count in re.findall(r"(\d+) bytes spill (?:stores|loads)", log)]
    return max(used), sum(spilled)


def _of_amdgcn(text: str) -> tuple[int, int]:
    used = [int(count) for count in re.findall(r"\.vgpr_count:\s+(\d+)", text)]
    spilled = [int(count) for count in re.findall(r"\.private_segment_fixed_size:\s+(\d+)", text)]
    return max(used), sum(spilled)
