"""Processes that are told to stop, killed, or started twice."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import sciml
from sciml.doctor.faults.processes import codes, ended, has_step, loaders_of, start, start_ranks, wait_until
from sciml.doctor.faults.row import Row
from sciml.doctor.faults.small import metrics, train_here, words
from sciml.errors import UserError
from sciml.launch import PREEMPTED
from sciml.train import writer as writer_module
from sciml.train.checkpoint import checkpoints_in, damage, step_of
from sciml.train.lock import run_lock
from sciml.train.module import Module

ENDLESS = ("trainer.max_steps=100000", "trainer.val_every=100000", "trainer.checkpoint_every=100000")
TWO_RANKS = ("trainer.devices=2", "strategy=ddp", "data.bins_per_step=2")


def fault_03_kill_a_rank(folder: Path, thorough: bool = False) -> Row:
    """Kill one of two ranks with SIGKILL."""
    seconds, others = [], []
    for victim in (0, 1) if thorough else (1,):
        place = folder / str(victim)
        ranks = start_ranks(2, ["train", *words(place, *TWO_RANKS, *ENDLESS)], folder / f"output-{victim}")
        with ended(ranks):
            wait_until(has_step(place / "run", 2), ranks)
            ranks[victim].kill()
            begin = time.monotonic()
            others.append(codes([ranks[1 - victim]], 60.0)[0])
            seconds.append(time.monotonic() - begin)
    return Row(
        3,
        "kill -9 of one of 2 ranks",
        "the other leaves with an error in less than 30 s",
        f"exit code {', '.join(map(str, others))} after {', '.join(f'{time:.1f} s' for time in seconds)}",
        all(others) and max(seconds) < 30.0,
    )


def fault_04_terminate_ranks(folder: Path, thorough: bool = False) -> Row:
    """Send SIGTERM or SIGUSR1 to some of two ranks."""
    cases: list[tuple[tuple[int, ...], signal.Signals]] = [((1,), signal.SIGTERM)]
    if thorough:
        cases += [((0,), signal.SIGTERM), ((0, 1), signal.SIGTERM), ((1,), signal.SIGUSR1)]
    outcomes = []
    for number, (told, what) in enumerate(cases):
        place = folder / str(number)
        ranks = start_ranks(2, ["train", *words(place, *TWO_RANKS, *ENDLESS)], folder / f"output-{number}")
        with ended(ranks):
            wait_until(has_step(place / "run", 2), ranks)
            for rank in told:
                os.kill(ranks[rank].pid or 0, what)
            left = codes(ranks, 120.0)
        found = checkpoints_in(place / "run" / "checkpoints")
        last = metrics(place)[-1]["step"]
        outcomes.append(left == [PREEMPTED] * 2 and [step_of(path) for path in found] == [last] and _whole(found))
    outcomes.append(_terminated_with_its_loaders(folder / "loaders"))
    told_ranks = ", ".join(" and ".join(f"rank {rank}" for rank in told) for told, _ in cases)
    return Row(
        4,
        f"SIGTERM or SIGUSR1 to {told_ranks}, and SIGTERM to a run and the process that loads its data",
        f"all ranks leave with {PREEMPTED} and one checkpoint, of the last step in metrics.jsonl",
        f"{sum(outcomes)} of {len(outcomes)} as expected",
        all(outcomes),
    )


def _terminated_with_its_loaders(place: Path) -> bool:
    """Send SIGTERM to a run and what loads its data, as a shell and some batch systems do; whether it saved."""
    process = start(["train", *words(place, *ENDLESS, "data.workers=1")], place.with_suffix(".txt"))
    with ended([process]):
        wait_until(has_step(place / "run", 2), [process])
        for number in (*loaders_of(process.pid or 0), process.pid or 0):
            os.kill(number, signal.SIGTERM)
        (code,) = codes([process], 120.0)
    found = checkpoints_in(place / "run" / "checkpoints")
    return code == PREEMPTED and len(found) == 1 and _whole(found)


def _whole(paths: list[Path]) -> bool:
    return all(damage(path) is None for path in paths)


def _slowly(folder: Path, where: str) -> None:
    """Let a process say in a file that it validates or writes a checkpoint, and take its time."""
    owner, name = {"validation": (Module, "validation_step"), "save": (writer_module, "write_part")}[where]
    original = getattr(owner, name)

    def slow(*arguments):  # type: ignore[no-untyped-def]
        (folder / f"{where}.begun").touch()
        time.sleep(0.5)
        return original(*arguments)

    setattr(owner, name, slow)


def fault_05_terminate_in_validation_and_save(folder: Path) -> Row:
    """Send SIGTERM to a run that validates, and to one that writes a checkpoint; resume both."""
    train_here(folder / "whole")
    outcomes, steps = [], []
    for where in ("validation", "save"):
        place = folder / where
        process = start(["train", *words(place)], folder / f"{where}.txt", prepare=partial(_slowly, folder, where))
        with ended([process]):
            wait_until((folder / f"{where}.begun").exists, [process])
            os.kill(process.pid or 0, signal.SIGTERM)
            (code,) = codes([process], 120.0)
        found = checkpoints_in(place / "run" / "checkpoints")
        steps.append(step_of(found[0]) if found else 0)
        stopped = code == PREEMPTED and _whole(found) and steps[-1] > 0
        finished = stopped and train_here(place, "resume=true") == 0
        outcomes.append(finished and metrics(place) == metrics(folder / "whole"))
    return Row(
        5,
        "SIGTERM during a validation, and during a save",
        f"exit code {PREEMPTED}, a whole checkpoint, and after resuming the metrics of a run never stopped",
        f"{sum(outcomes)} of 2 as expected, stopped after steps {steps[0]} and {steps[1]}",
        all(outcomes),
    )


def fault_06_requeue(folder: Path, thorough: bool = False) -> Row:
    """Submit the SLURM template to stand-ins for sbatch, srun and scontrol, and let it be preempted once.

    In the short version sciml is a stand-in too, which leaves with the code of a preemption when it gets SIGUSR1.
    """
    expectation = "the job is requeued once, resumes and ends with exit code 0"
    stand_ins = "sbatch, srun and scontrol" if thorough else "sbatch, srun, scontrol and sciml"
    template = Path(sciml.__file__).parents[1] / "scripts" / "slurm"
    if not template.exists():
        return Row(6, "SLURM preempts a job", expectation, "scripts/slurm is not in this installation", None)
    tools = folder / "tools"
    tools.mkdir()
    for name, text in (SLURM if thorough else {**SLURM, "sciml": TRAINER}).items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    arguments = words(folder, "trainer.max_steps=60", "trainer.val_every=60") if thorough else ["run_dir=stand-in"]
    own = {"PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}", "QUEUE": str(folder)}
    with open(folder / "output.txt", "w") as output:
        job = subprocess.Popen(
            ["sbatch", str(template), *arguments], env={**os.environ, **own}, stdout=output, stderr=output
        )
        trainer = folder / "trainer.pid"
        running = has_step(folder / "run", 2) if thorough else (folder / "running").exists
        end = time.monotonic() + 300.0
        while not running() and time.monotonic() < end and job.poll() is None:
            time.sleep(0.05)
        os.kill(int(trainer.read_text()), signal.SIGUSR1)
        code = job.wait(600.0)
    requeued = (folder / "requeued").read_text().split() if (folder / "requeued").exists() else []
    resumed = (folder / "output.txt").read_text().count("srun: sciml train")
    return Row(
        6,
        f"SLURM sends SIGUSR1 before it takes the machine away (stand-ins for {stand_ins})",
        expectation,
        f"exit code {code}, requeued {requeued}, started {resumed} times",
        code == 0 and requeued == ["17"] and resumed == 2,
    )


SLURM = {
    "sbatch": """#!/usr/bin/env bash
export SLURM_JOB_ID=17
script=$1; shift
while bash "$script" "$@"; code=$?; [[ -f $QUEUE/again ]]; do rm "$QUEUE/again"; done
exit $code
""",
    "srun": """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
echo "srun: $*"
echo $$ > "$QUEUE/trainer.pid"
unset SLURM_JOB_ID
exec "$@"
""",
    "scontrol": """#!/usr/bin/env bash
[[ $1 == requeue ]] && echo "$2" >> "$QUEUE/requeued" && touch "$QUEUE/again"
""",
}
TRAINER = """#!/usr/bin/env bash
[[ -f $QUEUE/running ]] && exit 0
trap 'exit 143' USR1
touch "$QUEUE/running"
while :; do sleep 0.1; done
"""


def fault_20_two_runs_in_a_folder(folder: Path) -> Row:
    """Start a run in a folder in which another one trains; then kill that one with SIGKILL and start again."""
    first = start(["train", *words(folder, *ENDLESS)], folder / "first.txt")
    with ended([first]):
        wait_until(has_step(folder / "run", 2), [first])
        second = start(["train", *words(folder, *ENDLESS, "resume=true")], folder / "second.txt")
        with ended([second]):
            (code,) = codes([second], 120.0)
        said = (folder / "second.txt").read_text()
        before = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-2])["step"]
        wait_until(has_step(folder / "run", before + 2), [first])
        first.kill()
        first.join()
    begin = time.monotonic()
    try:
        with run_lock(folder / "run"):
            seconds = time.monotonic() - begin
    except UserError:
        seconds = float("inf")
    named = f"is being trained by process {first.pid}" in said
    return Row(
        20,
        "two runs are started in one folder",
        "the second refuses with exit code 2 and names the first, which goes on; killed, it holds the folder no longer",
        f"exit code {code}, {'named' if named else 'not named'}, free {seconds:.1f} s after kill -9",
        code == 2 and named and seconds < 5.0,
    )
