"""Side-by-side comparisons with eager mace-torch, which lives in its own virtual environment.

    python benchmarks/peers/mace.py setup                    make .venv-mace beside this checkout's .venv
    python benchmarks/peers/mace.py step                     time one training step of both, interleaved
    python benchmarks/peers/mace.py trials --minutes 2       short runs that choose MACE's settings for the next
    python benchmarks/peers/mace.py ethanol --minutes 10     train both on rMD17 ethanol, one after the other
    python benchmarks/peers/mace.py threebpa --minutes 30    train both on 3BPA at 300 K, test up to 1200 K

Both sides run as separate worker processes with the same number of threads and the same malloc settings. Results go to
`benchmarks/results/` as mace_step.json, mace_trials.json, mace_ethanol.json and mace_threebpa.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from workers import machine, say, worker_environment, write_result

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
RESULTS = CHECKOUT / "benchmarks" / "results"
MACE_ENVIRONMENT = CHECKOUT / ".venv-mace"
# torch first and exact: mace-torch alone would take whatever torch is newest. Same version as the project's.
REQUIREMENTS = ("torch==2.13.0", "mace-torch==0.3.16")
SIDES = ("ours", "mace")
SAME_IN_EVERY_ROUND = (
    "memory_before_model_mib", "parameters", "atoms", "edges", "mean_length", "first_loss", "last_loss", "settings",
    "versions",
)  # fmt: skip

# Best of the short trials in benchmarks/results/mace_trials.json.
ETHANOL_SETTINGS = {
    "channels": 32, "layers": 2, "max_L": 1, "lmax": 3, "correlation": 3, "radial_mlp": [64, 64, 64],
    "dtype": "float32", "batch_size": 2, "energy_weight": 1.0, "forces_weight": 100.0, "lr": 0.02, "weight_decay": 5e-7,
    "amsgrad": True, "clip": 10.0, "ema": 0.99, "seed": 0,
}  # fmt: skip
# What the trials replace in them, one at a time. Selection is by the 50 validation configurations, never the test.
TRIALS = (
    {}, {"channels": 16}, {"channels": 64}, {"lr": 0.005}, {"lr": 0.02}, {"batch_size": 2},
    {"batch_size": 2, "lr": 0.02}, {"batch_size": 10},
    {"forces_weight": 1000.0, "clip": 100.0}, {"max_L": 0}, {"dtype": "float64"},
)  # fmt: skip


class PeerError(Exception):
    """What the user has to do before a comparison can run."""


def python_of(side: str) -> str:
    """The interpreter of a side: this one for ours, that of `.venv-mace` for MACE."""
    if side == "ours":
        return sys.executable
    path = MACE_ENVIRONMENT / "bin" / "python"
    if not path.exists():
        raise PeerError("no .venv-mace in this checkout: run `python benchmarks/peers/mace.py setup` first")
    return str(path)


def worker(side: str, threads: int, task: str, **arguments: object) -> dict[str, Any]:
    """Run one worker to its end and return its result."""
    script = HERE / ("ours.py" if side == "ours" else "mace_worker.py")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        safe_path = ["-P"] if side == "mace" else []  # else this very file would be taken for the package mace
        command = [python_of(side), *safe_path, str(script), task]
        command += ["--result", str(result), "--threads", str(threads)]
        for name, value in arguments.items():
            command += [f"--{name}", str(value)]
        done = subprocess.run(command, env=worker_environment(threads), cwd=folder)
        if done.returncode:
            raise PeerError(f"the worker of {side} for `{task}` ended with exit code {done.returncode}")
        return json.loads(result.read_text())


def setup(_: argparse.Namespace) -> None:
    """Make `.venv-mace` with the tested versions."""
    subprocess.run([sys.executable, "-m", "venv", str(MACE_ENVIRONMENT)], check=True)
    for requirement in REQUIREMENTS:
        subprocess.run([python_of("mace"), "-m", "pip", "install", "--quiet", requirement], check=True)


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One side's rounds as one record: median and range of the step time, worst peak memory."""
    seconds = [second for each in rounds for second in each["seconds"]]
    return {
        "median_seconds": statistics.median(seconds),
        "fastest_seconds": min(seconds),
        "slowest_seconds": max(seconds),
        "round_medians": [statistics.median(each["seconds"]) for each in rounds],
        "cpu_seconds": statistics.mean(each["cpu_seconds"] for each in rounds),
        "steps": len(seconds),
        "peak_memory_mib": max(each["peak_memory_mib"] for each in rounds),
        **{key: rounds[0][key] for key in SAME_IN_EVERY_ROUND},
    }


def check_same_structure(sides: dict[str, dict[str, Any]]) -> None:
    """Refuse a comparison on different graphs."""
    graphs = {name: (side["atoms"], side["edges"], round(side["mean_length"], 4)) for name, side in sides.items()}
    if len(set(graphs.values())) > 1:
        raise PeerError(f"the sides ran on different graphs (atoms, edges, mean edge length): {graphs}")


def step(options: argparse.Namespace) -> None:
    """Time the training step of both sides on one structure, in rounds that alternate between them."""
    from structures import write_alloy

    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in options.sides}
    with tempfile.TemporaryDirectory() as folder:
        structure = Path(folder) / "alloy.xyz"
        write_alloy(structure)
        for number in range(options.rounds):
            for side in options.sides:
                arguments = {"structure": structure, "warmup": options.warmup, "repeats": options.repeats}
                rounds[side].append(worker(side, options.threads, "step", **arguments))
                say(f"round {number + 1} {side:5s} {statistics.median(rounds[side][-1]['seconds']):.3f} s per step")
    sides = {side: summary(each) for side, each in rounds.items()}
    check_same_structure(sides)
    result: dict[str, Any] = {"machine": machine(), "threads": options.threads, "tuned_malloc": True, **sides}
    if len(sides) == 2:
        result["speedup"] = sides["mace"]["median_seconds"] / sides["ours"]["median_seconds"]
        result["peak_memory_ratio"] = sides["mace"]["peak_memory_mib"] / sides["ours"]["peak_memory_mib"]
    finish(result, options.output or RESULTS / "mace_step.json")


def shared_data(name: str) -> Path:
    """A folder of the reference data: in `$SCIML_SHARED/data`, or in `../shared/data` beside the checkout."""
    path = Path(os.environ.get("SCIML_SHARED", CHECKOUT.parent / "shared")) / "data" / name
    if not path.is_dir():
        raise PeerError(f"no {name}: set SCIML_SHARED to the folder that holds data/{name}")
    return path


def ethanol_files(folder: Path, seed: int) -> dict[str, Path]:
    """The 950 + 50 split, written to `folder`, with the test set and the isolated atoms."""
    from structures import split_frames

    source = shared_data("rmd17_ethanol")
    folder.mkdir(parents=True, exist_ok=True)
    train, val = folder / "train.xyz", folder / "val.xyz"
    split_frames(source / "train.xyz", train, val, held_out=50, seed=seed)
    return {"train": train, "val": val, "test": source / "test_MD.xyz", "isolated": source / "isolated_atoms.xyz"}


def threebpa_files(folder: Path, seed: int) -> dict[str, Path]:
    """450 + 50 configurations at 300 K, written to `folder`; the test set is the mixture of 300, 600 and 1200 K less
    those of its configurations that are in the file at 300 K.
    """
    from structures import split_frames, write_without_copies

    source = shared_data("3bpa")
    folder.mkdir(parents=True, exist_ok=True)
    train, val, test = (folder / f"{name}.xyz" for name in ("train", "val", "test"))
    split_frames(source / "train_300K.xyz", train, val, held_out=50, seed=seed)
    left_out = write_without_copies(source / "train_mixedT.xyz", source / "train_300K.xyz", test)
    say(f"3BPA: {left_out} configurations of train_mixedT.xyz are in train_300K.xyz and left out")
    return {"train": train, "val": val, "test": test, "isolated": source / "iso_atoms.xyz"}


FILES = {"rmd17_ethanol": ethanol_files, "threebpa": threebpa_files}
"""By the recipe of ours: what both sides are trained and tested on."""


def run_mace(
    files: dict[str, Path], options: argparse.Namespace, changes: dict[str, Any], **more: object
) -> dict[str, Any]:
    """Train MACE for the time given with `changes` to its settings."""
    settings = json.dumps({**ETHANOL_SETTINGS, **changes})
    inputs = {name: files[name] for name in ("train", "val", "isolated")}
    seconds = 60 * options.minutes
    return worker(
        "mace", options.threads, "train", **inputs, settings=settings, seconds=seconds, clock=options.clock, **more
    )


def train_mace(files: dict[str, Path], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train MACE for the time given and score its predictions."""
    from scores import score

    predictions = folder / "mace.npz"
    result = run_mace(files, options, json.loads(options.settings), test=files["test"], predictions=predictions)
    return {"targets": score(predictions, files["test"]), **result}


def trials(options: argparse.Namespace) -> None:
    """Train MACE with each change of settings for a short time and rank them by validation force error."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        files = FILES[options.recipe](Path(folder), options.seed)
        for changes in json.loads(options.changes) if options.changes else TRIALS:
            result = run_mace(files, options, changes)
            kept = ("val_force_rmse", "steps", "seconds", "parameters", "weights", "versions")
            runs.append({"changes": changes, **{key: result[key] for key in kept}})
            say(f"{changes or 'as chosen'}: {1e3 * result['val_force_rmse']:.1f} meV/Å after {result['steps']} steps")
    runs.sort(key=lambda each: each["val_force_rmse"])
    result = {"machine": machine(), "threads": options.threads, "tuned_malloc": True, "minutes": options.minutes}
    result |= {"clock": options.clock, "settings": ETHANOL_SETTINGS, "trials": runs}
    finish(result, options.output or RESULTS / "mace_trials.json")


def sciml(threads: int, *arguments: str) -> None:
    """Run the command line of the project."""
    command = [str(Path(sys.executable).with_name("sciml")), *arguments]
    if subprocess.run(command, env=worker_environment(threads)).returncode:
        raise PeerError(f"`sciml {arguments[0]}` failed")


def duration(minutes: float) -> str:
    """As `trainer.max_time` has it."""
    whole, seconds = divmod(round(60 * minutes), 60)
    return f"{whole // 60:02d}:{whole % 60:02d}:{seconds:02d}"


def train_ours(files: dict[str, Path], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train through the command line for the time given; its own metrics, and the shared scoring of its predictions.

    `--pretrain` minutes of that time, where asked for, go to `--heat` hot configurations of the training molecules, to
    make them and to train on them, or else to the embedded molecules; the rest begins there.
    """
    from scores import score

    run, evaluation, predictions = folder / "run", folder / "evaluation", folder / "ours.npz"
    common = ["train", f"experiment={options.recipe}", *options.ours]
    start, words = time.perf_counter(), []
    if options.pretrain:
        before, data = folder / "before", ["train=samples:molecules", "data.batch.atoms.max_graphs=12"]
        if options.heat:
            hot = folder / "heated"
            made = [f"records={options.heat}", f"workers={options.threads}", "overwrite=true"]
            sciml(options.threads, "heat", f"source={files['train']}", f"output={hot}", *made)
            data = [f"train={hot}"]
            replay = {"stores": hot, "fraction": options.replay, "records": options.heat}
            words = [f"adapt.replay.{key}={value}" for key, value in replay.items()] if options.replay else []
        left = options.pretrain - (time.perf_counter() - start) / 60
        if left <= 0:
            raise PeerError(f"--pretrain {options.pretrain:g}: the minutes were over when the configurations were made")
        sciml(options.threads, *common, *data, f"trainer.max_time={duration(left)}", f"run_dir={before}")
        words += [f"init={before / 'package'}", "optimizer.learning_rate=0.002"]
    sciml(
        options.threads, *common, f"train={files['train']}", f"val={files['val']}", f"test={files['test']}",
        f"trainer.max_time={duration(options.minutes - options.pretrain)}", f"run_dir={run}", *words,
    )  # fmt: skip
    used = time.perf_counter() - start
    package, level, store = run / "package", files["train"].stem, folder / "test-store"
    sciml(options.threads, "ingest", f"source={files['test']}", f"output={store}", f"dataset={level}", "overwrite=true")
    sciml(options.threads, "evaluate", f"package={package}", f"store={store}", f"output={evaluation}")
    reported = json.loads((evaluation / "metrics.json").read_text())["targets"]
    inputs = {"package": package, "test": files["test"], "dataset": level}
    result = worker("ours", options.threads, "predict", **inputs, predictions=predictions)
    targets = score(predictions, files["test"])
    if abs(targets["forces"]["rmse"] / reported["forces"]["rmse"] - 1) > 0.01:
        raise PeerError("the force RMSE of `sciml evaluate` differs from that of the shared scoring by more than 1 %")
    return {
        "targets": targets,
        "reported_by_sciml_evaluate": reported,
        "seconds_of_the_whole_command": used,
        "overrides": options.ours,
        "minutes_before": options.pretrain,
        "heated_configurations": options.heat,
        "replay": options.replay,
        **result,
    }


def ended(side: str, files: dict[str, Path], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What a side finds, or found before in this folder with the same options."""
    record, own = (
        folder / f"{side}.json",
        ("pretrain", "heat", "replay", "ours") if side == "ours" else ("settings", "clock"),
    )
    asked = {name: getattr(options, name) for name in ("recipe", "minutes", "threads", "seed", *own)}
    asked["machine"] = machine()
    if not record.is_file():
        for unfinished in ("before", "run", "evaluation") if side == "ours" else ():
            shutil.rmtree(folder / unfinished, ignore_errors=True)
        trainer = train_ours if side == "ours" else train_mace
        write_result(record, {"asked": asked, "found": trainer(files, folder, options)})
    kept = json.loads(record.read_text())
    if kept["asked"] != asked:
        raise PeerError(
            f"{record} is of other options or another machine: found {kept['asked']}, asked {asked}; "
            "give another --keep"
        )
    return kept["found"]


def accuracy(options: argparse.Namespace) -> None:
    """Train both sides on the same configurations for the same time, one after the other; score on the same others.

    A side that ended in the folder to keep is read there and not run again.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(options.keep).resolve() if options.keep else Path(name)
        files = FILES[options.recipe](folder, options.seed)
        sides = {side: ended(side, files, folder, options) for side in options.sides}
    result: dict[str, Any] = {
        "machine": machine(),
        "threads": options.threads,
        "tuned_malloc": True,
        "minutes": options.minutes,
        "split_seed": options.seed,
        **sides,
    }
    if len(sides) == 2:
        for target in ("forces", "energy"):
            errors = [sides[side]["targets"][target]["rmse"] for side in SIDES]
            result["force_rmse_ratio" if target == "forces" else "energy_rmse_ratio"] = errors[0] / errors[1]
    finish(result, options.output or RESULTS / options.result)


def finish(result: dict[str, Any], output: Path) -> None:
    """Write the result and print it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_result(output, result)
    print(json.dumps(result, indent=1))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    commands.add_parser("setup", help="make .venv-mace").set_defaults(run=setup)
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--threads", type=int, default=2)
    both.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="one side alone gives no ratio")
    both.add_argument("--output", type=Path, help="JSON file instead of the one in benchmarks/results")
    timing = commands.add_parser("step", parents=[both], help="time one training step of both")
    timing.add_argument("--rounds", type=int, default=3, help="fresh processes per side, alternating")
    timing.add_argument("--warmup", type=int, default=3, help="steps before the timed ones, per process")
    timing.add_argument("--repeats", type=int, default=5, help="timed steps per process")
    timing.set_defaults(run=step)
    data = argparse.ArgumentParser(add_help=False, parents=[both])
    data.add_argument("--seed", type=int, default=0, help="seed of the split")
    data.add_argument(
        "--clock", choices=("perf_counter", "process_time"), default="perf_counter",
        help="what MACE's minutes are: processor time, with --threads 1, is for trying settings on a busy machine",
    )  # fmt: skip
    short = commands.add_parser("trials", parents=[data], help="short runs of MACE that choose its settings")
    short.add_argument("--minutes", type=float, default=2.0)
    short.add_argument("--changes", help="JSON list of the changes to try instead of those in this file")
    short.add_argument("--recipe", choices=list(FILES), default="rmd17_ethanol", help="whose data they are tried on")
    short.set_defaults(run=trials)
    for name, recipe, minutes in (("ethanol", "rmd17_ethanol", 10.0), ("threebpa", "threebpa", 30.0)):
        training = commands.add_parser(name, parents=[data], help="accuracy at equal time")
        training.add_argument("--minutes", type=float, default=minutes)
        training.add_argument("--settings", default="{}", help="JSON that replaces some of MACE's settings")
        training.add_argument("--pretrain", type=float, default=0.0, help="minutes of ours before the training file")
        training.add_argument(
            "--heat", type=int, default=0, help="hot configurations to make and learn first; 0: the embedded molecules"
        )
        training.add_argument("--replay", type=float, default=0.0, help="part of the draws that replay the hot ones")
        training.add_argument("--ours", nargs="*", default=[], help="further key=value words for `sciml train`")
        training.add_argument("--keep", help="folder for the split, runs and predictions")
        training.set_defaults(run=accuracy, recipe=recipe, result=f"mace_{name}.json")
    return parser.parse_args()


def check_words(options: argparse.Namespace) -> None:
    """Refuse words that would do nothing."""
    for word, needed in (("heat", "pretrain"), ("replay", "heat")):
        if getattr(options, word, 0) and not getattr(options, needed):
            raise PeerError(f"--{word} needs --{needed}, the {'minutes' if needed == 'pretrain' else 'configurations'}")


def main() -> int:
    """Run one comparison; 2 where something is missing."""
    options = parse()
    try:
        check_words(options)
        options.run(options)
    except PeerError as error:
        say(f"mace.py: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
