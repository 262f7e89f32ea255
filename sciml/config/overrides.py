"""The words of the command line, of which Hydra gets to see no text value: paths and names stay as they were typed."""

import glob
import os
import re
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from sciml.config.keys import FREE_KEYS, groups, holds, keys
from sciml.config.sentences import by_last, nearest
from sciml.errors import UserError
from sciml.schema import CONFIGS, SAMPLE_PREFIX

_OVERRIDE = re.compile(r"(?P<prefix>\+{1,2}|~)?(?P<key>[^=\s]+?)(=(?P<value>.*))?", re.DOTALL)


def override(verb: str, word: str, literals: dict[str, Any], config_dir: str | None) -> str:
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
        raise UserError(f"{key}: this key is not known to sciml {verb}{nearest(key, names) or by_last(key, names)}.")
    if match["prefix"] is None and any(f"{key}.".startswith(f"{free}.") for free in FREE_KEYS):
        return f"++{word}"  # a key that the YAML file does not have yet
    annotation = fields[key].annotation if key in fields else None
    if value is None or not holds(annotation, str) or holds(annotation, dict):
        return word
    if any(key == kept.partition("=")[0] for kept in literals):
        raise UserError(f"{key}: found twice, expected once; write several files as {key}=[FILE,FILE].")
    placeholder = f"__literal_{len(literals)}__"
    literals[f"{key}={placeholder}"] = _literal(value, several=holds(fields[key].annotation, list))
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


def quote(text: str) -> str:
    """Quote a text for Hydra's grammar."""
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


def restore(value: Any, literals: dict[str, Any]) -> Any:
    """Put the typed texts back where their placeholders ended up, interpolated copies included."""
    if isinstance(value, dict):
        return {key: restore(inner, literals) for key, inner in value.items()}
    if isinstance(value, list):
        return [restore(inner, literals) for inner in value]
    if isinstance(value, str) and "__literal_" in value:
        for word, typed in literals.items():
            placeholder = word.partition("=")[2]
            if value == placeholder:
                return typed
            if isinstance(typed, str):
                value = value.replace(placeholder, typed)
    return value


def one_budget(overrides: list[str]) -> list[str]:
    """Let a typed ``trainer.max_steps`` or ``trainer.max_time`` replace the default of the other one."""
    typed = {word.partition("=")[0].lstrip("+"): word.partition("=")[2] for word in overrides}
    pair = ("trainer.max_steps", "trainer.max_time")
    given = [key for key in pair if typed.get(key, "null") != "null"]
    if len(given) == 1 and not all(key in typed for key in pair):
        return [*overrides, f"{pair[1 - pair.index(given[0])]}=null"]
    return overrides
