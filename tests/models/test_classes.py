"""The first convolution sums over neighbours of one class before it maps: the function stays what it is by edges."""

import numpy as np
import pytest
import torch
from ase.build import bulk

from sciml.domains.materials.graphs import graph
from sciml.graph import Graph, collate
from sciml.models.backbone import Backbone
from sciml.models.model import Model
from tests.helpers import random_molecule
from tests.small import graph_of, random_model

SETTINGS = {"lmax_edge": 1, "layers": 2}
"""Sums of few components, so that small crystals are dense enough for classes."""


def crystal(symbols: str = "CuAu", dataset: int = 0, charge: float = 0.0, seed: int = 0) -> Graph:
    """A distorted crystal of 8 atoms, about 80 neighbours each."""
    atoms = bulk("Cu", "fcc", a=3.7, cubic=True).repeat((2, 1, 1))
    atoms.symbols[:] = "C" if symbols == "C" else ["C", "O"] * 4
    atoms.rattle(0.1, seed=seed)
    record = {
        "types": atoms.numbers,
        "positions": atoms.positions,
        "cell": atoms.cell.array,
        "pbc": atoms.pbc,
        "charge": charge,
        "spin": 1.0,
    }
    made = graph(record, "atoms", 5.0, torch.float64)
    made.dataset = torch.tensor([dataset])
    return made


def everything(model: Model, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch, by_class: bool) -> list:
    """Energies, forces, stress, and the gradients of a loss of all of them."""
    if not by_class:
        monkeypatch.setattr(Backbone, "_classes", lambda *_: None)
    out = model(collate(graphs), "atoms", create_graph=True)
    loss = out["energy"].square().sum() + out["forces"].square().sum() + out["stress"].square().sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [out["energy"], out["forces"], out["stress"], *(value for value in gradients if value is not None)]


@pytest.mark.parametrize(
    ("graphs", "number"),
    [
        ([crystal("C")], 1),
        ([crystal()], 2),
        ([crystal(seed=1), crystal("C", seed=2)], 2),
        ([crystal("C", dataset=0), crystal("C", dataset=1, seed=1)], 2),
        ([crystal("C"), crystal("C", charge=1.0, seed=1)], 2),
    ],
    ids=["one type", "two types", "two graphs", "levels of theory", "charges"],
)
def test_by_class_equals_by_edge_to_second_order(
    graphs: list[Graph], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(kinds=("atoms",), **SETTINGS)
    batch = collate(graphs)
    classes = model.backbone._classes(batch, "atoms")
    assert len(classes.first) == number
    assert model.backbone._sums_by_class(batch, classes)
    found = everything(model, graphs, monkeypatch, True)
    expected = everything(model, graphs, monkeypatch, False)
    assert len(found) == len(expected)
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-10 * max(1.0, float(other.detach().abs().max())))


def test_edges_serve_where_they_are_less_work_or_nodes_have_more_inputs() -> None:
    model = random_model(kinds=("atoms", "jets"), **SETTINGS)
    many = graph_of(random_molecule(np.random.default_rng(0), atoms=12), "atoms", torch.float64)
    for system, expected in ((crystal(), True), (many, False)):
        batch = collate([system])
        assert model.backbone._sums_by_class(batch, model.backbone._classes(batch, "atoms")) == expected
    noisy = random_model(kinds=("atoms",), noise=True, **SETTINGS)
    assert noisy.backbone._classes(collate([crystal()]), "atoms") is None
