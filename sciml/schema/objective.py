"""The section ``objective``: the terms of the loss."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from sciml.registry import BUILTIN
from sciml.schema.section import Loss, PositiveFloat, Section, Weight


class Regression(Section):
    """A term of the loss for numbers."""

    weight: Weight = Field(description="weight in the loss; 0 switches the term off")
    loss: Loss = Field(description="huber, mse, mae, or an installed entry point in the group sciml.losses")
    delta: PositiveFloat = Field(description="where huber turns linear, in units of the target's scale")


class Classification(Section):
    """A term of the loss for classes."""

    weight: Weight = Field(description="weight in the loss; 0 switches the term off")
    loss: Loss = Field(description="cross_entropy, or an installed entry point in the group sciml.losses")


class WeighedClassification(Classification):
    """A term of the loss for classes of different weight."""

    class_weights: list[Weight] | None = Field(
        description="factor of the loss of each class, in their order, residue types by their letters; null for one"
    )


class OwnTerm(Classification):
    """A term of the loss for the target of a head of one's own; further keys are options of its loss."""

    model_config = ConfigDict(extra="allow")


class OfAtomsAndResidues(Section):
    """A weight for each kind of graph that has coordinates."""

    atoms: Weight = Field(description="weight in the loss for atoms; 0 switches it off")
    residues: Weight = Field(description="weight in the loss for protein backbones; 0 switches it off")


class OfAtomsAndJets(Section):
    """A weight for each kind of graph that has types to hide."""

    atoms: Weight = Field(description="weight in the loss for elements; 0 switches it off")
    jets: Weight = Field(description="weight in the loss for kinds of particles; 0 switches it off")


class Denoise(Section):
    """Coordinate denoising."""

    weight: OfAtomsAndResidues = Field(description="weight in the loss, per kind of graph")
    loss: Loss = Field(description="mse, mae or huber of the noise in units of its level, or an entry point")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        description="part of the samples whose positions are shifted; atoms then lose their other labels"
    )
    levels: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)] = Field(
        description="smallest and largest standard deviation of the shift of a coordinate, Å"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Denoise":
        if self.levels[0] > self.levels[1]:
            raise ValueError(f"levels: found {self.levels}, expected the smallest first")
        return self


class Masked(Section):
    """Masked types."""

    weight: OfAtomsAndJets = Field(description="weight in the loss, per kind of graph")
    loss: Loss = Field(description="cross_entropy, or an installed entry point in the group sciml.losses")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        description="part of the samples with hidden types; atoms then lose their other labels"
    )
    nodes: Annotated[float, Field(gt=0, lt=1)] = Field(description="part of the nodes whose type is hidden there")


class Objective(Section):
    """The terms of the loss; a target that the data do not have is left out."""

    energy: Regression = Field(description="energy per atom")
    forces: Regression = Field(description="forces")
    stress: Regression = Field(description="stress of periodic cells")
    label: WeighedClassification = Field(description="class of a jet")
    true_momenta: Regression = Field(description="true four-momenta of a jet's particles")
    true_mass: Regression = Field(description="true mass of a jet; the error is the logarithm of predicted over true")
    true_pt: Regression = Field(description="true transverse momentum of a jet; the error is a logarithm too")
    residue_types: WeighedClassification = Field(description="masked residue types")
    denoise: Denoise = Field(description="coordinate denoising: noise in the positions is found again")
    masked: Masked = Field(description="masked types: hidden elements and kinds of particles are found again")
    others: dict[str, OwnTerm] = Field(description="terms of heads of your own: {target: {weight, loss, ...}}")

    @model_validator(mode="after")
    def _something(self) -> "Objective":
        if not any(term["weight"] for term in self.terms.values()):
            raise ValueError("weight: found 0 for every target, expected at least one above 0")
        return self

    @property
    def terms(self) -> dict[str, dict[str, Any]]:
        """Every target with its weight, loss and options."""
        names = ("energy", "forces", "stress", "true_momenta", "true_mass", "true_pt", "label", "residue_types")
        supervised = {name: getattr(self, name) for name in names}
        terms = {name: _of_its_loss(term.model_dump()) for name, term in {**supervised, **self.others}.items()}
        for target, objective in (("noise", self.denoise), ("masked", self.masked)):
            for kind, weight in objective.weight.model_dump().items():
                terms[f"{target}_{kind}"] = {"weight": weight, "loss": objective.loss}
        return terms


def _of_its_loss(term: dict[str, Any]) -> dict[str, Any]:
    """Drop what another of our losses than this one takes, and class weights that are null."""
    taken = {"delta": "huber", "class_weights": "cross_entropy"}
    return {
        key: value
        for key, value in term.items()
        if not (key in taken and term["loss"] in BUILTIN["losses"] and term["loss"] != taken[key])
        and not (key == "class_weights" and value is None)
    }
