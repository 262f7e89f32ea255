"""Archives of quark and gluon jets: four-momenta, kinds and charges of the particles, faults named."""

import numpy as np
import pytest

from sciml.errors import UserError
from sciml.ingest.ingest import detect, ingest


def archive(path, jets, labels):
    np.savez(path, X=np.array(jets), y=np.array(labels))
    return path


def jet(*particles, padding=2):
    return [*particles, *[[0.0] * 4] * padding]


JETS = [
    jet([30.0, 0.5, 1.0, 211.0], [20.0, 0.4, 1.1, 22.0], [5.0, 0.6, 0.9, -2212.0]),
    jet([40.0, -1.5, 6.0, 11.0], [10.0, -1.4, 5.9, 130.0], [2.0, -1.3, 6.1, -13.0]),
]


def test_particles_have_their_masses_kinds_and_charges(tmp_path):
    path = archive(tmp_path / "QG_jets.npz", JETS, [1.0, 0.0])
    assert detect(path) == "quarkgluon"
    store = ingest(path, tmp_path / "s")
    assert store.manifest["classes"] == ["gluon", "quark"]
    assert [int(record["label"]) for record in store] == [1, 0]
    for record, particles, masses in zip(store, JETS, ([0.13957, 0, 0.93827], [0.000511, 0.49761, 0.10566])):
        momenta = record["momenta"].astype(float)
        pt, rapidity, azimuth = np.array(particles[:3])[:, :3].T
        np.testing.assert_allclose(np.hypot(*momenta[:, 1:3].T), pt, rtol=1e-5)
        found = 0.5 * np.log((momenta[:, 0] + momenta[:, 3]) / (momenta[:, 0] - momenta[:, 3]))
        np.testing.assert_allclose(found, rapidity, rtol=1e-5)
        np.testing.assert_allclose(np.arctan2(momenta[:, 2], momenta[:, 1]) % (2 * np.pi), azimuth, rtol=1e-5)
        squares = momenta[:, 0] ** 2 - (momenta[:, 1:] ** 2).sum(axis=1)
        np.testing.assert_allclose(squares, np.square(masses), atol=1e-3)
    assert store[0]["types"].tolist() == [1, 3, 1]
    assert store[0]["particle_charge"].tolist() == [1, 0, -1]
    assert store[1]["types"].tolist() == [4, 2, 5]
    assert store[1]["particle_charge"].tolist() == [-1, 0, 1]


def test_faults_are_named(tmp_path):
    with pytest.raises(UserError, match=r"X of shape \(2, 5\) .* expected \(jets, particles, 4\)"):
        ingest(archive(tmp_path / "a.npz", np.zeros((2, 5)), [0, 1]), tmp_path / "s")
    store = ingest(archive(tmp_path / "b.npz", JETS, [1, 7]), tmp_path / "t")
    assert "y: 7 found, expected 0 for gluon or 1 for quark" in (store.path / "quarantine.jsonl").read_text()
    whole = (tmp_path / "b.npz").read_bytes()
    (tmp_path / "c.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"c\.npz"):
        ingest(tmp_path / "c.npz", tmp_path / "u", reader="quarkgluon")
    assert not (tmp_path / "u").exists()
