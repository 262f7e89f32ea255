"""bf16-mixed rounds the linear maps alone: geometry, sums and energies keep the precision of their inputs."""

from typing import Any

import numpy as np
import pytest
import torch

from sciml.graph import KINDS, collate
from sciml_kernels import EdgeEmbedding, edge_embedding
from tests.helpers import random_crystal, random_jet, random_peptide, relative_rms
from tests.small import ALL_SCALES, graph_of, random_model

RECORDS = {"atoms": random_crystal, "jets": random_jet, "residues": random_peptide}


@pytest.mark.parametrize("scales", [{}, ALL_SCALES], ids=["fine", "all scales"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_in_bf16_mixed_are_those_of_fp32_to_the_rounding_of_bf16(kind: str, scales: dict[str, int]) -> None:
    """In the median over systems: in a small random one the forces of many atoms may nearly cancel."""
    model = random_model(torch.float32, **scales)
    errors: dict[str, list[float]] = {}
    for seed in range(5):
        batch = collate([graph_of(RECORDS[kind](np.random.default_rng(seed)), kind, torch.float32)])
        exact = model(batch, kind)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(batch, kind)
        for name, value in exact.items():
            assert rounded[name].dtype == value.dtype
            errors.setdefault(name, []).append(relative_rms(rounded[name], value))
    for name, values in errors.items():
        assert 0.0 < np.median(values) < 0.05, (name, values)


def test_a_force_loss_in_bf16_mixed_has_the_gradients_of_fp32_to_the_rounding_of_bf16() -> None:
    batch = collate([graph_of(random_crystal(np.random.default_rng(0)), "atoms", torch.float32)])
    gradients = []
    for enabled in (False, True):
        model = random_model(torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            model(batch, "atoms", create_graph=True)["forces"].square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert 0.0 < relative_rms(gradients[1], gradients[0]) < 0.1


def test_the_geometry_is_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(torch.float32)
    seen = []

    def watched(*args: Any, **options: Any) -> EdgeEmbedding:
        seen.append(edge_embedding(*args, **options))
        return seen[-1]

    monkeypatch.setattr("sciml.models.backbone.edge_embedding", watched)
    batch = collate([graph_of(random_crystal(np.random.default_rng(0)), "atoms", torch.float32)])
    model(batch, "atoms")
    with torch.autocast("cpu", torch.bfloat16):
        model(batch, "atoms")
    assert len(seen) == 2
    for exact, mixed in zip(*seen, strict=True):
        assert torch.equal(exact, mixed)
