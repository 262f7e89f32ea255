"""One training step of a MACE-medium shape on a GPU, beside mace-torch with cuEquivariance and with OpenEquivariance.

    python benchmarks/peers/gpu_step.py setup      .venv-cuequivariance, .venv-openequivariance, with mace-torch
    python benchmarks/peers/gpu_step.py            results/gpu_step_<gpu>.json, less than 10 minutes
    python benchmarks/peers/gpu_step.py --device cpu --cells 2 2 2 --channels 8 --repeats 1     a miniature

Energy and force loss, its second derivatives, clipping and optimizer, fp32, on a periodic alloy of 5,000 atoms. Every
side is a process of its own and runs its step eagerly, compiled and as a captured CUDA graph (`stepping.py`), with
matrix products in single precision and in TF32; the fastest mode whose loss follows the eager one counts. Two layers,
128 channels, L = 1, harmonics to degree 3, correlation 3, 8 Bessel functions, radial network [64, 64, 64].
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stepping import MODES
from structures import write_alloy
from workers import machine, say, worker_environment, write_result

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
RESULTS = CHECKOUT / "benchmarks" / "results"
SIDES = ("ours", "cuequivariance", "openequivariance")
CELLS = (25, 10, 10)  # cubic cells of two atoms: 5,000
REQUIREMENTS = {
    "cuequivariance": ("torch==2.13.0", "cuequivariance==0.13.0", "cuequivariance-torch==0.13.0", "mace-torch==0.3.16"),
    "openequivariance": ("torch==2.13.0", "mace-torch==0.3.16", "openequivariance==0.7.0"),
}
CUDA_REQUIREMENTS = {"cuequivariance": "cuequivariance-ops-torch-cu13==0.13.0", "openequivariance": ""}


def environment(side: str) -> Path:
    """Where a peer lives."""
    return CHECKOUT / f".venv-{side}"


def setup(options: argparse.Namespace) -> int:
    """Make the environments of the peers; the compiled operations of cuEquivariance only for `--device gpu`."""
    for side in options.sides:
        if side == "ours":
            continue
        python = environment(side) / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", str(environment(side))], check=True)
        extra = CUDA_REQUIREMENTS[side] if options.device == "gpu" else ""
        for requirement in (*REQUIREMENTS[side], *([extra] if extra else [])):
            done = subprocess.run([str(python), "-m", "pip", "install", "--quiet", requirement])
            if done.returncode:
                say(f"gpu_step.py: {requirement} cannot be installed here; {side} will be left out")
                return 2
    return 0


def interpreter(side: str, device: str) -> tuple[str | None, str]:
    """The Python of a side, or None and the reason why it cannot be measured here."""
    if side == "ours":
        return sys.executable, ""
    if side == "openequivariance" and device == "cpu":
        return None, "it has kernels for GPUs only"
    python = environment(side) / "bin" / "python"
    if not python.exists():
        return None, f"no {environment(side).name} in this checkout (make it with `gpu_step.py setup`)"
    return str(python), ""


def worker(side: str, python: str, structure: Path, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run one side to its end, for `seconds` at most: its result, or the reason why it has none."""
    script = HERE / ("ours.py" if side == "ours" else "mace_worker.py")
    result = structure.with_name(f"{side}.json")
    command = [python, *([] if side == "ours" else ["-P"]), str(script), "modes", "--result", str(result)]
    command += ["--structure", str(structure), "--repeats", str(options.repeats), "--threads", str(options.threads)]
    command += ["--device", "cuda" if options.device == "gpu" else "cpu", "--channels", str(options.channels)]
    command += ["--modes", *options.modes]
    command += [] if side == "ours" else ["--accelerator", side]
    variables = worker_environment(options.threads)
    try:
        done = subprocess.run(
            command, env=variables, cwd=structure.parent, capture_output=True, text=True, timeout=max(1.0, seconds)
        )
    except subprocess.TimeoutExpired:
        return json.loads(result.read_text()) if result.exists() else {"skipped": "the time was over"}
    if done.returncode:
        return {"skipped": f"it failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:300]}"}
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def comparison(sides: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each precision atoms a second and peak memory of each side in its best mode, and ours over the faster peer.

    Raises:
        ValueError: the sides ran on different graphs.
    """
    ran = {name: side for name, side in sides.items() if "precisions" in side}
    graphs = {name: (side["atoms"], side["edges"], round(side["mean_length"], 4)) for name, side in ran.items()}
    if len(set(graphs.values())) > 1:
        raise ValueError(f"the sides ran on different graphs (atoms, edges, mean edge length): {graphs}")
    precisions = dict.fromkeys(precision for side in ran.values() for precision in side["precisions"])
    return {precision: _compared(ran, precision) for precision in precisions}


def _compared(ran: dict[str, dict[str, Any]], precision: str) -> dict[str, Any]:
    found: dict[str, Any] = {"mode": {}, "atoms_per_second": {}, "peak_memory_mib": {}}
    for name, side in ran.items():
        tried = side["precisions"][precision]
        mode = tried["modes"][tried["mode"]]
        found["mode"][name] = tried["mode"]
        found["atoms_per_second"][name] = side["atoms"] / mode["median_seconds"]
        found["peak_memory_mib"][name] = mode.get("peak_memory_mib")
    rates, memory = found["atoms_per_second"], found["peak_memory_mib"]
    peers = [name for name in rates if name != "ours"]
    if "ours" in rates and peers:
        faster = max(peers, key=lambda name: rates[name])
        found |= {"peer": faster, "speedup": rates["ours"] / rates[faster]}
        if memory["ours"] and memory[faster]:
            found["peak_memory_ratio"] = memory[faster] / memory["ours"]
    return found


def measure(options: argparse.Namespace) -> int:
    """Run the sides one after another and write the file; 1 where ours has no result."""
    sides: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        structure = Path(folder) / "alloy.xyz"
        write_alloy(structure, tuple(options.cells))
        for side in options.sides:
            python, reason = interpreter(side, options.device)
            left = end - time.monotonic()
            sides[side] = worker(side, python, structure, options, left) if python else {"skipped": reason}
            say(f"{side}: {sides[side].get('skipped') or 'measured'}")
            _write(sides, options.output)
    ours = sides.get("ours", {})
    print(json.dumps(comparison(sides), indent=1))
    return 0 if "precisions" in ours or "ours" not in options.sides else 1


def _write(sides: dict[str, dict[str, Any]], output: Path | None) -> None:
    device = sides.get("ours", {}).get("device", {})
    name = str(device.get("gpu", "cpu")).lower().replace(" ", "_")
    result = {"machine": machine() | device, **sides, "comparison": comparison(sides)}
    write_result(output or RESULTS / f"gpu_step_{name}.json", result)


def main() -> int:
    """The command line; 2 where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("setup", "measure"), default="measure")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--cells", nargs=3, type=int, default=CELLS, help="cubic cells of two atoms each")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=9.5, help="no side goes on after that time")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.command == "setup":
        return setup(options)
    if (
        options.device == "gpu"
        and subprocess.run(
            [sys.executable, "-c", "import torch; raise SystemExit(not torch.cuda.is_available())"]
        ).returncode
    ):
        say("gpu_step.py: torch finds no GPU here; --device cpu runs a miniature")
        return 2
    return measure(options)


if __name__ == "__main__":
    sys.exit(main())
