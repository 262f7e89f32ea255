"""Heads that learn nothing, runs that save nothing, and the verb as a whole."""

import json
from types import SimpleNamespace

import pytest

from sciml.cli import main
from sciml.config import configure
from sciml.data.source import Source
from sciml.data.store import Store
from sciml.doctor.finding import duration, ok, problem, table, warning
from sciml.doctor.pace import Pace
from sciml.doctor.recipe import Course, course, head_labels, run_time, saves
from sciml.doctor.run import examine, run
from sciml.errors import UserError
from sciml.train.checkpoint import STATE
from tests.small import peptides_store, stores

HEADS = {"energy": {"hidden": 8}, "residue_type": {"hidden": 8}, "denoise_atoms": {"hidden": 8}}
WEIGHTS = {"energy": 1.0, "forces": 1.0, "residue_types": 1.0, "noise_atoms": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return stores(tmp_path_factory.mktemp("recipe"))


def words(folder, *more):
    """A training of seconds."""
    small = ("model=tiny", "model.channels=4", "model.radial.hidden=[8]", "heads.energy.hidden=8")
    run = ("data.val_fraction=0.25", "trainer.max_steps=30", "logger=disabled")
    return [f"train={folder / 'molecules'}", *small, *run, *more]


def test_a_head_without_labels_is_a_problem(folder, tmp_path):
    unlabelled = Store(peptides_store(tmp_path / "bare", labelled=False).path)
    found = head_labels(HEADS, WEIGHTS, [Source(unlabelled, 0, "bare")])
    verdicts = {finding.found.partition(" ")[0]: finding.verdict for finding in found}
    assert verdicts == {"energy": "problem", "residue_type": "ok", "denoise_atoms": "ok"}
    assert found[0].advice.startswith("leave it out with heads.energy=null")
    both = head_labels(HEADS, WEIGHTS | {"stress": 1.0}, [Source(Store(folder / "peptides"), 0, "labelled")])
    assert both[0].verdict == "ok", "peptides have no stress to label"


def trainer(**changes):
    given = dict.fromkeys(("max_seconds", "segment_seconds", "val_every", "checkpoint_every"))
    return SimpleNamespace(**(given | {"max_steps": 1000} | changes))


def test_a_course_is_what_was_asked_for_or_fits():
    pace = Pace(step=2.0, validation=5.0, drawn={"atoms": 4.0})
    asked = course(trainer(), pace, lambda steps: 0.0)
    assert (asked.steps, asked.seconds, asked.between_saves) == (1000, 2050.0, 205.0)
    fits = course(trainer(max_seconds=1000.0, max_steps=None), pace, lambda steps: 100.0)
    assert fits.steps == (970 - 50 - 100) // 2
    assert run_time(trainer(), pace, lambda steps: 1000.0)[0].advice == "set data.workers, or a larger data.cache_mib"
    assert run_time(trainer(max_steps=3), pace, lambda steps: 0.0)[0].verdict == "warning"


@pytest.mark.parametrize(
    ("changes", "seconds", "between", "verdict"),
    [
        ({}, 5000.0, 500.0, "ok"),
        ({"checkpoint_every": 5000}, 5000.0, 5000.0, "problem"),
        ({"checkpoint_every": 5000}, 50.0, 50.0, "warning"),
        ({"segment_seconds": 700.0}, 5000.0, 500.0, "ok"),
        ({"segment_seconds": 700.0}, 50_000.0, 5000.0, "problem"),
    ],
)
def test_a_run_that_saves_too_rarely_is_named(changes, seconds, between, verdict):
    assert saves(trainer(**changes), Course(1000, seconds, between)).verdict == verdict


def test_the_doctor_finds_nothing_wrong_with_a_good_recipe(folder, tmp_path, capsys):
    config = configure("doctor", words(folder, f"run_dir={tmp_path / 'run'}", f"output={tmp_path / 'out'}"))
    assert run(config) == 0
    assert "problem  " not in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "doctor.json").read_text())["findings"]
    found = {(row["check"], row["verdict"]) for row in rows}
    assert {("memory", "ok"), ("heads", "ok"), ("held out", "ok"), ("run folder", "ok")} <= found
    assert not (tmp_path / "run").exists(), "nothing is trained"


def test_what_would_be_refused_is_a_problem(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    found = examine(configure("doctor", words(folder, f"run_dir={tmp_path / 'run'}")))
    assert found[-1].verdict == "problem"
    assert "holds a run already" in found[-1].found


def test_a_damaged_checkpoint_is_told_and_left_where_it_is(folder, tmp_path):
    run_folder = words(folder, f"run_dir={tmp_path / 'run'}", "trainer.max_steps=2", "trainer.checkpoint_every=1")
    assert main(["train", *run_folder, "trainer.progress=false"]) == 0
    newest = tmp_path / "run" / "checkpoints" / "step=000000002"
    (newest / STATE).write_bytes(b"cut short")
    before = sorted(path.name for path in newest.parent.iterdir())
    found = examine(configure("doctor", [*run_folder, "resume=true"]))
    assert [(row.verdict, newest.name in row.found) for row in found if row.check == "checkpoints"] == [
        ("warning", True)
    ]
    assert sorted(path.name for path in newest.parent.iterdir()) == before
    assert not (tmp_path / "run" / "events.jsonl").exists()


def test_a_mistake_in_the_command_is_the_users(folder):
    with pytest.raises(UserError, match="trainer.max_stepz"):
        configure("doctor", words(folder, "trainer.max_stepz=3"))
    assert main(["doctor", "train=absent.xyz"]) == 2


def test_the_table_says_what_to_do():
    rows = [ok("disk", "large"), warning("time", "long", "wait"), problem("memory", "too much " * 30, "take less")]
    lines = table(rows, width=80).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "warning  time    long -> wait" in lines
    assert lines[-1] == "1 problem, 1 warning"
    assert duration(90_061.0) == "1:01:01:01"
