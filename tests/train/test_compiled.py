"""A compiled training step is the eager one: predictions, and gradients of the parameters through the forces."""

import numpy as np
import pytest
import torch

from sciml.data.graph_dataset import LoadedBatch
from sciml.errors import UserError
from sciml.graph import collate
from sciml.models.model import build_model
from sciml.objectives.supervised import Supervised, Term
from sciml.train.compiled import compiled_forward
from tests.helpers import random_crystal, random_jet, random_molecule, random_peptide, relative_rms
from tests.small import ALL_SCALES, describe_model, graph_of, random_model

OBJECTIVE = Supervised(
    {
        "energy": Term(1.0, "huber", {"delta": 0.5}),
        "forces": Term(10.0, "mse"),
        "stress": Term(2.0, "huber", {"delta": 1.0}),
        "label": Term(1.0, "cross_entropy"),
        "residue_types": Term(1.0, "cross_entropy"),
    }
)
COUNTS = dict.fromkeys(("energy", "forces", "stress", "label", "residue_types"), 10.0)
MAKERS = {
    "atoms": (random_molecule, random_crystal),
    "jets": (random_jet, random_jet),
    "residues": (random_peptide, random_peptide),
}


def micro_batch(kind: str, size: int, makers=None) -> LoadedBatch:
    rng = np.random.default_rng(size)
    graphs = [graph_of(make(rng, size + i), kind, dataset=i) for i, make in enumerate(makers or MAKERS[kind])]
    return LoadedBatch(collate(graphs), kind, COUNTS, ())


def gradients(model, forward, batch: LoadedBatch) -> tuple[dict, torch.Tensor]:
    """Shares of the loss, and its gradient with respect to all parameters."""
    model.zero_grad(set_to_none=True)
    loss, shares = OBJECTIVE(model, forward(batch.batch, batch.kind), batch)
    loss.backward()
    flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
    return {name: float(value.detach()) for name, value in shares.items()}, torch.cat(flat)


def check(kind: str, backend: str, batches: list[LoadedBatch], **options) -> None:
    model = random_model(kinds=(kind,), **options)
    compiled = compiled_forward(model, backend)
    for batch in batches:
        shares, found = gradients(model, compiled, batch)
        expected_shares, expected = gradients(model, lambda b, k: model(b, k, create_graph=True), batch)
        for name, value in expected_shares.items():
            assert shares[name] == pytest.approx(value, rel=1e-9), name
        assert float(expected.abs().max()) > 0
        assert relative_rms(found, expected) < 1e-9


@pytest.mark.parametrize("kind", MAKERS)
def test_gradients_of_the_parameters_are_the_eager_ones(kind):
    """Traced and differentiated as a whole; two sizes, so that no size is burnt in. Atoms have forces and a stress."""
    check(kind, "aot_eager", [micro_batch(kind, 7), micro_batch(kind, 9)], layers=1, correlation=2)


@pytest.mark.slow
def test_jets_without_spurions_and_with_four_momenta_are_traced():
    """Neither copies a batch nor looks at a number while it is traced."""
    description = describe_model(("jets",), layers=1, correlation=1, spurions=False)
    description["heads"]["four_momenta"] = {"name": "four_momenta", "hidden": 8}
    model = build_model(description).double()
    batch = micro_batch("jets", 7).batch
    expected, found = model(batch, "jets", create_graph=True), compiled_forward(model, "aot_eager")(batch, "jets")
    for name, value in expected.items():
        assert relative_rms(found[name], value) < 1e-9, name


@pytest.mark.slow
def test_molecules_alone_and_crystals_alone_too():
    """The compiled graph serves both: what only crystals need does no harm to molecules."""
    batches = [micro_batch("atoms", 6, (make, make)) for make in (random_molecule, random_crystal)]
    check("atoms", "aot_eager", batches)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jets", "residues"])
def test_both_levels_are_traced(kind):
    check(kind, "aot_eager", [micro_batch(kind, 7), micro_batch(kind, 9)], **ALL_SCALES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_generated_code_gives_the_eager_gradients(kind):
    check(kind, "inductor", [micro_batch(kind, 7), micro_batch(kind, 9)])


def test_a_part_that_cannot_be_traced_is_refused_in_a_sentence():
    model = random_model(kinds=("jets",), layers=1, correlation=2)
    head = model.heads["jet_class"]
    traced = head.forward

    def branching(features, batch, geometry):
        return traced(features, batch, geometry) if float(features.fine.sum()) > -1e9 else {}

    head.forward = branching
    with pytest.raises(UserError, match=r"trainer.compile: the model cannot be compiled as one graph .*compile=false"):
        compiled_forward(model, "aot_eager")(micro_batch("jets", 5).batch, "jets")


def test_a_torch_that_cannot_trace_derivatives_is_refused(monkeypatch):
    class Old:
        """The settings of a torch before 2.11."""

    monkeypatch.setattr(torch._dynamo, "config", Old())
    with pytest.raises(UserError, match="cannot trace the forces inside a compiled step, expected torch 2.11"):
        compiled_forward(random_model(kinds=("jets",)))


def test_sums_over_waves_are_refused_by_name():
    model = random_model(kinds=("atoms",), reciprocal={"charges": 2})
    with pytest.raises(UserError, match=r"trainer.compile: found true with sums over waves \(model.reciprocal.charges"):
        compiled_forward(model)
