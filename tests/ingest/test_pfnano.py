"""CMS PFNano: jets are the PUPPI-weighted candidates that the index branches name."""

import numpy as np
import pytest

from sciml.errors import UserError
from sciml.ingest.formats import Options, Rejected, pfnano
from sciml.ingest.ingest import detect, ingest

uproot = pytest.importorskip("uproot", reason="uproot is not installed (sciml[hep])")
pytest.importorskip("awkward", reason="awkward is not installed (sciml[hep])")


def test_real_jets_are_the_sums_of_their_weighted_candidates(shared_data, tmp_path):
    path = shared_data / "jets" / "pfnano.root"
    assert detect(path) == "pfnano"
    store = ingest(path, tmp_path / "s")
    assert len(store) == 24
    assert len(set(store.groups)) == 10  # events
    assert store.manifest["classes"] == ["light", "c", "b"]
    assert store.manifest["counts"]["quarantined"] == store.manifest["counts"]["regulated_constituents"] == 0
    events = uproot.open(path)["Events"].arrays(
        ["FatJet_pt", "FatJet_eta", "FatJet_mass", "FatJet_rawFactor", "FatJet_hadronFlavour"], library="np"
    )
    raw, eta, flavours = (np.concatenate(events[f"FatJet_{name}"]) for name in ("rawFactor", "eta", "hadronFlavour"))
    momenta = np.array([record["momenta"].sum(axis=0, dtype=np.float64) for record in store])
    pt = np.hypot(momenta[:, 1], momenta[:, 2])
    mass = np.sqrt(momenta[:, 0] ** 2 - (momenta[:, 1:] ** 2).sum(axis=1))
    # the file keeps about ten bits of a number
    np.testing.assert_allclose(pt, np.concatenate(events["FatJet_pt"]) * (1 - raw), rtol=4e-3)
    np.testing.assert_allclose(mass, np.concatenate(events["FatJet_mass"]) * (1 - raw), rtol=4e-3)
    np.testing.assert_allclose(np.arcsinh(momenta[:, 3] / pt), eta, atol=2e-3)
    assert [{0: 0, 1: 4, 2: 5}[int(record["label"])] for record in store] == flavours.tolist()


def test_kinds_and_charges_of_candidates_agree(shared_data, tmp_path):
    store = ingest(shared_data / "jets" / "pfnano.root", tmp_path / "s")
    kinds = np.concatenate([record["types"] for record in store])
    charges = np.concatenate([record["particle_charge"] for record in store])
    assert set(kinds.tolist()) <= {1, 2, 3, 4, 5}
    assert (charges[np.isin(kinds, [2, 3])] == 0).all()
    assert (np.abs(charges[np.isin(kinds, [1, 4, 5])]) == 1).all()
    assert np.mean(kinds == 1) > 0.3


def event(**changes):
    """One event of three candidates and two jets: {0, 2} and {1}."""
    arrays = {
        **{name: np.array(7) for name in ("run", "luminosityBlock", "event")},
        "PFCands_pt": np.array([100.0, 50.0, 20.0]),
        "PFCands_eta": np.array([0.1, 1.0, 0.2]),
        "PFCands_phi": np.array([0.0, 2.0, 0.1]),
        "PFCands_mass": np.array([0.14, -0.01, 0.5]),
        "PFCands_charge": np.array([-1, 0, 0]),
        "PFCands_pdgId": np.array([-211, 22, 3122]),
        "PFCands_puppiWeight": np.array([1.0, 0.5, 0.25]),
        "FatJetPFCands_jetIdx": np.array([0, 1, 0]),
        "FatJetPFCands_pFCandsIdx": np.array([2, 1, 0]),
        "FatJet_hadronFlavour": np.array([5, 0]),
        **{f"FatJet_{name}": np.array([120.0, 50.0]) for name in ("pt", "mass")},
        **{f"FatJet_{name}": np.array([0.1, 1.0]) for name in ("eta", "phi")},
    }
    return {**arrays, **{name: np.array(value) for name, value in changes.items()}}


def jets(tmp_path, **changes):
    return list(pfnano._jets(tmp_path / "f.root", 3, event(**changes)))


def test_pairs_choose_and_weights_scale(tmp_path):
    first, second = jets(tmp_path)
    assert (first["id"], second["id"], first["group"]) == ("f.root#3.0", "f.root#3.1", "f.root:7:7:7")
    assert first["types"].tolist() == [6, 1]
    assert first["particle_charge"].tolist() == [0, -1]
    assert (first["label"], second["label"]) == (2, 0)
    np.testing.assert_allclose(np.hypot(*first["momenta"][:, 1:3].T), [5.0, 100.0])
    np.testing.assert_allclose(second["momenta"][0], 25 * np.array([np.cosh(1), np.cos(2), np.sin(2), np.sinh(1)]))


def test_bad_pairs_and_jets_of_pile_up_alone_are_refused_one_by_one(tmp_path):
    first, second = jets(tmp_path, FatJetPFCands_pFCandsIdx=[2, 9, 0])
    assert isinstance(second, Rejected)
    assert "outside the 3 candidates" in second.reason
    assert first["label"] == 2
    _, second = jets(tmp_path, PFCands_puppiWeight=[1.0, 0.0, 1.0])
    assert "no candidate with a PUPPI weight above zero" in second.reason
    first, _ = jets(tmp_path, FatJet_hadronFlavour=[21, 0])
    assert "label" not in first  # no flavour that has a name


def test_other_root_files_are_refused_in_one_sentence(tmp_path):
    with uproot.recreate(tmp_path / "other.root") as file:
        file["Events"] = {"run": np.arange(3)}
    with pytest.raises(UserError, match="the branch luminosityBlock is missing in Events; is it a PFNano file"):
        list(pfnano.read(tmp_path / "other.root", Options()))
    (tmp_path / "broken.root").write_bytes(b"root" + bytes(200))
    assert not pfnano.sniff(tmp_path / "broken.root")
    with pytest.raises(UserError, match="no readable tree Events"):
        list(pfnano.read(tmp_path / "broken.root", Options()))
