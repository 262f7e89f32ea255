"""Sweeps: every combination is checked before the first run, each has a folder, the table ranks them."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from sciml import sweep
from sciml.cli import main
from sciml.errors import UserError
from sciml.sweep import parse

SHORT = ("model=tiny", "trainer.max_steps=1", "logger=disabled")


@pytest.fixture
def data(tmp_path: Path) -> str:
    (tmp_path / "x.xyz").write_text("")
    return f"train={tmp_path / 'x.xyz'}"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that a sweep would run; each leaves the metrics of a run whose loss is its seed."""
    ran: list[list[str]] = []

    def call(command: list[str], output: Path) -> int:
        ran.append(command)
        words = dict(word.partition("=")[::2] for word in command if "=" in word)
        line = {"step": 1, "val/loss": float(words["seed"])}
        (Path(words["run_dir"]) / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        if words["seed"] == "9":
            return 2
        (Path(words["run_dir"]) / "package").mkdir()
        return 0

    monkeypatch.setattr(sweep, "_call", call)
    return ran


def test_values_are_told_from_lists_and_paths():
    space = parse(["model=tiny,small", "seed=range(0,3)", "train=[a.xyz,b.xyz]", "val=x{.xyz", "name=7"])
    assert space.listed == {"model": ["tiny", "small"], "seed": ["0", "1", "2"]}
    assert space.shared == ["train=[a.xyz,b.xyz]", "val=x{.xyz", "name=7"]
    assert len(space.combinations()) == 6
    drawn = parse(["optimizer.learning_rate=tag(log,interval(1e-4,1e-2))"])
    assert drawn.between == {"optimizer.learning_rate": (1e-4, 1e-2, True)}
    with pytest.raises(UserError, match="no key holds several values"):
        parse(["seed=1"])


def test_every_combination_runs_in_a_folder_of_its_own(data, commands, tmp_path, capsys):
    folder = tmp_path / "sweep"
    words = [data, *SHORT, "seed=3,1", "model.channels=4,8", f"sweep.folder={folder}"]
    assert main(["train", "-m", *words]) == 0
    assert [command[:4] for command in commands] == [[sys.executable, "-m", "sciml", "train"]] * 4
    assert {path.name for path in folder.iterdir()} == {"000", "001", "002", "003", "summary.json"}
    rows = json.loads((folder / "summary.json").read_text())
    assert rows[0]["words"] == ["seed=3", "model.channels=4"]
    ranked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("00")]
    assert ranked[0].startswith("002  seed=1 model.channels=4  val/loss 1")
    assert main(["train", "-m", *words]) == 0
    assert len(commands) == 4, "what is finished is not run again"


def test_nothing_runs_where_one_combination_is_refused(data, commands, tmp_path, capsys):
    folder = tmp_path / "sweep"
    words = [data, *SHORT, "seed=1,2", "trainer.devices=1,2", f"sweep.folder={folder}"]
    assert main(["train", "-m", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sciml: seed=1 trainer.devices=2: ")
    assert commands == []
    assert not folder.exists()


def test_a_run_that_fails_does_not_end_the_sweep(data, commands, tmp_path, capsys):
    words = [data, *SHORT, "seed=9,1", f"sweep.folder={tmp_path / 'sweep'}"]
    assert main(["train", "-m", *words]) == 1
    assert len(commands) == 2
    assert "exit code 2, see" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["seed=1,2", "run_dir=mine"], "run_dir=mine: found with -m, expected sweep.folder=FOLDER"),
        (["optimizer.learning_rate=interval(1e-4,1e-2)"], "found an interval, expected sweep.trials=N"),
        (["seed=1,2", "sweep.launcher=submitit"], "submitit is not installed"),
        (["seed=1,2", "sweep.trials=2"], "optuna is not installed"),
    ],
)
def test_what_cannot_be_swept_is_one_sentence(words, sentence, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", data, *SHORT, *words]) == 2
    assert sentence in capsys.readouterr().err
    assert main(["evaluate", "-m", "package=a,b"]) == 2


def test_jobs_are_submitted_with_the_parameters_of_the_user(data, commands, tmp_path, monkeypatch):
    """A stub stands for submitit, which runs each command when its result is asked for."""
    given: dict[str, object] = {}

    class Executor:
        def __init__(self, folder: Path) -> None:
            given["folder"] = folder

        def update_parameters(self, **parameters: object) -> None:
            given.update(parameters)

        def submit(self, command: list[str]) -> SimpleNamespace:
            return SimpleNamespace(result=lambda: _made(command))

    def _made(command: list[str]) -> int:
        folder = Path(next(word for word in command if word.startswith("run_dir=")).partition("=")[2])
        folder.mkdir(parents=True)
        return sweep._call(command, folder / "log.txt")

    stub = ModuleType("submitit")
    stub.AutoExecutor = Executor
    stub.helpers = SimpleNamespace(CommandFunction=lambda command: command)
    stub.core = SimpleNamespace(utils=SimpleNamespace(UncompletedJobError=RuntimeError))
    monkeypatch.setitem(sys.modules, "submitit", stub)
    folder = tmp_path / "sweep"
    words = ["seed=1,2", f"sweep.folder={folder}", "sweep.launcher=submitit", "sweep.slurm.slurm_partition=gpu"]
    assert main(["train", "-m", data, *SHORT, *words]) == 0
    assert given == {"folder": folder / "jobs", "slurm_partition": "gpu"}
    assert len(commands) == 2


@pytest.mark.parametrize(("reason", "code"), [("returned non-zero exit status 143", 143), ("lost without a word", 1)])
def test_a_job_that_ended_badly_has_a_code(reason, code, tmp_path, monkeypatch):
    class Lost(Exception):
        """What submitit raises for a job without a result."""

    def result() -> None:
        raise Lost(reason)

    stub = ModuleType("submitit")
    stub.AutoExecutor = lambda folder: SimpleNamespace(
        update_parameters=lambda **parameters: None, submit=lambda command: SimpleNamespace(result=result)
    )
    stub.helpers = SimpleNamespace(CommandFunction=lambda command: command)
    stub.core = SimpleNamespace(utils=SimpleNamespace(UncompletedJobError=Lost))
    monkeypatch.setitem(sys.modules, "submitit", stub)
    trial = sweep.Trial(["seed=1"], tmp_path / "000")
    trial.folder.mkdir()
    (trial.folder / "metrics.jsonl").write_text('{"step": 1, "val/loss": 0.5}\n{"step": 2, "val/l')
    sweep._submit([trial], lambda trial: [], SimpleNamespace(slurm={}))
    assert (trial.code, trial.value) == (code, 0.5)


def test_optuna_draws_between_the_ends(data, commands, tmp_path, monkeypatch):
    """A stub stands for Optuna, which draws the lower end always."""
    told: list[tuple[object, object]] = []
    asked = SimpleNamespace(
        suggest_categorical=lambda key, values: values[0], suggest_float=lambda key, low, high, log: low
    )
    study = SimpleNamespace(ask=lambda: asked, tell=lambda trial, value=None, state=None: told.append((value, state)))
    stub = ModuleType("optuna")
    stub.create_study = lambda direction, sampler: study
    stub.samplers = SimpleNamespace(TPESampler=lambda seed: None)
    stub.trial = SimpleNamespace(TrialState=SimpleNamespace(FAIL="fail"))
    monkeypatch.setitem(sys.modules, "optuna", stub)
    rate = "optimizer.learning_rate=tag(log,interval(1e-4,1e-2))"
    words = ["seed=1,2", rate, "sweep.trials=3", f"sweep.folder={tmp_path / 'sweep'}"]
    assert main(["train", "-m", data, *SHORT, *words]) == 0
    assert told == [(1.0, None)] * 3
    assert all("optimizer.learning_rate=0.0001" in command for command in commands)


@pytest.mark.slow
def test_a_real_sweep(tmp_path):
    words = ["train=samples:metals", *SHORT, "model.channels=4", "seed=0,1", f"sweep.folder={tmp_path / 'sweep'}"]
    assert main(["train", "-m", *words]) == 0
    rows = json.loads((tmp_path / "sweep" / "summary.json").read_text())
    assert all(row["code"] == 0 and row["val/loss"] > 0 for row in rows)
