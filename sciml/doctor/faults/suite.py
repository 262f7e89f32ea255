"""All faults, in the order of their numbers."""

import inspect
import pkgutil
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import sciml.doctor.faults as package
from sciml.doctor.faults.row import Row

Fault = Callable[..., Row]
NAME = re.compile(r"fault_(\d\d)_\w+")


def faults() -> list[Fault]:
    """Every function ``fault_NN_name(folder)`` of the modules beside this one, in the order of their names."""
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        for name, value in vars(import_module(f"{package.__name__}.{module.name}")).items():
            if NAME.fullmatch(name) and inspect.isfunction(value):
                found[name] = value
    return [found[name] for name in sorted(found)]


def takes_thorough(fault: Fault) -> bool:
    """Whether a fault has a long sweep beside its short one."""
    return "thorough" in inspect.signature(fault).parameters


def run_fault(fault: Fault, folder: Path, thorough: bool = False) -> Row:
    """Make one fault in an empty ``folder``; with ``thorough`` the long sweep of those that have one."""
    return fault(folder, thorough=True) if thorough and takes_thorough(fault) else fault(folder)
