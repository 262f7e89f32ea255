"""Blocks that are computed again give the same numbers and gradients, through forces too, and keep less."""

import numpy as np
import pytest
import torch

from sciml.errors import UserError
from sciml.graph import collate
from sciml.models.recompute import recompute_blocks, recomputed
from sciml.train.batch_size import _SavedBytes
from tests.helpers import random_crystal, random_jet, random_molecule, random_peptide, relative_rms
from tests.small import ALL_SCALES, graph_of, random_model

MAKERS = {
    "atoms": (random_molecule, random_crystal),
    "jets": (random_jet, random_jet),
    "residues": (random_peptide, random_peptide),
}


def batch_of(kind: str, size: int = 7):
    rng = np.random.default_rng(size)
    return collate([graph_of(make(rng, size + i), kind, dataset=i) for i, make in enumerate(MAKERS[kind])])


def step(model, kind: str) -> tuple[dict, torch.Tensor, int]:
    """Predictions, gradients of a loss on all of them, and the bytes that the graph kept."""
    model.zero_grad(set_to_none=True)
    saved = _SavedBytes()
    with saved:
        predictions = model(batch_of(kind), kind, create_graph=True)
    loss = sum(value.nan_to_num().square().sum() for value in predictions.values())
    loss.backward()
    flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
    return {name: value.detach() for name, value in predictions.items()}, torch.cat(flat), saved.bytes


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["backbone", "transformer"])
def test_gradients_are_those_of_blocks_that_keep_everything(kind, name):
    options = {"kinds": (kind,), "name": name, **(ALL_SCALES if name == "backbone" else {})}
    plain, again = random_model(**options), random_model(**options)
    recompute_blocks(again)
    expected, expected_gradients, expected_bytes = step(plain, kind)
    found, gradients, kept = step(again, kind)
    for key, value in expected.items():
        assert relative_rms(found[key].nan_to_num(), value.nan_to_num()) < 1e-12, key
    assert float(expected_gradients.abs().max()) > 0
    assert relative_rms(gradients, expected_gradients) < 1e-9
    assert kept < 0.8 * expected_bytes, (kept, expected_bytes)


def test_single_precision_agrees_to_rounding():
    plain, again = random_model(torch.float32, kinds=("atoms",)), random_model(torch.float32, kinds=("atoms",))
    recompute_blocks(again)
    assert relative_rms(step(again, "atoms")[1], step(plain, "atoms")[1]) < 1e-6


def test_the_second_derivative_of_a_function_with_parameters():
    """Against finite differences, of a function in which arguments and parameters meet."""
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    x, y = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def function(x, y):
        return recomputed(lambda a, b: torch.sin(a @ weight) * b**2, [x, y], [weight])

    def with_weight(x, y, w):
        return recomputed(lambda a, b: torch.sin(a @ w) * b**2, [x, y], [w])

    assert torch.autograd.gradgradcheck(function, (x, y))
    assert torch.autograd.gradgradcheck(with_weight, (x, y, weight.detach().clone().requires_grad_()))


def test_a_model_without_such_blocks_is_refused():
    with pytest.raises(UserError, match="trainer.recompute: found true, but the model has no block"):
        recompute_blocks(torch.nn.Linear(1, 1))


def mixed_step(
    recomputes: bool, target: str, dtype: torch.dtype | None, seed: int = 7
) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction, and the gradients of a loss on it, as in training: the backward pass is outside of autocast.

    None for ``dtype`` computes in float64.
    """
    exact = torch.float64 if dtype is None else torch.float32
    model = random_model(exact, kinds=("atoms",))
    if recomputes:
        recompute_blocks(model)
    rng = np.random.default_rng(seed)
    graphs = [graph_of(make(rng, 7 + i), "atoms", exact, dataset=i) for i, make in enumerate(MAKERS["atoms"])]
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        found = model(collate(graphs), "atoms", create_graph=True)[target]
    (found / found.detach().nan_to_num().square().mean().sqrt()).nan_to_num().square().sum().backward()
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])
    return found.detach().nan_to_num(), flat.double()


def test_in_mixed_precision_first_derivatives_are_the_same_but_for_the_order_of_sums_in_float32():
    for target in ("energy", "forces", "stress"):
        (expected, gradients), (found, again) = (mixed_step(way, target, torch.bfloat16) for way in (False, True))
        assert relative_rms(found, expected) < 1e-6, target
        assert target != "energy" or relative_rms(again, gradients) < 1e-6


@pytest.mark.parametrize("target", ["forces", "stress"])
def test_in_mixed_precision_second_derivatives_differ_by_the_rounding_of_sums(target):
    """By less than either is off; by an eighth of it in float16, which has three more bits; and none is better."""
    off: dict[str, list[float]] = {}
    for seed in range(5):
        exact = mixed_step(False, target, None, seed)[1]
        for name, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16}.items():
            plain, again = (mixed_step(way, target, dtype, seed)[1] for way in (False, True))
            for key, pair in {"plain": (plain, exact), "again": (again, exact), "both": (again, plain)}.items():
                off.setdefault(f"{key} {name}", []).append(relative_rms(*pair))
    middle = {key: float(np.median(values)) for key, values in off.items()}
    for name in ("bf16", "fp16"):
        assert middle[f"both {name}"] < 0.7 * middle[f"plain {name}"], middle
        assert middle[f"again {name}"] < 1.2 * middle[f"plain {name}"], middle
    assert middle["both fp16"] < 0.2 * middle["both bf16"], middle
