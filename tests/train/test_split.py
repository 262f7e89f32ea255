"""A step that does not fit is computed again in pieces, on all ranks, with the same result."""

import pytest
import torch
from safetensors.torch import load_file

from sciml.data.graph_dataset import GraphDataset
from sciml.data.sampler import MicroBatch
from sciml.data.source import Source
from sciml.doctor.faults.launch import errors_of, run_ranks
from sciml.doctor.faults.strategies import SHORT_RUN
from sciml.errors import UserError
from sciml.train.split import SplitStep, pieces_of
from tests.helpers import relative_rms
from tests.small import CUTOFFS, molecules_store

# The second rank is short of memory while it computes its third micro-batch, in the middle of a step.
SHORT = """
import os, torch
from sciml.train.module import Module
plain, calls = Module._loss, []
def loss(self, micro_batch):
    calls.append(micro_batch.batch.num_graphs)
    result = plain(self, micro_batch)
    if os.environ.get("LOCAL_RANK") == "1" and len(calls) == 4:
        raise torch.OutOfMemoryError("injected")
    return result
Module._loss = loss
"""


@pytest.fixture
def loaded(tmp_path):
    """A micro-batch of seven molecules and crystals."""
    dataset = GraphDataset([Source(molecules_store(tmp_path / "molecules"), 0)], CUTOFFS)
    items = tuple((0, index) for index in range(7))
    return dataset[MicroBatch("atoms", items, {"energy": 7.0, "forces": 126.0}, 0, 0)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_pieces_are_the_graphs_of_the_micro_batch(loaded, count):
    pieces = list(pieces_of(loaded, count))
    assert len(pieces) == min(count, 7)
    assert tuple(item for piece in pieces for item in piece.items) == loaded.items
    assert all(piece.denominators == loaded.denominators and piece.batch.num_graphs for piece in pieces)
    for name in ("positions", "types", "forces", "energy", "cell"):
        assert torch.equal(torch.cat([piece.batch[name] for piece in pieces]), loaded.batch[name]), name
    starts = torch.tensor([0] + [len(piece.batch.types) for piece in pieces]).cumsum(0)
    senders = torch.cat([piece.batch.senders + start for piece, start in zip(pieces, starts, strict=False)])
    assert torch.equal(senders, loaded.batch.senders)


def test_a_step_is_computed_again_in_halves_until_it_fits(loaded):
    done, log = [], []

    def backward(piece):
        if piece.batch.num_graphs > 2:
            raise torch.OutOfMemoryError("too large")
        done.append(piece)

    def reset():
        done.clear()
        log.append("reset")

    step = SplitStep(backward, reset, anywhere=bool)
    step.begin()
    step.add(loaded)
    step.add(loaded)
    assert step.pieces == 4
    assert [item for piece in done for item in piece.items] == [*loaded.items, *loaded.items]
    assert log == ["reset"] * 3  # the beginning, halves, quarters


def test_all_ranks_compute_again_where_another_one_has_to(loaded):
    answers = iter([True, True, False])  # this rank's pass fits, the other's does not; there is something to halve
    done = []
    step = SplitStep(done.append, done.clear, anywhere=lambda mine: next(answers))
    step.begin()
    step.add(loaded)
    assert len(done) == 2


def test_a_graph_that_does_not_fit_alone_ends_the_run_with_a_sentence(loaded):
    def backward(piece):
        raise torch.OutOfMemoryError

    step = SplitStep(backward, lambda: None, anywhere=bool)
    step.begin()
    with pytest.raises(UserError, match="memory: a step does not fit, not even graph by graph; set trainer.recompute"):
        step.add(loaded)


def test_two_ranks_of_which_one_was_short_of_memory_end_with_the_weights_of_an_undisturbed_run(tmp_path):
    molecules_store(tmp_path / "molecules")
    words = ["train", "train=[molecules]", *SHORT_RUN, "strategy=ddp", "trainer.devices=2"]
    for name, prelude in (("calm", ""), ("short", SHORT)):
        assert run_ranks(2, [[*words, f"run_dir={name}"]], tmp_path, prelude) == [0, 0], errors_of(tmp_path)
    calm, short = (load_file(tmp_path / name / "package" / "weights.safetensors") for name in ("calm", "short"))
    for name, value in calm.items():
        assert relative_rms(short[name].double(), value.double()) < 1e-5, name
    assert any(not torch.equal(short[name], value) for name, value in calm.items())  # it did split
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("calm", "short")]
    assert len(lines[0]) == len(lines[1])
