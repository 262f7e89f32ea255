"""Write the tables of the README from the files in benchmarks/results: python benchmarks/readme.py [--check]."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
NOT_MEASURED = {"gpu_accuracy_nvidia_h200.json": "Not measured yet."}
HOLDS = {True: "yes", False: "no", None: "not made"}
LIMIT = (
    "Of a copy: the bytes of the passes at the measured speed of a copy, by the time taken. The limit of a pass: these "
    "bytes, or its operations at the speed of a product of matrices, whichever takes longer; where the limit is much "
    "longer than the copy, arithmetic bounds the pass. The product is torch's: a kernel whose own is faster shows more "
    "than 100 %."
)
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def render() -> str:
    """The section between the markers: a table per results file; one that is not there is left out, or said to be
    missing where a reader would look for it.
    """
    parts = []
    for file, title, table in SECTIONS:
        path = RESULTS / file
        if path.exists():
            result = json.loads(path.read_text(encoding="utf-8"))
            parts.append(f"**{title}{_measured_on(result)}**\n\n{table(result)}")
        elif file in NOT_MEASURED:
            parts.append(f"**{title}**\n\n{NOT_MEASURED[file]}")
    return "\n\n".join(parts)


def _measured_on(result: dict[str, Any]) -> str:
    """The processor that a file names; a GPU is in the title."""
    machine = result.get("machine", {})
    processor = (machine.get("cpu") or machine.get("processor") or "").replace("(R)", "")
    vectors = f", {machine['vectors']}" if "vectors" in machine else ""
    return f" ({processor}{vectors})" if processor and "gpu" not in machine else ""


def main() -> int:
    """Rewrite the README, or with ``--check`` say by the exit code whether it is up to date."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    wanted = f"{before}{BEGIN}\n{render()}\n{END}{after}"
    if "--check" in sys.argv:
        return int(text != wanted)
    path.write_text(wanted, encoding="utf-8")
    return 0


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _quickstart(result: dict[str, Any]) -> str:
    rows = [
        [name, f"{row['value']:.3f}", f"{row['bound']:g}", "yes" if row["holds"] else "no"]
        for name, row in result["checks"].items()
    ]
    return _table(["on held-out samples", "measured", "bound", "holds"], rows)


def _step(result: dict[str, Any]) -> str:
    ours, mace = result["ours"], result["mace"]
    rows = [
        ["seconds a step", *(f"{side['median_seconds']:.3f}" for side in (ours, mace)), f"{result['speedup']:.1f}"],
        [
            "peak memory, MiB",
            *(f"{side['peak_memory_mib']:.0f}" for side in (ours, mace)),
            f"{result['peak_memory_ratio']:.1f}",
        ],
    ]
    return _table(["", "sciml", "mace-torch", "ratio"], rows)


def _ethanol(result: dict[str, Any]) -> str:
    rows = []
    for name, target, unit in (("forces", "forces", "meV/Å"), ("energy", "energy", "meV")):
        ours, mace = (1e3 * result[side]["targets"][target]["rmse"] for side in ("ours", "mace"))
        rows.append([f"{name} RMSE, {unit}", f"{ours:.1f}", f"{mace:.1f}", f"{ours / mace:.2f}"])
    table = _table(["", "sciml", "mace-torch", "ratio"], rows)
    before, hot = result["ours"].get("minutes_before"), result["ours"].get("heated_configurations")
    if not before:
        return table
    learned = "the embedded molecules"
    if hot:
        learned = f"{hot:,} hot configurations of the molecule, which it makes with `sciml heat` in that time"
    return (
        f"{table}\n\nsciml: {before:g} of its minutes for {learned}, the others from there. mace-torch learns from the "
        "file alone."
    )


def _top_tagging(result: dict[str, Any]) -> str:
    names = {"accuracy": ".4f", "auc": ".5f", "rejection_30%": ".0f", "rejection_50%": ".1f"}
    cells = [
        f"{row['mean']:{digits}} ± {row['std']:{digits}}"
        for row, digits in ((result["over_seeds"][name], digits) for name, digits in names.items())
    ]
    header = ["", "accuracy", "AUC", "1 / background efficiency at 30 %", "at 50 %"]
    return _table(header, [[f"sciml, {len(result['runs'])} seeds", *cells]])


def _discovery(result: dict[str, Any]) -> str:
    rows = [
        [name.replace("_", " "), *(f"{values[key]:.3f}" for key in ("F1", "DAF", "precision", "MAE", "R2"))]
        for name, values in result.items()
        if isinstance(values, dict)
    ]
    singles = ", ".join(f"{key} {result[key]:.3f}" for key in ("RMSD", "kappa_SRME", "kappa_SRE") if key in result)
    table = _table(["materials", "F1", "DAF", "precision", "MAE, eV/atom", "R²"], rows)
    return f"{table}\n\n{singles}" if singles else table


def _store(result: dict[str, Any]) -> str:
    wall, processor, sizes = result["wall_clock"], result["processor_time"], result["megabytes"]
    rows = [
        [
            name.replace("_", " "),
            *(_rate(clock["records_per_second"], name) for clock in (wall, processor)),
            f"{sizes[name]:.0f}",
        ]
        for name in ("store", "lmdb_pickle", "ase_sqlite")
    ]
    return _table(["reader", "records/s, wall clock", "records/s, processor time", "MB"], rows)


def _rate(speeds: dict[str, int], name: str) -> str:
    """Records per second, and how many times ASE's sqlite by the same clock."""
    times = "" if name == "ase_sqlite" else f" ({speeds[name] / speeds['ase_sqlite']:.0f}x ASE sqlite)"
    return f"{speeds[name]:,}{times}"


def _tuned(result: dict[str, Any]) -> str:
    """The convolution in its best configuration beside the limit, and conv_radial beside the weights in memory."""
    rows = []
    for one in result["passes"]:
        if "limit_ms" in one:
            best = min(one["times"], key=lambda time: time["ms"])
            warps = "1 warp" if best["warps"] == 1 else f"{best['warps']} warps"
            used = f"{best['values']} values, {warps}, {best['stages']} in flight"
            share = one["limit_ms"] / best["ms"]
            rows.append(
                [one["problem"], one["pass"], used, f"{best['ms']:.2f}", f"{one['limit_ms']:.2f}", f"{share:.0%}"]
            )
    table = _table(["problem", "pass", "configuration", "ms", "limit, ms", "of the limit"], rows)
    return (
        f"{table}\n\nWith the radial layer inside, problem 1, products of fp32: {_radial(result)}. These kernels serve "
        "in a pass where they are the faster way."
    )


def _radial(result: dict[str, Any]) -> str:
    """Each pass beside that with the weights in memory."""
    sums: dict[str, float] = {}
    texts = []
    for one in result["passes"]:
        if one["radial"]:
            sums[one["pass"]] = sums.get(one["pass"], 0.0) + min(time["ms"] for time in one["times"])
        if "with_weights_in_memory_ms" in one:
            apart, tf32 = (one[f"with_weights_in_memory_{name}"] for name in ("ms", "tf32_ms"))
            texts.append(
                f"{one['pass']} {sums[one['pass']]:.1f} ms, with weights in memory {apart:.1f} (TF32 {tf32:.1f})"
            )
    return "; ".join(texts)


def _gpu_step(result: dict[str, Any]) -> str:
    """Atoms a second of each side that ran, by precision."""
    rows = []
    for precision, found in result["comparison"].items():
        for side, rate in found["atoms_per_second"].items():
            memory = f"{found['peak_memory_mib'][side]:,.0f}"
            rows.append(
                [side, {"highest": "fp32", "high": "TF32"}[precision], found["mode"][side], f"{rate:,.0f}", memory]
            )
    for side in ("cuequivariance", "openequivariance"):
        if "skipped" in result[side]:
            rows.append([side, "", "", f"not measured: {result[side]['skipped']}", ""])
    return _table(["", "matrix products", "step", "atoms/s", "peak memory, MiB"], rows)


def _kernels(result: dict[str, Any]) -> str:
    """One line for each problem and each library, or other way, that was measured beside ours; then why others were
    not.
    """
    rows: list[list[str]] = []
    reasons: dict[str, list[str]] = {}
    for row in result["rows"]:
        peers = [name for name in row["errors"] if name != "ours"]
        own = [f"{row['problem']} ({row['name']})", *_own_passes(row)]
        for index, peer in enumerate(peers or ["none"]):
            rows.append([*(own if index == 0 else [""] * 4), *_beside(row, peer)])
        for peer, reason in row["skipped"].items():
            if reason != "not asked for":
                reason = "not installed" if "is not installed" in reason else reason
                reasons.setdefault(f"{peer} was not measured: {reason}", []).append(row["problem"])
    header = ["problem", "sciml_kernels, ms", "of a copy", "of the limit"]
    table = _table([*header, "peer", "peer, ms", "times", "peak memory, times"], rows)
    notes = [
        f"{reason} (problem{'s' * (len(problems) > 1)} {', '.join(problems)})." for reason, problems in reasons.items()
    ]
    return "\n\n".join([table, *notes, LIMIT])


def _own_passes(row: dict[str, Any]) -> list[str]:
    """Our times and their shares of the limits, none where the result was wrong."""
    if "ours_ms" not in row:
        return [f"wrong: off by {row['errors'].get('ours', float('nan')):.2g} times the largest entry", "", ""]
    return [_passes(row["ours_ms"]), f"{100 * row['of_copy']:.0f} %", f"{100 * row['of_limit']:.0f} %"]


def _beside(row: dict[str, Any], peer: str) -> list[str]:
    """A library's times by ours, or by how much its result was wrong."""
    if f"{peer}_ms" not in row or "ours_ms" not in row:
        error = row["errors"].get(peer)
        said = "" if error is None else f"not timed, wrong: off by {error:.2g} times the largest entry"
        return [peer, said, "", ""]
    theirs, memory = row[f"{peer}_ms"], row[f"{peer}_memory"]["peak_MB"] / row["ours_memory"]["peak_MB"]
    return [peer, _passes(theirs), _times(sum(theirs.values()) / sum(row["ours_ms"].values())), _times(memory)]


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _passes(times: dict[str, float]) -> str:
    return " / ".join(_milliseconds(times[order]) for order in ("forward", "backward", "double"))


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _ts50(result: dict[str, Any]) -> str:
    mean = {name: values[0] for name, values in result["summary"].items()}
    spread = {name: values[1] for name, values in result["summary"].items()}
    rows = [
        ["sciml", f"{mean['recovery']:.3f} ± {spread['recovery']:.3f}", f"{mean['cross_entropy']:.3f}"],
        [
            "commonest type / composition of the training data",
            f"{mean['baseline_recovery']:.3f}",
            f"{mean['baseline_cross_entropy']:.3f}",
        ],
    ]
    return _table(["ten test proteins, three seeds", "recovery", "cross-entropy, nats"], rows)


def _written(result: dict[str, Any]) -> str:
    """The table that the benchmark itself wrote: its header, then its rows."""
    return _table(result["text"][0], result["text"][1:])


def _several(result: dict[str, Any]) -> str:
    """Several tables under their names."""
    return "\n\n".join(f"*{name}*\n\n{_table(lines[0], lines[1:])}" for name, lines in result["text"].items())


def _gpu_accuracy(result: dict[str, Any]) -> str:
    """A table of each set with the published figures, and what tells them apart."""
    return f"{_several(result)}\n\n{result['note']}"


def _atoms(result: dict[str, Any]) -> str:
    """Processor time per atom of both parts, and what it comes to."""
    rows = [
        [
            f"{row['atoms']:,}",
            *(f"{1e6 * row[part]['cpu_seconds'] / row['atoms']:.0f}" for part in ("short_range", "reciprocal")),
        ]
        for row in result["rows"]
    ]
    checks = [
        f"{name}: {values['cpu_seconds']:.2f}, at most {values['bound']:g}" for name, values in result["checks"].items()
    ]
    header = ["atoms", "short range, µs an atom", "reciprocal block, µs an atom"]
    return f"{_table(header, rows)}\n\n{'; '.join(checks).capitalize()}."


def _compiled(result: dict[str, Any]) -> str:
    """Eager and compiled steps of each kind of graph, on each device that was measured."""
    rows = [
        [
            f"{kind}, {device.upper()}",
            f"{row['edges']:,}",
            f"{1e3 * row['eager_seconds']:.0f}",
            f"{1e3 * row['compiled_seconds']:.0f}",
            f"{row['ratio']:.2f}",
            f"{row['compilation_seconds']:.0f}",
            f"{row['gradient_difference']:.0e}",
        ]
        for device, found in result.items()
        for kind, row in found["kinds"].items()
    ]
    header = ["graphs", "edges", "eager, ms", "compiled, ms", "times", "to compile, s", "gradients differ by"]
    return _table(header, rows)


def _compile_report(result: dict[str, Any]) -> str:
    """By operation: its Triton kernels, and the worst of them on each target."""
    rows = []
    for operation in dict.fromkeys(row["operation"] for row in result["rows"]):
        kernels = [k for row in result["rows"] if row["operation"] == operation for k in row["kernels"]]
        targets = list(dict.fromkeys(kernel["target"] for kernel in kernels))
        most = [max(k["registers"] for k in kernels if k["target"] == target) for target in targets]
        rows.append(
            [
                operation,
                f"{len(kernels) // len(targets)}",
                " / ".join(map(str, most)),
                str(sum(kernel["spills"] for kernel in kernels)),
                f"{max(kernel['seconds'] for kernel in kernels):.1f}",
            ]
        )
    header = [
        "operation",
        "kernels",
        f"most registers, {' / '.join(targets)}",
        "bytes spilled",
        "slowest to compile, s",
    ]
    return _table(header, rows)


def _faults(result: dict[str, Any]) -> str:
    """One line a fault; a short suite says that its sweeps were short."""
    rows = [
        [str(row["number"]), row["fault"], row["expectation"], row["figure"], HOLDS[row["passed"]]]
        for row in result["rows"]
    ]
    return _table(["", "fault", "expected", "found", "holds"], rows)


def _scaling(result: dict[str, Any]) -> str:
    """What two ranks cost and send, how even the plan's ranks are, and what the projection makes of it."""

    def times(name: str, row: dict[str, Any]) -> float:
        single = "single, direct forces on 1" if "direct forces" in name else "single on 1"
        return row["edges_per_second"] / result["measured"][single]["edges_per_second"]

    measured = [
        [
            name,
            f"{1e3 * row['seconds_per_step']:.0f}",
            f"{times(name, row):.2f}",
            f"{row['bytes_sent_per_step'] / 1e6:.1f}",
            f"{row['bytes_by_formula'] / 1e6:.1f}" if "bytes_by_formula" in row else "",
        ]
        for name, row in result["measured"].items()
    ]
    header = ["ranks", "ms a step", "edges/s, times one rank", "MB sent a step and rank", "MB by formula"]
    loads = [
        [ranks, f"{row['largest']:.3f}", f"{1e3 * row['seconds_to_plan_a_step']:.0f}"]
        for ranks, row in result["load"].items()
    ]
    middle = [
        row for row in result["projection"]["rows"] if (row["parameters"], row["seconds_of_a_step"]) == (1e7, 0.2)
    ]
    projected = [
        [row["strategy"], *(f"{100 * row['efficiency'][ranks]:.0f} %" for ranks in result["load"])] for row in middle
    ]
    return "\n\n".join(
        (
            _table(header, measured),
            _table(["ranks", "edges of the busiest / mean", "ms to plan a step"], loads),
            "Projected, not measured: efficiency of weak scaling with 10 million parameters and 0.2 s a step, from "
            "those loads, messages by formula, and the bandwidths assumed in `results/scaling.json`.",
            _table(["strategy", *result["load"]], projected),
        )
    )


SECTIONS: list[tuple[str, str, Callable[[dict[str, Any]], str]]] = [
    ("quickstart.json", "The quickstart, 2 CPU cores", _quickstart),
    *(
        (
            f"mace_step{suffix}.json",
            "A training step beside eager mace-torch, 128 atoms, 6,722 edges, 2 layers, 128 channels, 2 cores",
            _step,
        )
        for suffix in ("", "_avx2")
    ),
    (
        "mace_ethanol.json",
        "rMD17 ethanol, 950 training configurations, ten minutes on 2 CPU cores each, 1,000 test configurations",
        _ethanol,
    ),
    (
        "mace_threebpa.json",
        "3BPA, trained on 450 configurations at 300 K, half an hour on 2 CPU cores each, tested up to 1200 K",
        _ethanol,
    ),
    ("nve.json", "NVE runs of 10 ps at 300 K, after twelve minutes of training on one CPU core", _written),
    (
        "gpu_accuracy_nvidia_h200.json",
        "rMD17 ethanol and 3BPA, from random weights and from the base model, about six minutes each on a GPU",
        _gpu_accuracy,
    ),
    ("store.json", "Reading records at random, one process, about 45 atoms each", _store),
    *(
        (
            f"kernels_cpu{suffix}.json",
            "Forward / backward / double backward of the kernels, 128 nodes, 6,600 edges (6: 250,000), fp32, 2 cores",
            _kernels,
        )
        for suffix in ("", "_avx2")
    ),
    (
        "kernels_nvidia_h200.json",
        "The same on an H200, 5,000 nodes, 250,000 edges (other problems: not measured yet)",
        _kernels,
    ),
    (
        "tune_nvidia_h200.json",
        "Passes of the Triton convolution on an H200, kernels alone, 5,000 nodes, 250,000 edges, fp32",
        _tuned,
    ),
    ("gpu_step_nvidia_h200.json", "A training step on an H200, 5,000 atoms, 2 layers, 128 channels", _gpu_step),
    ("kernels_compile.json", "The Triton kernels, compiled for GPUs without one", _compile_report),
    ("compile.json", "A training step of `model=small` by torch.compile beside the eager one", _compiled),
    ("scaling_atoms.json", "Periodic crystals, one CPU thread, processor time", _atoms),
    (
        "transfer.json",
        "Pretraining: the same steps on the same embedded samples, mean ± standard deviation over seeds",
        _written,
    ),
    (
        "ablation.json",
        "The model without each of its parts, equal wall-clock time, all domains together (ratio to the whole model)",
        _written,
    ),
    (
        "ts50.json",
        "Residue types from the backbone, trained on the embedded peptides and 40 of the 50 proteins of TS50 alone",
        _ts50,
    ),
    (
        "finetune.json",
        "Fine-tuning with few labels, equal wall-clock time, mean ± deviation over seeds, from a base of the embedded "
        "data and 250 made-up backbones",
        _several,
    ),
    ("matbench_discovery.json", "Matbench Discovery", _discovery),
    ("top_tagging.json", "Top tagging, mean ± standard deviation over seeds", _top_tagging),
    (
        "width.json",
        "Learning rate and width: the loss at the rate that is chosen at 32 channels over that at the width's own best",
        _written,
    ),
    ("scaling.json", "Several ranks: two measured on 2 CPU cores, the plan of batches to 1,024", _scaling),
    ("faults.json", "Faults, made in real processes (`sciml doctor faults=thorough`)", _faults),
]

if __name__ == "__main__":
    sys.exit(main())
