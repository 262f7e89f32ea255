"""Exit codes and sentences of the command line."""

import errno
import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sciml.cli import VERBS, Verb, main
from sciml.errors import UserError


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Callable[[Any], int | None]], list[str]]:
    """Put a function in the place of ``sciml inspect``; returns the words that call it."""

    def install(function: Callable[[Any], int | None]) -> list[str]:
        module = types.ModuleType("a_verb_for_tests")
        module.run = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(VERBS, "inspect", Verb(f"{module.__name__}:run", "", ""))
        return ["inspect", f"source={tmp_path}"]

    return install


@pytest.mark.parametrize("code", [0, 1, 143])
def test_the_code_of_the_verb_is_passed_on(code: int, verb: Any) -> None:
    assert main(verb(lambda config: code)) == code
    assert main(verb(lambda config: None if code == 0 else code)) == code


def test_a_users_mistake_is_one_sentence(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Any) -> int:
        raise UserError("a.xyz, frame 3: no energy.")

    assert main(verb(run)) == 2
    assert capsys.readouterr().err == "sciml: a.xyz, frame 3: no energy.\n"


def test_a_refusal_of_the_system_is_a_sentence(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "out/store")

    assert main(verb(run)) == 2
    assert capsys.readouterr().err == "sciml: out/store cannot be used: Permission denied.\n"


def test_a_bug_keeps_its_traceback(verb: Any) -> None:
    def run(config: Any) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        main(verb(run))


def test_an_interrupt_has_its_own_code(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Any) -> int:
        raise KeyboardInterrupt

    assert main(verb(run)) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_termination_unwinds_and_leaves_with_143(verb: Any, number: signal.Signals) -> None:
    cleaned = []

    def run(config: Any) -> int:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            cleaned.append(True)
        return 0

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught:
        main(verb(run))
    assert caught.value.code == 143
    assert cleaned == [True]
    assert signal.getsignal(number) is before


def test_verbose_prints_the_composed_configuration(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = verb(lambda config: 0)
    assert main([*words, "-v"]) == 0
    assert capsys.readouterr().out.startswith(f"{words[1].replace('=', ': ')}\nmodel: null\noutput: null\n")


def test_training_says_something_before_it_imports_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "train=nowhere.xyz"]) == 2
    output = capsys.readouterr()
    assert output.out.startswith("sciml 0.")
    assert output.err == "sciml: train: 'nowhere.xyz' does not exist; give an existing file or store.\n"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["trian"], "'trian' is not a verb, expected one of ingest, inspect, audit, split, heat, train, "),
        (["trian"], "(did you mean train?)."),
        (["train", "--hlep"], "'--hlep' is not an option"),
        (["train", "--hlep"], "(did you mean --help?)"),
        (["train", "--model=tiny"], "a key is written without dashes, such as model=VALUE."),
        (["train", "--seed", "3"], "a key is written without dashes, such as seed=VALUE."),
        (["train", "-x"], "'-x' is not an option, expected one of --help"),
        (["train", "--config-dir"], "--config-dir: found nothing, expected a folder."),
        (["train", "tiny"], "'tiny' is not KEY=VALUE"),
    ],
)
def test_unknown_words(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("sciml: ")
    assert sentence in error
    assert error.count("\n") == 1
