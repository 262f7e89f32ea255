"""The section ``model``: the backbone."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sciml.schema.section import Count, Positive, Section, Text, registered


class Radial(Section):
    """The network of the edge lengths."""

    basis: Positive = Field(description="number of radial basis functions")
    hidden: list[Positive] = Field(min_length=1, description="widths of the hidden layers of the radial network")


class Reciprocal(Section):
    """The long-range block at the end of the backbone."""

    charges: Count = Field(
        description="sets of latent charges whose long-range potentials return into the features of atoms; 0 for none"
    )


class Model(Section):
    """The backbone."""

    name: Annotated[Text, BeforeValidator(registered("models"))] = Field(
        description="the model: backbone, transformer, or an installed entry point in the group sciml.models"
    )
    channels: Positive = Field(description="channels per component")
    layers: Positive = Field(description="blocks of convolution, many-body product and feed-forward")
    coarse_layers: Count = Field(description="blocks among residues or subjets, after `layers`; 0 for no coarse level")
    layers_after: Count = Field(description="blocks after the coarse level; at least 1 where there is one")
    lmax_node: Annotated[int, Field(ge=0, le=4)] = Field(description="highest degree of the node features")
    lmax_edge: Annotated[int, Field(ge=0, le=6)] = Field(description="highest degree of the spherical harmonics")
    correlation: Annotated[int, Field(ge=1, le=3)] = Field(description="order of the many-body product, 1 to 3")
    radial: Radial = Field(description="the radial network")
    feed_forward: Positive = Field(description="width of the feed-forward layer, in multiples of the channels")
    reciprocal: Reciprocal = Field(description="the long-range block")
    spurions: bool = Field(description="time and beam directions as inputs of jets; false leaves them out")
    backend: Literal["auto", "reference", "cpu", "triton"] = Field(
        description="kernels: auto takes the fastest one that this machine has, reference is plain torch"
    )
    options: dict[str, Any] = Field(description="keys of a model of your own, handed to it as they are")

    @model_validator(mode="after")
    def _coarse_level(self) -> "Model":
        if self.coarse_layers and not self.layers_after:
            raise ValueError(
                f"layers_after: found 0 with coarse_layers={self.coarse_layers}, expected 1 or more to read what comes "
                "down from the coarse level"
            )
        return self
