"""Conformations: superposition, what a perfect and a blind denoiser make of noise, and the refusal without a head."""

import json

import numpy as np
import pytest
import torch

from sciml.data.source import Source
from sciml.errors import UserError
from sciml.evaluate import conformations
from sciml.evaluate.conformations import Denoiser, rmsd
from sciml.models.model import build_model
from tests.helpers import random_rotation
from tests.small import describe_model, molecules_store, peptides_store


def model_of(*heads: str):
    torch.manual_seed(0)
    description = describe_model(("atoms", "residues"))
    description["context"]["datasets"] = ["first", "amber"]
    description["heads"] |= {name: {"hidden": 8} for name in heads}
    return build_model(description).eval(), description


def test_rmsd_is_that_after_the_best_turn():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(20, 3)) * 5
    turn = random_rotation(torch.Generator().manual_seed(0)).numpy()
    assert rmsd(points, points @ turn.T + [3.0, -2.0, 9.0]) == pytest.approx(0.0, abs=1e-6)
    assert rmsd(points, points * [1, 1, -1]) > 1.0  # a mirror image is another structure
    noise = 0.1 * rng.normal(size=points.shape)
    apart = rmsd(points, (points + noise) @ turn.T)
    plain = np.sqrt(np.square(noise).sum(axis=1).mean())
    assert 0.7 * plain < apart <= plain
    other = random_rotation(torch.Generator().manual_seed(1)).numpy()
    assert rmsd(points, (points + noise) @ other.T) == pytest.approx(apart)


@pytest.mark.parametrize("steps", [1, 5])
def test_who_knows_the_noise_takes_it_out(tmp_path, steps, monkeypatch):
    model, description = model_of("denoise_residues")
    source = Source(peptides_store(tmp_path / "p", records=2), 1, "p")
    record = source.data[0]
    clean = np.asarray(record["positions"], np.float64)
    denoiser = Denoiser(model, description, "residues")
    chosen = denoiser.chosen(record)
    perturbed = clean + 0.4 * np.random.default_rng(0).normal(size=clean.shape)

    def known(self, source, record, positions, level):
        return (positions - clean)[self.chosen(record)] / level

    monkeypatch.setattr(Denoiser, "noise", known)
    found = denoiser.denoise(source, record, perturbed, 0.4, steps)
    np.testing.assert_allclose(found[chosen], clean[chosen], atol=1e-12)
    rest = np.setdiff1d(np.arange(len(clean)), chosen)
    np.testing.assert_array_equal(found[rest], perturbed[rest])


def test_the_model_s_noise_turns_with_the_structure(tmp_path):
    model, description = model_of("denoise_residues")
    for parameter in model.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.3)
    source = Source(peptides_store(tmp_path / "p", records=2), 1, "p")
    record = source.data[0]
    positions = np.asarray(record["positions"], np.float64)
    denoiser = Denoiser(model.double(), description, "residues")
    turn = random_rotation(torch.Generator().manual_seed(0)).numpy()
    first = denoiser.noise(source, record, positions, 0.2)
    second = denoiser.noise(source, record, positions @ turn.T, 0.2)
    assert np.abs(first).max() > 1e-3
    np.testing.assert_allclose(second, first @ turn.T, atol=1e-6)


def test_stores_are_measured_at_every_level(tmp_path):
    model, description = model_of("denoise_atoms", "denoise_residues")
    sources = [Source(molecules_store(tmp_path / "m", records=5), 0, "m")]
    sources.append(Source(peptides_store(tmp_path / "p"), 1, "p"))
    found = conformations.measure(model, sources, description, [0.05, 0.2])
    assert {store: set(kinds) for store, kinds in found.items()} == {"m": {"atoms"}, "p": {"atoms", "residues"}}
    for kinds in found.values():
        for levels in kinds.values():
            assert list(levels) == ["0.05", "0.2"]
            assert levels["0.05"]["before"] < levels["0.2"]["before"]
            # sqrt(3) of the level, less what a superposition takes out
            assert 0.6 * np.sqrt(3) * 0.2 < levels["0.2"]["before"] < 1.1 * np.sqrt(3) * 0.2
    text = conformations.write(found, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "conformations.json").read_text()) == found
    assert (tmp_path / "out" / "conformations.png").stat().st_size > 10_000
    assert len(text.splitlines()) == 2 + 6


def test_a_model_without_the_head_is_refused(tmp_path):
    model, description = model_of()
    with pytest.raises(UserError, match="denoise_levels: the model has no head that finds noise in these data"):
        conformations.measure(model, [Source(molecules_store(tmp_path / "m"), 0, "m")], description, [0.1])
