"""Graphs of peptides: residue types are asked of complete backbones alone, and parents survive batching."""

import numpy as np
import pytest
import torch

from sciml.domains.biology.graphs import counts, graph
from sciml.domains.materials.graphs import graph as materials_graph
from sciml.graph import INPUTS, RESIDUES, collate
from tests.helpers import Rows, random_molecule, random_peptide


@pytest.fixture
def peptide():
    return random_peptide(np.random.default_rng(0), residues=6)


def without(record, atom):
    names = ("types", "atom_names", "parent", "positions", "forces")
    return {k: np.delete(v, atom, axis=0) if k in names else v for k, v in record.items()}


def test_residues_keep_backbone_atoms_only(peptide):
    g = graph(peptide, "residues", 8.0, torch.float64)
    assert g.types.tolist() == [7, 6, 6, 8] * 6
    np.testing.assert_array_equal(g.positions, peptide["positions"][peptide["atom_names"] <= 4])
    assert g.children.tolist() == list(range(24))
    assert g.parents.tolist() == [residue for residue in range(6) for _ in range(4)]
    assert g.scalars.shape == (24, INPUTS["residues"].scalars)
    torch.testing.assert_close(g.scalars, torch.eye(4, dtype=torch.float64).repeat(6, 1))
    assert not {"energy", "forces", "label"} & set(g.keys())


def test_unknown_residues_have_an_input_type_but_no_label(peptide):
    g = graph(peptide, "residues", 8.0)
    known = peptide["residue_types"][:-1]
    assert g.residue_types.tolist() == [*known, -1]
    assert g.coarse_types.tolist() == [*(known + 1), len(RESIDUES) + 1]


def test_the_side_chain_is_not_seen(peptide):
    moved = peptide["positions"].copy()
    moved[peptide["atom_names"] == 5] += 3.0
    first, second = graph(peptide, "residues", 8.0), graph({**peptide, "positions": moved}, "residues", 8.0)
    for name in ("positions", "senders", "receivers"):
        torch.testing.assert_close(first[name], second[name])


def test_incomplete_residues_are_left_out_and_parents_renumbered(peptide):
    missing = int(np.flatnonzero((peptide["parent"] == 2) & (peptide["atom_names"] == 4))[0])
    record = without(peptide, missing)
    g = graph(record, "residues", 8.0)
    assert g.residue_types.tolist() == [*peptide["residue_types"][[0, 1, 3, 4]], -1]
    assert g.parents.max() == 4
    assert counts(Rows([record]), "residues", np.array([0])) == {"residue_types": 4.0}


def test_the_first_of_two_atoms_of_one_name_is_taken(peptide):
    twice = {**peptide, "atom_names": peptide["atom_names"].copy()}
    side = int(np.flatnonzero((peptide["parent"] == 1) & (peptide["atom_names"] == 5))[0])
    twice["atom_names"][side] = 2
    torch.testing.assert_close(graph(twice, "residues", 8.0).positions, graph(peptide, "residues", 8.0).positions)


def test_frames_are_n_ca_and_c_and_a_missing_atom_leaves_a_zero(peptide):
    """In both kinds; of two atoms of one name the first counts."""
    places = peptide["positions"].reshape(6, 5, 3)
    for kind, atoms in (("atoms", 5), ("residues", 4)):
        g = graph(peptide, kind, 8.0, torch.float64, coarse_cutoff=7.0)
        assert g.child_roles.shape == (6 * atoms, INPUTS[kind].child_roles)
        arms = g.positions[g.children].view(6, atoms, 3) - torch.from_numpy(places[:, :atoms].mean(axis=1))[:, None]
        vectors = torch.einsum("rav,rax->rvx", g.child_roles.view(6, atoms, 3), arms)
        np.testing.assert_allclose(vectors, places[:, :3] - places[:, :atoms].mean(axis=1, keepdims=True), atol=1e-12)
    alpha = int(np.flatnonzero((peptide["parent"] == 2) & (peptide["atom_names"] == 2))[0])
    g = graph(without(peptide, alpha), "atoms", 5.0, coarse_cutoff=7.0)
    assert torch.equal(torch.zeros(6, 3).index_add(0, g.parents, g.child_roles)[2], torch.tensor([1.0, 0.0, 1.0]))
    twice = {**peptide, "atom_names": peptide["atom_names"].copy()}
    twice["atom_names"][alpha + 3] = 2
    roles = graph(twice, "atoms", 5.0, coarse_cutoff=7.0).child_roles
    assert roles[alpha, 1] == 1
    assert roles[alpha + 3].sum() == 0


def test_atoms_have_residues_wherever_these_have_atoms(peptide):
    """A residue without a single atom is left out; a molecule has none, and batches with a peptide all the same."""
    record = without(peptide, np.flatnonzero(peptide["parent"] == 3))
    g = graph(record, "atoms", 5.0, torch.float64, coarse_cutoff=7.0)
    assert g.coarse_types.tolist() == [*(peptide["residue_types"][[0, 1, 2, 4]] + 1), len(RESIDUES) + 1]
    assert g.parents.tolist() == [residue for residue in range(5) for _ in range(5)]
    order = np.random.default_rng(0).permutation(25)
    names = ("types", "atom_names", "parent", "positions", "forces")
    shuffled = {k: v[order] if k in names else v for k, v in record.items()}
    other = graph(shuffled, "atoms", 5.0, torch.float64, coarse_cutoff=7.0)
    assert torch.equal(other.coarse_senders, g.coarse_senders)
    assert (other.parents.diff() >= 0).all()
    assert np.array_equal(np.sort(order[other.children[other.parents == 2]]), np.arange(10, 15))
    molecule = materials_graph(
        random_molecule(np.random.default_rng(0)), "atoms", 5.0, torch.float64, coarse_cutoff=7.0
    )
    assert molecule.coarse_types.shape == molecule.children.shape == molecule.coarse_senders.shape == (0,)
    batch = collate([molecule, g, molecule, other])
    assert batch.coarse_batch.tolist() == [1] * 5 + [3] * 5
    assert torch.equal(batch.coarse_batch[batch.parents], batch.batch[batch.children])
    assert torch.equal(batch.coarse_batch[batch.coarse_senders], batch.coarse_batch[batch.coarse_receivers])


def test_coarse_edges_join_centres_within_the_cutoff_sorted_by_receiver(peptide):
    g = graph(peptide, "residues", 8.0, torch.float64, coarse_cutoff=4.0)
    centres = g.positions.view(6, 4, 3).mean(dim=1)
    near = torch.cdist(centres, centres) < 4.0
    near.fill_diagonal_(False)
    receivers, senders = near.nonzero(as_tuple=True)
    assert 0 < len(senders) < 30
    found = torch.stack([g.coarse_receivers, g.coarse_senders])
    assert torch.equal(found, torch.stack([receivers, senders]))


def test_nothing_that_the_model_reads_tells_the_type_of_a_residue(peptide):
    """Other types and other side chains give the same graph, but for the types, which the loader hides."""
    other = {**peptide, "residue_types": np.roll(peptide["residue_types"], 1), "positions": peptide["positions"].copy()}
    other["positions"][peptide["atom_names"] == 5] += 1.0
    longer = without(other, np.flatnonzero(peptide["atom_names"] == 5)[::2])
    first, second = (graph(r, "residues", 8.0, coarse_cutoff=7.0) for r in (peptide, longer))
    assert first.keys() == second.keys()
    for name in set(first.keys()) - {"coarse_types", "residue_types"}:
        assert torch.equal(first[name], second[name]), name


def test_a_record_without_backbone_gives_no_graph_of_residues(peptide):
    bare = {**peptide, "atom_names": np.zeros_like(peptide["atom_names"])}
    assert graph(bare, "residues", 8.0) is None
    assert graph(peptide, "jets", 5.0) is None


def test_all_atoms_batch_with_materials(peptide):
    g = graph(peptide, "atoms", 5.0)
    batch = collate([g, materials_graph(random_molecule(np.random.default_rng(0)), "atoms", 5.0)])
    assert batch.domain.tolist() == [2, 0]
    assert batch.forces.shape == (42, 3)
    assert counts(Rows([peptide]), "atoms", np.array([0])) == {"energy": 1.0, "forces": 90.0}


def test_batches_offset_parents_by_residues_and_edges_by_atoms(peptide):
    other = random_peptide(np.random.default_rng(1), residues=3)
    graphs = [graph(r, "residues", 8.0, coarse_cutoff=7.0) for r in (peptide, other, peptide)]
    batch = collate(graphs)
    for names, offsets in (
        (("parents", "coarse_senders", "coarse_receivers"), (0, 6, 9)),
        (("children", "senders"), (0, 24, 36)),
    ):
        for name in names:
            expected = torch.cat([g[name] + offset for g, offset in zip(graphs, offsets, strict=True)])
            torch.testing.assert_close(batch[name], expected)
    assert batch.coarse_batch.tolist() == [0] * 6 + [1] * 3 + [2] * 6
    torch.testing.assert_close(batch.coarse_batch[batch.parents], batch.batch[batch.children])
    assert (batch.coarse_receivers.diff() >= 0).all()
    assert len(batch.residue_types) == 15


def test_published_proteins(shared_data):
    import json

    entries = json.loads((shared_data / "proteins" / "ts50.json").read_text())
    entry = entries[0]
    backbones = np.array(entry["coords"], dtype=np.float64)
    r = len(entry["seq"])
    assert backbones.shape == (r, 4, 3)
    kept = np.flatnonzero(np.isfinite(backbones).all(axis=2).reshape(-1))
    record = {
        "types": np.tile([7, 6, 6, 8], r)[kept],
        "atom_names": np.tile(np.arange(1, 5, dtype=np.uint8), r)[kept],
        "parent": np.repeat(np.arange(r), 4)[kept],
        "positions": backbones.reshape(-1, 3)[kept],
        "residue_types": np.array([RESIDUES.index(letter) if letter in RESIDUES else 20 for letter in entry["seq"]]),
    }
    g = graph(record, "residues", 8.0, torch.float64)
    assert len(g.coarse_types) == np.isfinite(backbones).all(axis=(1, 2)).sum()
    bond = (g.positions[1::4] - g.positions[0::4]).norm(dim=1)
    assert ((bond > 1.3) & (bond < 1.6)).all()
    assert 20 < len(g.senders) / len(g.types) < 120
