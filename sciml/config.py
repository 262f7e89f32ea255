"""From the words on the command line to one checked configuration, without importing torch.

Hydra composes ``configs/VERB.yaml`` with its groups, pydantic checks the result against :mod:`sciml.schema`, and every
error of either becomes one sentence that names the key, what was found and what was expected.
"""

import difflib
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from sciml.errors import UserError
from sciml.schema import (
    CONFIGS,
    SAMPLE_PREFIX,
    SAMPLES,
    EvaluateConfig,
    IngestConfig,
    InspectConfig,
    Section,
    TrainConfig,
)

__all__ = ["EvaluateConfig", "IngestConfig", "InspectConfig", "TrainConfig", "compose", "configure", "validate"]

# Anything may be below these.
FREE_KEYS = ("model.options", "heads", "objective.others", "data.weights", "targets", "sweep.slurm")
_NESTED_PATHS = ("adapt.replay.stores", "adapt.retained.stores")
_OVERRIDE = re.compile(r"(?P<prefix>\+{1,2}|~)?(?P<key>[^=\s]+?)(=(?P<value>.*))?", re.DOTALL)


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
    words = [_override(verb, word, literals, config_dir) for word in _one_budget(list(overrides))]
    if config_dir is not None:
        folder = str(Path(config_dir).resolve())
        words.append(f"hydra.searchpath=[{_quote('file://' + folder)}]")
    return _restore(_hydra(verb, words), literals)


def validate(verb: str, raw: dict[str, Any]) -> Section:
    """Check a composed configuration; returns the typed configuration of ``verb``.

    Raises UserError with one sentence for the first thing that is wrong.
    """
    try:
        return CONFIGS[verb].model_validate(raw)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        rest = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
        raise UserError(_sentence(verb, problems[0]) + rest + ".") from None


def check_inputs(config: Section) -> None:
    """Raise UserError when a file or store that the configuration names is not there."""
    verbs = ("train", "val", "test", "store", "source", "against", "properties", "package", "init")
    for key in (*verbs, *_NESTED_PATHS):
        value = _at(config, key)
        for path in [value] if isinstance(value, str) else value or []:
            if not os.path.exists(path):
                raise UserError(f"{key}: {_missing(path)}")


def _at(config: Section, key: str) -> Any:
    """The value of a dotted key, None where the configuration has no such key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def configs_folder() -> Path:
    """Return the folder of the YAML files: inside the package when installed, beside it in a checkout."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def groups(verb: str, config_dir: str | None = None) -> dict[str, list[str]]:
    """Return the groups of ``verb`` and the options of each."""
    found: dict[str, list[str]] = {}
    for group in _groups_of(verb):
        folders = [configs_folder(), *([Path(config_dir)] if config_dir else [])]
        found[group] = sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})
    return found


def _groups_of(config: str) -> list[str]:
    """Names of the groups of ``configs/CONFIG.yaml``, with those of the configurations that it begins with."""
    found: list[str] = []
    for entry in _read_yaml(configs_folder() / f"{config}.yaml").get("defaults", []):
        found += list(entry) if isinstance(entry, dict) else [] if entry == "_self_" else _groups_of(entry)
    return found


def keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key that holds a value, dotted, with its field."""
    for name, field in section.model_fields.items():
        inner = _section(field)
        if inner is None:
            yield prefix + name, field
        else:
            yield from keys(inner, f"{prefix}{name}.")


def default_of(raw: dict[str, Any], key: str) -> str:
    """Return the value of a dotted ``key`` in a composed configuration, in the form that is typed."""
    value: Any = raw
    for part in key.split("."):
        value = None if value is None else value[part]  # a section that is null
    return (
        value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).replace("...", "").strip()
    )


def type_name(field: FieldInfo) -> str:
    """Return the type of a key for people: ``int or null``, ``cpu|gpu|auto``, ``list of paths``."""
    return " or ".join(dict.fromkeys(_type_names(field.annotation)))


def to_yaml(config: Section) -> str:
    """Return the configuration as YAML, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True, width=120)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean X?)`` for the closest of ``known``, or nothing."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1) or [name for name in known if word and name.startswith(word)]
    return f" (did you mean {close[0]}?)" if close else ""


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
        raise UserError(_yaml_sentence(error)) from None
    except OverrideParseException as error:
        key, _, value = error.override.partition("=")
        problem = str(error).partition("\n")[0]
        raise UserError(f"{key}: found {value!r}, expected a value that Hydra can read ({problem}).") from None
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__
        if isinstance(cause, yaml.YAMLError):
            raise UserError(_yaml_sentence(cause)) from None
        raise UserError(f"the configuration cannot be composed: {_flat(str(error))}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"a configuration file cannot be read: {_flat(str(error))}.") from None
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _override(verb: str, word: str, literals: dict[str, Any], config_dir: str | None) -> str:
    """Check the key of one override and hide a text value from Hydra behind a placeholder kept in ``literals``."""
    known = groups(verb, config_dir)
    match = _OVERRIDE.fullmatch(word)
    if match is None or (match["value"] is None and match["prefix"] != "~"):
        meant = [f" (did you mean {group}={word}?)" for group, options in known.items() if word in options]
        raise UserError(f"{word!r} is not KEY=VALUE{''.join(meant[:1])}; see sciml {verb} --help.")
    key, value = match["key"], match["value"]
    if key in known:
        _check_option(verb, key, value, known[key], config_dir)
        return word
    fields = dict(keys(CONFIGS[verb]))
    if not _known(key, fields):
        names = [*fields, *known]
        raise UserError(f"{key}: this key is not known to sciml {verb}{nearest(key, names) or _by_last(key, names)}.")
    if match["prefix"] is None and any(key.startswith(free + ".") for free in FREE_KEYS):
        return f"++{word}"  # a key that the YAML file does not have yet
    if key not in fields or value is None or not _holds(fields[key].annotation, str):
        return word
    if any(key == kept.partition("=")[0] for kept in literals):
        raise UserError(f"{key}: found twice, expected once; write several files as {key}=[FILE,FILE].")
    placeholder = f"__literal_{len(literals)}__"
    literals[f"{key}={placeholder}"] = _literal(value, several=_holds(fields[key].annotation, list))
    return f"{match['prefix'] or ''}{key}={placeholder}"


def _check_option(verb: str, group: str, option: str | None, options: list[str], config_dir: str | None) -> None:
    """Raise UserError when ``option`` is not one of ``options``."""
    if option in options or option == "null":
        return
    where = f" (looked in configs/{group} and {Path(config_dir) / group})" if config_dir else ""
    close = nearest(option or "", options)
    raise UserError(f"{group}: found {option!r}, expected one of {', '.join(options)}{where}{close}.")


def _known(key: str, fields: dict[str, FieldInfo]) -> bool:
    """Tell whether ``key`` is a value, a section of values, or below a key that takes anything."""
    below_free = any(key == free or key.startswith(free + ".") for free in FREE_KEYS if free in fields)
    return below_free or key in fields or any(name.startswith(key + ".") for name in fields)


def _by_last(key: str, names: list[str]) -> str:
    """Suggest the full key for a word that is only the end of one: ``max_time`` for ``trainer.max_time``."""
    word = key.rpartition(".")[2]
    ends: dict[str, str] = {}
    for name in names:
        ends.setdefault(name.rpartition(".")[2], name)
    close = difflib.get_close_matches(word, list(ends), n=1, cutoff=0.75)
    return f" (did you mean {ends[close[0]]}?)" if close else ""


def _literal(value: str, several: bool) -> Any:
    """Read a text value as it was typed: null, a quoted or bare text and, where ``several``, a list or a pattern.

    An existing file of exactly that name wins over every other reading.
    """
    if os.path.exists(value):
        return [value] if several else value
    if value in ("null", "None", ""):
        return None
    if several and value.startswith("[") and value.endswith("]"):
        return [path for item in _items(value[1:-1]) for path in _expand(_unquote(item))]
    if several and "," in value and any(os.path.exists(item) or _is_sample(item) for item in _items(value)):
        return [path for item in _items(value) for path in _expand(_unquote(item))]
    value = _unquote(value)
    return _expand(value) if several else value


def _items(text: str) -> list[str]:
    """Split at the commas that are not inside quotes."""
    parts = re.findall(r"""\s*('[^']*'|"[^"]*"|[^,]+)\s*(?:,|$)""", text)
    return [part.strip() for part in parts]


def _expand(path: str) -> list[str]:
    """Expand a pattern such as ``data/*.xyz``; a path without matches stays as it was typed."""
    if os.path.exists(path) or _is_sample(path):
        return [path]
    return sorted(glob.glob(str(Path(path).expanduser()), recursive=True)) or [path]


def _unquote(text: str) -> str:
    """Drop a pair of quotes around the whole text."""
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" else text


def _is_sample(path: str) -> bool:
    return path.startswith(SAMPLE_PREFIX)


def _quote(text: str) -> str:
    """Quote a text for Hydra's grammar."""
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


def _restore(value: Any, literals: dict[str, Any]) -> Any:
    """Put the typed texts back where their placeholders ended up, interpolated copies included."""
    if isinstance(value, dict):
        return {key: _restore(inner, literals) for key, inner in value.items()}
    if isinstance(value, list):
        return [_restore(inner, literals) for inner in value]
    if isinstance(value, str) and "__literal_" in value:
        for word, typed in literals.items():
            placeholder = word.partition("=")[2]
            if value == placeholder:
                return typed
            if isinstance(typed, str):
                value = value.replace(placeholder, typed)
    return value


def _one_budget(overrides: list[str]) -> list[str]:
    """Let a typed ``trainer.max_steps`` or ``trainer.max_time`` replace the default of the other one."""
    typed = {word.partition("=")[0].lstrip("+"): word.partition("=")[2] for word in overrides}
    pair = ("trainer.max_steps", "trainer.max_time")
    given = [key for key in pair if typed.get(key, "null") != "null"]
    if len(given) == 1 and not all(key in typed for key in pair):
        return [*overrides, f"{pair[1 - pair.index(given[0])]}=null"]
    return overrides


def _section(field: FieldInfo) -> type[Section] | None:
    """Return the section class of a field that is a section, or one or null; None for a field that holds a value."""
    inner = [one for one in get_args(field.annotation) if one is not type(None)]
    annotation = inner[0] if len(inner) == 1 else field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _holds(annotation: Any, wanted: type) -> bool:
    """Tell whether ``wanted`` (str, list) occurs in a type annotation."""
    origin = getattr(annotation, "__origin__", None)
    return annotation is wanted or origin is wanted or any(_holds(inner, wanted) for inner in get_args(annotation))


def _type_names(annotation: Any) -> list[str]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ["|".join(inner)]
    if origin is Annotated:
        return _type_names(inner[0])
    if origin is list:
        numbers = _type_names(inner[0])
        return ["path or list of paths"] if numbers == ["text"] else [f"list of {numbers[0]}"]
    if origin is dict:
        return ["any keys"]
    if inner:
        return [name for one in inner for name in _type_names(one)]
    return [
        "null"
        if annotation is type(None)
        else {"str": "text", "bool": "true|false"}.get(annotation.__name__, annotation.__name__)
    ]


def _sentence(verb: str, problem: Any) -> str:
    """Turn one pydantic error into a sentence without its full stop."""
    path, kind, found = ".".join(str(part) for part in problem["loc"]), problem["type"], problem["input"]
    fields = dict(keys(CONFIGS[verb]))
    if kind == "extra_forbidden":
        return f"{path}: this key is not known to sciml {verb}{nearest(path, fields) or _by_last(path, list(fields))}"
    if kind == "missing":
        return f"{path}: found nothing, expected {fields[path].description if path in fields else 'a value'}"
    if kind == "value_error" and (path not in fields or path in FREE_KEYS):
        return ".".join(part for part in (path, str(problem["ctx"]["error"])) if part)
    if kind == "value_error":
        text = str(problem["ctx"]["error"])
        return f"{path}: found {found!r}, {text}{nearest(str(found), re.split(r', | ', text))}"
    if kind == "model_type":
        below = [name.removeprefix(path + ".") for name in fields if name.startswith(path + ".")]
        inside = dict.fromkeys(name.partition(".")[0] for name in below)
        return f"{path}: found {found!r}, expected a section with the keys {', '.join(inside)}"
    expected = re.sub(r"^Input should be (?:a valid )?", "expected ", problem["msg"])
    expected = re.sub(r"^expected (?=[a-z]+$)", "expected a valid ", expected)
    options = re.findall(r"'([^']+)'", str(problem.get("ctx", {}).get("expected", "")))
    return f"{path}: found {found!r}, {expected[0].lower() + expected[1:]}{nearest(str(found), options)}"


def _missing(path: str) -> str:
    """Say that a path is not there and what is near it."""
    folder, name = Path(path).parent, Path(path).name
    try:
        siblings = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    except OSError:
        siblings = []
    if folder == SAMPLES:
        return f"the embedded samples {name!r} are not known, expected one of {', '.join(siblings)}."
    hint = nearest(name, siblings) if folder.is_dir() else f", nor does its folder {str(folder)!r}"
    return f"{path!r} does not exist{hint}; give an existing file or store."


def _yaml_sentence(error: yaml.YAMLError) -> str:
    """Say where a YAML file is broken."""
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else "a configuration file"
    return f"{where}: this is not YAML, {getattr(error, 'problem', None) or _flat(str(error))}."


def _read_yaml(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        return yaml.safe_load(file) or {}


def _flat(text: str) -> str:
    """Join the lines of a message."""
    return " ".join(text.split()).rstrip(".")
