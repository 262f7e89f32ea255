"""Heads and targets of one's own: free keys, so that they are checked by hand."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from sciml.errors import did_you_mean
from sciml.irreps import parse_irreps
from sciml.registry import names
from sciml.schema.section import KINDS

FACTS_OF_TARGET = ("level", "irreps", "unit", "classes", "column", "kind")
OPTIONS_OF_TARGET = ("name", *FACTS_OF_TARGET, "extensive", "hidden", "channels")


def _without_nulls(value: Any) -> Any:
    """Leave out the entries that a user set to null."""
    return {key: inner for key, inner in value.items() if inner is not None} if isinstance(value, dict) else value


def _heads(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Check that every head is registered under its ``name``, which is its key where it has none."""
    for key, options in value.items():
        name = options.get("name", key)
        if name not in names("heads"):
            close = did_you_mean(str(name), names("heads"))
            raise ValueError(f"{key}: found {name!r}, expected one of {', '.join(names('heads'))}{close}")
        if name == "target":
            _check_target(key, options, OPTIONS_OF_TARGET)
    return value


def _targets(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Check the targets that are mapped when a file is read."""
    for key, facts in value.items():
        _check_target(key, facts, FACTS_OF_TARGET)
    return value


def _check_target(key: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raise ValueError, which names the key, where a target of a configuration is not as a TargetHead takes it."""
    for name in options:
        if name not in known:
            close = did_you_mean(name, known)
            raise ValueError(f"{key}.{name}: this key is not known, expected one of {', '.join(known)}{close}")
    for name, expected in (("level", ("graph", "fine", "coarse")), ("kind", KINDS), ("extensive", (True, False))):
        if options.get(name, expected[0]) not in expected:
            words = ", ".join(str(one).lower() for one in expected)
            raise ValueError(f"{key}.{name}: found {options[name]!r}, expected one of {words}")
    irreps, level, kind = options.get("irreps", "0e"), options.get("level", "graph"), options.get("kind", "atoms")
    try:
        scalars = all(degree == 0 for _, degree in parse_irreps(str(irreps)))
    except ValueError as error:
        raise ValueError(f"{key}.irreps: {error}") from None
    classes = options.get("classes")
    enough = isinstance(classes, list) and len(set(map(str, classes))) >= 2
    if classes is not None and (not enough or "irreps" in options):
        raise ValueError(f"{key}.classes: found {classes!r}, expected the names of two classes or more, and no irreps")
    if kind == "jets" and (level == "coarse" or not scalars):
        raise ValueError(f"{key}: found {irreps} of level {level} for jets, expected scalars of graph or fine level")
    if options.get("extensive") is True and (level != "graph" or classes):
        raise ValueError(f"{key}.extensive: found true, expected it with numbers of level=graph alone")


Heads = Annotated[dict[str, dict[str, Any]], BeforeValidator(_without_nulls), AfterValidator(_heads)]
Targets = Annotated[dict[str, dict[str, Any]], AfterValidator(_targets)]
