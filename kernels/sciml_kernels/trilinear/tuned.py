"""Launch configurations: measured ones are data, `tuned/<gpu>.json`, beside a default for whatever was not measured."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch

from sciml_kernels.trilinear.emit import FIRST_ORDER, Term
from sciml_kernels.trilinear.parts import Config, Walk

FOLDER = Path(__file__).resolve().parents[1] / "tuned"


def default(terms: tuple[Term, ...], wants: str) -> Config:
    """For what was not measured: the forward pass waits for memory most, and reads an edge ahead."""
    return Config(stages=2) if wants == "g" and terms == FIRST_ORDER else Config()


def name_of(device: torch.device | None) -> str:
    """The name of a GPU as its file has it, e.g. "nvidia_h200"; empty without one."""
    if device is None:
        return ""
    return "_".join(torch.cuda.get_device_name(device).lower().replace("-", " ").split())


def entry(key: str, dtype: torch.dtype, walk: Walk, terms: tuple[Term, ...], wants: str) -> str:
    """The key of a measured configuration in its file."""
    sums = "+".join(f"{term.x},{term.y},{term.w}" for term in terms)
    return f"{key} {str(dtype).removeprefix('torch.')} {walk} {sums} {wants}"


def config(gpu: str, key: str, dtype: torch.dtype, walk: Walk, terms: tuple[Term, ...], wants: str) -> Config:
    """The measured configuration of a pass on this GPU, else the default."""
    found = measured(gpu).get(entry(key, dtype, walk, terms, wants))
    return default(terms, wants) if found is None else Config(**found)


@functools.cache
def measured(gpu: str) -> dict[str, dict[str, int]]:
    """What the file of this GPU holds."""
    path = FOLDER / f"{gpu}.json"
    if not gpu or not path.is_file():
        return {}
    found: dict[str, dict[str, int]] = json.loads(path.read_text())["configurations"]
    return found
