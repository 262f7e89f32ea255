"""The tables of the README, one function for each kind of file in benchmarks/results: from its content to Markdown."""

from typing import Any

HOLDS = {True: "yes", False: "no", None: "not made"}
LIMIT = (
    "Of a copy: the bytes of the passes at the measured speed of a copy, by the time taken. The limit of a pass: these "
    "bytes, or its operations at the speed of a product of matrices, whichever takes longer; where the limit is much "
    "longer than the copy, arithmetic bounds the pass. The product is torch's: a kernel whose own is faster shows more "
    "than 100 %."
)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Rows of cells under a header."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quickstart(result: dict[str, Any]) -> str:
    """What was measured of each domain beside the bound that it must keep."""
    rows = [
        [name, f"{row['value']:.3f}", f"{row['bound']:g}", "yes" if row["holds"] else "no"]
        for name, row in result["checks"].items()
    ]
    return markdown(["on held-out samples", "measured", "bound", "holds"], rows)


def step(result: dict[str, Any]) -> str:
    """Time and memory of a training step, ours and that of eager mace-torch."""
    ours, mace = result["ours"], result["mace"]
    rows = [
        ["seconds a step", *(f"{side['median_seconds']:.3f}" for side in (ours, mace)), f"{result['speedup']:.1f}"],
        [
            "peak memory, MiB",
            *(f"{side['peak_memory_mib']:.0f}" for side in (ours, mace)),
            f"{result['peak_memory_ratio']:.1f}",
        ],
    ]
    return markdown(["", "sciml", "mace-torch", "ratio"], rows)


def ethanol(result: dict[str, Any]) -> str:
    """Errors of the test configurations, ours and those of mace-torch after equal time."""
    rows = []
    for name, target, unit in (("forces", "forces", "meV/Å"), ("energy", "energy", "meV")):
        ours, mace = (1e3 * result[side]["targets"][target]["rmse"] for side in ("ours", "mace"))
        rows.append([f"{name} RMSE, {unit}", f"{ours:.1f}", f"{mace:.1f}", f"{ours / mace:.2f}"])
    table = markdown(["", "sciml", "mace-torch", "ratio"], rows)
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


def top_tagging(result: dict[str, Any]) -> str:
    """The row of the leaderboard."""
    names = {"accuracy": ".4f", "auc": ".5f", "rejection_30%": ".0f", "rejection_50%": ".1f"}
    cells = [
        f"{row['mean']:{digits}} ± {row['std']:{digits}}"
        for row, digits in ((result["over_seeds"][name], digits) for name, digits in names.items())
    ]
    header = ["", "accuracy", "AUC", "1 / background efficiency at 30 %", "at 50 %"]
    return markdown(header, [[f"sciml, {len(result['runs'])} seeds", *cells]])


def discovery(result: dict[str, Any]) -> str:
    """F1 and the other metrics by part of the test set, then those of structures and conductivities."""
    rows = [
        [name.replace("_", " "), *(f"{values[key]:.3f}" for key in ("F1", "DAF", "precision", "MAE", "R2"))]
        for name, values in result.items()
        if isinstance(values, dict)
    ]
    singles = ", ".join(f"{key} {result[key]:.3f}" for key in ("RMSD", "kappa_SRME", "kappa_SRE") if key in result)
    table = markdown(["materials", "F1", "DAF", "precision", "MAE, eV/atom", "R²"], rows)
    return f"{table}\n\n{singles}" if singles else table


def store(result: dict[str, Any]) -> str:
    """Records a second of each reader."""
    wall, processor, sizes = result["wall_clock"], result["processor_time"], result["megabytes"]
    rows = [
        [
            name.replace("_", " "),
            *(_rate(clock["records_per_second"], name) for clock in (wall, processor)),
            f"{sizes[name]:.0f}",
        ]
        for name in ("store", "lmdb_pickle", "ase_sqlite")
    ]
    return markdown(["reader", "records/s, wall clock", "records/s, processor time", "MB"], rows)


def _rate(speeds: dict[str, int], name: str) -> str:
    """Records per second, and how many times ASE's sqlite by the same clock."""
    times = "" if name == "ase_sqlite" else f" ({speeds[name] / speeds['ase_sqlite']:.0f}x ASE sqlite)"
    return f"{speeds[name]:,}{times}"


def tuned(result: dict[str, Any]) -> str:
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
    table = markdown(["problem", "pass", "configuration", "ms", "limit, ms", "of the limit"], rows)
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


def gpu_step(result: dict[str, Any]) -> str:
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
    return markdown(["", "matrix products", "step", "atoms/s", "peak memory, MiB"], rows)


def kernels(result: dict[str, Any]) -> str:
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
    table = markdown([*header, "peer", "peer, ms", "times", "peak memory, times"], rows)
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


def ts50(result: dict[str, Any]) -> str:
    """Recovery and cross-entropy beside the composition of the training data."""
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
    return markdown(["ten test proteins, three seeds", "recovery", "cross-entropy, nats"], rows)


def written(result: dict[str, Any]) -> str:
    """The table that the benchmark itself wrote: its header, then its rows."""
    return markdown(result["text"][0], result["text"][1:])


def several(result: dict[str, Any]) -> str:
    """Several tables under their names."""
    return "\n\n".join(f"*{name}*\n\n{markdown(lines[0], lines[1:])}" for name, lines in result["text"].items())


def gpu_accuracy(result: dict[str, Any]) -> str:
    """A table of each set with the published figures, and what tells them apart."""
    return f"{several(result)}\n\n{result['note']}"


def atoms(result: dict[str, Any]) -> str:
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
    return f"{markdown(header, rows)}\n\n{'; '.join(checks).capitalize()}."


def compiled(result: dict[str, Any]) -> str:
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
    return markdown(header, rows)


def compile_report(result: dict[str, Any]) -> str:
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
    return markdown(header, rows)


def faults(result: dict[str, Any]) -> str:
    """One line a fault; a short suite says that its sweeps were short."""
    rows = [
        [str(row["number"]), row["fault"], row["expectation"], row["figure"], HOLDS[row["passed"]]]
        for row in result["rows"]
    ]
    return markdown(["", "fault", "expected", "found", "holds"], rows)


def scaling(result: dict[str, Any]) -> str:
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
            markdown(header, measured),
            markdown(["ranks", "edges of the busiest / mean", "ms to plan a step"], loads),
            "Projected, not measured: efficiency of weak scaling with 10 million parameters and 0.2 s a step, from "
            "those loads, messages by formula, and the bandwidths assumed in `results/scaling.json`.",
            markdown(["strategy", *result["load"]], projected),
        )
    )
