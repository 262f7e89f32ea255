"""The errors of Hydra, pydantic and YAML as sentences that name the key, what was found and what was expected."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from sciml.config.keys import FREE_KEYS, keys
from sciml.errors import did_you_mean
from sciml.schema import CONFIGS, SAMPLES


def sentence(verb: str, problem: Any) -> str:
    """Turn one pydantic error into a sentence without its full stop."""
    path, kind, found = ".".join(str(part) for part in problem["loc"]), problem["type"], problem["input"]
    fields = dict(keys(CONFIGS[verb]))
    if kind == "extra_forbidden":
        return f"{path}: this key is not known to sciml {verb}{nearest(path, fields) or by_last(path, list(fields))}"
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


def missing(path: str) -> str:
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


def yaml_sentence(error: yaml.YAMLError) -> str:
    """Say where a YAML file is broken."""
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else "a configuration file"
    return f"{where}: this is not YAML, {getattr(error, 'problem', None) or flat(str(error))}."


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean X?)`` for the closest of ``known``, or nothing."""
    known = list(known)
    longer = [f" (did you mean {name}?)" for name in known if word and name.startswith(word)]
    return did_you_mean(word, known) or "".join(longer[:1])


def by_last(key: str, names: list[str]) -> str:
    """Suggest the full key for a word that is only the end of one: ``max_time`` for ``trainer.max_time``."""
    word = key.rpartition(".")[2]
    ends: dict[str, str] = {}
    for name in names:
        ends.setdefault(name.rpartition(".")[2], name)
    close = difflib.get_close_matches(word, list(ends), n=1, cutoff=0.75)
    return f" (did you mean {ends[close[0]]}?)" if close else ""


def flat(text: str) -> str:
    """Join the lines of a message."""
    return " ".join(text.split()).rstrip(".")
