"""The keys and groups of a verb: their names, types and defaults, as the schema and the YAML files have them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from sciml.schema import Section

# Anything may be below these.
FREE_KEYS = ("model.options", "heads", "objective.others", "data.weights", "targets", "sweep.slurm")


def configs_folder() -> Path:
    """Return the folder of the YAML files: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent.parent
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


def groups(verb: str, config_dir: str | None = None) -> dict[str, list[str]]:
    """Return the groups of ``verb`` and the options of each."""
    found: dict[str, list[str]] = {}
    for group in _groups_of(verb):
        folders = [configs_folder(), *([Path(config_dir)] if config_dir else [])]
        found[group] = sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})
    return found


def option_of(group: str, option: str) -> dict[str, Any]:
    """Return the content of ``configs/GROUP/OPTION.yaml``."""
    return _read_yaml(configs_folder() / group / f"{option}.yaml")


def _groups_of(config: str) -> list[str]:
    """Names of the groups of ``configs/CONFIG.yaml``, with those of the configurations that it begins with."""
    found: list[str] = []
    for entry in _read_yaml(configs_folder() / f"{config}.yaml").get("defaults", []):
        found += list(entry) if isinstance(entry, dict) else [] if entry == "_self_" else _groups_of(entry)
    return found


def _read_yaml(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        return yaml.safe_load(file) or {}


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


def _section(field: FieldInfo) -> type[Section] | None:
    """Return the section class of a field that is a section, or one or null; None for a field that holds a value."""
    inner = [one for one in get_args(field.annotation) if one is not type(None)]
    annotation = inner[0] if len(inner) == 1 else field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def holds(annotation: Any, wanted: type) -> bool:
    """Tell whether ``wanted`` (str, list) occurs in a type annotation."""
    origin = getattr(annotation, "__origin__", None)
    return annotation is wanted or origin is wanted or any(holds(inner, wanted) for inner in get_args(annotation))


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
