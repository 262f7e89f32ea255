"""Checkpoints on disk: whole or absent, hashed, of every format, without code."""

import json
import os

import pytest
import torch

from sciml.errors import UserError
from sciml.train.checkpoint import (
    STATE,
    checkpoints_in,
    commit,
    damage,
    newest_checkpoint,
    partial_folder,
    rank_file,
    read_checkpoint,
    remove,
    remove_leftovers,
    write_part,
)


def written(folder, step: int, **state):
    """A committed checkpoint of a step."""
    path = folder / f"step={step:09d}"
    partial_folder(path).mkdir(parents=True)
    content = {"global_step": step, "weights": torch.arange(1000.0) + step, **state}
    parts = [write_part(partial_folder(path), STATE, content)]
    parts.append(write_part(partial_folder(path), rank_file(0), {"generators": {}}))
    commit(path, parts, {"step": step})
    return path


def test_what_is_written_is_read(tmp_path):
    path = written(tmp_path, 7)
    state = read_checkpoint(path)
    assert torch.equal(state["weights"], torch.arange(1000.0) + 7)
    assert state["ranks"] == [{"generators": {}}]
    assert (tmp_path / "latest").read_text() == "step=000000007\n"
    assert damage(path) is None


@pytest.mark.parametrize("name", [STATE, rank_file(0), "manifest.json"])
def test_every_flipped_bit_is_found(tmp_path, name):
    """One bit of a thousand places of each file."""
    path = written(tmp_path, 1)
    content = bytearray((path / name).read_bytes())
    for place in range(0, len(content), max(1, len(content) // 25)):
        content[place] ^= 4
        (path / name).write_bytes(content)
        if name != "manifest.json" or _means_another(content, path):
            assert damage(path) is not None, place
            with pytest.raises(UserError, match="is not a readable checkpoint"):
                read_checkpoint(path)
        content[place] ^= 4
    (path / name).write_bytes(content)
    assert damage(path) is None


def _means_another(content: bytearray, path) -> bool:
    """Whether the files of a manifest are not those that lie there."""
    try:
        files = json.loads(content)["files"]
        return any((path / name).stat().st_size != fact["bytes"] for name, fact in files.items()) or STATE not in files
    except (ValueError, KeyError, TypeError, OSError, AttributeError):
        return True


@pytest.mark.parametrize("name", [STATE, rank_file(0)])
def test_a_missing_file_is_named(tmp_path, name):
    path = written(tmp_path, 1)
    (path / name).unlink()
    assert damage(path) == f"{name} is missing"


def test_the_newest_whole_one_is_found_and_damaged_ones_are_told_of(tmp_path):
    assert newest_checkpoint(tmp_path / "absent") is None
    for step in (9, 1000, 200):
        written(tmp_path, step)
    partial_folder(tmp_path / "step=000009999").mkdir()
    assert newest_checkpoint(tmp_path).name == "step=000001000"
    (tmp_path / "step=000001000" / STATE).write_bytes(b"")
    told = {}
    assert newest_checkpoint(tmp_path, told.__setitem__).name == "step=000000200"
    assert [path.name for path in told] == ["step=000001000"]
    assert "has 0 bytes" in next(iter(told.values()))


def test_a_whole_checkpoint_is_not_replaced_and_a_damaged_one_is(tmp_path):
    path = written(tmp_path, 1, mark="first")
    written(tmp_path, 1, mark="second")
    assert read_checkpoint(path)["mark"] == "first"
    (path / STATE).write_bytes(b"")
    written(tmp_path, 1, mark="third")
    assert read_checkpoint(path)["mark"] == "third"


def test_leftovers_and_removed_ones_are_gone(tmp_path):
    path = written(tmp_path, 1)
    partial_folder(tmp_path / "step=000000002").mkdir()
    (tmp_path / ".step=000000003.removed").mkdir()
    remove_leftovers(tmp_path)
    remove(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["latest"]
    assert checkpoints_in(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated archive"])
def test_something_else_is_no_checkpoint_of_the_first_format(tmp_path, content):
    file = tmp_path / "step=000000001.ckpt"
    file.write_bytes(content)
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        read_checkpoint(file)
    with pytest.raises(UserError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "absent")


def test_a_format_of_the_future_is_refused(tmp_path):
    path = written(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(UserError, match=r"has format 99, expected \d+ or older; a newer sciml wrote it"):
        read_checkpoint(path)


@pytest.mark.parametrize("old", [False, True])
def test_a_checkpoint_runs_no_code(tmp_path, old):
    class Canary:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'canary'}",)

    if old:
        path = tmp_path / "step=000000001.ckpt"
        torch.save({"state": Canary()}, path)
    else:
        path = written(tmp_path, 1, state=Canary())
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        read_checkpoint(path)
    assert not (tmp_path / "canary").exists()
