"""The parts of training by themselves: averaging, schedule, optimizer, checkpoints, exact gradients of a step."""

import itertools
import math
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch

from sciml import build
from sciml.data.graph_dataset import GraphDataset
from sciml.data.sampler import Plan
from sciml.graph import collate
from sciml.models.model import build_model
from sciml.train.averaging import ExponentialAverage
from sciml.train.module import Module
from sciml.train.optimizer import build_optimizer, learning_rate_factor, relative_widths
from sciml.train.sources import open_splits
from tests.helpers import random_molecule, relative_rms
from tests.small import describe_model, graph_of, random_model, train_config


def test_the_average_is_the_formula_and_counts_steps_not_micro_batches():
    model = torch.nn.Linear(1, 1, bias=False)
    module, trainer = SimpleNamespace(model=model, left_out=False), SimpleNamespace(global_step=0)
    average = ExponentialAverage(0.3)
    average.on_train_start(trainer, module)
    expected = float(model.weight.detach())
    for step in range(1, 20):
        with torch.no_grad():
            model.weight += 1.0
        average.on_train_batch_end(trainer, module)  # a micro-batch that ends no step
        trainer.global_step = step
        average.on_train_batch_end(trainer, module)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * float(model.weight.detach())
    assert float(average.averages[0]) == pytest.approx(expected, rel=1e-5)
    trained = model.weight.detach().clone()
    average.swap(model)
    assert float(model.weight.detach()) == pytest.approx(expected, rel=1e-5)
    average.restore(model)
    assert torch.equal(model.weight, trained)


def test_the_average_survives_a_checkpoint():
    model = torch.nn.Linear(2, 2)
    module, trainer = SimpleNamespace(model=model, left_out=False), SimpleNamespace(global_step=3)
    first, second = ExponentialAverage(0.9), ExponentialAverage(0.9)
    first.on_train_start(SimpleNamespace(global_step=0), module)
    first.on_train_batch_end(trainer, module)
    second.load_state_dict(first.state_dict())
    second.on_train_start(trainer, module)
    second.on_train_batch_end(trainer, module)
    assert second.updates == first.updates
    assert all(torch.equal(a, b) for a, b in zip(first.averages, second.averages, strict=True))


def test_the_schedule_warms_up_falls_and_ends_where_it_should():
    factors = [learning_rate_factor(step, 10, 110, 0.01) for step in range(111)]
    assert factors[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert factors[10] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.01 + 0.99 / 2)
    assert factors[110] == pytest.approx(0.01)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert learning_rate_factor(500, 10, 110, 0.01) == pytest.approx(0.01)
    assert learning_rate_factor(0, 0, 1, 0.0) == 1.0
    assert {learning_rate_factor(step, 0, 10, 0.0, "constant") for step in range(20)} == {1.0}
    assert all(math.isfinite(learning_rate_factor(step, 100, 50, 0.01)) for step in range(60))


def test_weight_decay_acts_on_matrices_alone():
    model = random_model(torch.float32)
    options = SimpleNamespace(learning_rate=1e-3, weight_decay=0.1, betas=[0.9, 0.99], eps=1e-8)
    decayed, plain = build_optimizer(model, options).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    spared = {names[id(p)] for p in plain["params"]}
    assert all(name in spared for name in names.values() if "bias" in name or "embedding.types" in name)
    assert len(decayed["params"]) + len(spared) == len(names)
    assert all(p.dim() > 1 for p in decayed["params"])


OPTIONS = SimpleNamespace(learning_rate=1e-3, weight_decay=0.1, betas=[0.9, 0.99], eps=1e-8)


def rates(channels: int, reference: int | None, **backbone) -> dict[str, tuple[float, float]]:
    """{parameter: (learning rate, decay in one step)} of a model of ``channels``."""
    description = describe_model(channels=channels, **backbone)
    model = build_model(description)
    optimizer = build_optimizer(model, OPTIONS, relative_widths(model, description, reference))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["lr"] * g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found.keys() == set(names.values())
    return found


def test_the_reference_width_has_one_learning_rate_as_without_the_rule():
    assert rates(4, reference=4) == rates(4, reference=None)
    assert {rate for rate, _ in rates(4, reference=None).values()} == {1e-3}


@pytest.mark.parametrize("name", ["backbone", "transformer"])
def test_the_learning_rate_of_a_matrix_falls_with_its_inputs_where_the_channels_make_them(name):
    one, four = rates(4, reference=4, name=name), rates(16, reference=4, name=name)
    for parameter, (rate, decay) in four.items():
        assert rate in (one[parameter][0], one[parameter][0] / 4), parameter
        assert decay == pytest.approx(one[parameter][1]), parameter
    falls = {parameter for parameter, (rate, _) in four.items() if rate < one[parameter][0]}
    never = ("bias", "embedding.", "radial.basis", "radial.hidden", "convolution", "backbone.edges", "readout.2")
    assert not [parameter for parameter in falls if any(part in parameter for part in never)]
    expected = {
        "backbone": ("linear_in.weights", "product.weights.weight", "feed_forward.contract.weights", "radial.sender"),
        "transformer": ("query_key_value.weight", "out.weight", "feed_forward.3.weight"),
    }[name]
    for part in (*expected, "energy.readout.0.weight"):
        assert any(part in parameter for parameter in falls), part


def test_with_the_rule_a_first_step_moves_wide_models_as_far_as_narrow_ones():
    """One learning rate for all moves the features of a wide model further, in proportion to its channels."""
    graph = graph_of(random_molecule(np.random.default_rng(0)), "atoms", torch.float32)

    def moved(channels: int, reference: int | None) -> float:
        distances = []
        for seed in range(4):
            torch.manual_seed(seed)
            description = describe_model(channels=channels, layers=1)
            model = build_model(description)
            optimizer = build_optimizer(model, OPTIONS, relative_widths(model, description, reference))
            before = model(collate([graph.clone()]), "atoms", create_graph=True)["interaction_energy"]
            before.square().sum().backward()
            optimizer.step()
            after = model(collate([graph.clone()]), "atoms")["interaction_energy"]
            distances.append(float((after - before).detach().abs()))
        return float(np.mean(distances))

    narrow = moved(8, None)
    assert moved(128, None) > 4.0 * narrow
    assert moved(128, 8) < 2.5 * narrow


class Gradients(lightning.Callback):
    """Keeps the gradient that reaches the optimizer at the first step."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.found = torch.cat([p.grad.flatten().clone() for p in module.model.parameters() if p.grad is not None])


def test_the_gradient_of_a_step_is_that_of_its_records_in_one_piece(finished):
    """Six micro-batches of three kinds through Lightning, against sums over the whole step at once."""
    config = train_config(finished, "data.bins_per_step=2")
    splits = open_splits(config, lambda path: build.open_data(path), [])
    datasets = [source.data.dataset for source in splits.train]
    description = build.describe(config, splits, datasets)
    torch.manual_seed(0)
    model, description = build.initial_model(description, None)
    data = build.build_data(config, splits, description)
    module = Module(model, build.build_objective(config.objective.terms), config.optimizer, total_steps=1)
    plan = Plan(data.streams, data.bins_per_step, config.seed, counts=data.training.counts)
    dataset = GraphDataset(splits.train, description["cutoffs"], coarse_cutoffs=description["coarse"]["cutoffs"])
    steps = plan.step(0)
    assert len(steps) == 6
    loss = 0.0
    for kind in description["kinds"]:
        items = tuple(item for part in steps if part.kind == kind for item in part.items)
        joined = dataset[steps[0]._replace(kind=kind, items=items)]
        loss = loss + module.objective(model, model(joined.batch, kind, create_graph=True), joined)[0]
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    gradients = Gradients()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=1,
        accumulate_grad_batches=data.micro_batches_per_step,
        callbacks=[gradients],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    assert relative_rms(gradients.found, expected) < 1e-5
    assert float(sum(module.step_losses.values())) == pytest.approx(float(loss.detach()), rel=1e-5)
