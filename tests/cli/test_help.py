"""Help is quick, complete and needs no torch."""

import statistics
import subprocess
import sys
import time

import pytest

from sciml.cli import VERBS
from sciml.config import groups, keys
from sciml.schema import CONFIGS

HEAVY = ("torch", "lightning", "hydra", "deepspeed", "ase", "scipy", "pyarrow")
PROBE = "import sys; from sciml.cli import main; main({argv!r}); print([m for m in {heavy!r} if m in sys.modules])"


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sciml.cli", *argv], capture_output=True, text=True, check=False)


def test_help_answers_within_a_second() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = run("--help")
        times.append(time.perf_counter() - start)
        assert result.returncode == 0
    assert statistics.median(times) < 1.0, times


def test_help_lists_the_verbs() -> None:
    text = run("--help").stdout
    for name, verb in VERBS.items():
        assert f"{name} " in text
        assert verb.summary in text


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_imports_nothing_heavy(verb: str | None) -> None:
    argv = [verb, "--help"] if verb else ["--help"]
    heavy = HEAVY if verb is None else tuple(name for name in HEAVY if name != "hydra")
    code = PROBE.format(argv=argv, heavy=heavy)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_verb_help_explains_every_group_and_key(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    from sciml.cli import main

    assert main([verb, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for group, options in groups(verb).items():
        assert any(line.split() == [group, *", ".join(options).split()] for line in lines), group
    for key, field in keys(CONFIGS[verb]):
        at = next(number for number, line in enumerate(lines) if line.startswith(f"  {key}="))
        assert field.description
        explanation = next(line for line in lines[at + 1 :] if line.startswith("      "))  # after a value of any length
        assert explanation.strip() == field.description


@pytest.mark.parametrize("argv", [[], ["--help"], ["--version"]])
def test_words_without_a_verb(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from sciml.cli import main

    assert main(argv) == (0 if argv else 2)
    output = capsys.readouterr()
    assert "sciml" in (output.out if argv else output.err)
