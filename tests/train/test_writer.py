"""The thread that writes checkpoints: which stay, and what a failure leaves."""

import threading

import pytest
import torch

from sciml.errors import UserError
from sciml.train import writer as module
from sciml.train.checkpoint import STATE, checkpoints_in, damage, rank_file, step_of
from sciml.train.saving import snapshot
from sciml.train.writer import Writer


def save(writer: Writer, step: int, loss: float | None = None, in_order: bool = True) -> None:
    """Begin to write a checkpoint of nothing."""
    parts = {STATE: {"global_step": step}, rank_file(0): {"generators": {}}}
    writer.start(writer.prepare(step), parts, {"step": step, "validation_loss": loss, "in_order": in_order})


def steps(writer: Writer) -> list[int]:
    return [step_of(path) for path in checkpoints_in(writer.folder)]


def test_the_newest_and_the_best_stay(tmp_path):
    writer = Writer(tmp_path / "checkpoints", keep=2, best=1)
    for step, loss in enumerate([5.0, 2.0, 3.0, None, 4.0, 6.0], start=1):
        save(writer, step, loss)
        writer.wait()
    assert steps(writer) == [6, 5, 2]


def test_the_last_one_in_good_order_is_never_deleted(tmp_path):
    writer = Writer(tmp_path / "checkpoints", keep=1, best=0)
    for step in range(1, 6):
        save(writer, step, in_order=step <= 2)
        writer.wait()
    assert steps(writer) == [5, 2]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    written = threading.Event()
    original = module.write_part
    monkeypatch.setattr(module, "write_part", lambda *a: (written.wait(30), original(*a))[1])
    writer = Writer(tmp_path / "checkpoints")
    save(writer, 1)
    assert steps(writer) == []
    written.set()
    writer.wait()
    assert steps(writer) == [1]


def test_a_failure_is_a_sentence_later_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    writer = Writer(tmp_path / "checkpoints")
    save(writer, 1)
    writer.wait()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_part", full)
    save(writer, 2)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\), step=000000001 is the newest"):
        writer.wait()
    assert not writer.failed
    assert sorted(path.name for path in writer.folder.iterdir()) == ["latest", "step=000000001"]
    assert damage(checkpoints_in(writer.folder)[0]) is None


def test_a_snapshot_does_not_change_with_what_it_was_taken_of():
    state = {"a": torch.ones(3), "b": [torch.zeros(2), (torch.ones(1), 4)], "c": "text"}
    taken = snapshot(state)
    state["a"].add_(1)
    state["b"][1][0].add_(1)
    assert torch.equal(taken["a"], torch.ones(3))
    assert torch.equal(taken["b"][1][0], torch.ones(1))
    assert taken["b"][1][1] == 4
    assert taken["c"] == "text"
