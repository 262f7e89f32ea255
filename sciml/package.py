"""A published model: weights, plain configuration, model card and hashes; loading it runs no code that it brings.

Layout of the folder: ``weights.safetensors``, ``config.json`` (plain data; class names are looked up in
:mod:`sciml.registry`), ``MODEL_CARD.md``, ``uncertainty.safetensors`` where the model has uncertainties, and
``hashes.json`` (sha256 of the other files).
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sciml.errors import UserError
from sciml.files import file_sha256
from sciml.models.model import Model, build_model

FORMAT = 1
FILES = ("weights.safetensors", "config.json", "MODEL_CARD.md")
UNCERTAINTY = "uncertainty.safetensors"


@dataclass
class Package:
    """A loaded model with its configuration (the content of ``config.json``) and, where it has them, the matrices
    {target: (w, w)} of its uncertainties (see :mod:`sciml.evaluate.uncertainty`).
    """

    model: Model
    config: dict[str, Any]
    path: Path
    uncertainty: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def datasets(self) -> list[str]:
        """Levels of theory the model knows, in the order of their index."""
        return self.config["model"]["context"]["datasets"]

    @property
    def kinds(self) -> list[str]:
        """Kinds of graph the model reads."""
        return self.config["model"]["kinds"]


def save(
    path: Path,
    model: Model,
    config: dict[str, Any],
    card: str,
    uncertainty: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write a package at ``path``: all of it or nothing; an older package there is replaced."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, partial / "weights.safetensors")
        text = json.dumps({"format": FORMAT, **config}, indent=1, sort_keys=True, ensure_ascii=False)
        (partial / "config.json").write_text(text + "\n", encoding="utf-8")
        (partial / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        if uncertainty:
            save_file(uncertainty, partial / UNCERTAINTY)
        hashes = {name: file_sha256(partial / name) for name in (*FILES, *([UNCERTAINTY] if uncertainty else []))}
        (partial / "hashes.json").write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
        _exchange(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _exchange(new: Path, path: Path) -> None:
    """Move the folder ``new`` to ``path``; an older one there is set aside first and comes back if that fails."""
    replaced = path.with_name(f".{path.name}.replaced-{os.getpid()}")
    if path.exists():
        os.replace(path, replaced)
    try:
        os.replace(new, path)
    except OSError:
        if replaced.exists():
            os.replace(replaced, path)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def load(path: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Package:
    """Read a package, or the package of a run folder, verify its hashes and build its model in evaluation mode.

    Nothing is unpickled and no class outside the registry is built. Raises UserError when a file is missing, damaged
    or of a newer format.
    """
    folder = _find(Path(path))
    config = _read_config(folder)
    _verify(folder)
    model = _build(config, folder)
    try:
        weights = load_file(folder / "weights.safetensors")
        to_float_dtype(model, next(weights[name].dtype for name, _ in model.named_parameters() if name in weights))
        model.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{folder}/weights.safetensors does not fit config.json: {str(error).splitlines()[0]}"
        ) from None
    model.to(device=device)
    if dtype is not None:
        to_float_dtype(model, dtype)
    uncertainty = load_file(folder / UNCERTAINTY) if (folder / UNCERTAINTY).is_file() else {}
    return Package(model.eval(), config, folder, uncertainty)


def read_description(path: str | Path) -> dict[str, Any]:
    """The description of the model of a package, or of the package of a run folder, as :func:`load` builds it."""
    return dict(_read_config(_find(Path(path))).get("model", {}))


def _build(config: dict[str, Any], folder: Path) -> Model:
    """The untrained model of a configuration, which somebody may have edited."""
    try:
        return build_model(config["model"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder}/config.json does not describe a model ({reason}); copy the package again.") from None


def to_float_dtype(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Convert parameters to ``dtype``; fp64 buffers (references, scales, cutoffs) stay as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _find(path: Path) -> Path:
    for candidate in (path, path / "package"):
        if (candidate / "config.json").is_file():
            return candidate
    raise UserError(
        f"{path} is not a package: no config.json there or in its folder 'package'; give the folder that training "
        "wrote."
    )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder}/config.json is not readable JSON ({error}); copy the package again.") from None
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise UserError(f"{folder}/config.json has format {found!r}, this sciml reads {FORMAT}; update sciml.")
    return config


def _verify(folder: Path) -> None:
    try:
        hashes = json.loads((folder / "hashes.json").read_text(encoding="utf-8"))
        names = (*FILES, *([UNCERTAINTY] if UNCERTAINTY in hashes or (folder / UNCERTAINTY).exists() else []))
        known = {name: hashes[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder}/hashes.json is missing or damaged; copy the package again.") from None
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder}/{name} is missing; copy the package again.")
        if known[name] != file_sha256(folder / name):
            raise UserError(f"{folder}/{name} does not match its hash in hashes.json; copy the package again.")
