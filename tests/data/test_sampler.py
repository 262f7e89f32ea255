"""The batch plan: the same steps on any number of ranks, within budget, every record once an epoch."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml.data.packing import Budget
from sciml.data.sampler import Plan, Stream, evaluation_bins
from sciml.data.source import Source
from sciml.data.store import Store, StoreWriter
from sciml.errors import UserError
from sciml.schema import SAMPLES
from tests.data.examples import molecule


def sizes(seed, count, low=5, high=60):
    nodes = np.random.default_rng(seed).integers(low, high, count)
    return nodes, nodes * 12


def streams(seed=0, temperature=1.0):
    atoms, jets = [sizes(1, 300), sizes(2, 120)], [sizes(3, 90, 20, 80)]
    return {
        "atoms": Stream("atoms", *zip(*atoms), Budget(16, 256, 4000), seed, temperature),
        "jets": Stream("jets", *zip(*jets), Budget(None, 512, None), seed, temperature),
    }


def counts(kind, store, records, step):
    return {"energy": len(records), "forces": 3.0 * len(records)} if kind == "atoms" else {"label": len(records)}


def plan(world_size=1, rank=0, seed=0, **keys):
    return Plan(streams(seed), {"atoms": 4, "jets": 8}, seed, world_size, rank, counts, **keys)


@pytest.mark.parametrize("world_size", [2, 4])
def test_union_over_ranks_does_not_depend_on_their_number(world_size):
    ranks = [plan(world_size, rank) for rank in range(world_size)]
    for step in (0, 3, 11):
        whole = plan().step(step)
        shared = [batch for rank in ranks for batch in rank.step(step)]
        assert sorted(whole) == sorted(shared)
        for rank in ranks:
            assert [batch.kind for batch in rank.step(step)] == [batch.kind for batch in ranks[0].step(step)]


def test_the_plan_is_a_pure_function_of_seed_and_step():
    late = plan().step(25)
    fresh = plan()
    for step in range(26):
        found = fresh.step(step)
    assert found == late
    assert plan(seed=1).step(25) != late


def test_iteration_resumes_at_any_step():
    whole = list(plan(start_step=0, stop_step=6))
    assert len(whole) == len(plan(stop_step=6)) == 6 * 12
    assert list(plan(start_step=4, stop_step=6)) == whole[4 * 12 :]
    assert list(islice(plan(start_step=4), 5)) == whole[48:53]
    with pytest.raises(TypeError, match="endless"):
        len(plan())


def test_workers_do_not_change_the_plan():
    torch_data = pytest.importorskip("torch.utils.data")

    class Echo(torch_data.Dataset):
        def __getitem__(self, batch):
            return batch

    def load(workers):
        loader = torch_data.DataLoader(
            Echo(), sampler=plan(stop_step=2), batch_size=None, num_workers=workers, collate_fn=lambda batch: batch
        )
        return [batch.items for batch in loader]

    assert load(0) == load(2)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 80), min_size=1, max_size=3),
    st.integers(0, 1000),
    st.integers(1, 20) | st.none(),
    st.integers(40, 400),
    st.integers(0, 3),
)
def test_every_record_once_an_epoch_at_temperature_one(lengths, seed, max_graphs, max_nodes, epoch):
    tables = [sizes(seed + i, length) for i, length in enumerate(lengths)]
    tables[0][0][::7] = 0  # records that cannot serve the kind
    eligible = sorted((store, int(i)) for store, (nodes, _) in enumerate(tables) for i in np.flatnonzero(nodes))
    if not eligible:
        with pytest.raises(UserError, match="no record can serve"):
            Stream("atoms", *zip(*tables), Budget(max_graphs, max_nodes), seed)
        return
    stream = Stream("atoms", *zip(*tables), Budget(max_graphs, max_nodes), seed)
    bins = stream.epoch_bins(epoch)
    assert sorted(item for items in bins for item in items) == eligible
    for items in bins:
        total = sum(int(tables[store][0][record]) for store, record in items)
        assert total <= max_nodes or len(items) == 1
        assert max_graphs is None or len(items) <= max_graphs


def test_epochs_differ_and_bins_run_on():
    stream = streams()["atoms"]
    first, second = stream.epoch_bins(0), stream.epoch_bins(1)
    assert first != second
    assert stream.bins(len(first)) == second[0]
    assert stream.locate(len(first)) == (1, len(first))


@pytest.mark.parametrize(("low", "high", "max_nodes"), [(9, 10, 128), (5, 60, 512), (20, 120, 1024), (30, 200, 512)])
def test_bins_are_at_least_nine_tenths_full(low, high, max_nodes):
    nodes, edges = sizes(0, 5000, low, high)
    bins = Stream("atoms", [nodes], [edges], Budget(max_nodes=max_nodes), 0).epoch_bins(0)
    filled = [sum(nodes[record] for _, record in items) / max_nodes for items in bins]
    assert np.mean(filled) >= 0.9


def test_edges_bound_the_bins():
    nodes, edges = sizes(0, 500)
    for items in Stream("atoms", [nodes], [edges], Budget(max_edges=2000), 0).epoch_bins(0):
        assert sum(edges[record] for _, record in items) <= 2000 or len(items) == 1


def test_temperature_draws_small_stores_more_often_and_evenly():
    tables = [sizes(0, 1000), sizes(1, 10)]
    stream = Stream("atoms", *zip(*tables), Budget(max_nodes=512), 0, temperature=2.0)
    drawn = np.concatenate([stream.order(epoch) for epoch in range(5)])
    share = (drawn[:, 0] == 1).mean()
    assert share == pytest.approx(np.sqrt(10) / (np.sqrt(10) + np.sqrt(1000)), rel=0.02)
    times = np.bincount(drawn[drawn[:, 0] == 1, 1])
    assert times.max() - times.min() <= 1


def test_weights_multiply_the_share_of_a_store():
    tables = [sizes(0, 1000), sizes(1, 500)]
    stream = Stream("atoms", *zip(*tables), Budget(max_nodes=512), 0, 1.0, [1.0, 4.0])
    share = (stream.order(0)[:, 0] == 1).mean()
    assert share == pytest.approx(4 * 500 / (1000 + 4 * 500), rel=0.01)


@pytest.mark.parametrize("world_size", [1, 4])
def test_denominators_count_the_whole_step(world_size):
    for step in (0, 9):
        whole = plan().step(step)
        energies = sum(len(batch.items) for batch in whole if batch.kind == "atoms")
        labels = sum(len(batch.items) for batch in whole if batch.kind == "jets")
        for rank in range(world_size):
            for batch in plan(world_size, rank).step(step):
                assert batch.denominators == {"energy": energies, "forces": 3.0 * energies, "label": labels}


def test_seeds_differ_between_micro_batches():
    seeds = [batch.seed for step in range(5) for batch in plan().step(step)]
    assert len(set(seeds)) == len(seeds)


def test_evaluation_visits_every_record_once_in_order():
    tables = [sizes(1, 50), sizes(2, 30)]
    bins = evaluation_bins("atoms", *zip(*tables), Budget(max_nodes=200), counts=counts)
    items = [item for batch in bins for item in batch.items]
    assert items == [(0, i) for i in range(50)] + [(1, i) for i in range(30)]
    assert bins[0].denominators["energy"] == 80
    ranks = [evaluation_bins("atoms", *zip(*tables), Budget(max_nodes=200), 3, r, counts) for r in range(3)]
    assert sorted(item for rank in ranks for batch in rank for item in batch.items) == items
    assert len({len(rank) for rank in ranks}) == 1, "as many bins for every rank"
    assert evaluation_bins("atoms", [np.zeros(3, int)], [np.zeros(3, int)], Budget(max_nodes=9)) == []


def test_stream_from_stores(tmp_path):
    with StoreWriter(tmp_path / "s", "materials", "t") as writer:
        for seed in range(20):
            writer.add(molecule(5 + seed, seed))
    stream = Stream.from_stores("atoms", [Store(tmp_path / "s")], 5.0, Budget(max_nodes=64), 0)
    assert sorted(item for items in stream.epoch_bins(0) for item in items) == [(0, i) for i in range(20)]


def test_bins_that_ranks_cannot_share_are_refused():
    with pytest.raises(
        UserError, match=r"bins_per_step.atoms: 4 found, expected a positive multiple of the 3 ranks.*set 6"
    ):
        plan(3, 0)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize(
    ("kind", "names", "cutoff", "budget"),
    [
        ("atoms", ["molecules", "silicon", "lithium", "metals", "peptides"], 5.0, Budget(64, 512, 16384)),
        ("jets", ["jets"], 2.5, Budget(32, 1024, 32768)),
        ("residues", ["peptides"], 8.0, Budget(16, 1024, 24576)),
    ],
)
def test_ranks_have_equal_edges_on_the_embedded_samples(kind, names, cutoff, budget, world_size):
    costs = [Source(Store(SAMPLES / name), 0).costs(kind, cutoff) for name in names]
    nodes, edges = [n for n, _ in costs], [e for _, e in costs]
    for bins in (world_size, 2 * world_size):
        stream = Stream(kind, nodes, edges, budget, seed=0)
        ranks = [Plan({kind: stream}, {kind: bins}, 0, world_size, rank) for rank in range(world_size)]
        for step in range(8):
            loads = [sum(stream.edges(batch.items) for batch in rank.step(step)) for rank in ranks]
            assert max(loads) < 1.05 * np.mean(loads), (bins, step, loads)
