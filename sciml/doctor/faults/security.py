"""Files that were made to run code or to reach outside their folder."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sciml import package as packages
from sciml.config import configure
from sciml.data.store import Store
from sciml.doctor.faults.row import Row
from sciml.errors import UserError
from sciml.files import file_sha256
from sciml.models.model import build_model
from sciml.schema import SAMPLES
from sciml.train.checkpoint import package_of_checkpoint

DESCRIPTION: dict[str, Any] = {
    "backbone": {
        "name": "backbone",
        "channels": 4,
        "layers": 1,
        "lmax_node": 1,
        "lmax_edge": 1,
        "correlation": 1,
        "radial": {"basis": 4, "hidden": [4]},
        "feed_forward": 1,
        "backend": "reference",
    },
    "heads": {"energy": {"hidden": 4}},
    "kinds": ["atoms"],
    "cutoffs": {"atoms": 5.0},
    "context": {
        "datasets": ["toy"], "references": {"toy": {"1": 0.0}}, "scales": {}, "spreads": {}, "classes": [],
    },
    "mean_neighbors": {"atoms": 10.0},
}  # fmt: skip


class Payload:
    """Unpickling it writes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return (_write, (str(self.canary), "reached"))


def _write(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")


def fault_18_malicious_files(folder: Path) -> Row:
    """Pickles with code, names of functions to call, and paths out of the folder, in everything that can be loaded."""
    canary = folder / "canary"
    canary.write_text("untouched", encoding="utf-8")
    good = packages.save(folder / "good", build_model(DESCRIPTION), {"model": DESCRIPTION}, "# toy\n")
    packages.load(good)
    attacks: dict[str, Callable[[], Any]] = {
        "pickle as a checkpoint": lambda: package_of_checkpoint(_pickle(folder / "step=000000001.ckpt", canary)),
        "zipped pickle as a checkpoint": lambda: package_of_checkpoint(_zipped(folder / "step=000000002.ckpt", canary)),
        "pickle as weights": lambda: packages.load(_with_pickled_weights(good, folder / "pickled", canary)),
        "_target_ as a head": lambda: packages.load(
            _changed(good, folder / "target", {"heads": {"energy": {"_target_": _PATH, "path": str(canary)}}})
        ),
        "a module path as a head": lambda: packages.load(
            _changed(good, folder / "head", {"heads": {"energy": {"name": "os:system"}}})
        ),
        "a module path as the model": lambda: packages.load(
            _changed(good, folder / "model", {"backbone": {**DESCRIPTION["backbone"], "name": "os:system"}})
        ),
        "_target_ in a recipe": lambda: _recipe(folder / "recipes", canary),
        "a shard outside the store": lambda: _store(folder / "store", "../outside.arrow"),
    }
    ran = [name for name, attack in attacks.items() if not _is_refused(attack)]
    touched = canary.read_text(encoding="utf-8") != "untouched"
    outside = _files_outside(folder)
    return Row(
        18,
        f"{len(attacks)} hostile files: pickles with code, `_target_`, module paths, a path out of a store",
        "each is refused in one sentence, none of them runs or reaches anything",
        f"{len(attacks) - len(ran)} of {len(attacks)} refused"
        + (f" (not {', '.join(ran)})" if ran else "")
        + f", canary {'touched' if touched else 'untouched'}",
        not ran and not touched and not outside,
    )


_PATH = f"{__name__}._write"


def _is_refused(attack: Callable[[], Any]) -> bool:
    try:
        attack()
    except UserError:
        return True
    return False


def _pickle(path: Path, canary: Path) -> Path:
    path.write_bytes(pickle.dumps({"state_dict": Payload(canary)}))
    return path


def _zipped(path: Path, canary: Path) -> Path:
    torch.save({"state_dict": {}, "package": Payload(canary)}, path)
    return path


def _with_pickled_weights(good: Path, path: Path, canary: Path) -> Path:
    shutil.copytree(good, path)
    _pickle(path / "weights.safetensors", canary)
    return _hashed(path)


def _changed(good: Path, path: Path, model: dict[str, Any]) -> Path:
    """A copy of a package whose model is described otherwise, with hashes that fit."""
    shutil.copytree(good, path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["model"] |= model
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return _hashed(path)


def _hashed(path: Path) -> Path:
    hashes = {name: file_sha256(path / name) for name in packages.FILES}
    (path / "hashes.json").write_text(json.dumps(hashes), encoding="utf-8")
    return path


def _recipe(folder: Path, canary: Path) -> None:
    (folder / "experiment").mkdir(parents=True)
    text = f"# @package _global_\ntrain: x.xyz\nmodel:\n  _target_: {_PATH}\n  path: {canary}\n  text: reached\n"
    (folder / "experiment" / "hostile.yaml").write_text(text, encoding="utf-8")
    configure("train", ["experiment=hostile"], str(folder))


def _store(path: Path, shard: str) -> None:
    """A store whose manifest names a good shard outside its folder."""
    shutil.copytree(SAMPLES / "peptides", path)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    (path / manifest["shards"][0]["file"]).rename(path / shard)
    manifest["shards"][0]["file"] = shard
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    Store(path)


def _files_outside(folder: Path) -> bool:
    """Whether a file lies beside what was made here, apart from the shard that was put there."""
    known = {
        "canary", "good", "step=000000001.ckpt", "step=000000002.ckpt", "pickled", "target", "head", "model", "recipes",
        "store", "outside.arrow",
    }  # fmt: skip
    return bool({path.name for path in folder.iterdir()} - known)
