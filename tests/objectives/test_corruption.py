"""Noise and masks: pure functions of seed, step and record, counted exactly, equivariant, and nothing at zero."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sciml.data.corruption import Corruptions
from sciml.data.graph_dataset import GraphDataset, LoadedBatch
from sciml.data.packing import Budget
from sciml.data.sampler import Plan, Stream
from sciml.data.source import Source
from sciml.domains.hep.graphs import COARSE_SCALARS, SCALARS
from sciml.graph import INPUTS, collate
from sciml.models.model import build_model
from sciml.objectives.denoise import Denoise
from sciml.objectives.masked import Masked
from sciml.objectives.supervised import Supervised, Term
from tests.helpers import check_equivariance, random_crystal, random_molecule, random_peptide, relative_rms
from tests.small import COARSE_CUTOFFS, CUTOFFS, describe_model, graph_of, jets_store, molecules_store, peptides_store

KINDS = ("atoms", "jets", "residues")
HEADS = {name: {"hidden": 8} for name in ("denoise_atoms", "denoise_residues", "masked_atoms", "masked_jets")}
TERMS = {
    "energy": Term(1.0, "huber"),
    "forces": Term(10.0, "mse"),
    "label": Term(1.0, "cross_entropy"),
    "residue_types": Term(1.0, "cross_entropy"),
    "noise_atoms": Term(1.0, "mse"),
    "noise_residues": Term(2.0, "mse"),
    "masked_atoms": Term(1.0, "cross_entropy"),
    "masked_jets": Term(0.5, "cross_entropy"),
}


def all_corruptions(fraction: float = 0.5) -> list:
    noise = [Denoise(kind, fraction, (0.05, 0.3)) for kind in ("atoms", "residues")]
    return [*noise, *(Masked(kind, fraction, 0.2) for kind in ("atoms", "jets"))]


def pretraining_model(dtype=torch.float64, seed: int = 0):
    """A model with the heads of every objective, and no weight near zero."""
    torch.manual_seed(seed)
    description = describe_model()
    model = build_model({**description, "heads": {**description["heads"], **HEADS}})
    with torch.no_grad():
        for parameter in model.parameters():
            if float(parameter.abs().max()) == 0.0:
                parameter.normal_(std=0.3)
    return model.to(dtype).eval()


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Source]:
    folder = tmp_path_factory.mktemp("stores")
    stores = (molecules_store(folder / "m"), jets_store(folder / "j"), peptides_store(folder / "p", labelled=False))
    return [Source(store, 0, store.path.name) for store in stores]


def dataset(sources, seed=0, stream=0, cache_mib=64.0, fraction=0.5) -> GraphDataset:
    corruptions = Corruptions(all_corruptions(fraction), seed, stream)
    return GraphDataset(sources, CUTOFFS, cache_mib, COARSE_CUTOFFS, corruptions=corruptions)


def same(first, second) -> bool:
    fields = {key: value for key, value in first.to_dict().items() if isinstance(value, torch.Tensor)}
    return all(torch.equal(value.nan_to_num(7.0), second[key].nan_to_num(7.0)) for key, value in fields.items())


OF_KIND = {"atoms": 0, "jets": 1, "residues": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_a_pure_function_of_seed_step_and_record(sources, kind):
    """Another process, another order, a filled or an empty cache: the same sample; another step or seed: another."""
    source = OF_KIND[kind]
    first, second = dataset(sources), dataset(sources, cache_mib=0.0)
    records = range(len(sources[source].data))
    late = {record: second.sample(source, record, kind, 7) for record in reversed(records)}
    for step in (3, 7):
        samples = [first.sample(source, record, kind, step) for record in records]
    assert all(same(samples[record], late[record]) for record in records)
    others = [dataset(sources, seed=1), dataset(sources, stream=1)]
    for other, step in ((first, 8), *((other, 7) for other in others)):
        assert not all(same(samples[r], other.sample(source, r, kind, step)) for r in records)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_keeps_clean_graphs_alone(sources, kind):
    source = OF_KIND[kind]
    corrupted, clean = dataset(sources, fraction=1.0), GraphDataset(sources, CUTOFFS)
    for record in range(4):
        corrupted.sample(source, record, kind, 0)
        kept, reference = corrupted.graph(source, record, kind), clean.graph(source, record, kind)
        assert same(reference, kept)


def test_two_records_and_two_objectives_share_no_numbers(sources):
    corruptions = Corruptions(all_corruptions(1.0), 0)
    drawn = [
        generator.random()
        for step in (0, 1)
        for source in (0, 1)
        for record in range(5)
        for kind in KINDS
        for _, generator in corruptions.drawn(kind, step, source, record)
    ]
    assert len(set(drawn)) == len(drawn) == 2 * 2 * 5 * 4


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_counted_exactly_before_any_sample_is_made(sources, kind):
    data, source = dataset(sources), OF_KIND[kind]
    for step in range(4):
        records = np.array([5, 0, 3, 3, 7, 1])
        batch = collate(data.sample(source, int(record), kind, step).clone() for record in records)
        counted = data.counts(kind, source, records, step)
        assert any(name.startswith(("noise", "masked")) for name in counted)
        for target, number in counted.items():
            label = batch[target]
            known = torch.isfinite(label) if label.is_floating_point() else label >= 0
            assert float(known.sum()) == number, target


def test_a_shifted_frame_has_noise_of_its_level_without_a_mean_and_no_other_label(sources):
    data = GraphDataset(sources, CUTOFFS, corruptions=Corruptions([Denoise("atoms", 1.0, (0.05, 0.3))], 0))
    clean = GraphDataset(sources, CUTOFFS)
    for record in range(8):
        shifted, before = data.sample(0, record, "atoms", 0), clean.graph(0, record, "atoms")
        level = shifted.noise_level
        assert 0.05 <= float(level) <= 0.3
        torch.testing.assert_close(shifted.positions, before.positions + level * shifted.noise_atoms, atol=1e-5, rtol=0)
        assert float(shifted.noise_atoms.mean(dim=0).abs().max()) < 1e-6
        torch.testing.assert_close(shifted.clean_forces, before.forces)
        assert all(bool(shifted[name].isnan().all()) for name in ("energy", "forces", "stress"))
        lengths = shifted.positions[shifted.senders] - shifted.positions[shifted.receivers]
        if not shifted.pbc.any():
            assert float(lengths.norm(dim=1).max()) < CUTOFFS["atoms"], "edges are those of the shifted positions"


def test_the_noise_of_a_backbone_has_no_mean_though_side_chains_moved_too():
    graph, clean = _noised(random_peptide, "residues"), graph_of(random_peptide(np.random.default_rng(0)), "residues")
    moved = (graph.positions - clean.positions) / graph.noise_level
    torch.testing.assert_close(graph.noise_residues, moved - moved.mean(dim=0))
    assert float(moved.mean(dim=0).norm()) > 1e-3


def test_levels_span_their_range_evenly_in_the_logarithm():
    objective, generator = Denoise("atoms", 1.0, (0.01, 1.0)), np.random.default_rng(0)
    record = {"positions": np.zeros((1000, 3), np.float32)}
    drawn = [objective.record(record, generator) for _ in range(400)]
    levels = np.log10([one["noise_level"] for one in drawn])
    assert (levels.min(), levels.max(), levels.mean()) == pytest.approx((-2.0, 0.0, -1.0), abs=0.1)
    assert np.std(drawn[0]["noise"]) == pytest.approx(1.0, abs=0.05)


def test_a_masked_particle_shows_neither_kind_nor_charge(sources):
    assert [SCALARS[column][0] for column in INPUTS["jets"].type_scalars] == ["charge"]
    data = GraphDataset(sources, CUTOFFS, corruptions=Corruptions([Masked("jets", 1.0, 0.25)], 0))
    before = GraphDataset(sources, CUTOFFS).graph(1, 0, "jets")
    graph = data.sample(1, 0, "jets", 0)
    hidden = graph.masked_jets >= 0
    assert int(hidden.sum()) == 2
    assert (graph.types[hidden] == 0).all()
    assert (graph.scalars[hidden][:, 7] == 0).all()
    assert torch.equal(graph.masked_jets[hidden], before.types[hidden])
    assert torch.equal(graph.types[~hidden], before.types[~hidden])
    assert torch.equal(graph.scalars[~hidden], before.scalars[~hidden])
    assert torch.equal(graph.label, before.label), "the class of the jet holds for it still"


def test_the_subjet_of_a_masked_particle_shows_neither_its_charge_nor_its_mass(sources):
    assert [COARSE_SCALARS[column][0] for column in INPUTS["jets"].coarse_type_scalars] == ["charge", "log m^2"]
    noise = Corruptions([Masked("jets", 1.0, 0.25)], 0)
    graph = GraphDataset(sources, CUTOFFS, corruptions=noise, coarse_cutoffs={"jets": 2.5}).sample(1, 0, "jets", 0)
    hidden = graph.masked_jets[graph.children] >= 0
    shown = set(range(len(graph.coarse_types))) - set(graph.parents[hidden].tolist())
    assert hidden.any()
    assert not graph.coarse_scalars[graph.parents[hidden]][:, [7, 10]].any()
    assert all(graph.coarse_scalars[parent, 10] != 0 for parent in shown)


def test_a_masked_atom_shows_no_role_in_the_frame_of_its_residue():
    """The vectors of a residue to its N, CA and C would tell which atom lies there."""
    graph = graph_of(random_peptide(np.random.default_rng(0)), "atoms")
    before = graph.child_roles.clone()
    Masked("atoms", 1.0, 0.3).graph(graph, np.random.default_rng(1))
    hidden = (graph.masked_atoms >= 0)[graph.children]
    assert before[hidden].any()
    assert not graph.child_roles[hidden].any()
    assert torch.equal(graph.child_roles[~hidden], before[~hidden])


def _noised(make, kind: str, seed: int = 0):
    record = make(np.random.default_rng(seed))
    return graph_of(Denoise(kind, 1.0, (0.1, 0.1)).record(record, np.random.default_rng(1)), kind)


@pytest.mark.parametrize(
    ("kind", "make"),
    [("atoms", random_molecule), ("atoms", random_crystal), ("residues", random_peptide)],
)
def test_noise_is_predicted_as_a_vector(kind, make):
    """The prediction turns with positions, forces and noise together, and so the loss does not change."""
    model = pretraining_model()
    graph = _noised(make, kind)

    def predict(sample):
        found = model(collate([sample.clone()]), kind)
        name = f"noise_{kind}"
        return {name: found[name].detach(), "square": (found[name].detach() - sample[name]).square().sum()}

    assert float(predict(graph)[f"noise_{kind}"].abs().mean()) > 1e-3
    check_equivariance(predict, graph, 1e-9)


@pytest.mark.parametrize(("kind", "make"), [("atoms", random_crystal), ("residues", random_peptide)])
def test_no_noise_and_no_forces_are_no_corruption(kind, make):
    """The model on a sample with a level and forces of zero is the model on a sample without these fields."""
    model, graph = pretraining_model(), graph_of(make(np.random.default_rng(0)), kind)
    blank = graph.clone()
    Denoise(kind, 1.0, (0.1, 0.1)).blank(blank)
    plain, zero = (model(collate([sample]), kind) for sample in (graph.clone(), blank))
    assert plain.keys() == zero.keys()
    for name, value in plain.items():
        assert relative_rms(zero[name], value) < 1e-12, name
    shifted = model(collate([_noised(make, kind)]), kind)[f"noise_{kind}"]
    assert relative_rms(shifted, plain[f"noise_{kind}"]) > 1e-2


def test_level_and_forces_reach_the_prediction():
    model, graph = pretraining_model(), _noised(random_molecule, "atoms")
    first = model(collate([graph.clone()]), "atoms")["noise_atoms"]
    for name in ("noise_level", "clean_forces"):
        changed = graph.clone()
        changed[name] = 2.0 * changed[name]
        assert relative_rms(model(collate([changed]), "atoms")["noise_atoms"], first) > 1e-3, name


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_sum_to_the_step(sources, kind):
    """The loss of a step does not depend on how its graphs are divided, noise and masks included."""
    model, objective = pretraining_model(), Supervised(TERMS)
    data = dataset(sources)
    streams = {}
    nodes, edges = zip(*(source.costs(kind, CUTOFFS[kind]) for source in sources), strict=True)
    for graphs in (2, 6):
        streams[graphs] = Stream(kind, nodes, edges, Budget(max_graphs=graphs), 0)
    losses = {}
    for graphs, bins in ((6, 1), (2, 3)):
        plan = Plan({kind: streams[graphs]}, {kind: bins}, 0, counts=data.counts)
        total = {}
        micro_batches = plan.step(0)
        for planned in micro_batches:
            loaded = data[planned]
            predictions = model(loaded.batch, kind)
            for name, share in objective(model, predictions, loaded)[1].items():
                total[name] = total.get(name, 0.0) + share.detach()
        losses[graphs] = total, sorted(item for planned in micro_batches for item in planned.items)
    assert losses[2][1] == losses[6][1], "the same records, in three micro-batches and in one"
    assert any(name.startswith(("noise", "masked")) for name in losses[2][0])
    for name, value in losses[6][0].items():
        torch.testing.assert_close(losses[2][0][name], value, rtol=1e-9, atol=1e-12)


def test_every_rank_and_worker_sees_the_same_noise(sources):
    data = dataset(sources)
    nodes, edges = zip(*(source.costs("atoms", CUTOFFS["atoms"]) for source in sources), strict=True)
    stream = Stream("atoms", nodes, edges, Budget(max_graphs=3), 0)
    plan = partial(Plan, {"atoms": stream}, {"atoms": 2}, 0, counts=data.counts, start_step=4, stop_step=6)
    alone = [data[planned] for planned in plan()]
    loaded = list(DataLoader(data, batch_size=None, sampler=plan(), num_workers=2))
    ranks = [[data[planned] for planned in plan(world_size=2, rank=rank)] for rank in (0, 1)]
    shared = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    for other in (loaded, shared):
        assert [list(map(tuple, batch.items)) for batch in other] == [list(batch.items) for batch in alone]
        assert [batch.denominators for batch in other] == [batch.denominators for batch in alone]
        assert all(same(first.batch, second.batch) for first, second in zip(alone, other, strict=True))


def test_masked_labels_are_a_mean_over_the_hidden_nodes(sources):
    model, objective = pretraining_model(), Supervised(TERMS)
    data = GraphDataset(sources, CUTOFFS, corruptions=Corruptions([Masked("atoms", 1.0, 0.3)], 0))
    batch = collate(data.sample(0, record, "atoms", 0) for record in range(4))
    hidden = batch.masked_atoms >= 0
    predictions = model(batch, "atoms")
    counted = data.counts("atoms", 0, np.arange(4))
    shares = objective(model, predictions, LoadedBatch(batch, "atoms", counted, ()))[1]
    mean = torch.nn.functional.cross_entropy(predictions["masked_atoms"][hidden], batch.masked_atoms[hidden])
    torch.testing.assert_close(shares["masked_atoms"], mean)
