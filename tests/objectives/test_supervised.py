"""The objective is exact: a step's loss is the same however its graphs are divided; missing labels take no part."""

import numpy as np
import pytest
import torch

from sciml.data.graph_dataset import LoadedBatch
from sciml.errors import UserError
from sciml.graph import collate, graph_of_rows
from sciml.objectives.losses import absolute_error, cross_entropy, huber, squared_error
from sciml.objectives.supervised import Supervised, Term, error_unit
from tests.helpers import random_crystal, random_jet, random_molecule, random_peptide, relative_rms
from tests.small import graph_of, random_model

TERMS = {
    "energy": Term(1.0, "huber", {"delta": 0.5}),
    "forces": Term(10.0, "mse"),
    "stress": Term(2.0, "mae"),
    "label": Term(1.0, "cross_entropy"),
    "residue_types": Term(0.5, "cross_entropy"),
}
DENOMINATORS = {"energy": 3.0, "forces": 3.0 * 32, "stress": 9.0, "label": 3.0, "residue_types": 21.0}


def graphs(kind: str) -> list:
    rng = np.random.default_rng(0)
    makers = {
        "atoms": [random_molecule, random_crystal, random_molecule],
        "jets": [random_jet] * 3,
        "residues": [random_peptide] * 3,
    }
    return [graph_of(make(rng), kind, dataset=i % 2) for i, make in enumerate(makers[kind])]


def loss_and_shares(model, objective, kind, chosen, denominators=DENOMINATORS):
    batch = collate([graph.clone() for graph in chosen])
    predictions = model(batch, kind, create_graph=True)
    return objective(model, predictions, LoadedBatch(batch, kind, denominators, ()))


def gradients(model, loss) -> torch.Tensor:
    model.zero_grad(set_to_none=True)
    loss.backward()
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])
    assert flat.isfinite().all()
    return flat


@pytest.mark.parametrize("kind", ["atoms", "jets", "residues"])
def test_micro_batches_with_the_step_s_denominators_sum_to_one_big_batch(kind):
    model, objective = random_model(), Supervised(TERMS)
    whole, shares = loss_and_shares(model, objective, kind, graphs(kind))
    assert float(whole.detach()) > 0
    torch.testing.assert_close(sum(shares.values()), whole)
    expected = gradients(model, whole)
    for cut in (1, 2):
        parts = [loss_and_shares(model, objective, kind, part)[0] for part in (graphs(kind)[:cut], graphs(kind)[cut:])]
        torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)
        assert relative_rms(gradients(model, sum(parts)), expected) < 1e-11


def test_the_value_of_every_term_is_the_formula():
    model, objective = random_model(), Supervised(TERMS)
    chosen = graphs("atoms")
    _, shares = loss_and_shares(model, objective, "atoms", chosen)
    batch = collate([graph.clone() for graph in chosen])
    found = {name: value.detach() for name, value in model(batch, "atoms").items()}
    scales = torch.tensor([0.7, 1.9, 0.7], dtype=torch.float64)
    spreads = torch.tensor([0.05, 0.3, 0.05], dtype=torch.float64)
    sizes = torch.bincount(batch.batch)
    error = (found["energy"] - batch.energy) / sizes / spreads
    energy = huber(error, torch.zeros_like(error), delta=0.5).sum() / 3
    forces = 10 * ((found["forces"] - batch.forces) / scales[batch.batch][:, None]).square().sum() / 96
    virial = torch.linalg.det(batch.cell[1]).abs() / sizes[1] * (found["stress"][1] - batch.stress[1])
    stress = 2 * (virial / scales[1]).abs().sum() / 9
    for name, value in (("energy", energy), ("forces", forces), ("stress", stress)):
        torch.testing.assert_close(shares[name].detach(), value, rtol=1e-10, atol=0)


def test_cross_entropies_are_means_over_the_labels():
    model, objective = random_model(), Supervised(TERMS)
    for kind, target, weight in (("jets", "label", 1.0), ("residues", "residue_types", 0.5)):
        batch = collate(graphs(kind))
        logits, labels = model(batch, kind)[target].detach(), batch[target]
        known = labels >= 0
        assert int(known.sum()) == DENOMINATORS[target]
        mean = torch.nn.functional.cross_entropy(logits[known], labels[known])
        _, shares = loss_and_shares(model, objective, kind, graphs(kind))
        torch.testing.assert_close(shares[target].detach(), weight * mean, rtol=1e-12, atol=0)


@pytest.mark.parametrize("missing", ["energy", "forces", "stress"])
def test_a_missing_label_takes_no_part_in_loss_or_gradient(missing):
    """A graph without one label weighs like its other labels alone; NaN reaches neither value nor gradient."""
    model, chosen = random_model(), graphs("atoms")
    crystal = chosen[1].clone()
    crystal[missing] = torch.full_like(crystal[missing], torch.nan)
    loss, shares = loss_and_shares(model, Supervised(TERMS), "atoms", [crystal])
    others = Supervised({name: term for name, term in TERMS.items() if name != missing})
    expected, _ = loss_and_shares(model, others, "atoms", [chosen[1]])
    torch.testing.assert_close(loss, expected)
    assert float(shares[missing].detach()) == 0.0
    assert relative_rms(gradients(model, loss), gradients(model, expected)) < 1e-12


@pytest.mark.parametrize(("kind", "target"), [("jets", "label"), ("residues", "residue_types")])
def test_a_batch_without_any_class_label_has_zero_loss_and_gradient(kind, target):
    model, (graph, *_) = random_model(), graphs(kind)
    graph[target] = torch.full_like(graph[target], -1)
    loss, _ = loss_and_shares(model, Supervised(TERMS), kind, [graph], {target: 0.0})
    assert float(loss.detach()) == 0.0
    assert (gradients(model, loss) == 0).all()


def test_targets_of_weight_zero_and_of_no_head_are_left_out():
    model = random_model()
    terms = {**TERMS, "forces": Term(0.0, "mse"), "charges": Term(1.0, "mse")}
    _, shares = loss_and_shares(model, Supervised(terms), "atoms", graphs("atoms"))
    assert set(shares) == {"energy", "stress"}


def test_without_any_term_the_loss_is_a_zero_with_a_gradient():
    model = random_model()
    loss, shares = loss_and_shares(model, Supervised({"label": TERMS["label"]}), "atoms", graphs("atoms"))
    assert (float(loss.detach()), shares) == (0.0, {})
    assert (gradients(model, loss) == 0).all()


def test_a_target_that_is_not_counted_is_refused():
    with pytest.raises(UserError, match=r"forces has a weight, but the domain's counts\(\) of atoms does not count"):
        loss_and_shares(random_model(), Supervised(TERMS), "atoms", graphs("atoms"), {"energy": 3.0})


def test_errors_of_numbers_on_the_coarse_level_are_in_the_unit_of_their_graph():
    """Residues of two graphs, of one and of three: the row of a residue is not that of an atom."""
    first, second = (graph_of(random_peptide(np.random.default_rng(0), residues=n), "residues") for n in (1, 3))
    batch = collate([first, second])
    label = torch.zeros(batch.coarse_types.shape[0], 2)
    unit = error_unit("exposure", graph_of_rows(batch, label), batch, torch.tensor([2.0, 3.0]))
    assert unit.tolist() == [{0: 2.0, 1: 3.0}[int(graph)] for graph in batch.coarse_batch]


def test_as_many_residues_as_graphs_are_residues_where_the_head_says_so():
    """A molecule without residues beside a peptide of two: two rows, both of the second graph."""
    molecule, peptide = graphs("atoms")[0], graph_of(random_peptide(np.random.default_rng(0), residues=2), "atoms")
    batch = collate([molecule, peptide])
    rows = torch.zeros(2, 1)
    assert batch.coarse_types.shape[0] == batch.num_graphs == 2
    assert graph_of_rows(batch, rows, "coarse").tolist() == [1, 1]
    assert graph_of_rows(batch, rows, "graph").tolist() == [0, 1]


def test_weights_multiply():
    model = random_model()
    doubled = {name: Term(2 * term.weight, term.loss, term.options) for name, term in TERMS.items()}
    one, _ = loss_and_shares(model, Supervised(TERMS), "atoms", graphs("atoms"))
    two, _ = loss_and_shares(model, Supervised(doubled), "atoms", graphs("atoms"))
    torch.testing.assert_close(two, 2 * one)


def test_energies_in_single_precision_keep_their_digits():
    """A total of 1e5 eV and an error of 1 meV an atom: the difference is taken in double precision."""
    model = random_model(torch.float32)
    graph = graph_of(random_molecule(np.random.default_rng(0)), "atoms", torch.float32, dataset=0)
    with torch.no_grad():
        model.heads["energy"].references -= 1e4
    graph.energy = model(collate([graph.clone()]), "atoms")["energy"].detach() + 12e-3
    only = Supervised({"energy": Term(1.0, "mae")})
    loss, _ = loss_and_shares(model, only, "atoms", [graph], {"energy": 1.0})
    assert float(loss.detach()) == pytest.approx(1e-3 / 0.05, rel=1e-5)


def test_an_unknown_loss_is_refused_with_the_names_there_are():
    with pytest.raises(UserError, match="'l3' is not known; use one of cross_entropy, huber, mae, mse"):
        Supervised({"energy": Term(1.0, "l3")})


def test_losses_are_elementwise():
    prediction, target = torch.tensor([0.0, 2.0]), torch.tensor([0.5, 0.0])
    assert squared_error(prediction, target).tolist() == [0.25, 4.0]
    assert absolute_error(prediction, target).tolist() == [0.5, 2.0]
    assert huber(prediction, target, delta=1.0).tolist() == [0.125, 1.5]
    assert cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).tolist() == pytest.approx([np.log(4)] * 2)
