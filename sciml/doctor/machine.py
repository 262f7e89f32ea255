"""The machine: versions of the stack, GPU and driver, kernels, processor."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import warnings
from typing import Any

import torch
from packaging.requirements import Requirement

from sciml.doctor.finding import Finding, megabytes, ok, problem, warning
from sciml.train.provenance import DISTRIBUTIONS, version_of
from sciml_kernels.backends import choose

BUSY = 0.1  # of a GPU's memory, above which another process is said to be there
ASKING = ("sciml", "torch")  # distributions whose requirements must be met: torch asks for one Triton exactly


def examine_machine(config: Any) -> list[Finding]:
    """What of the machine would stop or slow down the training that ``config`` describes."""
    trainer = config.trainer
    gpu = trainer.accelerator == "gpu" or (trainer.accelerator == "auto" and torch.cuda.is_available())
    found = [_versions(), _requirements(), _gpus(trainer.devices) if gpu else _cpu_only(trainer.accelerator)]
    return [
        *found,
        _kernels(config.model.backend, "cuda" if gpu and torch.cuda.is_available() else "cpu"),
        _cores(trainer),
    ]


def _versions() -> Finding:
    known = {name: version_of(name) for name in (*DISTRIBUTIONS, "deepspeed", "hydra-core", "wandb")}
    listed = ", ".join(f"{name} {version or 'absent'}" for name, version in known.items())
    return ok("versions", f"python {platform.python_version()}, {listed}")


def _requirements() -> Finding:
    """Whether what is installed is what sciml and torch ask for."""
    wrong = [text for name in ASKING for text in unmet(name)]
    if wrong:
        return problem(
            "requirements", "; ".join(wrong), "install what is asked for: pip install -c constraints.txt sciml"
        )
    return ok("requirements", "everything that sciml and torch ask for is installed")


def unmet(distribution: str) -> list[str]:
    """Requirements of an installed ``distribution``, without its extras, that the environment does not meet."""
    try:
        required = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:  # used from a checkout that is not installed
        return []
    wrong = []
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = version_of(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{distribution} asks for {requirement.name}{requirement.specifier}, found {found or 'none'}")
    return wrong


def _cpu_only(accelerator: str) -> Finding:
    if accelerator == "cpu" and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return warning("GPU", f"{name} is here, but trainer.accelerator is cpu", "add trainer=gpu to train on it")
    if driver := driver_of_gpus():
        return problem(
            "GPU",
            f"there is a GPU ({driver[0]}), but torch {torch.__version__} cannot use it",
            "install a build of torch for its driver, see SCIML_TORCH_INDEX in scripts/environment",
        )
    return ok("GPU", "none is used")


def _gpus(devices: int) -> Finding:
    """Whether the GPUs that are asked for are there, are free and are known to this build of torch."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    driver = driver_of_gpus()
    if not found:
        there = f" although the driver sees {driver[0]}" if driver else ""
        return problem(
            "GPU",
            f"trainer.accelerator is gpu, but torch {torch.__version__} finds none{there}",
            "run where there is one, or with trainer.accelerator=cpu; a build of torch for GPUs may be missing",
        )
    if devices > found:
        return problem(
            "GPU", f"trainer.devices is {devices}, but there are {found} GPUs", f"use trainer.devices={found}"
        )
    name, (free, total) = torch.cuda.get_device_name(), torch.cuda.mem_get_info()
    text = f"{found} x {name}, {megabytes(total)}, driver {driver[1] if driver else 'unknown'}"
    architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
    known = torch.cuda.get_arch_list()
    if torch.version.hip is None and known and not any(_serves(arch, architecture) for arch in known):
        return problem(
            "GPU",
            f"{text}: torch {torch.__version__} was built for {', '.join(known)}",
            "install another build of torch",
        )
    if total - free > BUSY * total:
        return warning("GPU", f"{text}: {megabytes(total - free)} are taken already", "look for other processes on it")
    return ok("GPU", text)


def _serves(built: str, architecture: str) -> bool:
    """Code for sm_80 runs on sm_86 too: the same first digits, and no newer."""
    first, second = (int("".join(filter(str.isdigit, name)) or 0) for name in (built, architecture))
    return first // 10 == second // 10 and first <= second


def driver_of_gpus() -> tuple[str, str] | None:
    """Name of the first NVIDIA GPU and version of its driver, as the driver's own tool says; None without either."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, version = (done.stdout.splitlines() or [""])[0].partition(", ")
    return (name, version.strip()) if version else None


def _kernels(backend: str, device: str) -> Finding:
    """Which kernels would run, and why no faster ones."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            chosen = choose(backend, torch.empty(0, device=device))
        except ValueError as error:
            return problem("kernels", f"model.{error}", "use model.backend=auto")
    if chosen != "reference":
        made = "generated C++, compiled on this machine" if chosen == "cpu" else "Triton"
        return ok("kernels", f"{chosen} ({made})")
    if backend == "reference":
        return warning("kernels", "model.backend is reference, plain torch", "use model.backend=auto for faster ones")
    reason = " ".join(str(said[0].message).split()) if said else "faster ones cannot be made here"
    return warning("kernels", f"plain torch, {reason}", "install a C++ compiler such as g++" if device == "cpu" else "")


def _cores(trainer: Any) -> Finding:
    """Whether the processes and their threads fit onto the cores that this process may use."""
    cores = len(os.sched_getaffinity(0))
    threads = (trainer.threads or torch.get_num_threads()) * trainer.devices
    text = f"{cores} cores, {trainer.devices} x {trainer.threads or torch.get_num_threads()} threads"
    if threads > cores:
        return warning("cores", text, f"use trainer.threads={max(1, cores // trainer.devices)}")
    return ok("cores", text)
