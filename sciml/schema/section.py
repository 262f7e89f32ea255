"""What every section of the schema is made of: the class of a section, and the types that several sections share."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from sciml.registry import names

KINDS = ("atoms", "jets", "residues")
SAMPLES = Path(__file__).parent.parent / "data" / "samples"
SAMPLE_PREFIX = "samples:"


def _paths(value: Any) -> Any:
    """Turn one path into a list of one."""
    return [value] if isinstance(value, str) else value


def _sample(path: str) -> str:
    """Turn ``samples:NAME`` into the folder of an embedded store; every other path stays as it was typed."""
    return str(SAMPLES / path.removeprefix(SAMPLE_PREFIX)) if path.startswith(SAMPLE_PREFIX) else path


def as_text(value: Any) -> Any:
    """Accept a number where a word is meant: ``precision=32``, ``name=7``."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def registered(table: str) -> Any:
    """Return a validator for a name of the registry's ``table`` (built in, or an installed entry point)."""

    def check(value: str) -> str:
        if value not in names(table):
            raise ValueError(f"expected one of {', '.join(names(table))}")
        return value

    return check


Text = Annotated[str, BeforeValidator(as_text), Field(min_length=1)]
DataPath = Annotated[str, Field(min_length=1), AfterValidator(_sample)]
DataPaths = Annotated[list[DataPath], BeforeValidator(_paths), Field(min_length=1)]
Loss = Annotated[Text, BeforeValidator(registered("losses"))]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Identity = Annotated[float, Field(gt=0, le=1)]
Accelerator = Literal["cpu", "gpu", "auto"]
SplitBy = Literal["auto", "group", "sequence", "composition", "structure"]
SPLIT_BY = (
    "what stays together: group (trajectory, event or sequence of the file), sequence (homologous proteins), "
    "composition or structure (materials); auto is sequence for proteins, else group"
)


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused and values are not silently converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    def require(self, **expected: str) -> None:
        """Raise ValueError for the first of the keys that is null; ``expected`` says what is typed for each."""
        for key, value in expected.items():
            if getattr(self, key) is None:
                raise ValueError(f"{key}: found nothing, expected {key}={value}")
