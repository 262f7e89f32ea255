"""The section ``adapt``: fine-tuning."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sciml.schema.section import Count, DataPaths, Fraction, Positive, PositiveFloat, Section


class Replay(Section):
    """What the base model knows, mixed into its fine-tuning."""

    fraction: Fraction = Field(description="part of the draws that replay what the package knows; 0 for none")
    stores: DataPaths | None = Field(
        description="files or stores to replay; null for the embedded samples of the package's levels of theory"
    )
    records: Positive = Field(description="most records of a store that are replayed")
    pseudo_labels: bool = Field(
        description="let the package label the replayed structures, once, where the true labels cannot be had"
    )

    @model_validator(mode="after")
    def _used(self) -> "Replay":
        for key in ("stores", "pseudo_labels"):
            if getattr(self, key) and not self.fraction:
                raise ValueError(f"{key}: found {getattr(self, key)} with fraction=0, expected a fraction above 0")
        return self


class Retained(Section):
    """Records of base tasks that are measured before and after."""

    stores: DataPaths | None = Field(
        description="files or stores; null for parts, never replayed, of the replay stores or else the embedded samples"
    )
    records: Count = Field(description="most records of a store that are measured; 0 measures no forgetting")


class Adapt(Section):
    """What of the package that training starts from is trained, and what is kept."""

    name: Literal["full", "frozen", "last_n", "lora"] = Field(
        description="what of the package is trained: all, the heads alone, the last blocks, low-rank updates"
    )
    blocks: Positive = Field(description="last_n: blocks at the end of the backbone that are trained")
    rank: Positive = Field(
        description="lora: rank of the update of every linear map, for each degree or path of degrees"
    )
    alpha: PositiveFloat = Field(description="lora: the update is multiplied by alpha / rank")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        description="learning rate of a block by that of the block after it; heads have the highest; 1 for one rate"
    )
    parity: bool = Field(
        description="stop where outputs before the first update are not the package's, or units of labels differ from "
        "those it learned; false trains on"
    )
    replay: Replay = Field(description="what the package knows, mixed into the new data")
    retained: Retained = Field(description="records that forgetting is measured on")
    from_scratch: bool = Field(
        description="train a model from random weights on the new data too, for equal time, to compare with"
    )

    def without_package(self) -> str | None:
        """The first key that has no meaning without a package to start from, as a sentence; None for none."""
        given = [
            ("adapt", self.name, self.name != "full"),
            ("adapt.layer_decay", f"{self.layer_decay:g}", self.layer_decay != 1),
            ("adapt.replay.fraction", f"{self.replay.fraction:g}", self.replay.fraction > 0),
            ("adapt.from_scratch", "true", self.from_scratch),
        ]
        for key, value, meant in given:
            if meant:
                return f"{key}: found {value} without init, expected init=PACKAGE, the model to start from"
        return None
