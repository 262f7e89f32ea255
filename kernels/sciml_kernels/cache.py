"""A content-addressed folder, safe for several processes and for unlike machines that share it, and its C++ libraries.

A library is named by a hash of source, compiler version, flags and processor, and ends with the SHA-256 of what
precedes (loaders ignore bytes after an ELF file), so that a truncated or altered entry is rebuilt, never loaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

FOLDER_VARIABLE = "SCIML_KERNELS_CACHE"
DIGEST_BYTES = 32

# No -ffast-math: it would set flush-to-zero for the whole process and assume that NaN never occurs.
FLAGS = ("-std=c++17", "-O2", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")


class CompilerError(ValueError):
    """Compiled kernels are not possible here: no compiler, one that fails, or no folder to write to."""


def folder() -> Path:
    """The cache folder: $SCIML_KERNELS_CACHE, else ~/.cache/sciml_kernels; read at every call."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen) if chosen else Path.home() / ".cache" / "sciml_kernels"


def address(*parts: str) -> str:
    """The name of an entry: a hash of everything that it was made from."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def publish(path: Path, content: bytes) -> None:
    """Write an entry so that another process, or a crash, sees all of it or nothing.

    Raises:
        CompilerError: the folder cannot be used.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as scratch:
            partial = Path(scratch) / path.name
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    except OSError as error:
        raise CompilerError(
            f"the cache folder {path.parent} cannot be used: {error} (set {FOLDER_VARIABLE})"
        ) from error


def compiler() -> str:
    """Path of the C++ compiler: $CXX, else the first of c++, g++, clang++ on the search path.

    Raises:
        CompilerError: none is there.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise CompilerError(f"no C++ compiler was found (looked for {', '.join(names)}; install g++ or set CXX)")


def load(source: str) -> ctypes.CDLL:
    """The shared library of a C++ source, compiled unless the cache has it.

    Raises:
        CompilerError: no compiler, or it fails.
    """
    command = _command(compiler())
    runtime = [Path(name).name for name in _openmp_library()]  # what the library will ask the loader for
    path = folder() / f"{address(source, *command, *runtime, _version(command[0]), _processor())}.so"
    if not _intact(path):
        library = _compiled(source, command)
        publish(path, library + hashlib.sha256(library).digest())
    return ctypes.CDLL(str(path))


def _command(cxx: str) -> tuple[str, ...]:
    native = {"x86_64": ("-march=native", "-mprefer-vector-width=512")}.get(platform.machine(), ("-mcpu=native",))
    return (cxx, *FLAGS, *native)


@functools.cache
def vector_bytes() -> int:
    """How wide the vector registers are for which the compiler writes code here: 64, 32 or 16 bytes.

    Raises:
        CompilerError: no compiler is there.
    """
    command = [*_command(compiler()), "-dM", "-E", "-x", "c++", os.devnull]
    defined = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return 64 if "__AVX512F__" in defined else 32 if "__AVX__" in defined else 16


@functools.cache
def _version(cxx: str) -> str:
    return subprocess.run([cxx, "--version"], capture_output=True, text=True, check=False).stdout


@functools.cache
def _processor() -> str:
    """What -march=native looks at: folders may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _openmp_library() -> list[str]:
    """The OpenMP runtime that torch has loaded, to be shared: two runtimes would fight for the same processors."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    loaded = {line.split(maxsplit=5)[-1] for line in maps if "libgomp" in line}
    return sorted(loaded, key=lambda path: ("/torch/" not in path, path))[:1]  # other packages bring one as well


def _intact(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    body, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    return hashlib.sha256(body).digest() == digest


def _compiled(source: str, command: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="sciml-kernels-") as scratch:
        text, built = Path(scratch) / "kernel.cpp", Path(scratch) / "kernel.so"
        text.write_text(source)
        link = ["-Wl,--as-needed", *_openmp_library()]
        result = subprocess.run(
            [*command, str(text), "-o", str(built), *link], capture_output=True, text=True, check=False
        )
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["no message"]
            first = next((line for line in lines if "error" in line), lines[0])
            raise CompilerError(f"the compiler {command[0]} failed with: {first}")
        return built.read_bytes()
