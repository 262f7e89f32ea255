"""The package that a verb measures, and the folder where it writes what it finds."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from sciml.package import Package, load
from sciml.train.checkpoint import is_checkpoint, package_of_checkpoint
from sciml.verbs.machine import check_machine, device_of


def open_package(path: str, accelerator: str, read: Callable[[str, str], Package]) -> tuple[Package, str]:
    """What ``read`` (path, device) finds at ``path``, and its device; raises UserError where this machine lacks it."""
    check_machine(accelerator, "auto", "device")
    device = device_of(accelerator)
    package = read(path, device)
    check_machine(accelerator, package.config["model"]["backbone"].get("backend", "auto"), "device")
    return package, device


def package_or_checkpoint(path: str, device: str) -> Package:
    """The package at ``path`` or in that run folder; where training has not written one yet, the newest checkpoint."""
    if not any((folder / "config.json").is_file() for folder in (Path(path), Path(path) / "package")):
        found = package_of_checkpoint(Path(path), device)
        if found is not None:
            return found
    return load(path, device=device)


def output_folder(given: str | None, package: Package, verb: str, name: str) -> Path:
    """Where a verb writes what it finds of a package: ``given``, else the folder ``name`` of the run, and never the
    package, whose content is hashed.
    """
    if given:
        return Path(given)
    if package.path.name == "package":
        return package.path.parent / name
    if is_checkpoint(package.path):
        return package.path.parent.parent / name
    return Path(f"runs/{verb}/{datetime.now():%Y-%m-%d_%H-%M-%S}")
