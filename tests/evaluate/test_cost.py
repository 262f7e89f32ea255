"""Costs of a model: parameters exact, flops those that torch counts on the reference kernels, bytes those saved."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sciml.config import configure
from sciml.evaluate.cost import coupling_flops, measure, part_of, saved_bytes
from sciml.graph import collate
from sciml.ingest.inspect import run
from sciml.models.block import Convolution, ManyBodyProduct
from sciml.models.layers import lmax_of
from sciml.package import save
from sciml_kernels import Spec
from tests.helpers import random_jet, random_peptide
from tests.small import ALL_SCALES, describe_model, graph_of, random_model

RECORDS = {"jets": random_jet, "residues": random_peptide}


def dense_flops(spec: Spec, channels: int) -> int:
    """What the reference does in matrix products for one row of a contraction: every entry of C y, zeros included, but
    for a y of one component, which is no matrix product.
    """
    total = 0
    for path in spec.paths:
        x, y, out = (2 * degree + 1 for degree in path.degrees)
        total += 2 * x * y * out * channels if y > 1 else 0
    return total


def couplings(model: torch.nn.Module, batch: Any, kind: str) -> list[tuple[int, Spec]]:
    """Rows and spec of every contraction in a forward pass."""
    found: list[tuple[int, Spec]] = []

    def note(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, Convolution):
            found.append((inputs[3].num_edges, module.specs[lmax_of(inputs[0])]))
        else:
            found.extend((inputs[0].shape[0], spec) for spec in module.specs)

    hooks = [
        module.register_forward_pre_hook(note)
        for module in model.modules()
        if isinstance(module, Convolution | ManyBodyProduct)
    ]
    model(batch, kind)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("scales", [{}, ALL_SCALES], ids=["fine", "all scales"])
@pytest.mark.parametrize("kind", RECORDS)
def test_flops_are_those_that_torch_counts_on_the_reference_kernels(kind, scales):
    """Up to the couplings, which the reference does densely and kernels by their nonzero entries."""
    model = random_model(torch.float32, backend="reference", **scales)
    graph = graph_of(RECORDS[kind](np.random.default_rng(0)), kind, torch.float32)
    batch = collate([graph])
    rows = couplings(model, batch, kind)
    with FlopCounterMode(display=False) as counter:
        model(batch, kind)
    dense = sum(n * dense_flops(spec, spec.channels or 4 if spec.y_channels else 1) for n, spec in rows)
    sets = [len(graph.senders)] + ([2 * len(graph.children), len(graph.coarse_senders)] if scales else [])
    harmonics = sum(sets) * 2 * 9 * 5  # degree 2 is coupled from degree 1: a matrix of 9 x 5
    cost = measure(model, batch, kind)
    sparse = sum(n * coupling_flops(spec) for n, spec in rows)
    assert cost.flops - sparse == counter.get_total_flops() - dense - harmonics
    assert 0 < sparse < cost.flops


def test_operations_of_a_coupling_are_counted_by_hand():
    channels = 5
    spec = Spec.separate(f"{channels}x1o", "1x1o", "0e")  # a scalar product: three entries, all into one number
    assert coupling_flops(spec) == 2 * 3 + 2 * (3 + 1) * channels
    spec = Spec.separate(f"{channels}x1o", f"{channels}x1o", "1e", y_channels=True)  # a vector product: six entries
    assert coupling_flops(spec) == 2 * (6 + 6 + 3) * channels


def test_parts_hold_every_parameter_once():
    model = random_model(torch.float32, **ALL_SCALES)
    cost = measure(model, collate([graph_of(random_jet(np.random.default_rng(0)), "jets", torch.float32)]), "jets")
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    names = [part.name for part in cost.parts]
    assert names[:3] == ["embedding", "blocks 0", "blocks 1"]
    assert {"coarse up", "coarse blocks 0", "coarse down", "heads energy"} <= set(names)
    assert part_of("backbone.coarse.blocks.0.radial.basis.weight") == "coarse blocks 0"
    block = next(part for part in cost.parts if part.name == "coarse blocks 0")
    assert block.parameters == sum(p.numel() for p in model.backbone.coarse.blocks[0].parameters())


def test_bytes_are_those_that_autograd_saves_each_memory_once():
    x, weight = torch.randn(7, 3), torch.randn(3, 5, requires_grad=True)
    with saved_bytes() as kept:
        y = x @ weight  # keeps x
        (y * y).sum()  # keeps y, twice
    assert sum(kept.values()) == 4 * (7 * 3 + 7 * 5)


def test_the_verb_describes_a_model_and_a_package(tmp_path, capsys):
    words = ["model=tiny", "model.channels=4", "model.radial.hidden=[8]", "model.backend=reference"]
    assert run(configure("inspect", words)) == 0
    printed = capsys.readouterr().out
    for text in ("parameters", "in training", "samples:peptides, record 0", "coarse up", "backward passes"):
        assert text in printed
    model = random_model(torch.float32, backend="reference")
    description = describe_model(backend="reference")
    save(tmp_path / "run" / "package", model, {"model": description, "units": {}}, "# a card\n")
    assert run(SimpleNamespace(source=str(tmp_path / "run"), model=None, output=None)) == 0
    printed = capsys.readouterr().out
    assert f"{sum(p.numel() for p in model.parameters()):,}" in printed
    assert "coarse" not in printed
