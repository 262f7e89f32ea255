"""The domains read real stores and subsets of them as they read records; every built-in domain has the same names."""

import numpy as np
import pytest
import torch

from sciml.data.store import StoreWriter, Subset
from sciml.graph import DOMAINS, KINDS
from sciml.registry import resolve
from tests.helpers import random_crystal, random_jet, random_molecule, random_peptide

MAKERS = {
    "materials": lambda rng: random_crystal(rng) if rng.random() < 0.5 else random_molecule(rng),
    "hep": random_jet,
    "biology": random_peptide,
}
CUTOFFS = {"atoms": 5.0, "jets": 2.5, "residues": 8.0}


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_stored_record_gives_the_same_graph_and_counts(tmp_path, domain):
    module, rng = resolve("domains", domain), np.random.default_rng(0)
    assert set(module.KINDS) <= set(KINDS)
    records = [{**MAKERS[domain](rng), "id": f"test#{i}"} for i in range(6)]
    with StoreWriter(tmp_path / "store", domain, "test") as writer:
        assert all(writer.add(record) for record in records)
    store = writer.close()
    subset = Subset(store, np.array([4, 1, 2]))
    for kind in module.KINDS:
        nodes, pairs = store.costs(kind, CUTOFFS[kind])
        assert store.serves(kind).all()
        for index, record in enumerate(records):
            stored = module.graph(store[index], kind, CUTOFFS[kind])
            assert len(stored.types) == nodes[index]
            assert 0.8 < len(stored.senders) / pairs[index] < 1.25
            direct = module.graph(record, kind, CUTOFFS[kind])
            torch.testing.assert_close(stored.positions, direct.positions, rtol=0, atol=1e-4)
        total = module.counts(subset, kind, np.arange(3))
        assert total == module.counts(store, kind, np.array([4, 1, 2]))
        assert sum(total.values()) > 0
