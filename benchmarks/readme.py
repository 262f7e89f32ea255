"""Write the tables of the README from the files in benchmarks/results: python benchmarks/readme.py [--check]."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import readme_tables as tables

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
NOT_MEASURED = {"gpu_accuracy_nvidia_h200.json": "Not measured yet."}
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


SECTIONS: list[tuple[str, str, Callable[[dict[str, Any]], str]]] = [
    ("quickstart.json", "The quickstart, 2 CPU cores", tables.quickstart),
    *(
        (
            f"mace_step{suffix}.json",
            "A training step beside eager mace-torch, 128 atoms, 6,722 edges, 2 layers, 128 channels, 2 cores",
            tables.step,
        )
        for suffix in ("", "_avx2")
    ),
    (
        "mace_ethanol.json",
        "rMD17 ethanol, 950 training configurations, ten minutes on 2 CPU cores each, 1,000 test configurations",
        tables.ethanol,
    ),
    (
        "mace_threebpa.json",
        "3BPA, trained on 450 configurations at 300 K, half an hour on 2 CPU cores each, tested up to 1200 K",
        tables.ethanol,
    ),
    ("nve.json", "NVE runs of 10 ps at 300 K, after twelve minutes of training on one CPU core", tables.written),
    (
        "gpu_accuracy_nvidia_h200.json",
        "rMD17 ethanol and 3BPA, from random weights and from the base model, about six minutes each on a GPU",
        tables.gpu_accuracy,
    ),
    ("store.json", "Reading records at random, one process, about 45 atoms each", tables.store),
    *(
        (
            f"kernels_cpu{suffix}.json",
            "Forward / backward / double backward of the kernels, 128 nodes, 6,600 edges (6: 250,000), fp32, 2 cores",
            tables.kernels,
        )
        for suffix in ("", "_avx2")
    ),
    (
        "kernels_nvidia_h200.json",
        "The same on an H200, 5,000 nodes, 250,000 edges (other problems: not measured yet)",
        tables.kernels,
    ),
    (
        "tune_nvidia_h200.json",
        "Passes of the Triton convolution on an H200, kernels alone, 5,000 nodes, 250,000 edges, fp32",
        tables.tuned,
    ),
    ("gpu_step_nvidia_h200.json", "A training step on an H200, 5,000 atoms, 2 layers, 128 channels", tables.gpu_step),
    ("kernels_compile.json", "The Triton kernels, compiled for GPUs without one", tables.compile_report),
    ("compile.json", "A training step of `model=small` by torch.compile beside the eager one", tables.compiled),
    ("scaling_atoms.json", "Periodic crystals, one CPU thread, processor time", tables.atoms),
    (
        "transfer.json",
        "Pretraining: the same steps on the same embedded samples, mean ± standard deviation over seeds",
        tables.written,
    ),
    (
        "ablation.json",
        "The model without each of its parts, equal wall-clock time, all domains together (ratio to the whole model)",
        tables.written,
    ),
    (
        "ts50.json",
        "Residue types from the backbone, trained on the embedded peptides and 40 of the 50 proteins of TS50 alone",
        tables.ts50,
    ),
    (
        "finetune.json",
        "Fine-tuning with few labels, equal wall-clock time, mean ± deviation over seeds, from a base of the embedded "
        "data and 250 made-up backbones",
        tables.several,
    ),
    ("matbench_discovery.json", "Matbench Discovery", tables.discovery),
    ("top_tagging.json", "Top tagging, mean ± standard deviation over seeds", tables.top_tagging),
    (
        "width.json",
        "Learning rate and width: the loss at the rate that is chosen at 32 channels over that at the width's own best",
        tables.written,
    ),
    ("scaling.json", "Several ranks: two measured on 2 CPU cores, the plan of batches to 1,024", tables.scaling),
    ("faults.json", "Faults, made in real processes (`sciml doctor faults=thorough`)", tables.faults),
]

if __name__ == "__main__":
    sys.exit(main())
