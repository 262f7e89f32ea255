"""The lock of a run's folder, beside real processes in tests/faults."""

import os

import pytest

from sciml.errors import UserError
from sciml.train.lock import NAME, run_lock


def test_a_folder_without_a_run_is_left_as_it_was(tmp_path):
    with run_lock(tmp_path / "runs" / "run"):
        assert (tmp_path / "runs" / "run" / NAME).read_text().startswith('{"host"')
    assert list(tmp_path.iterdir()) == []
    with run_lock(tmp_path / "run"):
        (tmp_path / "run" / "config.yaml").touch()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [NAME, "config.yaml"]


@pytest.mark.parametrize("told", ["", "no json", '{"host": "elsewhere", "process": 1, "since": "2020-01-01"}'])
def test_what_a_dead_process_left_behind_holds_nothing(tmp_path, told):
    (tmp_path / NAME).write_text(told)
    os.utime(tmp_path / NAME, (0, 0))
    with run_lock(tmp_path, beat=0.1):
        pass


def test_a_process_elsewhere_that_gives_signs_of_life_holds_it(tmp_path):
    """On a filesystem whose locks do not reach the other host."""
    (tmp_path / NAME).write_text('{"host": "elsewhere", "process": 7, "since": "2020-01-01"}')
    child = os.fork()
    if child == 0:
        import time

        for _ in range(100):
            os.utime(tmp_path / NAME)
            time.sleep(0.02)
        os._exit(0)
    said = "is being trained by process 7 on elsewhere since 2020-01-01; wait"
    with pytest.raises(UserError, match=said), run_lock(tmp_path, beat=0.2):
        pass
    os.waitpid(child, 0)
    with run_lock(tmp_path, beat=0.1):
        pass
