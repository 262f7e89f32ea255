"""A path reaches its verb as it was typed, whatever characters it has."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sciml.cli import main
from sciml.config import configure, to_yaml

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(max_examples=15, deadline=None)
@given(name=NAMES)
@example(name="a=b (1), c.xyz")
@example(name="${seed}")
@example(name="\\${seed}\\")
@example(name='it\'s "quoted"')
@example(name="äöü 中文 🧪")
@example(name="{a: 1}")
@example(name="a\nb\t")
@example(name="__literal_0__")
@example(name="~/x")
def test_a_path_arrives_as_typed(name: str) -> None:
    typed = "runs/" + name + "/x"
    config = configure("train", [f"train={typed}", f"run_dir={typed}", f"init={typed}"])
    assert (config.run_dir, config.init) == (typed, typed)
    assert typed.split("/")[-1] in to_yaml(config)


@settings(max_examples=15, deadline=None)
@given(name=NAMES.filter(lambda name: name not in (".", "..") and len(name.encode()) < 200))
@example(name="[a,b]")
@example(name="'a'")
@example(name="a,b")
@example(name="*")
@example(name="null")
def test_an_existing_file_wins_over_every_other_reading(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("data")
    (folder / "other.xyz").touch()
    (folder / name).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert configure("ingest", [f"source={name}", "output=x"]).source == [name]
        assert configure("ingest", [f"source={folder / name}", "output=x"]).source == [str(folder / name)]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("a.xyz", ["a.xyz"]),
        ("[a.xyz,b.xyz]", ["a.xyz", "b.xyz"]),
        ("[a.xyz, b.xyz]", ["a.xyz", "b.xyz"]),
        ("['a,1.xyz',\"b (2).xyz\"]", ["a,1.xyz", "b (2).xyz"]),
        ("a.xyz,b.xyz", ["a.xyz", "b.xyz"]),
        ("a.xyz,typo.xyz", ["a.xyz", "typo.xyz"]),
        ("x,y", ["x,y"]),
        ("*.xyz", ["a.xyz", "b.xyz"]),
        ("[*.xyz]", ["a.xyz", "b.xyz"]),
        ("'quoted.xyz'", ["quoted.xyz"]),
        ("null", None),
        ("", None),
    ],
)
def test_lists_and_patterns(
    typed: str, expected: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.xyz", "b.xyz"):
        (tmp_path / name).touch()
    assert configure("train", ["train=z", f"val={typed}"]).val == expected


def test_a_missing_file_is_named_with_its_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "training (1).xyz").touch()
    assert main(["inspect", "source=trainin (1).xyz"]) == 2
    assert capsys.readouterr().err == (
        "sciml: source: 'trainin (1).xyz' does not exist (did you mean training (1).xyz?); "
        "give an existing file or store.\n"
    )
    assert main(["inspect", "source=no/where.xyz"]) == 2
    assert "nor does its folder 'no'" in capsys.readouterr().err
    assert main(["inspect", "source=samples:nothing"]) == 2
    assert "the embedded samples 'nothing' are not known" in capsys.readouterr().err
