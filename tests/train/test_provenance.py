"""Where a run came from: hashes of whole stores, and a commit only where it is that of sciml."""

import subprocess

import pytest

from sciml.data.source import Source
from sciml.data.store import Subset
from sciml.train.provenance import _commit, provenance
from tests.small import molecules_store


def test_parts_of_a_store_have_the_hash_of_the_whole(tmp_path):
    store = molecules_store(tmp_path / "molecules", records=4)
    parts = [Source(Subset(Subset(store, [0, 1, 3]), [1, 2]), 0), Source(Subset(store, [2]), 0)]
    assert provenance(parts)["data"] == {str(tmp_path / "molecules"): store.data_hash}


@pytest.mark.parametrize(
    ("project", "place", "own"),
    [
        ('[project]\nname = "sciml"\n', "sciml", True),
        ('[project]\nname = "another"\n', "sciml", False),
        ("not toml [", "sciml", False),
        (None, "sciml", False),
        ('[project]\nname = "sciml"\n', ".venv/lib/site-packages/sciml", False),
    ],
)
def test_the_commit_is_that_of_a_checkout_of_sciml(tmp_path, project, place, own):
    package = tmp_path / place
    package.mkdir(parents=True)
    (package / "file.py").write_text("")
    if project is not None:
        (tmp_path / "pyproject.toml").write_text(project)
    assert _commit(package) is None
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), ("add", "-A"), (*author, "commit", "-q", "-m", "first")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    commit = _commit(package)
    assert (commit is not None) == own
    if commit:
        assert len(commit) == 40
        (package / "file.py").write_text("changed")
        assert _commit(package) == commit + "+"
