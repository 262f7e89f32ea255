"""Compose ``configs/VERB.yaml`` with its groups and the words of the command line, and check the result."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sciml.config.keys import configs_folder
from sciml.config.overrides import one_budget, override, quote, restore
from sciml.config.sentences import flat, missing, sentence, yaml_sentence
from sciml.errors import UserError
from sciml.schema import CONFIGS, Section

_NESTED_PATHS = ("adapt.replay.stores", "adapt.retained.stores")


def configure(verb: str, overrides: Iterable[str] = (), config_dir: str | None = None) -> Section:
    """Compose and check the configuration of ``verb``; the one call that the command line and Python users need."""
    return validate(verb, compose(verb, overrides, config_dir))


def compose(verb: str, overrides: Iterable[str] = (), config_dir: str | None = None) -> dict[str, Any]:
    """Return the configuration of ``verb`` as plain data, with Hydra ``overrides`` applied and interpolations resolved.

    Text values (paths, names) reach the result as they were typed: Hydra never parses them. ``config_dir`` is a
    folder of the user's own options, for example ``config_dir/experiment/mine.yaml``.

    Raises UserError for an unknown key, group or option, and for YAML that cannot be read.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir: {config_dir!r} is not a folder, expected one that holds experiment/NAME.yaml.")
    literals: dict[str, Any] = {}
    words = [override(verb, word, literals, config_dir) for word in one_budget(list(overrides))]
    if config_dir is not None:
        folder = str(Path(config_dir).resolve())
        words.append(f"hydra.searchpath=[{quote('file://' + folder)}]")
    return restore(_hydra(verb, words), literals)


def validate(verb: str, raw: dict[str, Any]) -> Section:
    """Check a composed configuration; returns the typed configuration of ``verb``.

    Raises UserError with one sentence for the first thing that is wrong.
    """
    try:
        return CONFIGS[verb].model_validate(raw)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        rest = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
        raise UserError(sentence(verb, problems[0]) + rest + ".") from None


def check_inputs(config: Section) -> None:
    """Raise UserError when a file or store that the configuration names is not there."""
    verbs = ("train", "val", "test", "store", "source", "against", "properties", "package", "init")
    for key in (*verbs, *_NESTED_PATHS):
        value = _at(config, key)
        for path in [value] if isinstance(value, str) else value or []:
            if not os.path.exists(path):
                raise UserError(f"{key}: {missing(path)}")


def to_yaml(config: Section) -> str:
    """Return the configuration as YAML, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True, width=120)


def _hydra(verb: str, words: list[str]) -> dict[str, Any]:
    """Compose with Hydra and turn each of its errors into a sentence."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(configs_folder().resolve()), version_base="1.3", job_name=verb):
            composed = hydra_compose(verb, words)
            OmegaConf.set_struct(composed, False)
            plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except yaml.YAMLError as error:
        raise UserError(yaml_sentence(error)) from None
    except OverrideParseException as error:
        key, _, value = error.override.partition("=")
        problem = str(error).partition("\n")[0]
        raise UserError(f"{key}: found {value!r}, expected a value that Hydra can read ({problem}).") from None
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__
        if isinstance(cause, yaml.YAMLError):
            raise UserError(yaml_sentence(cause)) from None
        raise UserError(f"the configuration cannot be composed: {flat(str(error))}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"a configuration file cannot be read: {flat(str(error))}.") from None
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _at(config: Section, key: str) -> Any:
    """The value of a dotted key, None where the configuration has no such key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part, None)
    return value
